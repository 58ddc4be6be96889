"""What a server does under ten times its load, and with bodies that are not requests.

    python -m ranker.serve FOLDER --port 8080 &
    python benchmarks/serve_load.py overload --folder FOLDER --pid $! --seconds 60
    python benchmarks/serve_load.py fuzz --count 100000

`overload` measures the rate that as many clients as cores sustain, then sends ten times
that, whether or not earlier requests were answered. It fails unless every status is 200
or 429, every 200 has the scores of the folder's runtime offline, bit for bit, and the
server's memory stays within --memory MiB of its start. With --data, a BEIR folder with
runs of dev, the requests are queries with --candidates texts; else eight short texts.
`fuzz` sends broken and odd
bodies to every route. It fails on a status that is none of 200, 400, 413, 415, 422 and
429, on an answer that is no JSON, and after 30 seconds without one.
"""

import argparse
import asyncio
import collections
import functools
import json
import os
import pathlib
import random
import time
import urllib.request
from collections.abc import Callable

_WORDS = "cheap flights to rome low fares every day cats and dogs in the snow".split()
_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/tei/rerank", "/score", "/predict")
_PATHS += ("/invocations", "/")
_BODIES = (
    {"query": "cats", "texts": ["dogs", ""], "raw_scores": True, "truncate": True},
    {"query": "cats", "documents": ["a", {"text": "b", "title": "c"}], "top_n": 1},
    {"query": "", "documents": [{"x": "y"}], "rank_fields": ["x"], "model": None},
    {"text_1": "a", "text_2": ["b", "c"], "use_activation": False},
    {"inputs": [["a", "b"], ["c", "d"]], "raw_scores": False},
    {"text_pairs": [["a", "b"]], "max_tokens_per_doc": 3, "return_documents": True},
)
_VALUES = (None, True, -1, 0, 1 << 70, 1e308, "", "\ud800", "a\x00b", "é" * 50, [], {})
_VALUES += ([None], [[]], [["a"]], {"text": 1}, ["x"] * 20, float("nan"), "left")
_EXPECTED = (200, 400, 413, 415, 422, 429)
_PATIENCE = 30.0  # seconds for an answer
_DISTINCT = 10  # requests of --data: each is scored offline once
_OPEN = 5000  # requests at once, where the client cannot keep up with its own rate


class Connection:
    """A connection that is kept, and opened again when the server has closed it."""

    def __init__(self, port: int):
        self.port, self.reader, self.writer = port, None, None

    async def ask(self, path: str, body: bytes, method: str = "POST"):
        """Status and body of the answer."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port
            )
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}"
        self.writer.write(head.encode() + b"\r\n\r\n" + body)
        found = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in found.split("\r\n")[1:] if line)
        answer = await self.reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        return int(found.split()[1]), answer

    def close(self):
        """The next request opens a new one."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None


# --- overload -------------------------------------------------------------------------


def made_request(number: int) -> tuple[str, list[str]]:
    """A query and short texts; the same number gives the same."""
    draw = random.Random(number)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(3, 40))) for _ in range(8)]
    return "cats", texts


def requests_of(given: argparse.Namespace) -> Callable[[int], tuple[str, list[str]]]:
    """The query and the texts of each number."""
    if not given.data:
        return made_request
    from serve import read_requests

    found = read_requests(given.data, _DISTINCT, given.candidates)
    return lambda number: found[number % len(found)]


def body_of(request: tuple[str, list[str]]) -> bytes:
    """A request for raw scores."""
    query, texts = request
    return json.dumps({"query": query, "texts": texts, "raw_scores": True}).encode()


async def sustainable(port: int, seconds: float, request_of) -> float:
    """Requests a second that as many clients as cores get answered."""
    begun, done = time.monotonic(), 0
    end = begun + seconds

    async def client(first: int) -> None:
        nonlocal done
        connection, number = Connection(port), first
        while time.monotonic() < end:
            body = body_of(request_of(number))
            status, _ = await connection.ask("/rerank", body)
            done, number = done + (status == 200), number + 1000
        connection.close()

    clients = len(os.sched_getaffinity(0))
    await asyncio.gather(*(client(-1 - i) for i in range(clients)))
    return done / (time.monotonic() - begun)


async def flood(port: int, rate: float, seconds: float, pid: int, request_of):
    """Sends at a rate for a while; (number, status, answer) of all, and memory."""
    free: list[Connection] = []
    answers, memory, running = [], [rss(pid)], set()

    async def one(number: int) -> None:
        connection = free.pop() if free else Connection(port)
        try:
            found = await connection.ask("/rerank", body_of(request_of(number)))
            free.append(connection)
        except (OSError, asyncio.IncompleteReadError) as error:
            found = (-1, repr(error).encode())
        answers.append((number, *found))

    begun, number = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        while number < passed * rate and len(running) < _OPEN:
            task = asyncio.create_task(one(number))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        memory.append(rss(pid))
        await asyncio.sleep(0.02)
    await asyncio.gather(*running)
    memory.append(rss(pid))
    return answers, memory, number / seconds


