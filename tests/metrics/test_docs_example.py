"""The example of docs/evaluation.md prints what it says."""

import pathlib
import re

from ranker import evaluate

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def test_the_example_is_as_printed(tmp_path, monkeypatch):
    text = DOCS.read_text().split("## An example to redo by hand")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, block in zip(("qrels.txt", "A.trec", "B.trec"), blocks, strict=True):
        pathlib.Path(name).write_text(block)
    (measures,) = re.findall(r"`--measures (.*?)` prints", text)
    evaluate.main(
        [
            *("--qrels", "qrels.txt", "--run", "A.trec", "B.trec"),
            *("--measures", *measures.split(), "--markdown", "t.md"),
        ]
    )
    printed = pathlib.Path("t.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    for row in rows:
        assert row in printed.replace("|  |", "| |")
    assert "| B | OPA | +0.2500 | - | 1.0000 |" in printed
