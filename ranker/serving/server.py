"""The HTTP server: routes, limits, keys, metrics, and how it starts and ends.

It is ready once every shape is compiled and the golden pairs score as the contract
says. Told to end, it says that it is not ready, goes on serving for a while, and then
finishes what it has taken.
"""

import asyncio
import contextlib
import hmac
import json
import pathlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import ranker
from ranker.errors import DataError
from ranker.metrics import cascade
from ranker.serving import forms, openapi, packed
from ranker.serving.batching import Batcher, Full, Limits
from ranker.serving.contract import Contract
from ranker.serving.forms import Refused, Request, Scored
from ranker.serving.metrics import Metrics
from ranker.serving.runtimes import Runtime
from ranker.serving.texts import TextEncoder, TokenizedRequest

Calibrate = Callable[[np.ndarray], np.ndarray]

_DIGITS = 300  # of a whole number


@dataclass(frozen=True)
class Served:
    """A model that is ready to score."""

    contract: Contract
    runtime: Runtime
    encoder: TextEncoder
    calibration: Calibrate | None = None
    first: "Served | None" = None  # a cheaper model that sees all candidates
    keep: int = 0  # candidates that it leaves to this one
    batcher: Batcher | None = None  # of the first model; the state has this one's

    @property
    def kind(self) -> str:
        """What an answer's scores are, unless raw ones are asked for."""
        return "calibrated" if self.calibration else "sigmoid"


@dataclass
class State:
    """What changes while the server runs."""

    limits: Limits
    keys: tuple[bytes, ...] = ()
    served: Served | None = None
    batcher: Batcher | None = None
    draining: bool = False
    closing: bool = False  # no new connection is taken; each answer is the last of one
    held: int = 0  # bytes of requests that are not answered yet
    problem: str = ""  # why it does not start
    metrics: Metrics = field(default_factory=Metrics)


def probabilities(raw: np.ndarray, calibration: Calibrate | None) -> list[float]:
    """Probabilities in float64: in float32 a sigmoid would make close scores equal."""
    x = raw.astype(np.float64)
    if calibration is not None:
        return np.asarray(calibration(x), np.float64).tolist()
    return (0.5 * (1 + np.tanh(0.5 * x))).tolist()


# --- answering ------------------------------------------------------------------------


def _refusal(status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    """An error in all forms at once: each client reads a field of its own."""
    message = forms.clean(message)  # it may quote what a client sent
    body = {
        "error": message,  # Text Embeddings Inference
        "error_type": kind,
        "message": message,  # Cohere
        "detail": message,  # Jina
    }
    return JSONResponse(body, status, headers=headers)


def _full(error: Full) -> JSONResponse:
    wait = str(error.retry_after)
    return _refusal(429, "Overloaded", str(error), **{"retry-after": wait})


class _Held:
    """Counts what a request keeps in memory until it is answered."""

    def __init__(self, state: State):
        self._state, self._bytes = state, 0

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: Any) -> None:
        self._state.held -= self._bytes

    def add(self, size: int) -> None:
        """Takes room for more bytes; a request that is alone always fits.

        Raises:
          Full: when all requests together have too many.
        """
        others, most = self._state.held - self._bytes, self._state.limits.all_bytes
        if others and self._state.held + size > most:
            raise Full(
                f"requests of {others} bytes are being answered, and at most {most} "
                "bytes may be at once",
                1,
            )
        self._bytes += size
        self._state.held += size


async def _read(request: HttpRequest, limits: Limits, held: _Held) -> bytes:
    """The body, refused before it is whole where it is too large.

    Raises:
      Refused: 413; 415 for a compressed one.
      Full: when other requests' bodies leave no room.
    """
    too_large = Refused(
        413, "Validation", f"the body is over {limits.body_bytes} bytes"
    )
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise Refused(
            415, "Validation", f"content-encoding {coding[:40]}: send the body plain"
        )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.body_bytes:
            raise too_large
        held.add(len(part))
        parts.append(part)
    return b"".join(parts)


