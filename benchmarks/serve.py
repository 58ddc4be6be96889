"""Serving side by side: this server, sentence-transformers, and FastAPI around it.

    python benchmarks/serve.py --weights MINILM --data NQQED --requests 20

One client: the latency of ranking 100 candidates by `CrossEncoder.rank` (torch, which
sorts by length) in its own process, and by a request to this server. Several clients:
requests a second of this server, and of a FastAPI application around `CrossEncoder`.
All see the same queries and candidates, and the answers are compared.

MINILM is a BERT checkpoint without a score head; it gets one of random weights, since
what is measured is time. An export can be given instead, with --export. With several
--precision, as many servers answer each request in turn:

    python benchmarks/serve.py --export EXPORT --precision float32 int8_mixed ...
"""

import argparse
import contextlib
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_APP = """
import sys
import torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

torch.set_num_threads(int(sys.argv[3]))
model = CrossEncoder(sys.argv[1], device="cpu")
app = FastAPI()

class Body(BaseModel):
    query: str
    texts: list[str]

@app.get("/ready")
def ready():
    return {}

@app.post("/rerank")
def rerank(body: Body):
    ranked = model.rank(body.query, body.texts, show_progress_bar=False)
    return [{"index": r["corpus_id"], "score": float(r["score"])} for r in ranked]

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def read_requests(data, count, candidates):
    """(query, texts) of dev queries and their BM25 candidates."""
    data = pathlib.Path(data)
    with gzip.open(data / "corpus.jsonl.gz", "rt") as file:
        corpus = {one["_id"]: one for one in map(json.loads, file)}
    with (data / "queries.jsonl").open() as file:
        queries = {one["_id"]: one["text"] for one in map(json.loads, file)}
    found = {}
    for path in sorted((data / "runs").glob("*dev*")):
        opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
        with opened as file:
            for line in file:
                query, _, document, *_ = line.split()
                found.setdefault(query, []).append(document)
    # A list that is too short is filled up from the next query's.
    lists = list(found.items())
    full = []
    for i, (query, documents) in enumerate(lists[:count]):
        later = iter(lists[i + 1 :] + lists[:i])
        while len(documents) < candidates:
            documents = documents + next(later)[1]
        full.append((query, documents[:candidates]))
    texts = lambda d: f"{corpus[d].get('title', '')} {corpus[d]['text']}".strip()  # noqa: E731
    return [
        (queries[q], [texts(d) for d in documents]) for q, documents in full[:count]
    ]


def make_export(weights, folder, length):
    """An export of a BERT with a random head, its contract and its ONNX file."""
    import jax
    from flax import nnx
    from transformers import AutoTokenizer

    from ranker import config, sharding
    from ranker.data.backends import load_tokenizer
    from ranker.models import build
    from ranker.models.huggingface import (
        export_huggingface,
        flat,
        import_params,
        open_checkpoint,
    )
    from ranker.serving import golden, onnx_graph
    from ranker.serving.frame import own_frame
    from ranker.serving.packed import PackedModel

    checkpoint = open_checkpoint(config.Pretrained(path=str(weights), fresh_head=True))
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    made = build.build(
        checkpoint.model, checkpoint.vocab_size, "score", key=jax.random.key(0)
    )
    graphdef, state = nnx.split(made, nnx.Param)
    where = sharding.parameter_shardings(state, mesh)
    read, _ = import_params(checkpoint, "score", state, where)
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        if name in read:
            leaf.set_value(read[name])
    scorer = PackedModel.of(graphdef, state, checkpoint.model, checkpoint.vocab_size)
    with tempfile.TemporaryDirectory() as kept:
        AutoTokenizer.from_pretrained(str(weights)).save_pretrained(kept)
        export_huggingface(
            folder,
            checkpoint.model,
            state,
            head="score",
            tokenizer=pathlib.Path(kept),
            length=length,
        )
    frame = own_frame(load_tokenizer(folder), checkpoint.model, length)
    about = golden.ModelFacts(
        stage="benchmark", template="pair", model=checkpoint.model, frame=frame
    )
    golden.write_contract(folder, about, golden.texts([], None), scorer)
    onnx_graph.write_graph(
        folder / onnx_graph.FILE, checkpoint.model, dict(flat(state))
    )


@contextlib.contextmanager
def running(command, port):
    """A server in a process of its own, ready."""
    process = subprocess.Popen(command)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{command[:4]} ended with {process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                    break
            except OSError:
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def ask(port, request):
    """One request: seconds, and the score of each text."""
    query, texts = request
    fields = {"query": query, "texts": texts, "raw_scores": True}
    body = json.dumps(fields).encode()
    headers = {"content-type": "application/json"}
    http = urllib.request.Request(f"http://127.0.0.1:{port}/rerank", body, headers)
    begun = time.perf_counter()
    with urllib.request.urlopen(http) as answer:
        found = json.load(answer)
    seconds = time.perf_counter() - begun
    return seconds, {one["index"]: one["score"] for one in found}


def cpu_seconds(pid):
    """CPU time of a process so far, by Linux."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(name, seconds):
    """Prints quantiles; returns them."""
    p50, p95, p99 = np.quantile(seconds, (0.5, 0.95, 0.99))
    print(
        f"{name:<34} p50 {p50:7.3f} s  p95 {p95:7.3f} s  p99 {p99:7.3f} s", flush=True
    )
    return p50, p99


