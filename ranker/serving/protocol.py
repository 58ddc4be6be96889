"""HTTP/1.1 as uvicorn and httptools read it, with a bound on what is not body.

Neither limits the length of an address, of headers or of a chunked body's trailers, so
one connection could fill the memory.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OTHER_BYTES = 1 << 18  # of a request beside its body


class Protocol(HttpToolsProtocol):
    """Ends a connection whose request has too many bytes beside its body."""

    _other = 0

    def on_message_begin(self) -> None:
        """A request begins."""
        self._other = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Part of a body, which the application bounds."""
        self._other -= len(body)
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """Bytes of a connection."""
        self._other += len(data)
        super().data_received(data)
        if self._other > _OTHER_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's address and headers are too long.")
