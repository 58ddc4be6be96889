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
from typing import Any

import duckdb

from ranker import config
from ranker.data.text import train_bpe, train_wordpiece

_AT_ONCE = 500_000
_WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeiou" for c in "mnrst"]
_SPLITS = {"train": range(200), "test": range(200, 300)}


def _words(count: int, salt: int) -> str:
    """SQL of a text of so many words that the row `i` and the salt decide."""
    parts = (f"w[1 + {_below(len(_WORDS), salt + n)}]" for n in range(count))
    return " || ' ' || ".join(parts)


def _below(count: int, salt: int) -> str:
    """SQL of a number below `count` that the row `i` and the salt decide."""
    return f"(hash(i, {salt}) % {count})::BIGINT"


def _copy(database: Any, select: str, count: int, folder: pathlib.Path) -> None:
    """Writes rows 0 to `count` of a SELECT over `i`, in files of `_AT_ONCE`."""
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(0, count, _AT_ONCE):
        path = folder / f"part-{begin:010d}.parquet"
        rows = f"range({begin}, {min(begin + _AT_ONCE, count)}) AS rows(i), words"
        database.execute(f"COPY ({select} FROM {rows}) TO '{path}' (FORMAT parquet)")


def make(folder: pathlib.Path, documents: int, rows: int) -> None:
    """Writes the collection, the log and the tokenizers."""
    database = duckdb.connect()
    database.execute("CREATE TABLE words AS SELECT $1 AS w", [_WORDS])
    select = f"SELECT 'd' || i AS _id, {_words(5, 0)} AS title, {_words(35, 9)} AS text"
    _copy(database, select, documents, folder / "corpus")
    select = f"SELECT 'q' || i AS _id, {_words(4, 50)} || ' ' || i AS text"
    _copy(database, select, 300, folder / "queries")
    query, found = _below(max(rows // 4, 1), 60), _below(documents, 61)
    select = f"""SELECT w[1 + {query} % 125] || ' ' || w[1 + {query} // 125 % 125]
    || ' ' || {query} AS query, 'title of ' || {found} || ' ' || w[1 + {found} % 125]
    AS title, {_words(12, 70)} AS summary, 'd' || {found} AS document_id,
    {_below(10, 90)} > 0 AS clicked, {_below(100, 91)}::DOUBLE AS dwell,
    1 + {_below(3, 92)} AS count"""
    _copy(database, select, rows, folder / "log")
    for part in ("qrels", "runs"):
        (folder / part).mkdir(exist_ok=True)
    for split, names in _SPLITS.items():
        judged = "".join(f"q{i}\td7\t1\n" for i in names)
        path = folder / "qrels" / f"{split}.tsv"
        path.write_text("query-id\tcorpus-id\tscore\n" + judged)
        run = [f"q{q} Q0 d{i} {i} {-i} x\n" for q in names for i in range(5, 15)]
        (folder / "runs" / f"first.{split}.trec").write_text("".join(run))
    some = database.execute(f"SELECT {_words(30, 100)} FROM range(2000) AS r(i), words")
    sample = [text for (text,) in some.fetchall()]
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
