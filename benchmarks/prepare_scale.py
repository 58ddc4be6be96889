"""What `prepare` costs on a large collection and click log: time and memory.

    python benchmarks/prepare_scale.py /tmp/scale --documents 1000000 --rows 5000000

Makes the collection in Parquet once (a document has 40 words; nearly every row of the
log is a pair of its own), and prepares it in another process, with given tokenizers and
runs, so that neither BM25 nor the training of tokenizers is measured. Processor time is
printed beside the time on the clock, since machines are shared.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ranker import config
from ranker.data.text import train_bpe, train_wordpiece

_AT_ONCE = 100_000
_WORDS = np.array([f"{a}{b}{c}" for a in "bdgkl" for b in "aeiou" for c in "mnrst"])


def _texts(generator: np.random.Generator, count: int, words: int) -> list[str]:
    picked = generator.integers(len(_WORDS), size=(count, words))
    return [" ".join(row) for row in _WORDS[picked]]


def make(folder: pathlib.Path, documents: int, rows: int) -> None:
    """Writes the collection, the log and the tokenizers."""
    generator = np.random.default_rng(0)
    for part in ("corpus", "queries", "qrels", "runs", "log"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for begin in range(0, documents, _AT_ONCE):
        count = min(_AT_ONCE, documents - begin)
        table = {
            "_id": [f"d{begin + i}" for i in range(count)],
            "title": _texts(generator, count, 5),
            "text": _texts(generator, count, 35),
        }
        pq.write_table(pa.table(table), folder / "corpus" / f"{begin:09d}.parquet")
    queries = _texts(generator, 300, 4)
    names = [f"q{i}" for i in range(300)]
    table = {"_id": names, "text": [f"{t} {i}" for i, t in enumerate(queries)]}
    pq.write_table(pa.table(table), folder / "queries" / "queries.parquet")
    for split, part in (("train", names[:200]), ("test", names[200:])):
        table = {
            "query-id": part,
            "corpus-id": ["d7"] * len(part),
            "score": [1] * len(part),
        }
        pq.write_table(pa.table(table), folder / "qrels" / f"{split}.parquet")
        lines = [f"{name} Q0 d{i} {i} {-i} x\n" for name in part for i in range(5, 15)]
        (folder / "runs" / f"first.{split}.trec").write_text("".join(lines))
    for begin in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - begin)
        asked = generator.integers(max(rows // 4, 1), size=count)
        found = generator.integers(documents, size=count)
        table = {
            "query": [f"{_WORDS[q % 125]} {_WORDS[q // 125 % 125]} {q}" for q in asked],
            "title": [f"title of {d} {_WORDS[d % 125]}" for d in found],
            "summary": _texts(generator, count, 12),
            "document_id": [f"d{d}" for d in found],
            "clicked": generator.random(count) < 0.9,
            "dwell": generator.exponential(60, count),
            "count": generator.integers(1, 4, count),
        }
        pq.write_table(pa.table(table), folder / "log" / f"part-{begin:09d}.parquet")
    sample = _texts(generator, 2000, 30)
    for role, train in (("teacher", train_bpe), ("student", train_wordpiece)):
        (folder / "tokenizers" / role).mkdir(parents=True, exist_ok=True)
        train(iter(sample), 1024, folder / "tokenizers" / role)
    (folder / "made.json").write_text(json.dumps([documents, rows]))


def measure(folder: pathlib.Path) -> None:
    """Prepares, and prints what it has cost."""
    from ranker.data.prepare import prepare

    tokenizers = folder / "tokenizers"
    data = config.Data(path=str(folder), click_log=str(folder / "log"))
    text = config.Text(
        teacher_tokenizer=str(tokenizers / "teacher"),
        student_tokenizer=str(tokenizers / "student"),
    )
    start = time.monotonic()
    prepare(data, text, folder / "work", replace=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - start, 1),
                "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
                "peak_mib": used.ru_maxrss // 1024,
            }
        )
    )


def main() -> None:
    """Makes what is missing, and measures in another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--measure", action="store_true", help="what the process does")
    flags = parser.parse_args()
    if flags.measure:
        measure(flags.folder)
        return
    if not (flags.folder / "made.json").exists():
        make(flags.folder, flags.documents, flags.rows)
    command = [sys.executable, __file__, str(flags.folder), "--measure"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