def parse_body(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
      Refused: for anything else, NaN and infinity among it.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def integer(digits: str) -> int | float:
        # Of more digits than Python reads: infinite, which no field takes.
        return int(digits) if len(digits) < _DIGITS else float(digits)

    try:
        return json.loads(body, parse_constant=constant, parse_int=integer)
    except RecursionError:
        raise Refused(400, "Validation", "the JSON is nested too deep") from None
    except ValueError as error:
        raise Refused(400, "Validation", f"the body is not JSON: {error}") from None


def _rows(served: Served, request: Request) -> TokenizedRequest:
    found = [
        served.encoder.rows(query, documents, request.cut)
        for query, documents in request.groups
    ]
    segments = [segment for one in found for segment in one.segments]
    packed.check_tokens(segments, served.runtime.vocab_size)
    truncated = sum(one.truncated for one in found)
    if truncated and not request.truncate:
        length = served.contract.length
        raise Refused(
            422,
            "Validation",
            f"{truncated} pairs are longer than {length} tokens, and truncate is "
            "false; leave it out to have the documents cut",
        )
    return TokenizedRequest(segments, truncated, sum(one.tokens for one in found))


async def _score(state: State, request: Request) -> Scored:
    """Scores a request, by two models in turn where it has more texts than are kept.

    Raises:
      Full, Refused: with what to tell the client.
    """
    served, batcher = state.served, state.batcher
    assert served and batcher
    if not served.first or len(request.groups) > 1 or request.count <= served.keep:
        with batcher.room(_estimate(served, request)):
            return await _score_by(state, served, batcher, request)
    first, waiting = served.first, served.first.batcher
    assert waiting
    query, documents = next(iter(request.groups))
    longest = sorted(documents, key=lambda texts: sum(map(len, texts)))[-served.keep :]
    # Room for both is taken before any work: it would be lost where the second is full.
    with batcher.room(served.encoder.estimate(query, longest)):
        with waiting.room(_estimate(first, request)):
            cheap = await _score_by(state, first, waiting, request)
        kept = forms.order(cheap.raw)[: served.keep]
        best = (query, tuple(documents[i] for i in kept))
        good = await _score_by(state, served, batcher, replace(request, groups=(best,)))
    second = np.full(len(documents), np.inf)
    second[kept] = good.raw
    raw = cascade.cascade_scores(cheap.raw.astype(np.float64), second, served.keep)
    scores = raw.tolist() if request.raw else probabilities(raw, served.calibration)
    tokens, truncated = cheap.tokens + good.tokens, cheap.truncated
    return Scored(raw, scores, f"cascade, {good.kind}", tokens, truncated)


def _estimate(served: Served, request: Request) -> int:
    """About how many tokens a request has."""
    return sum(
        served.encoder.estimate(query, documents) for query, documents in request.groups
    )


async def _score_by(
    state: State, served: Served, batcher: Batcher, request: Request
) -> Scored:
    """Scores a request by one model, in whose queue it has room: tokenises, waits.

    Raises:
      Full, Refused: with what to tell the client.
    """
    try:
        with state.metrics.tokenization.time():
            rows = await asyncio.to_thread(_rows, served, request)
        with state.metrics.inference.time():
            raw = await batcher.score(rows.segments)
    except DataError as error:
        raise Refused(422, "Tokenizer", str(error)) from None
    if not np.isfinite(raw).all():
        raise Refused(424, "Backend", "the model gave a score that is not a number")
    state.metrics.observe(rows, raw)
    if request.raw:
        return Scored(
            raw, raw.astype(float).tolist(), "raw", rows.tokens, rows.truncated
        )
    scores = probabilities(raw, served.calibration)
    return Scored(raw, scores, served.kind, rows.tokens, rows.truncated)


async def _while_connected(request: HttpRequest, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client leaves."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        watch.cancel()


Parse = Callable[[Any, int], Request]


def _endpoint(name: str, parse: Parse) -> Callable:
    """A route that parses a request, scores it and answers in its form."""

    async def endpoint(http: HttpRequest) -> Response:
        state: State = http.app.state.ranker
        begun = time.perf_counter()
        state.metrics.requests.labels(method=name).inc()
        try:
            response = await _answer(state, http, parse)
        except Refused as error:
            response = _refusal(error.status, error.kind, str(error))
        except Full as error:
            response = _full(error)
        except (asyncio.CancelledError, ClientDisconnect):
            state.metrics.failures.labels(err="dropped").inc()
            return Response(status_code=499)
        if response.status_code == 200:
            state.metrics.successes.labels(method=name).inc()
            state.metrics.duration.observe(time.perf_counter() - begun)
        else:
            kind = _FAILURES.get(response.status_code, "validation")
            state.metrics.failures.labels(err=kind).inc()
        return _last(state, response)

    return endpoint


def _last(state: State, response: Response) -> Response:
    """The response; the last one of its connection, where the server ends."""
    if state.closing:
        response.headers["connection"] = "close"
    return response


_FAILURES = {429: "overloaded", 503: "unhealthy", 424: "inference", 401: "key"}


async def _answer(state: State, http: HttpRequest, parse: Parse) -> Response:
    refused = _not_allowed(state, http) or _not_ready(state)
    if refused:
        return refused
    begun = time.perf_counter()
    with _Held(state) as held:
        body = parse_body(await _read(http, state.limits, held))
        request = parse(body, state.limits.documents)
        del body
        scored = await _while_connected(http, _score(state, request))
    milliseconds = int(1e3 * (time.perf_counter() - begun))
    headers = {
        "x-score-kind": scored.kind,
        "x-truncated": str(scored.truncated),
        "x-compute-tokens": str(scored.tokens),
        "x-total-time": str(milliseconds),
    }
    return JSONResponse(forms.answer(request, scored), headers=headers)


def _not_allowed(state: State, http: HttpRequest) -> Response | None:
    if not state.keys:
        return None
    given = http.headers.get("authorization", "")
    given = given[7:] if given[:7].lower() == "bearer " else given
    # Either header will do: a proxy may send an Authorization of its own.
    raw = [
        one.strip().encode("latin-1", "replace")
        for one in (given, http.headers.get("x-api-key", ""))
    ]
    # All keys are compared, so that time tells nothing of which one is close.
    if any([hmac.compare_digest(one, key) for one in raw for key in state.keys]):
        return None
    return _refusal(401, "Unauthorized", "the API key is missing or wrong")


def _not_ready(state: State) -> Response | None:
    if state.served:
        return None  # while it drains too: others may not know of it yet
    said = state.problem or "the model is being loaded and checked"
    return _refusal(503, "Unhealthy", f"not ready: {said}", **{"retry-after": "5"})


# --- the other routes -----------------------------------------------------------------


async def _health(http: HttpRequest) -> Response:
    del http
    return JSONResponse({"status": "ok"})


async def _ready(http: HttpRequest) -> Response:
    state: State = http.app.state.ranker
    if state.draining:
        return _refusal(503, "Unhealthy", "draining")
    return _not_ready(state) or JSONResponse({"status": "ready"})


async def _info(http: HttpRequest) -> Response:
    state: State = http.app.state.ranker
    refused = _not_allowed(state, http) or _not_ready(state)
    if refused:
        return refused
    served = state.served
    assert served
    promise = served.contract
    return JSONResponse(
        {
            "model_id": promise.stage,
            "model_sha": promise.tokenizer_digest[:16],
            "model_type": {"reranker": {"id2label": {"0": "score"}}},
            "model_dtype": served.runtime.precision,
            "runtime": served.runtime.name,
            "score_kind": served.kind,
            "max_input_length": promise.length,
            "max_client_batch_size": state.limits.documents,
            "max_batch_tokens": state.limits.queue_tokens,
            "payload_limit": state.limits.body_bytes,
            "auto_truncate": True,
            "version": ranker.__version__,
            "made_by": promise.made_by,
            **_first_fields(served),
        }
    )


def _first_fields(served: Served) -> dict[str, Any]:
    """What /info says of a cascade."""
    first = served.first
    if first is None:
        return {}
    about = {"model_id": first.contract.stage, "runtime": first.runtime.name}
    return {
        "first": {**about, "model_dtype": first.runtime.precision},
        "keep": served.keep,
    }


async def _metrics(http: HttpRequest) -> Response:
    state: State = http.app.state.ranker
    first = state.served.first if state.served else None
    queues = [one for one in (state.batcher, first and first.batcher) if one]
    waiting = sum(one.waiting_tokens for one in queues)
    cache = state.served.encoder.cache if state.served else None
    body = state.metrics.page(waiting, cache)
    return PlainTextResponse(body, media_type="text/plain; version=0.0.4")


async def _openapi(http: HttpRequest) -> Response:
    del http
    return JSONResponse(openapi.document())


def _parse_rerank(body: Any, limit: int) -> Request:
    return forms.parse_rerank(body, limit=limit)


def _parse_tei(body: Any, limit: int) -> Request:
    return forms.parse_rerank(body, tei=True, limit=limit)


def _parse_score(body: Any, limit: int) -> Request:
    return forms.parse_score(body, limit=limit)


def _parse_predict(body: Any, limit: int) -> Request:
    return forms.parse_predict(body, limit=limit)


def _parse_any(body: Any, limit: int) -> Request:
    fields = body if isinstance(body, dict) else {}
    if "text_pairs" in fields or "text_1" in fields:
        return _parse_score(body, limit)
    parse = _parse_predict if "inputs" in fields else _parse_rerank
    return parse(body, limit)


_POSTS: dict[str, tuple[str, Parse]] = {
    "/rerank": ("rerank", _parse_rerank),
    "/v1/rerank": ("rerank", _parse_rerank),
    "/v2/rerank": ("rerank", _parse_rerank),
    "/tei/rerank": ("rerank", _parse_tei),
    "/score": ("score", _parse_score),
    "/v1/score": ("score", _parse_score),
    "/predict": ("predict", _parse_predict),
    "/invocations": ("invocations", _parse_any),  # SageMaker
    "/": ("rerank", _parse_rerank),  # as Text Embeddings Inference serves a reranker
}


def make_routes() -> list[Route]:
    """What the server answers, by path and method."""
    gets = {
        "/health": _health,
        "/ping": _health,
        "/": _health,
        "/ready": _ready,
        "/info": _info,
        "/metrics": _metrics,
        "/openapi.json": _openapi,
    }
    return [
        *(
            Route(path, _endpoint(name, parse), methods=["POST"])
            for path, (name, parse) in _POSTS.items()
        ),
        *(Route(path, one, methods=["GET"]) for path, one in gets.items()),
    ]


class _Gate:
    """Refuses a request where the queue is full, before it is routed and read.

    Under ten times the load nearly all are refused, by the one thread that takes
    connections too: what each costs decides how many there may be.
    """

    def __init__(self, app: ASGIApp, state: State):
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 429, or hands the request on."""
        try:
            if scope["type"] == "http" and scope["method"] == "POST":
                self._check(scope)
        except Full as error:
            metrics, (name, _) = self._state.metrics, _POSTS[scope["path"]]
            metrics.requests.labels(method=name).inc()
            metrics.failures.labels(err=_FAILURES[429]).inc()
            response = _last(self._state, _full(error))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises Full; a request without a key is told that instead, by its route."""
        state = self._state
        if not state.batcher or scope["path"] not in _POSTS:
            return
        if not _not_allowed(state, HttpRequest(scope)):
            state.batcher.check()


async def _no_route(http: HttpRequest, error: Exception) -> Response:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    said = f"{http.method} {http.url.path}: {error.detail}; see /openapi.json"
    return _refusal(error.status_code, "Validation", said, **(error.headers or {}))


async def _failed(http: Any, error: Exception) -> Response:
    """Whatever was not foreseen: the client is told, the log has the reason."""
    del http
    print(f"[serve] {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return _refusal(424, "Backend", "the request could not be scored; see the log")


def make_app(
    state: State, start: Callable[[], tuple[Served, Batcher]], on_problem: Callable
) -> Starlette:
    """The ASGI application.

    Args:
      state: of the server.
      start: loads and checks the model; runs in a thread, while /health answers.
      on_problem: called with the error when it cannot start.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async def load() -> None:
            try:
                served, batcher = await asyncio.to_thread(start)
                state.batcher = batcher
                state.served = served  # last: it makes the server ready
            except Exception as error:  # noqa: BLE001, told and ended with
                state.problem = str(error)
                on_problem(error)

        task = asyncio.create_task(load())
        yield
        task.cancel()
        first = state.served.first if state.served else None
        for batcher in (state.batcher, first.batcher if first else None):
            if batcher:
                await asyncio.to_thread(batcher.stop)

    app = Starlette(
        routes=make_routes(),
        lifespan=lifespan,
        middleware=[Middleware(_Gate, state=state)],
        exception_handlers={HTTPException: _no_route, Exception: _failed},
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body
    app.state.ranker = state
    return app


def read_keys(path: pathlib.Path | None) -> tuple[bytes, ...]:
    """API keys, one a line; lines that begin with # are comments.

    Raises:
      DataError: when the file cannot be read, or holds no key.
    """
    if path is None:
        return ()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the API keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines]
    found = tuple(key.encode() for key in keys if key and not key.startswith("#"))
    if not found:
        raise DataError(f"{path} holds no API key; write one a line")
    return found
