"""`python -m ranker.evaluate --qrels FILE --run FILE`, as its users call it."""

import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ranker import evaluate
from ranker.reporting import exports, tables

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
        (("--reference", "z"), "--reference: 'z' is not one of the runs a, b"),
        (("--teacher", "z"), "--teacher: 'z' is not one of the runs a, b"),
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


def test_a_flag_given_twice_is_refused(files, capsys):
    with pytest.raises(SystemExit):
        call(files, "--depth", "3", "--depth", "4")
    assert "--depth is given twice; give it once" in capsys.readouterr().err


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


# --- several seeds and collections, other kinds of files ---


def made(folder, name, ranks, good="good"):
    """A run of one relevant document a query, at a rank; judgements beside it."""
    qrels, lines = [], []
    for q, rank in enumerate(ranks):
        qrels.append(f"q{q} 0 {good} 1")
        documents = [f"x{n}" for n in range(5)]
        documents.insert(rank - 1, good)
        for at, document in enumerate(documents):
            lines.append(f"q{q} Q0 {document} {at + 1} {9 - at} tag")
    (folder / f"{name}.qrels").write_text("\n".join(qrels))
    (folder / f"{name}.trec").write_text("\n".join(lines))
    return folder / f"{name}.trec"


def summary_of(folder, *flags):
    path = folder / "summary.json"
    evaluate.main([*map(str, flags), "--json", str(path), "--measures", "MRR"])
    return json.loads(path.read_text())


def test_seeds_become_one_row(tmp_path, capsys):
    runs = {
        "base": made(tmp_path, "base", [2] * 8),
        "ours@0": made(tmp_path, "a", [1] * 8),
        "ours@1": made(tmp_path, "b", [4] * 8),
    }
    flags = [part for k, v in runs.items() for part in ("--run", f"{k}={v}")]
    found = summary_of(tmp_path, "--qrels", tmp_path / "base.qrels", *flags)
    assert [*found["systems"]] == ["base", "ours"]
    ours = found["systems"]["ours"]
    assert ours["metrics"]["MRR"] == pytest.approx(0.625)
    assert ours["sd_over_seeds"]["MRR"] == pytest.approx(np.std([1, 0.25], ddof=1))
    assert found["settings"]["runs"]["ours"] == {
        "0": str(runs["ours@0"]),
        "1": str(runs["ours@1"]),
    }
    assert "0.6250 ± 0.5303" in capsys.readouterr().out


def test_collections_have_a_block_each_and_a_macro_mean(tmp_path, capsys):
    flags = []
    for name, ranks in (("north", [2] * 4), ("south", [4] * 2)):
        first = made(tmp_path, name, [1] * len(ranks))
        second = made(tmp_path, f"{name}2", ranks)
        flags += ["--qrels", f"{name}={tmp_path / name}.qrels"]
        flags += ["--run", f"{name}/one={first}", f"{name}/two={second}"]
    found = summary_of(
        tmp_path,
        *flags,
        *("--csv", tmp_path / "t.csv", "--latex", tmp_path / "t.tex"),
        *("--html", tmp_path / "t.html", "--per-query", tmp_path / "q.tsv"),
        *("--markdown", tmp_path / "t.md", "--equivalence", "0.2"),
    )
    assert found["systems"]["two"]["metrics"]["MRR"] == pytest.approx(0.375)
    assert found["collections"]["south"]["systems"]["two"]["metrics"]["MRR"] == 0.25
    assert found["systems"]["two"]["queries"] == 6
    out = capsys.readouterr().out
    assert "north: 4 judged queries" in out and "macro mean of 2 collections" in out
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    macro = [r for r in rows if (r["collection"], r["system"]) == ("macro mean", "two")]
    assert float(macro[0]["value"]) == pytest.approx(0.375)
    assert (macro[0]["won"], macro[0]["lost"]) == ("0", "6")
    assert len(rows) == 6
    header, *lines = (tmp_path / "q.tsv").read_text().splitlines()
    assert header.split("\t") == ["collection", "query", "system", "MRR"]
    assert "south\tq1\ttwo\t0.25" in lines
    tex = (tmp_path / "t.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 6 == tex.count(r"\bottomrule")
    assert r"95 \% interval" in tex and "south" in tex
    words = page_words((tmp_path / "t.html").read_text())
    assert "two less one" in words and "lost by most" in words and "0.3750" in words


def page_words(text):
    """Words of a page that is whole, loads nothing and runs no script."""
    assert text.startswith("<!doctype html>") and "default-src 'none'" in text
    lowered = text.lower()
    assert not any(one in lowered for one in ("<script", "<img", "src=", "url("))
    for tag in ("table", "section", "details", "svg", "div"):
        assert text.count(f"<{tag}") == text.count(f"</{tag}>"), tag
    return re.sub(r"<[^>]*>", "", text)


def test_a_page_of_hostile_names(tmp_path):
    bad = "<script>alert(1)</script>\u202e"
    run = made(tmp_path, "a", [1, 2, 3, 4, 1, 2, 3], good=bad)
    other = made(tmp_path, "b", [2, 1, 3, 3, 2, 1, 4], good=bad)
    summary_of(
        tmp_path,
        *("--qrels", tmp_path / "a.qrels", "--run", f"<b>={run}", f"&={other}"),
        *("--html", tmp_path / "t.html", "--across-queries"),
    )
    words = page_words((tmp_path / "t.html").read_text())
    assert "&lt;script&gt;alert(1)" in words and "\u202e" not in words
    assert "scores across queries" in words


def test_three_columns_are_ranks_and_standard_input_is_a_file(tmp_path, monkeypatch):
    run = made(tmp_path, "a", [1, 4])
    lines = [line.split() for line in run.read_text().splitlines()]
    ranked = "\n".join(f"{q}\t{d}\t{rank}" for q, _, d, rank, _, _ in lines[::-1])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ranked.encode())))
    found = summary_of(tmp_path, "--qrels", tmp_path / "a.qrels", "--run", run, "-")
    assert [*found["systems"]] == ["a", "stdin"]
    for system in found["systems"].values():
        assert system["metrics"]["MRR"] == pytest.approx((1 + 0.25) / 2)


