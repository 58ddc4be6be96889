"""The server against a runtime whose scores can be worked out by hand."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rankers import WORDS
from starlette.testclient import TestClient

from ranker.data.backends import load_tokenizer
from ranker.data.text import Segment, train_wordpiece
from ranker.errors import DataError
from ranker.metrics.calibration import Platt
from ranker.serving import forms, server
from ranker.serving.batching import Batcher, Full, Limits
from ranker.serving.frame import Frame, PairEncoder
from ranker.serving.runtimes import Name, Precision
from ranker.serving.texts import Cut, DocumentCache, TextEncoder, text_digest

LENGTH = 24


class Counting:
    """Scores a pair by its number of tokens less ten, in batches of four rows."""

    name: Name = "jax"
    precision: Precision = "float32"
    vocab_size = 1 << 20

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.batches = []
        self.broken = False

    def padded(self, tokens):
        return -(-tokens // 8) * 8

    def rows(self, padded):
        return 4

    def warm(self, length):
        pass

    def run(self, segments, padded):
        self.begun.set()
        self.go.wait()
        self.batches.append(len(segments))
        found = np.array([len(s.tokens) - 10.0 for s in segments], np.float32)
        return found * np.nan if self.broken else found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece([" ".join(WORDS)] * 3, 120, folder)
    backend = load_tokenizer(folder).backend_tokenizer
    ids = [backend.token_to_id(name) for name in ("[CLS]", "[SEP]")]
    frame = Frame(
        query="{query}",
        document="{both}",
        prefix=(ids[0],),
        middle=(ids[1],),
        suffix=(ids[1],),
        types=(0, 1),
        length=LENGTH,
        padding=0,
        last=False,
    )
    return PairEncoder(frame, backend)


def make(encoder, *, limits=None, keys=(), calibration=None, workers=2):
    limits = limits or Limits(queue_tokens=1000)
    runtime = Counting()
    promise: Any = types.SimpleNamespace(
        length=LENGTH, stage="made", tokenizer_digest="0" * 64, made_by="ranker"
    )
    state = server.State(limits, keys)

    def start():
        batcher = Batcher(runtime, limits, workers=workers)
        batcher.measured(10_000, 1.0)
        made = server.Served(promise, runtime, TextEncoder(encoder), calibration)
        return made, batcher

    return state, runtime, server.make_app(state, start, lambda error: None)


def wait_ready(client):
    while client.get("/ready").status_code != 200:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def client(encoder):
    limits = Limits(queue_tokens=1000, body_bytes=20_000, documents=50)
    _, _, app = make(encoder, limits=limits)
    with TestClient(app) as client:
        wait_ready(client)
        yield client


QUERY = "cheap flights"
# 5 tokens stand around, or are the query's: 3 + 2; so scores are words - 5.
TEXTS = ["cats", "dogs in the Snow", "", "every day"]
RAW = [-4.0, -1.0, -5.0, -3.0]
ORDER = [1, 3, 0, 2]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_text_embeddings_inference_form(client):
    body = {"query": QUERY, "texts": TEXTS, "return_text": True}
    answer = client.post("/rerank", json=body)
    assert [one["index"] for one in answer.json()] == ORDER
    for one in answer.json():
        assert one["score"] == pytest.approx(sigmoid(RAW[one["index"]]), abs=1e-12)
        assert one["text"] == TEXTS[one["index"]]
    assert answer.headers["x-score-kind"] == "sigmoid"
    raw = client.post("/rerank", json={**body, "raw_scores": True})
    assert [one["score"] for one in raw.json()] == [RAW[i] for i in ORDER]
    assert raw.headers["x-score-kind"] == "raw"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_form(client, path):
    documents = [
        "cats",
        {"text": "dogs in the Snow", "id": 7},
        "",
        {"text": "every day"},
    ]
    body = {
        "model": "m",
        "query": QUERY,
        "documents": documents,
        "top_n": 3,
        "return_documents": True,
        "max_tokens_per_doc": None,
        "some_later_field": {"a": 1},
    }
    answer = client.post(path, json=body).json()
    assert [one["index"] for one in answer["results"]] == ORDER[:3]
    assert answer["results"][0]["document"] == {"text": "dogs in the Snow"}
    assert answer["score_kind"] == "sigmoid" and answer["model"] == "m"
    assert answer["usage"]["total_tokens"] == 5 + 5 + 5 + 5 + 1 + 4 + 2
    assert answer["meta"]["billed_units"] == {"search_units": 1}


def test_one_route_always_answers_in_teis_form(client):
    body = {"query": QUERY, "documents": TEXTS, "top_n": 2}
    answer = client.post("/tei/rerank", json=body).json()
    assert [one["index"] for one in answer] == ORDER[:2]


def test_scores_of_pairs(client):
    answer = client.post(
        "/score", json={"text_1": QUERY, "text_2": TEXTS, "use_activation": False}
    ).json()
    assert [one["score"] for one in answer["data"]] == RAW
    body = {"text_1": [QUERY, "cats"], "text_2": ["cats", "cats"]}
    both = client.post("/v1/score", json=body).json()["data"]
    assert [one["score"] for one in both] == pytest.approx([sigmoid(-4), sigmoid(-5)])
    inputs = [[QUERY, "cats"], [QUERY, "every day"]]
    batch = client.post("/predict", json={"inputs": inputs, "raw_scores": True}).json()
    assert [one[0]["score"] for one in batch] == [-4.0, -3.0]
    one = client.post("/predict", json={"inputs": inputs[0], "raw_scores": True}).json()
    assert one == [{"score": -4.0, "label": "score"}]
    pairs = client.post("/invocations", json={"text_pairs": inputs}).json()
    assert pairs["scores"] == pytest.approx([sigmoid(-4), sigmoid(-3)])


def test_long_texts_are_cut_and_counted(client):
    long = "cats " * 100
    answer = client.post("/rerank", json={"query": QUERY, "documents": [long, "cats"]})
    assert answer.json()["truncated"] == 1
    assert answer.headers["x-truncated"] == "1"
    assert "cut" in answer.json()["meta"]["warnings"][0]
    body = {"query": QUERY, "texts": [long], "truncate": False}
    assert client.post("/rerank", json=body).status_code == 422
    body = {"query": long, "texts": ["cats"], "raw_scores": True}
    # A query over the room keeps half of it: 21 // 2; 3 tokens around, 1 document.
    assert client.post("/rerank", json=body).json()[0]["score"] == 10 + 3 + 1 - 10


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b"[" * 100_00, 400, "JSON"),
        (b'{"query": NaN}', 400, "NaN"),
        (b"[1]", 422, "object"),
        (b"{}", 422, "query"),
        (b'{"query": 3, "texts": ["a"]}', 422, "query"),
        (b'{"query": "a"}', 422, "texts or documents"),
        (b'{"query": "a", "texts": []}', 400, "empty"),
        (b'{"query": "a", "texts": "b"}', 422, "texts"),
        (b'{"query": "a", "texts": ["b", 4]}', 422, "4"),
        (b'{"query": "a", "documents": [{"x": 1}]}', 422, "title, text"),
        (b'{"query": "a", "texts": ["b"], "top_n": -1}', 422, "top_n"),
        (b'{"query": "a", "texts": ["b"], "raw_scores": 1}', 422, "raw_scores"),
        (b'{"query": "a", "texts": ["b"], "truncation_direction": "up"}', 422, "up"),
        (b" " * 30_000, 413, "20000"),
        (
            b'{"query": "a", "documents": [{}], "rank_fields": ["\\ud800"]}',
            422,
            "fields",
        ),
        (json.dumps({"query": "a", "texts": ["b"] * 51}).encode(), 422, "51"),
    ],
)
def test_what_is_wrong_is_named_in_every_form(client, body, status, named):
    answer = client.post("/rerank", content=body)
    assert answer.status_code == status
    fields = answer.json()
    assert named in fields["error"]
    assert fields["error"] == fields["message"] == fields["detail"]
    assert fields["error_type"] in ("Validation", "Empty")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/rerank", 405), ("PUT", "/rerank", 405), ("POST", "/rerank/", 404)],
)
def test_what_is_not_served_is_named_in_every_form(client, method, path, status):
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == status
    fields = answer.json()
    assert f"{method} {path}" in fields["error"]
    assert fields["error"] == fields["message"] == fields["detail"]


def test_a_compressed_body_is_refused_by_name(client):
    headers = {"content-encoding": "gzip"}
    answer = client.post("/rerank", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]


@pytest.mark.parametrize(("digits", "status"), [(299, 200), (5000, 422)])
def test_a_number_of_any_size_is_read(client, digits, status):
    number = "9" * digits
    ignored = f'{{"query": "a", "texts": ["b"], "other": {number}}}'
    assert client.post("/rerank", content=ignored).status_code == 200
    huge = f'{{"query": "a", "texts": ["b"], "top_n": {number}}}'
    answer = client.post("/", content=huge)
    assert answer.status_code == status
    assert status == 200 or "top_n" in answer.json()["error"]


def test_half_a_character_is_replaced(client):
    body = b'{"query": "cats \\ud800", "texts": ["\\udfff dogs"]}'
    assert client.post("/rerank", content=body).status_code == 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just("\udfff"),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(max_size=5), inside, max_size=3)
    ),
    max_leaves=8,
)
NAMES = (
    *("query", "texts", "documents", "top_n", "raw_scores", "truncate", "model"),
    *("inputs", "text_1", "text_2", "text_pairs", "rank_fields", "return_documents"),
    *("max_tokens_per_doc", "truncate_prompt_tokens", "truncation_direction"),
)
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON | st.lists(st.text(max_size=9)))


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(["/rerank", "/v2/rerank", "/invocations"]), body=BODIES)
def test_any_body_gets_an_answer(client, path, body):
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400, 422)
    assert answer.status_code != 200 or "NaN" not in answer.text


def test_nan_is_never_answered(encoder):
    _, runtime, app = make(encoder)
    runtime.broken = True
    with TestClient(app) as client:
        wait_ready(client)
        answer = client.post("/rerank", json={"query": "a", "texts": ["b"]})
    assert answer.status_code == 424
    assert answer.json()["error_type"] == "Backend"


def test_keys_are_asked_for_in_either_spelling(encoder):
    _, _, app = make(encoder, keys=(b"first", b"second"))
    body = {"query": "a", "texts": ["b"]}
    with TestClient(app) as client:
        wait_ready(client)

        def status(**headers):
            return client.post("/rerank", json=body, headers=headers).status_code

        assert status() == status(authorization="Bearer wrong") == 401
        assert status(authorization="Bearer second") == 200
        assert status(authorization="first") == 200
        assert status(**{"x-api-key": "first"}) == 200
        # A proxy in between may send an Authorization of its own.
        basic = {"authorization": "Basic dTpw", "x-api-key": "first"}
        assert status(**basic) == 200
        assert status(authorization="", **{"x-api-key": ""}) == 401
        assert status(authorization=b"Bearer \xff\xfe") == 401
        assert client.get("/health").status_code == 200
        assert client.get("/info").status_code == 401


def test_it_is_not_ready_before_it_is_checked(encoder):
    state = server.State(Limits())
    begin = threading.Event()

    def start():
        begin.wait()
        raise DataError("the golden pairs score otherwise")

    app = server.make_app(state, start, lambda error: None)
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        answer = client.post("/rerank", json={"query": "a", "texts": ["b"]})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        begin.set()
        while not state.problem:
            time.sleep(0.001)
        assert "golden" in client.get("/ready").json()["error"]


def test_calibrated_probabilities(encoder):
    _, _, app = make(encoder, calibration=Platt(slope=2.0, intercept=1.0))
    with TestClient(app) as client:
        wait_ready(client)
        answer = client.post("/rerank", json={"query": QUERY, "documents": ["cats"]})
    assert answer.json()["score_kind"] == "calibrated"
    score = answer.json()["results"][0]["relevance_score"]
    assert score == pytest.approx(sigmoid(2 * -4 + 1))


def test_two_models_in_turn(encoder):
    """The first sees all; the second reverses the order of the two that are kept."""
    state, _, app = make(encoder)
    limits = Limits()

    class Reversed(Counting):
        def run(self, segments, padded):
            return -super().run(segments, padded)

    with TestClient(app) as client:
        wait_ready(client)
        assert state.served
        cheap = replace(state.served, batcher=state.batcher)
        good = replace(state.served, runtime=Reversed(), first=cheap, keep=2)
        state.batcher = Batcher(good.runtime, limits, workers=1)
        state.served = good
        body = {"query": QUERY, "documents": TEXTS, "raw_scores": True}
        answer = client.post("/rerank", json=body).json()
        few = client.post("/rerank", json={**body, "documents": TEXTS[:2]}).json()
    results = answer["results"]
    assert answer["score_kind"] == "cascade, raw"
    # By words: 4, 2, 1, 0. The second's scores of the best two are 1 and 3.
    assert [one["index"] for one in results] == [3, 1, 0, 2]
    assert [one["relevance_score"] for one in results] == [3.0, 1.0, 0.0, -1.0]
    assert few["score_kind"] == "raw"  # no more than are kept: one model is enough


@pytest.mark.parametrize("full", ["first", "second"])
def test_two_models_in_turn_begin_only_where_both_have_room(encoder, full):
    limits = Limits(queue_tokens=40)
    state, runtime, app = make(encoder, limits=limits)
    with TestClient(app) as client:
        wait_ready(client)
        assert state.served and state.batcher
        cheap = replace(state.served, batcher=state.batcher)
        state.batcher = Batcher(Counting(), limits, workers=1)
        state.served = replace(state.served, first=cheap, keep=2)
        queue = state.batcher if full == "second" else cheap.batcher
        assert queue and cheap.batcher
        body = {"query": QUERY, "documents": TEXTS}
        with queue.room(35):
            answer = client.post("/rerank", json=body)
        assert answer.status_code == 429 and not runtime.batches
        assert state.batcher.waiting_tokens == cheap.batcher.waiting_tokens == 0
        assert client.post("/rerank", json=body).status_code == 200
        info = client.get("/info").json()
        assert info["keep"] == 2 and info["first"]["model_id"] == "made"


def test_bodies_of_all_requests_together_are_bounded(encoder):
    limits = Limits(body_bytes=5000, all_bytes=6000)
    state, runtime, app = make(encoder, limits=limits)
    body = json.dumps({"query": "a", "texts": ["b " * 2000]})
    with TestClient(app) as client:
        wait_ready(client)
        runtime.go.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/rerank", content=body)
            while not state.held:
                time.sleep(0.001)
            answer = client.post("/rerank", content=body)
            small = pool.submit(
                client.post, "/rerank", json={"query": "a", "texts": ["b"]}
            )
            while state.held <= len(body):  # both are being answered
                time.sleep(0.001)
            runtime.go.set()
            assert first.result().status_code == small.result().status_code == 200
        assert answer.status_code == 429 and "at most 6000" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
        assert state.held == 0
        assert client.post("/rerank", content=" " * 5001).status_code == 413
        assert client.post("/rerank", content="{").status_code == 400
        assert state.held == 0


def test_a_text_of_a_token_that_the_model_lacks_is_refused(encoder):
    _, runtime, app = make(encoder)
    runtime.vocab_size = 5
    with TestClient(app) as client:
        wait_ready(client)
        answer = client.post("/rerank", json={"query": "cats", "texts": ["dogs"]})
    assert answer.status_code == 422 and answer.json()["error_type"] == "Tokenizer"
    assert not runtime.batches


def test_scores_that_a_sigmoid_makes_equal_are_ordered():
    raw = np.array([40.0, 80.0, 60.0, 80.0], np.float32)
    assert forms.order(raw).tolist() == [1, 3, 2, 0]


def test_metrics_count(encoder):
    _, _, app = make(encoder)
    with TestClient(app) as client:
        wait_ready(client)
        client.post("/rerank", json={"query": QUERY, "texts": ["cats " * 99, "dogs"]})
        client.post("/rerank", json={"query": 1})
        page = client.get("/metrics").text
    assert 'ranker_request_success_total{method="rerank"} 1.0' in page
    assert 'ranker_request_failure_total{err="validation"} 1.0' in page
    assert "ranker_truncated_documents_total 1.0" in page
    assert "ranker_documents_total 2.0" in page


def test_openapi_has_every_route(client):
    described = client.get("/openapi.json").json()["paths"]
    for path in described:
        method = next(iter(described[path]))
        found = getattr(client, method)(path)
        assert found.status_code not in (404, 405), path
    served = {one.path for one in server.make_routes()}
    assert served - set(described) == {"/", "/ping"}  # other servers' names


# --- the queue ------------------------------------------------------------------------


def segments(*lengths):
    return [Segment([1] * n, (0, 1), 1, 0) for n in lengths]


def test_a_full_queue_refuses_before_it_tokenises(encoder):
    limits = Limits(queue_tokens=40)
    state, runtime, app = make(encoder, limits=limits)
    runtime.go.clear()
    with TestClient(app) as client:
        wait_ready(client)
        assert state.batcher and state.served
        state.batcher.reserve(35)  # what other requests hold
        before = state.served.encoder.cache.misses
        body = {"query": "cats", "texts": ["dogs"]}
        answer = client.post("/rerank", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert state.served.encoder.cache.misses == before
        state.batcher.release(35)
        runtime.go.set()
        assert client.post("/rerank", json=body).status_code == 200
    assert state.batcher.waiting_tokens == 0


def test_a_full_queue_refuses_what_it_has_not_read(encoder):
    limits = Limits(queue_tokens=100)
    state, _, app = make(encoder, limits=limits, keys=(b"secret",))
    keyed = {"x-api-key": "secret"}
    with TestClient(app) as client:
        wait_ready(client)
        assert state.batcher

        def status(path="/rerank", headers=keyed):
            """Of a body that no route could read."""
            return client.post(path, content=b"{", headers=headers).status_code

        assert status() == 400
        for _ in range(40):  # the usual request comes to have 30 tokens
            with state.batcher.room(30):
                pass
        with state.batcher.room(80):
            assert status() == 400  # half of a usual one fits
        with state.batcher.room(90):
            paths = ("/rerank", "/v2/rerank", "/score", "/predict", "/")
            assert {status(path) for path in paths} == {429}
            assert status("/nowhere") == 404
            assert status(headers={}) == 401  # never told that the queue is full
            assert client.get("/health").status_code == 200
            page = client.get("/metrics").text
        assert 'ranker_request_failure_total{err="overloaded"} 5.0' in page
        assert 'ranker_request_count_total{method="rerank"} 6.0' in page
        assert status() == 400


def test_a_refused_body_is_not_waited_for(encoder):
    """Text Embeddings Inference and others send large bodies in parts."""
    state, _, app = make(encoder, limits=Limits(queue_tokens=10))
    sent = []

    async def receive():
        raise AssertionError("the body was asked for")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": []}
    scope |= {"query_string": b"", "app": app}
    with TestClient(app) as client:
        wait_ready(client)
        assert state.batcher
        with state.batcher.room(20):
            asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 429
    assert b"retry-after" in dict(sent[0]["headers"])
    assert json.loads(sent[1]["body"])["error_type"] == "Overloaded"


def test_a_server_has_more_connections_than_a_shell_allows():
    code = (
        "import resource as r\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
        "from ranker import serve\n"
        "serve.raise_open_files()\n"
        "print(*r.getrlimit(r.RLIMIT_NOFILE), hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    soft, still, hard = map(int, done.stdout.split())
    assert still == hard and soft == (1 << 16 if hard < 0 else min(hard, 1 << 16))


def test_a_long_wait_is_refused():
    batcher = Batcher(Counting(), Limits(wait_seconds=2.0), workers=1)
    batcher.measured(100, 1.0)
    batcher.reserve(500)  # an empty queue takes whatever it is
    with pytest.raises(Full, match="5.0 s long") as error:
        batcher.reserve(1)
    assert error.value.retry_after == 3
    batcher.release(500)
    batcher.reserve(1)
    batcher.stop()


def test_every_request_gets_its_own_scores_in_any_company():
    runtime = Counting()
    batcher = Batcher(runtime, Limits(), workers=2)
    draw = np.random.default_rng(0)
    sizes = [draw.integers(1, 60, int(draw.integers(1, 20))) for _ in range(30)]

    async def all_at_once():
        waiting = asyncio.gather(*(batcher.score(segments(*one)) for one in sizes))
        await asyncio.sleep(0)  # all are in the queue
        runtime.go.set()
        return await waiting

    runtime.go.clear()
    found = asyncio.run(all_at_once())
    batcher.stop()
    for one, scores in zip(sizes, found, strict=True):
        assert scores.tolist() == (one - 10.0).tolist()
    # Rows of several requests shared runs, or there were as many runs as lengths.
    assert sum(runtime.batches) == sum(map(len, sizes))
    assert max(runtime.batches) == 4


def test_a_client_that_leaves_frees_its_place():
    runtime = Counting()
    batcher = Batcher(runtime, Limits(), workers=1)
    runtime.go.clear()

    async def leave():
        first = asyncio.ensure_future(batcher.score(segments(8)))
        await asyncio.to_thread(runtime.begun.wait)  # its run is being scored
        second = asyncio.ensure_future(batcher.score(segments(8, 30, 50)))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        runtime.go.set()
        await first

    asyncio.run(leave())
    batcher.stop()  # once the queue is empty
    assert sum(runtime.batches) == 1  # nothing of the second was scored


def test_what_a_runtime_raises_reaches_its_requests_alone():
    runtime = Counting()
    batcher = Batcher(runtime, Limits(), workers=1)
    whole = runtime.run

    def run(segments, padded):
        if padded == 16:
            raise RuntimeError("broken")
        return whole(segments, padded)

    runtime.run = run

    async def both():
        return await asyncio.gather(
            batcher.score(segments(12)),
            batcher.score(segments(8)),
            return_exceptions=True,
        )

    bad, good = asyncio.run(both())
    batcher.stop()
    assert isinstance(bad, RuntimeError)
    assert isinstance(good, np.ndarray) and good.tolist() == [-2.0]


# --- texts ----------------------------------------------------------------------------


def test_documents_are_tokenised_once(encoder):
    cache = DocumentCache()
    texts = TextEncoder(encoder, cache)
    documents = [("", "cats"), ("dogs", "in the Snow"), ("", "cats")]
    first = texts.rows("cheap", documents, Cut())
    assert (cache.hits, cache.misses) == (0, 2)
    again = texts.rows("rome", documents, Cut())
    assert (cache.hits, cache.misses) == (2, 2)
    assert [s.tokens[3:] for s in first.segments] == [
        s.tokens[3:] for s in again.segments
    ]
    assert first.segments == encoder.pairs([("cheap", one) for one in documents])


def test_the_cache_is_bounded_and_keeps_what_is_used():
    cache = DocumentCache(limit=1000)  # two of 400 bytes and 36 of ids
    for name in "abc":
        cache.put(text_digest(("", name)), np.zeros(9, np.int32))
        cache.get(text_digest(("", "a")))
    assert cache.bytes == 2 * 436
    cache.put(
        text_digest(("", "long")), np.zeros(151, np.int32)
    )  # alone over the limit
    assert cache.bytes == 2 * 436
    assert cache.get(text_digest(("", "a"))) is not None
    assert cache.get(text_digest(("", "b"))) is None
    assert text_digest(("a", "b")) != text_digest(("", "ab")) != text_digest(("ab", ""))


def test_cuts_that_a_request_asks_for(encoder):
    texts = TextEncoder(encoder)
    document = ("", "cats dogs in the Snow")

    def words(cut):
        [segment] = texts.rows("cheap", [document], cut).segments
        return encoder.backend.decode(segment.tokens[3:-1])

    assert words(Cut()) == "cats dogs in the snow"
    assert words(Cut(document_tokens=2)) == "cats dogs"
    assert words(Cut(document_tokens=2, left=True)) == "the snow"
    assert words(Cut(total_tokens=7)) == "cats dogs in"
