"""Does a scoring job of 50 million pairs fit into 1 GiB a process, and resume?

    python benchmarks/score_streaming.py [--pairs 50000000] [--processes 2]

Lists the pairs of a synthetic collection, cuts them into chunks, and writes every
chunk with its
receipt, in several processes. The processes are killed in the middle, and another
number of them resumes. Then the whole is verified.

THE SCORING IS STUBBED: a score is a hash of the pair's number. No text is made or
tokenised; what is measured is listing, sharding, writing, resuming and proving. The
last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

import numpy as np

from ranker import config
from ranker.manifests import Manifest
from ranker.scoring import job as jobs
from ranker.scoring.pairs import ChunkPairs, WorldPairs
from ranker.scoring.proof import verify

CANDIDATES = 100  # a query


def make_source(pairs: int) -> WorldPairs:
    """A synthetic collection with that many unlabelled pairs."""
    return WorldPairs(
        config.World(
            num_topics=30_000,
            documents_per_topic=32,
            unlabelled_queries=-(-pairs // CANDIDATES),
            candidates=CANDIDATES,
        )
    )


def open_job(folder: pathlib.Path, pairs: int) -> jobs.Job:
    """The job, which the first process to come begins."""
    source = make_source(pairs)
    manifest = Manifest(
        kind="score",
        settings=source.settings(),
        inputs={"stub": "stub"},
        facts={"teacher": "stub", "teacher_facts": {}},
    )
    return jobs.open_job(folder, manifest, source, size=1 << 17, format="parquet")


def stub(numbers: np.ndarray) -> np.ndarray:
    """A score for each pair's number, in [-1, 1]."""
    mixed = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return mixed.astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def peak() -> int:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def work(folder: pathlib.Path, pairs: int, index: int, count: int) -> None:
    """Scores this process's part of what is missing."""
    start = time.monotonic()
    job = open_job(folder, pairs)
    missing = job.missing()
    opened = time.monotonic() - start
    source = make_source(pairs)
    for number in missing:
        if number % count != index:
            continue
        begin = time.monotonic()
        chunk = job.chunks[number]
        queries, documents = source.ids(chunk)
        numbers = np.arange(chunk.first, chunk.first + chunk.pairs)
        content = ChunkPairs([], [], numbers, queries, documents)
        jobs.save_chunk(
            job,
            number,
            content,
            stub(numbers),
            seconds=time.monotonic() - begin,
            chips=1,
            tokens=0,
            device="stub",
            code="stub",
        )
        done = {"peak_mib": peak(), "opened_seconds": round(opened, 2)}
        path = folder / f"process-{os.getpid()}.json"
        path.write_text(json.dumps(done))


def start(folder: pathlib.Path, pairs: int, count: int) -> list:
    """That many processes, which share no memory."""
    spawn = multiprocessing.get_context("spawn")
    children = [
        spawn.Process(target=work, args=(folder, pairs, index, count))
        for index in range(count)
    ]
    for child in children:
        child.start()
    return children


def prove(folder: pathlib.Path, pairs: int, answers) -> None:
    """Proves the job, and that every score is the stub's; reports time and memory."""
    begin = time.monotonic()
    job = open_job(folder, pairs)
    found = verify(job)
    seconds = time.monotonic() - begin
    wrong = 0
    for number in range(0, len(job.chunks), 16):
        table, _ = jobs.read_chunk(job, number)
        wanted = stub(table["pair"].to_numpy())
        wrong += int((table["score"].to_numpy() != wanted).sum())
    answers.put((found.pairs, wrong, seconds, peak()))


def kill_in_the_middle(folder: pathlib.Path, pairs: int, count: int) -> int:
    """Starts so many processes, kills them at a third; the chunks of the job."""
    children = start(folder, pairs, count)
    total = 0
    while all(child.is_alive() for child in children):
        time.sleep(0.2)
        if (folder / jobs.FILE).exists():
            total = total or len(jobs.load_job(folder).chunks)
            if len(os.listdir(folder / "receipts")) >= total // 3:
                break
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return total


def resume(folder: pathlib.Path, pairs: int, count: int) -> None:
    """So many processes do what is missing."""
    for child in start(folder, pairs, count):
        child.join()
        if child.exitcode:
            sys.exit("a process failed")


def prove_apart(folder: pathlib.Path, pairs: int) -> tuple[int, int, float, int]:
    """What `prove` finds, in a process of its own: pairs, wrong, seconds and MiB."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    proving = spawn.Process(target=prove, args=(folder, pairs, answers))
    proving.start()
    found = answers.get()
    proving.join()
    return found


def bytes_below(folder: pathlib.Path) -> int:
    """Of all files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def measure(folder: pathlib.Path, pairs: int, count: int) -> dict[str, Any]:
    """Runs, kills, resumes by one process more, and proves; what the last line says."""
    begin = time.monotonic()
    total = kill_in_the_middle(folder, pairs, count)
    receipts = folder / "receipts"
    killed_at = len(os.listdir(receipts))
    times = {p.name: p.stat().st_mtime_ns for p in receipts.iterdir()}
    print(f"killed after {killed_at} of {total} chunks, resuming", flush=True)
    resume(folder, pairs, count + 1)
    seconds = time.monotonic() - begin
    kept = sum(p.stat().st_mtime_ns == times.get(p.name) for p in receipts.iterdir())
    proven, wrong, proving_seconds, proving_peak = prove_apart(folder, pairs)
    reports = [json.loads(p.read_text()) for p in folder.glob("process-*.json")]
    return {
        "scoring": "stubbed",
        "pairs": proven,
        "chunks": total,
        "wrong_scores": wrong,
        "processes": [count, count + 1],
        "chunks_when_killed": killed_at,
        "chunks_done_twice": killed_at - kept,
        "peak_mib_a_process": max(one["peak_mib"] for one in reports),
        "open_or_resume_seconds": max(one["opened_seconds"] for one in reports),
        "pairs_per_second": round(proven / seconds),
        "seconds": round(seconds, 1),
        "proving_peak_mib": proving_peak,
        "proving_seconds": round(proving_seconds, 1),
        "gib_on_disk": round(bytes_below(folder) / 2**30, 3),
    }


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=50_000_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="score-streaming-"))
    try:
        result = measure(folder, options.pairs, options.processes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    most = max(result["peak_mib_a_process"], result["proving_peak_mib"])
    if most >= 1024 or result["wrong_scores"]:
        sys.exit("more than 1 GiB of memory a process, or wrong scores")


if __name__ == "__main__":
    main()
