"""`python -m ranker.evaluate --qrels FILE --run FILE`, as its users call it."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ranker import evaluate
from ranker.reporting import tables

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACORDAR = ROOT.parent / "shared" / "data" / "trec_check" / "acordar"


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    qrels, runs = [], {"a": [], "b": []}
    for q in range(30):
        grades = generator.integers(0, 3, 8)
        for d, grade in enumerate(grades):
            qrels.append(f"q{q} 0 d{d} {grade}")
        for quality, lines in enumerate(runs.values()):
            for d, score in enumerate(quality * grades + generator.normal(size=8)):
                lines.append(f"q{q} Q0 d{d} 1 {score} x")
    (tmp_path / "qrels.txt").write_text("\n".join(qrels))
    for name, lines in runs.items():
        (tmp_path / f"{name}.trec").write_text("\n".join(lines))
    texts = [f"q{q}\t{'word ' * (q % 9 + 1)}" for q in range(30)]
    (tmp_path / "queries.tsv").write_text("\n".join(texts))
    kinds = [f"q{q}\t{['find', 'buy'][q % 2]}" for q in range(30)]
    (tmp_path / "fields.tsv").write_text("\n".join(["query_id\tkind", *kinds]))
    return tmp_path


def call(folder, *flags, runs=("a.trec", "b.trec")):
    found = [str(folder / "qrels.txt"), *(str(folder / run) for run in runs)]
    evaluate.main(["--qrels", found[0], "--run", *found[1:], *map(str, flags)])


def test_tables_and_files(files, capsys):
    call(
        files,
        *("--measures", "NDCG@5", "PNR", "--permutations", "500", "--teacher", "b"),
        *("--queries", files / "queries.tsv", "--fields", files / "fields.tsv"),
        *("--json", files / "new" / "s.json", "--per-query", files / "q.tsv"),
        *("--markdown", files / "t.md"),
    )
    summary = json.loads((files / "new" / "s.json").read_text())
    assert list(summary["systems"]) == ["a", "b"] and summary["reference"] == "a"
    system = summary["systems"]["b"]
    low, high = system["interval"]["NDCG@5"]
    assert 0 < low < system["difference"]["NDCG@5"] < high
    assert system["p_value"]["NDCG@5"] <= system["p_holm"]["NDCG@5"] < 0.01
    fields = [(one["field"], one["value"]) for one in summary["slices"]]
    assert ("query length (words)", "low (1 to 3)") in fields and ("kind", "buy") in (
        fields
    )
    assert summary["agreement"]["a"]["teacher"] == "b"
    header, *lines = (files / "q.tsv").read_text().splitlines()
    assert header.split("\t")[:4] == ["query", "system", "NDCG@5", "PNR"]
    values = [float(line.split("\t")[2]) for line in lines if "\tb\t" in line]
    assert np.mean(values) == pytest.approx(system["metrics"]["NDCG@5"])
    shown = capsys.readouterr()
    assert f"{system['metrics']['NDCG@5']:.4f}*" in shown.out
    assert f"[{low:+.4f}, {high:+.4f}]" in shown.out and not shown.err
    assert f"| b | {system['metrics']['NDCG@5']:.4f}* |" in (files / "t.md").read_text()


def test_json_lines_of_every_query_and_names_of_systems(files):
    path = files / "q.jsonl"
    call(files, "--run", f"other={files / 'a.trec'}", "--per-query", path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 90 and rows[-1]["system"] == "other"
    assert rows[0]["NDCG@10"] == rows[60]["NDCG@10"]


def test_notes_name_file_and_line(files, capsys):
    lines = (files / "b.trec").read_text().splitlines()
    (files / "b.trec").write_text("\n".join([*lines[8:], "z Q0 d1 1 1 x"]))
    call(files, "--permutations", "50")
    shown = capsys.readouterr().err
    assert "b.trec:233: query 'z' without a judgement" in shown
    assert "b.trec: has nothing for the judged query 'q0': these count 0" in shown
    (files / "b.trec").write_text("q1 Q0 other 1 1.0 x\n")
    call(files, "--no-complete")
    shown = capsys.readouterr().err
    assert "b.trec:1: none of the run's documents is judged" in shown
    assert "'q0' and 28 others: these are left out" in shown
    assert "b and a have fewer than 2 queries in common" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("z Q0 d1 1 1 x\n", r"b.trec:1: query 'z': none of .* 1 queries has a judgem"),
        ("d1 Q0 q1 1 1 x\n", "columns of query and document look swapped"),
        ("q1 Q0 d1 1 nan x\n", r"b.trec:1: field 'score': found 'nan'"),
        ("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", "b.trec:2: .*a document once a query"),
        ("q1 Q0 d1 2.5 1 x\n", "b.trec:1: field 'rank'"),
    ],
)
def test_bad_runs_end_with_a_sentence(files, text, message):
    (files / "b.trec").write_text(text)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        call(files)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--measures", "NDGC@5"),
            "--measures: unknown measure 'NDGC@5'; did you",
        ),
        (("--reference", "z"), "--reference: 'z' is none of the runs a, b"),
        (("--teacher", "z"), "--teacher: 'z' is none of the runs a, b"),
        (("--relevance", "0"), "--relevance must be above 0, found 0"),
        (("--depth", "0"), "--depth must be from 1"),
        (("--run", "a=x"), "both called 'a'"),
        (("--run", "x="), "expected FILE or NAME=FILE"),
        (("--json", "/dev/null/x"), "/dev/null/x cannot be written"),
        (("--fields", "/nowhere"), "/nowhere: no such file"),
    ],
)
def test_bad_flags_end_with_a_sentence(files, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        call(files, "--permutations", "50", *flags)


def test_fields_of_other_queries(files):
    (files / "fields.tsv").write_text("id\tkind\nz\tx\n")
    with pytest.raises(SystemExit, match="field 'kind': none of its queries"):
        call(files, "--fields", files / "fields.tsv")


@pytest.mark.skipif(not ACORDAR.is_dir(), reason="ACORDAR is not beside the checkout")
def test_acordars_published_table(tmp_path, capsys):
    """The four systems' table to 0.0002, from the run files by the command."""
    runs = ACORDAR / "runs"
    names = ("TFIDF", "BM25F", "FSDM", "LMD")
    published = json.loads((ACORDAR / "expected.json").read_text())
    evaluate.main(
        [
            *("--qrels", str(ACORDAR / "qrels.txt"), "--json", str(tmp_path / "s")),
            *("--run", *(str(runs / f"{name}.trec.gz") for name in names)),
            *("--measures", "NDCG@5", "NDCG@10", "MAP@5", "MAP@10"),
            *("--queries", str(ACORDAR / "queries.tsv"), "--permutations", "200"),
        ]
    )
    systems = json.loads((tmp_path / "s").read_text())["systems"]
    for name in names:
        for measure, value in published["published_in_README"][name].items():
            assert abs(systems[name]["metrics"][measure] - value) <= 0.0002


def test_it_needs_no_jax_and_help_is_complete(files):
    code = (
        "import sys; from ranker import evaluate\n"
        f"evaluate.main(['--qrels', '{files}/qrels.txt', '--run', '{files}/a.trec'])\n"
        "heavy = {'jax', 'flax', 'scipy', 'torch', 'grain'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
        "evaluate.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--per-query FILE" in done.stdout and "--config FILE" in done.stdout


@pytest.mark.parametrize("room", [30, 57, 58, 200])
def test_no_number_is_shortened_for_a_narrow_terminal(room, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(room))
    header = ["system", "teacher, student", "95 % interval"]
    row = ["student_margin", "0.1234", "[-0.0126, +0.0506]"]
    tables.show([tables.Grid("", header, [row])])
    lines = capsys.readouterr().out.splitlines()
    assert any(all(cell in line for cell in row) for line in lines)
    # 50: what cells and the longest words take; 8 more with headers on one line.
    assert len(lines[0]) == (50 if room < 58 else 58)
    assert any("teacher, student" in line for line in lines) == (room >= 58)
