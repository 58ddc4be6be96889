"""Requests leave spans with an OpenTelemetry collector, and no text or key."""

import http.server
import threading

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ranker.serving.tracing import traced


@pytest.fixture
def collector(monkeypatch):
    """What a collector on this machine has been sent."""
    sent = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["content-length"]))
            sent.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    yield sent
    server.shutdown()
    server.server_close()


def test_a_request_is_a_span_of_its_callers_trace(collector):
    routes = [
        Route(path, lambda request: PlainTextResponse("ok"), methods=["GET", "POST"])
        for path in ("/rerank", "/health", "/ready", "/metrics")
    ]
    app, send = traced(Starlette(routes=routes))
    client = TestClient(app)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {
        "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
        "authorization": "Bearer a-key",
    }
    assert client.post("/rerank", json={"query": "a text"}, headers=headers).text
    for path in ("/health", "/ready", "/metrics"):
        client.get(path)
    send()
    [(path, body)] = collector
    assert path == "/v1/traces" and b"a-key" not in body and b"a text" not in body
    [found] = trace_service_pb2.ExportTraceServiceRequest.FromString(
        body
    ).resource_spans
    names = {one.key: one.value.string_value for one in found.resource.attributes}
    assert names["service.name"] == "ranker"
    [span] = found.scope_spans[0].spans
    assert span.trace_id.hex() == trace and span.name == "POST /rerank"
