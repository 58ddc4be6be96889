"""BM25 for many queries: here, or in several processes, each with a part of them.

A worker is a Python of its own that imports numpy and scipy alone. It reads the index
from files that all of them share in memory:

    python -m ranker.data.search INDEX QUERIES K RESULT
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from ranker.data.bm25 import Bm25
from ranker.errors import DataError

_SLOW = 20.0  # seconds that a search must be expected to take, to be shared out
_TRIED = 20  # queries that tell how long one takes
_PART = 5000  # queries that a worker is given at a time
_EVERY = 30.0  # seconds between lines of progress

TopRows = tuple[np.ndarray, np.ndarray]


def search_all(
    index: Bm25, queries: Sequence[str], k: int, name: str, *, processes: int = 0
) -> Iterator[TopRows]:
    """The `k` best rows and scores of each query, in order.

    Args:
      index: of the corpus.
      queries: texts.
      k: documents a query.
      name: of the split, for lines of progress.
      processes: that search; 0: one a core where it takes long.

    Raises:
      DataError: when a worker fails.
    """
    start = time.monotonic()
    for query in queries[:_TRIED]:
        yield index.search(query, k)
    left = queries[_TRIED:]
    expected = (time.monotonic() - start) / _TRIED * len(left)
    cores = len(os.sched_getaffinity(0))
    if not processes:
        processes = cores if expected > _SLOW else 1
    if processes == 1:
        yield from (index.search(query, k) for query in left)
    elif left:
        yield from _shared(index, left, k, name, processes)


def _shared(
    index: Bm25, queries: Sequence[str], k: int, name: str, processes: int
) -> Iterator[TopRows]:
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        index.save(folder / "index")
        parts = [queries[at : at + _PART] for at in range(0, len(queries), _PART)]
        running: list[tuple[int, subprocess.Popen]] = []
        start = said = time.monotonic()
        done = begun = 0
        try:
            while done < len(parts):
                while begun < len(parts) and len(running) < processes:
                    running.append((begun, _start(folder, begun, parts[begun], k)))
                    begun += 1
                number, worker = running.pop(0)
                _, said_by = worker.communicate()
                if worker.returncode:
                    raise DataError(f"the search of {name} failed: {said_by[-500:]}")
                yield from _results(folder / f"{number}.npz")
                done += 1
                if time.monotonic() - said > _EVERY:
                    said = time.monotonic()
                    rate = done * _PART / (said - start)
                    print(
                        f"[prepare] BM25, {name}: {done * _PART:,} of {len(queries):,} "
                        f"queries, {rate:,.0f}/s",
                        flush=True,
                    )
        finally:
            for _, worker in running:
                worker.kill()
                worker.wait()


def _start(
    folder: pathlib.Path, number: int, queries: Sequence[str], k: int
) -> subprocess.Popen:
    texts = folder / f"{number}.json"
    texts.write_text(json.dumps(list(queries)))
    command = [sys.executable, "-m", "ranker.data.search", str(folder / "index")]
    command += [str(texts), str(k), str(folder / f"{number}.npz")]
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _results(path: pathlib.Path) -> Iterator[TopRows]:
    with np.load(path) as found:
        rows, scores, ends = found["rows"], found["scores"], found["ends"]
    path.unlink()
    begin = 0
    for end in ends.tolist():
        yield rows[begin:end], scores[begin:end]
        begin = end


def _work(arguments: Sequence[str]) -> None:
    place, texts, k, result = arguments
    index = Bm25.load(pathlib.Path(place))
    queries = json.loads(pathlib.Path(texts).read_text())
    found = [index.search(query, int(k)) for query in queries]
    np.savez(
        result,
        rows=np.concatenate([rows for rows, _ in found]),
        scores=np.concatenate([scores for _, scores in found]),
        ends=np.cumsum([len(rows) for rows, _ in found]),
    )


if __name__ == "__main__":
    _work(sys.argv[1:])
