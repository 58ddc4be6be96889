"""Prepares one collection by DuckDB and by Beam, and compares all that is written.

python check.py FOLDER    for what it makes; fails where something differs
"""

import json
import pathlib
import random
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

TWO = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
WORDS = [
    "lamp",
    "Straße",
    "STRASSE",
    "cafe\u0301",
    "café",
    "苹果 手机",
    "i\u0307",
    "hat",
]


def lines(path: pathlib.Path, rows) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make(folder: pathlib.Path) -> None:
    """A collection, and a log in Parquet, TSV and JSON lines."""
    names = [f"d{i}" for i in range(40)]
    rows = [{"_id": n, "title": f"Title {n}", "text": f"lamp {n}"} for n in names]
    lines(folder / "corpus.jsonl", rows)
    queries = [{"_id": f"q{i}", "text": f"lamp d{i}"} for i in range(12)]
    lines(folder / "queries.jsonl", queries)
    for split, part in (("train", range(6)), ("dev", (6, 7)), ("test", (8, 9, 10))):
        judged = "".join(f"q{i}\td{i}\t1\n" for i in part)
        path = folder / "qrels" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("query-id\tcorpus-id\tscore\n" + judged)
    some = random.Random(0)

    def row() -> dict:
        own = some.random() < 0.4
        return {
            "query": f"{some.choice(WORDS)} {some.randrange(9)}",
            "title": some.choice(["", "A title", "a  TITLE", "Б"]) if own else "",
            "summary": some.choice(["", "of text", "Of Text"]) if own else "",
            "document_id": some.choice(["", *names, "nowhere"]),
            "position": some.randrange(1, 9),
            "clicked": some.random() < 0.8,
            "dwell": some.choice([None, 3.0, 10.0, 99.0]),
            "count": some.randrange(1, 4),
        }

    log = folder.parent / "log"
    log.mkdir()
    pq.write_table(pa.Table.from_pylist([row() for _ in range(900)]), log / "a.parquet")
    held = {**row(), "query": "Lamp  D8", "clicked": True, "dwell": 30.0}
    lines(log / "b.jsonl", [*(row() for _ in range(600)), held, held])
    table = "".join(f"lamp {i % 50}\tT{i % 70}\ts\t{i % 5}\n" for i in range(500))
    (log / "c.tsv").write_text("query\ttitle\tsummary\tposition\n" + table)


def prepare(folder: pathlib.Path, name: str, *flags: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    command = [sys.executable, "-m", "ranker.prepare", "--config"]
    command += ["configs/beir.py:smoke", "--workdir", str(folder / name)]
    command += [f"--config.data.path={folder / 'data'}"]
    command += [f"--config.data.click_log={folder / 'log'}"]
    command += ["--config.data.click_rules.max_per_query=3"]
    command += ["--config.data.click_rules.dev_fraction=0.3", *flags]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def facts(folder: pathlib.Path, name: str) -> tuple[dict, dict, list]:
    """Digests of all pieces, the report, and every click example in order."""
    from ranker.data import datasets

    place = folder / name / "prepare"
    manifest = json.loads((place / "manifest.json").read_text())
    report = json.loads((place / "report.json").read_text())
    splits = ("train", "dev")
    examples = [list(datasets.load_clicks(place / "clicks", one)) for one in splits]
    return manifest["facts"]["pieces"], report, examples


def main() -> None:
    """Compares."""
    folder = pathlib.Path(sys.argv[1]).resolve()
    make(folder / "data")
    runs: dict[str, tuple[str, ...]] = {"duckdb": ()}
    runs["two"] = ("--runner=DirectRunner", *TWO, f"--output={folder / 'out'}")
    # Rows of 64 tokens leave doubts, which have every example looked at; 512 do not.
    long = ("--config.text.teacher_length=512", "--config.text.student_length=512")
    runs["taken"] = ("--runner=DirectRunner", "--shards=3", *long)
    found = {}
    for name, flags in runs.items():
        code, said = prepare(folder, name, *flags)
        assert code == 0, f"{name}: {said[-3000:]}"
        found[name] = facts(folder, name)
    pieces, report, examples = found["duckdb"]
    assert sum(map(len, examples)) > 200 and all(examples), list(map(len, examples))
    assert report["leaks"]["clicks"] == {"rows": 2, "queries": 1}, report["leaks"]
    assert all(report["clicks"]["dropped"].values()), report["clicks"]["dropped"]
    for name in ("two", "taken"):
        assert found[name][0] == pieces, name
        assert found[name][2] == examples, name
        for part in ("clicks", "leaks", "dropped", "splits"):
            assert found[name][1][part] == report[part], (name, part)
    with (folder / "log" / "b.jsonl").open("a") as file:
        file.write('{"query": 7}\n')
    for flags in ((), ("--runner=DirectRunner",)):
        code, said = prepare(folder, "broken", *flags)
        [last] = said.strip().splitlines()[-1:]
        assert code and re.search(r"b\.jsonl:603: field 'query': found 7", last), said[
            -3000:
        ]
    print("3 prepared sets are equal, and a malformed row stops both engines alike")


if __name__ == "__main__":
    main()
