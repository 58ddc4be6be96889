"""Serves an exported ranker over HTTP, with the APIs that search engines use.

python -m ranker.serve FOLDER --port 8080
"""

import argparse
import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ranker import cli

_GRACE = 0.5  # seconds for connections that were taken to send their requests
_FILES = 1 << 16  # open files, connections among them
_BACKLOG = 1 << 16  # connections not taken yet; the kernel allows fewer (somaxconn)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is told to end; returns 0, or 1 where it could not start."""
    given = make_parser().parse_args(arguments)
    status = 1

    def run() -> None:
        nonlocal status
        status = _serve(given)

    cli.sentences(run)
    return status


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ranker.serve",
        description="Serves an exported ranker: /rerank with the APIs of Text "
        "Embeddings Inference, Cohere, Jina, infinity and vLLM. See docs/serving.md.",
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path, help="written by ranker.export or model.save")
    add("--host", default="127.0.0.1", help="address; 0.0.0.0: all (%(default)s)")
    add("--port", type=int, default=8080, help="(default %(default)s)")
    runtimes = ["auto", "jax", "onnxruntime", "openvino"]
    add("--runtime", choices=runtimes, default="auto", help="(default %(default)s)")
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16", "int8", "int8_dynamic", "int8_mixed"],
        default="auto",
        help="auto: the fastest that the contract has accepted",
    )
    add("--workers", type=int, default=0, help="scoring threads; 0: one per core")
    add("--api-key-file", type=pathlib.Path, metavar="F", help="keys, one per line")
    add("--max-queue-tokens", type=int, default=1 << 18, help="tokens (%(default)s)")
    add("--max-wait", type=float, default=10.0, help="seconds in queue (%(default)s)")
    add("--max-body", type=int, default=8 << 20, help="bytes each (%(default)s)")
    add(
        "--max-bodies",
        type=int,
        default=64 << 20,
        help="bytes of all unanswered requests together (%(default)s)",
    )
    add("--max-documents", type=int, default=10_000, help="each (%(default)s)")
    add("--drain", type=float, default=1.0, help="seconds to serve after SIGTERM")
    add("--first", type=pathlib.Path, help="folder of a smaller model to run first")
    add("--keep", type=int, default=100, help="texts that --first keeps (%(default)s)")
    add("--otel", action="store_true", help="trace requests with OpenTelemetry")
    return parser


def _serve(given: argparse.Namespace) -> int:
    from ranker import errors

    try:
        import uvicorn

        from ranker.serving import server, starting, tracing
        from ranker.serving.batching import Limits
        from ranker.serving.protocol import Protocol
    except ModuleNotFoundError as error:
        raise errors.ConfigError(
            f"{error.name} is not installed: pip install 'ranker[serve]'"
        ) from error
    limits = Limits(
        queue_tokens=given.max_queue_tokens,
        wait_seconds=given.max_wait,
        body_bytes=given.max_body,
        all_bytes=given.max_bodies,
        documents=given.max_documents,
    )
    state = server.State(limits, server.read_keys(given.api_key_file))
    problems: list[Exception] = []

    def start() -> Any:
        how: dict[str, Any] = {
            "runtime": given.runtime,
            "precision": given.precision,
            "workers": given.workers,
            "limits": limits,
        }
        if given.first is None:
            return starting.start(given.folder, **how)
        return starting.start_cascade(given.folder, given.first, given.keep, **how)

    def on_problem(error: Exception) -> None:
        problems.append(error)
        running.should_exit = True

    app: Any = server.make_app(state, start, on_problem)
    app, send_traces = tracing.traced(app) if given.otel else (app, lambda: None)
    settings = uvicorn.Config(
        app,
        host=given.host,
        port=given.port,
        log_level="warning",
        access_log=False,  # a request's headers hold keys, its body texts
        timeout_keep_alive=75,
        backlog=_BACKLOG,
        http=Protocol,
    )
    raise_open_files()
    running = _make_server()(settings, state, given.drain)
    running.run()
    send_traces()
    if problems:
        raise problems[0]
    return 0 if running.started else 1


def raise_open_files() -> None:
    """Lets this process have as many connections as it may: shells allow 1,024 or so.

    Each request that waits in the queue keeps one, and files beyond the limit make a
    server deaf, not busy.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ImportError, OSError, ValueError):
        return  # the limit stays as the system set it


def _make_server() -> type:
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        """A server that drains: not ready first, then no new connection, then none."""

        def __init__(self, settings: Any, state: Any, drain: float):
            super().__init__(settings)
            self._state, self._drain = state, drain

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Handles SIGTERM and SIGINT in the loop; the process ends with 0."""
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._end, loop)
            yield

        async def shutdown(self, sockets: Any = None) -> None:
            """Takes no new connection, lets the others send and read, then closes.

            Without the pause a connection that was just taken would be closed before
            its request is read.
            """
            for server in self.servers:
                server.close()
            self._state.closing = True
            await asyncio.sleep(_GRACE)
            await super().shutdown(sockets)

        def _end(self, loop: Any) -> None:
            if self._state.draining:
                self.should_exit = True
                return
            self._state.draining = True
            print("[serve] draining", file=sys.stderr, flush=True)
            loop.call_later(self._drain, setattr, self, "should_exit", True)

    return Server


if __name__ == "__main__":
    raise SystemExit(main())
