"""Traces of requests by OpenTelemetry, sent by OTLP over HTTP."""

import os
from collections.abc import Callable
from typing import Any

from ranker.errors import ConfigError

QUIET = "health,ready,metrics"  # parts of paths that leave no trace


def traced(app: Any) -> tuple[Any, Callable[[], None]]:
    """The application with a span for each request, and what sends the last ones.

    Server, service name and sampling are OpenTelemetry's own environment variables:
    OTEL_EXPORTER_OTLP_ENDPOINT (http://localhost:4318 unless set), OTEL_SERVICE_NAME
    ("ranker" unless set), OTEL_TRACES_SAMPLER and so on. A request's `traceparent` is
    continued. No body, key or other header is recorded.

    Args:
      app: an ASGI application.

    Raises:
      ConfigError: when the extra `otel` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.util.http import parse_excluded_urls
    except ModuleNotFoundError as error:
        raise ConfigError("--otel needs pip install 'ranker[otel]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME") or "ranker"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    wrapped = OpenTelemetryMiddleware(
        app,
        excluded_urls=parse_excluded_urls(QUIET),
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )
    return wrapped, provider.shutdown