def rss(pid: int) -> float:
    """MiB of a process in memory, by Linux."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def offline(folder: pathlib.Path, port: int):
    """Scores of texts in the server's runtime, without the server."""
    from ranker.data.backends import load_tokenizer
    from ranker.serving import contract, runtimes
    from ranker.serving.frame import PairEncoder, contract_frame

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/info") as answer:
        info = json.load(answer)
    runtime = runtimes.open_runtime(folder, info["runtime"], info["model_dtype"])
    backend = load_tokenizer(folder).backend_tokenizer
    encoder = PairEncoder(contract_frame(contract.load_contract(folder)), backend)

    @functools.cache
    def score(query: str, texts: tuple[str, ...]) -> dict[int, float]:
        pairs = encoder.pairs([(query, ("", text)) for text in texts])
        return dict(
            enumerate(runtimes.score_pairs(runtime, pairs).astype(float).tolist())
        )

    return score


def overload(given: argparse.Namespace) -> None:
    """Floods the server and checks what it answered."""
    score, request_of = offline(given.folder, given.port), requests_of(given)
    usual = asyncio.run(sustainable(given.port, given.probe, request_of))
    answers, memory, rate = asyncio.run(
        flood(given.port, 10 * usual, given.seconds, given.pid, request_of)
    )
    counts = collections.Counter(status for _, status, _ in answers)
    wrong = 0
    for number, status, answer in answers:
        if status == 200:
            found = {one["index"]: one["score"] for one in json.loads(answer)}
            query, texts = request_of(number)
            wrong += found != score(query, tuple(texts))
    broken = collections.Counter(x.decode() for _, status, x in answers if status < 0)
    for said, count in broken.most_common(5):
        print(f"{count} without an answer: {said}")
    grown = max(memory) - memory[0]
    print(
        f"sustainable {usual:.1f} requests/s; sent {rate:.1f}/s for "
        f"{given.seconds:g} s: {dict(counts)}; {wrong} answers differ "
        f"from the offline scores; memory "
        f"{memory[0]:.0f} MiB, at most {grown:.0f} MiB more, {memory[-1]:.0f} MiB at "
        "the end"
    )
    if wrong or set(counts) - {200, 429} or grown > given.memory:
        raise SystemExit("failed")


# --- fuzz -----------------------------------------------------------------------------


def fuzzed(draw: random.Random) -> bytes:
    """A body: odd values, missing or foreign fields, damaged bytes, or noise."""
    body = dict(draw.choice(_BODIES))
    for _ in range(draw.randint(0, 3)):
        name = draw.choice([*body, *draw.choice(_BODIES), "other"])
        body[name] = draw.choice(_VALUES)
        if draw.random() < 0.2:
            del body[draw.choice(list(body))]
    raw = bytearray(
        json.dumps(body, ensure_ascii=draw.random() < 0.9).encode(
            "utf-8", "surrogatepass"
        )
    )
    kind = draw.random()
    if kind < 0.1:
        return draw.randbytes(draw.randint(0, 60))
    if kind < 0.4:
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
    elif kind < 0.5:
        del raw[draw.randrange(len(raw)) :]
    elif kind < 0.52:
        return b"[" * draw.randint(1, 50_000)
    return bytes(raw)


async def fuzz_all(port: int, count: int, seed: int) -> collections.Counter:
    """Statuses of all bodies.

    Raises:
      ValueError: with the first body that was answered wrongly.
    """
    statuses: collections.Counter = collections.Counter()
    numbers = iter(range(count))

    async def client() -> None:
        connection = Connection(port)
        for number in numbers:
            draw = random.Random(f"{seed} {number}")
            path, body = draw.choice(_PATHS), fuzzed(draw)
            try:
                status, answer = await asyncio.wait_for(
                    connection.ask(path, body), _PATIENCE
                )
                json.loads(answer, parse_constant=float.fromhex)
            except Exception as error:
                raise ValueError(f"{path} {body[:200]!r}: {error!r}") from error
            if status not in _EXPECTED:
                raise ValueError(f"{path} {body[:200]!r}: {status} {answer[:200]!r}")
            statuses[status] += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(4)))
    return statuses


def fuzz(given: argparse.Namespace) -> None:
    """Sends bodies and counts the answers."""
    begun = time.monotonic()
    found = asyncio.run(fuzz_all(given.port, given.count, given.seed))
    seconds = time.monotonic() - begun
    print(f"{given.count} bodies in {seconds:.0f} s: {dict(sorted(found.items()))}")


def main() -> None:
    """Runs one of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["overload", "fuzz"])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--folder", type=pathlib.Path, help="that is served")
    parser.add_argument("--pid", type=int, help="of the server")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--data", help="BEIR folder, whose requests are sent")
    parser.add_argument("--candidates", type=int, default=20, help="with --data")
    parser.add_argument("--probe", type=float, default=5.0, help="s, to find the rate")
    parser.add_argument("--memory", type=float, default=200.0, help="MiB it may grow")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    overload(given) if given.what == "overload" else fuzz(given)


if __name__ == "__main__":
    main()