def test_scores_across_queries(tmp_path):
    """Queries whose scores are shifted order well within, and badly between."""
    qrels, run = [], []
    for q in range(12):
        for d in range(6):
            qrels.append(f"q{q} 0 d{d} {int(d < 2)}")
            run.append(f"q{q} Q0 d{d} 1 {100 * (q % 2) - d} x")
    (tmp_path / "qrels").write_text("\n".join(qrels))
    (tmp_path / "run").write_text("\n".join(run))
    found = summary_of(
        tmp_path,
        *("--qrels", tmp_path / "qrels", "--run", tmp_path / "run"),
        "--across-queries",
    )
    across = found["across_queries"]["run"]
    assert found["systems"]["run"]["metrics"]["MRR"] == 1
    # Same shift (60 of 132 ordered pairs of queries): all right; else one half.
    assert across["accuracy"] == pytest.approx((60 + 72 / 2) / 132)
    assert across["documents"] == 72 and across["base_rate"] == pytest.approx(1 / 3)
    assert 0 <= across["ece"]["isotonic"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run", "ours@x=F"), "'ours@x=F': found the seed 'x', expected a whole num"),
        (("--run", "ours@=F"), "found the seed ''"),
        (("--run", "@1=F"), "found the seed '1', .*--run ours@0=FILE"),
        (("--run", "o@0=F", "o@0=G"), "F and G are both called 'o@0'"),
        (("--run", "o@0=F", "o=G"), "of F and G, both of 'o', one has a seed and the"),
        (("--run", "o@0=F", "o@1=F"), "o@0 and o@1 are the same file F"),
        (("--run", "o@0=F", "o@1=G", "--reference", "o@1"), "'o@1' is one seed of 'o'"),
        (("--run", "=F"), "expected FILE or NAME=FILE, found '=F'"),
        (
            ("--qrels", "A", "--run", "F"),
            "2 files, and .* has no name; name each collection",
        ),
        (("--run", "-", "--fields", "-"), "2 files would be read from standard input"),
        (("--run", "o@٣=F"), "found the seed '٣', expected a whole number"),
        (("--run", f"o@{'9' * 5000}=F"), "expected a name of at most 200 printable"),
        (("--run", "a\nb=F"), "'a.{1,2}nb=F': expected a name of .* printable char"),
        (("--run", "a=F", "--equivalence", "0"), "--equivalence must be above 0"),
        (("--run", "a=F", "--equivalence", "inf"), "above 0 and finite, found inf"),
        (("--run", "a=F", "--seed", "-1"), "--seed must be from 0, found -1"),
        (("--run", "a=F", "--measures", "P(rel=x)@3"), "--measures: measure 'P.rel=x."),
    ],
)
def test_bad_names_end_with_a_sentence(flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate.main(["--qrels", "Q", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--run", "north/a=F"),
            "the collection 'south' has no run; add --run south/NA",
        ),
        (("--run", "a=F"), "'a=F' does not say of which collection; write --run north"),
        (("--run", "nort/a=F"), "of the collection 'nort', .*did you mean north"),
        (
            ("--run", "north/a@0=F", "south/a@1=G"),
            "'a' has the seeds 0 in north and 1 in south",
        ),
        (
            ("--run", "north/a=F", "south/b=G", "--reference", "a"),
            "--reference: 'a' has no run of the collection 'south'; add --run south/a=",
        ),
        (("--qrels", "north=Z", "--run", "north/a=F"), "are both called 'north'"),
        (("--qrels", "a/b=Z", "--run", "a/b/c=F"), "name 'a/b' .* has a / in it"),
        (("--qrels", "macro mean=Z", "--run", "north/a=F"), "is that of the mean over"),
    ],
)
def test_bad_collections_end_with_a_sentence(flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate.main(["--qrels", "north=Q", "--qrels", "south=R", *flags])


def test_counts_are_whole_and_titles_are_one_line(tmp_path, capsys):
    run = made(tmp_path, "a", [2])
    flags = ("--qrels", tmp_path / "a.qrels", "--run", run, f"b={run}")
    evaluate.main([*map(str, flags), "--measures", "num_ret", "MRR"])
    out = capsys.readouterr().out
    assert "1 judged query; * differs from a, Holm-corrected p < 0.05\n" in out
    assert re.search(r"│ a +│ +\d+ │ 0.5000 │", out)


def test_seeds_of_few_queries_have_no_interval_and_the_note_says_so(tmp_path, capsys):
    first, second = made(tmp_path, "a", [1, 2]), made(tmp_path, "b", [2, 2])
    flags = ("--qrels", tmp_path / "a.qrels", "--run", first)
    flags += (f"o@0={first}", f"o@1={second}")
    found = summary_of(tmp_path, *flags)["systems"]["o"]
    assert found["interval"]["MRR"] is None and found["p_value"]["MRR"] is not None
    told = "fewer than 6 queries in common for MRR: too few for an interval"
    assert told in capsys.readouterr().err


def test_latex_of_names_that_latex_would_read_otherwise():
    header = ["system", "measure", "difference", "95 % interval", "d_z"]
    rows = [
        ["[a]", "R@1", "-0.1000", "[-0.2000, +0.0100]", "-"],
        ["*b|c", "P-x", "+0.1 ± 0.2", "<0.0001", "1e-05"],
    ]
    lines = exports.tabular(tables.Grid("p < 0.05", header, rows, left=2)).split("\n")
    assert r"\caption{p $<$ 0.05}" in lines
    assert r"system & measure & difference & 95 \% interval & d\_z \\" in lines
    # After \\ a [ or * would be its argument; minus is longer than a hyphen.
    assert r"{}[a] & R@1 & $-$0.1000 & [$-$0.2000, +0.0100] & -- \\" in lines
    assert r"{}*b\textbar{}c & P-x & +0.1 $\pm$ 0.2 & $<$0.0001 & 1e-05 \\" in lines


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not here")
def test_latex_is_set_without_a_complaint_and_fits_the_page(files):
    evaluate.main(
        [
            *("--qrels", str(files / "qrels.txt"), "--measures", "NDCG@10", "PNR"),
            *("--run", rf"[odd]_ & 5%#$x~^\={files / 'a.trec'}"),
            *(f'*b|"q"<>-1={files / "b.trec"}', "--equivalence", "0.01"),
            *("--latex", str(files / "t.tex")),
        ]
    )
    begin = r"\documentclass{article}\usepackage[T1]{fontenc}"
    begin += r"\usepackage{booktabs,graphicx}\begin{document}"
    (files / "page.tex").write_text(begin + "\n\\input{t}\n\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "page.tex"],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and (files / "page.pdf").is_file(), done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Undefined" not in done.stdout


def test_a_grade_given_twice_and_an_id_with_a_space(files):
    lines = (files / "qrels.txt").read_text().splitlines()
    (files / "qrels.txt").write_text("\n".join([*lines, lines[0], "q0 0 d0 9"]))
    with pytest.raises(
        SystemExit, match=r"qrels.txt:242: field 'score': found '9', ex"
    ):
        call(files)
    (files / "qrels.txt").write_text("\n".join([*lines, lines[0]]))
    run = (files / "a.trec").read_text().splitlines()
    (files / "a.trec").write_text("\n".join([*run, "q0 Q0 d 9 1 0.5 x"]))
    with pytest.raises(SystemExit, match=r"a.trec:241: .*has an id a space in it"):
        call(files)