def one_client(folder, requests, threads, servers):
    """Latency by CrossEncoder and by servers (name -> port, pid), asked in turn."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(folder), device="cpu")
    theirs, cpu_theirs = [], 0.0
    ours = {name: [] for name in servers}
    cpu_ours, far = dict.fromkeys(servers, 0.0), dict.fromkeys(servers, 0.0)
    for request in requests:
        query, texts = request
        begun, cpu = time.perf_counter(), time.process_time()
        ranked = model.rank(query, texts, show_progress_bar=False)
        theirs.append(time.perf_counter() - begun)
        cpu_theirs += time.process_time() - cpu
        for name, (port, pid) in servers.items():
            cpu = cpu_seconds(pid)
            seconds, scores = ask(port, request)
            ours[name].append(seconds)
            cpu_ours[name] += cpu_seconds(pid) - cpu
            gaps = [abs(scores[one["corpus_id"]] - one["score"]) for one in ranked]
            far[name] = max(far[name], *map(float, gaps))
    a = show("sentence-transformers, torch", theirs)
    for name in servers:
        b = show(name, ours[name])
        print(
            f"  largest difference of a score: {far[name]:.1e}; of sentence-"
            f"transformers' time p50 {b[0] / a[0]:.2f}, p99 {b[1] / a[1]:.2f}, CPU "
            f"seconds {cpu_ours[name] / cpu_theirs:.2f} "
            f"({cpu_ours[name] / len(requests):.2f} a request)",
            flush=True,
        )


def many_clients(name, requests, port, clients):
    """Requests a second of several clients at once, and the answers."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda request: ask(port, request), requests))
    rate = len(requests) / (time.perf_counter() - begun)
    print(f"{name:<34} {rate:7.2f} requests/s, {clients} clients", flush=True)
    return rate, [scores for _, scores in found]


def gap(ours, theirs):
    """Largest difference of a score, over all answers."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a[place] - b[place]) for a, b in pairs for place in a | b)


def main():
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="BERT checkpoint folder")
    parser.add_argument("--export", type=pathlib.Path, help="in place of --weights")
    parser.add_argument("--data", required=True, help="BEIR folder with runs of dev")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--length", type=int, default=256, help="of --weights")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--port", type=int, default=8790)
    both = ["latency", "throughput"]
    parser.add_argument("--parts", nargs="+", choices=both, default=both)
    given = parser.parse_args()
    if not (given.weights or given.export):
        parser.error("one of --weights and --export is needed")
    requests = read_requests(given.data, given.requests, given.candidates)
    with tempfile.TemporaryDirectory() as kept:
        folder = given.export or pathlib.Path(kept) / "export"
        if not given.export:
            make_export(given.weights, folder, given.length)
        compare(given, folder, requests)


def compare(given, folder, requests):
    """Latency and throughput of an export, by this server and by the others."""
    threads = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        servers = {}
        for place, precision in enumerate(given.precision):
            port = given.port + place
            serve = [sys.executable, "-m", "ranker.serve", str(folder)]
            serve += ["--port", str(port), "--max-wait", "600"]
            serve += ["--max-queue-tokens", str(1 << 24)]
            serve += ["--runtime", given.runtime, "--precision", precision]
            pid = stack.enter_context(running(serve, port))
            servers[f"ranker.serve, {precision}"] = port, pid
            ask(port, requests[0])
        if "latency" in given.parts:
            one_client(folder, requests, threads, servers)
        if "throughput" not in given.parts:
            return
        ours = {
            name: many_clients(name, requests, port, given.clients)
            for name, (port, _) in servers.items()
        }
    port = given.port + len(given.precision)
    other = [sys.executable, "-c", _APP, str(folder), str(port)]
    with running([*other, str(threads)], port):
        ask(port, requests[0])
        theirs, others = many_clients(
            "FastAPI around CrossEncoder", requests, port, given.clients
        )
    for name, (rate, answers) in ours.items():
        print(
            f"{name}: {rate / theirs:.2f} times as many requests a second; largest "
            f"difference of a score: {gap(answers, others):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
