"""The server as a process: overload, a drain in mid-load, and folders it refuses."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from made_rankers import WORDS, export

from ranker import serve
from ranker.data.backends import load_tokenizer
from ranker.models.huggingface import flat
from ranker.serving import contract, onnx_graph, runtimes
from ranker.serving.frame import PairEncoder, contract_frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "export"
    model = export(folder)
    params = dict(flat(model.scorer.params))
    onnx_graph.write_graph(folder / onnx_graph.FILE, model.scorer.model, params)
    return folder


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


class Running:
    """A server in a process of its own."""

    def __init__(self, folder, *arguments):
        self.port = free_port()
        command = [sys.executable, "-m", "ranker.serve", str(folder)]
        command += ["--port", str(self.port), *arguments]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        while self.get("/ready") != 200:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.1)

    def get(self, path):
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}"
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def count(self, name):
        """A number of /metrics; 0 where it is not there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found = [line.split()[-1] for line in lines if line.rsplit(" ", 1)[0] == name]
        return float(found[0]) if found else 0.0

    def send(self, body):
        """A connection that has sent a request for scores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", "/rerank", json.dumps(body).encode())
        return connection


def answer_of(connection):
    """Status, and the answer or its headers."""
    with contextlib.closing(connection):
        answer = connection.getresponse()
        content = json.load(answer)
        return answer.status, content if answer.status == 200 else answer.headers


def offline(folder):
    """Scores of a query's texts in the server's runtime."""
    promise = contract.load_contract(folder)
    backend = load_tokenizer(folder).backend_tokenizer
    encoder = PairEncoder(contract_frame(promise), backend)
    runtime = runtimes.open_runtime(folder, "onnxruntime", "float32")

    def score(query, texts):
        pairs = encoder.pairs([(query, ("", text)) for text in texts])
        return runtimes.score_pairs(runtime, pairs).astype(float).tolist()

    return score


@pytest.mark.slow
def test_overload_and_a_drain_lose_nothing(folder):
    """Ten clients over a queue of four; SIGTERM comes once some were answered.

    What was sent before it is answered; clients send nothing afterwards, as those of a
    load balancer that reads /ready.
    """
    server = Running(folder, "--max-queue-tokens", "2000", "--drain", "0.2")
    score = offline(folder)
    answers, ended = [], threading.Event()
    some = threading.Semaphore(0)
    sending = [threading.Lock() for _ in range(10)]

    def client(seed):
        draw = np.random.default_rng(seed)
        while True:
            texts = [" ".join(draw.choice(WORDS, 40)) for _ in range(8)]
            body = {"query": "cats", "texts": texts, "raw_scores": True}
            try:
                with sending[seed]:
                    if ended.is_set():
                        return
                    connection = server.send(body)
                status, answer = answer_of(connection)
            except (http.client.HTTPException, OSError) as error:
                status, answer = -1, repr(error)
            answers.append((texts, status, answer))
            some.release()

    threads = [
        threading.Thread(target=client, args=(i,), daemon=True) for i in range(10)
    ]
    for thread in threads:
        thread.start()
    for _ in range(60):
        some.acquire()
    while {200, 429} - {status for _, status, _ in answers}:
        assert some.acquire(timeout=300)
    ended.set()
    for lock in sending:
        lock.acquire()  # what it began to send is sent
        lock.release()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    server.process.wait()
    said = server.process.communicate()
    assert server.process.returncode == 0, said
    found = {status for _, status, _ in answers}
    assert found == {200, 429}, [one[1:] for one in answers if one[1] < 200]
    for texts, status, answer in answers:
        if status == 429:
            assert int({k.lower(): v for k, v in answer.items()}["retry-after"]) >= 1
        if status == 200:
            expected = score("cats", texts)
            assert {one["index"]: one["score"] for one in answer} == dict(
                enumerate(expected)
            )


@pytest.mark.slow
def test_clients_that_leave_free_their_places(folder):
    """Three leave while the first one's texts are scored: none of them is counted."""
    limits = ["--max-queue-tokens", "10000000", "--max-wait", "600"]
    server = Running(folder, "--workers", "1", "--max-documents", "20000", *limits)
    texts = [" ".join(WORDS * 4)] * 20_000
    body = json.dumps({"query": "cats", "texts": texts}).encode()
    head = f"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    left = []
    for _ in range(3):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(head.encode() + body)
        left.append(client)
    while server.count("ranker_queue_tokens") == 0:
        time.sleep(0.01)
    for client in left:
        client.close()
    while server.count('ranker_request_failure_total{err="dropped"}') < 3:
        time.sleep(0.01)
    assert server.count("ranker_queue_tokens") == 0
    status, answer = answer_of(server.send({"query": "cats", "texts": ["dogs"]}))
    assert status == 200 and len(answer) == 1
    assert server.count("ranker_documents_total") == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait() == 0
    server.process.communicate()


@pytest.mark.slow
def test_requests_that_never_end_are_ended(folder):
    """64 MB of headers, of an address, or of a chunked body's trailers are not kept."""
    server = Running(folder)
    line = b"POST /rerank HTTP/1.1\r\nhost: a\r\n"
    chunk = b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"
    endless = {
        line: b"x: " + b"a" * 1000 + b"\r\n",
        line + b"x: ": b"a" * 1000,
        b"GET /": b"a" * 1000,
        line + chunk + b"0\r\n": b"x: " + b"a" * 1000 + b"\r\n",
        line + chunk: b"1\r\n \r\n" * 100,  # a body that is too large, by bytes
    }
    for begin, more in endless.items():
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(begin)
            with pytest.raises(OSError):
                for _ in range((64 << 20) // len(more)):
                    client.sendall(more)
    # Many small chunks, and long headers, are ordinary.
    body = json.dumps({"query": "cats", "texts": ["dogs " * 900]}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = b"transfer-encoding: chunked\r\nx: " + b"a" * 60_000 + b"\r\n\r\n"
        client.sendall(line + b"connection: close\r\n" + head + chunks)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait() == 0
    assert "Traceback" not in server.process.communicate()[1]


@pytest.mark.slow
def test_a_folder_that_scores_otherwise_is_not_served(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / contract.FILE
    edited = json.loads(path.read_text())
    edited["golden"][3]["score"] += 1.0
    path.write_text(json.dumps(edited))
    done = subprocess.run(
        [sys.executable, "-m", "ranker.serve", str(copy), "--port", str(free_port())],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 1
    assert "pair 3" in done.stderr and "not served" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_stops_a_start_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="keys cannot be read"):
        serve.main([str(tmp_path), "--api-key-file", str(tmp_path / "none")])
    (tmp_path / "keys").write_text("# none\n\n")
    with pytest.raises(SystemExit, match="holds no API key"):
        serve.main([str(tmp_path), "--api-key-file", str(tmp_path / "keys")])
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    assert "--drain" in capsys.readouterr().out
