"""The report of a workdir: whole, partial, broken, and full of hostile text."""

import html.parser
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ranker import manifests, report
from ranker.data import datasets, formats
from ranker.data.records import Document, RankedList
from ranker.metrics import agreement, comparison
from ranker.metrics.runs import agreements, comparable_scores
from ranker.reporting import charts, figures, page, tables, workdir

HOSTILE = "</script><img src=x onerror=alert(1)>&\u202e\x07\"'<b>|"


class Checker(html.parser.HTMLParser):
    """Collects tags, and checks that each one is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data


def check(text):
    parser = Checker()
    parser.feed(text)
    assert not parser.open
    assert not parser.tags & {"script", "img", "iframe", "link", "object"}
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    targets = [value for name, value in parser.attributes if name in ("src", "href")]
    assert targets and all(value.startswith("#") for value in targets)
    assert "url(" not in text and "@import" not in text
    assert "\u202e" not in text and "\x07" not in text
    return parser.words


def facts_of(report):
    """Of prepared data, as far as a page shows them."""
    return manifests.PrepareFacts(
        config={}, teacher={}, student={}, report=report, pieces={}
    )


def write_lists(folder, generator):
    """Prepared lists of nine documents, eight of them judged."""
    documents = [
        Document(f"d{n}", f"title {n} {HOSTILE}", "word " * 99) for n in range(9)
    ]
    datasets.write_corpus(folder / "prepare" / "corpus", documents)
    names = tuple(one.id for one in documents)
    lists = []
    for q in range(12):
        grades = generator.integers(0, 3, 9)
        lists.append(
            RankedList(
                f"q{q}",
                f"query {q} {HOSTILE}",
                np.arange(9),
                grades.astype(np.float32),
                np.zeros(9, np.float32),
                names[:8],
                grades[:8].astype(np.int32),
            )
        )
    datasets.write_lists(folder / "prepare" / "lists", {"test": lists})
    return names, lists


def write_trained(folder, kind, inputs):
    """A finished stage, whose last line of metrics was cut off."""
    manifest = manifests.Manifest(kind=kind, settings={}, inputs=inputs)
    manifest.finish(
        folder,
        manifests.TrainResults(metrics={"dev_ndcg@5": 0.5}, steps=3, checkpoint=3),
    )
    rows = [{"step": n, "time": 5.0 + 70 * n, "loss": 3.0 / n} for n in (1, 2, 2, 3)]
    rows += [{"step": n, "time": 300.0, "dev_ndcg@5": 0.1 * n} for n in (2, 3)]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo'
    (folder / "metrics.jsonl").write_text(text)


def write_evaluated(folder, qrels, runs, inputs):
    """The results of an evaluation."""
    found = comparison.compare(
        qrels,
        runs,
        ("NDCG@5", "PNR"),
        reference="distill",
        tests=comparison.Inference(permutations=200),
        fields={HOSTILE[:20]: {f"q{q}": f"<{q % 2}>" for q in range(12)}},
    )
    agreed, values = agreements(runs, {"distill": "sft"}, found.queries)
    across, _ = comparable_scores(qrels, runs)
    summary = {**found.summary(), "agreement": agreed, "split": "test"}
    summary["across_queries"] = across
    (folder / "per_query.tsv").write_text(tables.per_query(found, values))
    evaluate = manifests.Manifest(kind="evaluate", settings={}, inputs=inputs)
    evaluate.finish(folder, manifests.EvaluateFacts(summary=summary))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir as the stages leave it, without their models."""
    folder = tmp_path_factory.mktemp("made") / "<i>run"
    generator = np.random.default_rng(0)
    names, lists = write_lists(folder, generator)
    prepare = manifests.Manifest(kind="prepare", settings={"x": HOSTILE}, inputs={})
    prepare.finish(folder / "prepare", facts_of({HOSTILE: HOSTILE}))
    inputs = {"prepare": prepare.key}
    for kind in ("sft", "distill"):
        write_trained(folder / kind, kind, inputs)
    runs = {}
    for quality, name in enumerate(("bm25", "sft", "distill")):
        runs[name] = {
            one.query_id: {
                document: float(quality * grade + generator.normal())
                for document, grade in zip(names, one.labels, strict=True)
            }
            for one in lists
        }
        formats.write_run(folder / "evaluate" / f"{name}.trec", runs[name], tag=name)
    qrels = {
        one.query_id: dict(zip(one.judged_ids, one.judged_grades.tolist(), strict=True))
        for one in lists
    }
    write_evaluated(folder / "evaluate", qrels, runs, inputs)
    return folder


def test_one_page_shows_everything_and_runs_nothing(made, capsys):
    report.main([str(made)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        str(made / "report.html"),
        str(made / "report" / "calibration_distill.png"),
    ]
    assert pathlib.Path(lines[1]).read_bytes().startswith(b"\x89PNG")
    text = pathlib.Path(lines[0]).read_text()
    words = check(text)
    assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text
    summary = manifests.load_manifest(made / "evaluate").facts["summary"]
    bm25 = summary["systems"]["bm25"]
    assert f"{bm25['metrics']['NDCG@5']:.4f}" in words
    assert tables.interval(bm25["interval"]["NDCG@5"]) in words
    assert "distill won most against bm25" in words
    shown = tables.number(summary["across_queries"]["sft"]["ece"]["platt"])
    assert "calibration error, platt" in words and shown in words
    assert "</script><img src=x onerror=alert(1)>&" in words  # as text
    assert "grade 2" in words and "not judged" in words
    assert manifests.load_manifest(made / "sft").key in words
    assert "Kendall's tau-b" in words and "unreadable lines" in words
    assert text.count("<polyline") == 4  # loss and dev of two stages


def test_simulated_users_choose_on_the_synthetic_collection_alone(made, tmp_path):
    assert workdir.read_workdir(made).online is None
    folder = copy(made, tmp_path)
    shutil.rmtree(folder / "report", ignore_errors=True)
    path = folder / "prepare" / "manifest.json"
    path.unlink()
    prepare = manifests.Manifest(
        kind="prepare", settings={"data": {"world": {"seed": 0}}}, inputs={}
    )
    prepare.finish(folder / "prepare", facts_of({}))
    found = workdir.read_workdir(folder)
    pairs = {(one["a"], one["b"]): one for one in found.online["pairs"]}
    assert set(pairs) == {("bm25", "distill"), ("bm25", "sft"), ("distill", "sft")}
    # The judgements decide: distill follows them twice as closely as sft, bm25 not.
    assert pairs["bm25", "distill"]["preferred"] == "distill"
    assert pairs["bm25", "sft"]["preferred"] == "sft"
    words = check(page.render(found))
    assert "Online (simulated)" in words and "it rehearses an online test" in words
    (folder / "evaluate" / "bm25.trec").unlink()
    (folder / "evaluate" / "sft.trec").unlink()
    assert workdir.read_workdir(folder).online is None


def test_the_queries_are_those_that_differ_most(made):
    found = workdir.read_workdir(made, against="sft")
    leads = [one.values[0] - one.values[1] for one in [*found.won, *found.lost[::-1]]]
    assert leads == sorted(leads, reverse=True) and found.against == "sft"
    best = found.won[0].tops[0]
    assert [one.score for one in best] == sorted((s.score for s in best), reverse=True)
    loss = found.stages[1].curve("loss")
    assert loss == ([1.0, 2.0, 3.0], [3.0, 1.5, 1.0])
    assert workdir.seconds(found.stages[1].metrics) == 225


def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def test_what_is_missing_or_broken_is_named(made, tmp_path):
    folder = copy(made, tmp_path)
    (folder / "evaluate" / "sft.trec").write_text("broken")
    (folder / "evaluate" / "per_query.tsv").unlink()
    (folder / "sft" / "manifest.json").write_text("{")
    found = workdir.read_workdir(folder)
    assert [one.name for one in found.stages] == ["prepare", "distill", "evaluate"]
    told = "\n".join(found.missing)
    assert "stage sft cannot be shown" in told and "sft.trec:1" in told
    assert "Single queries cannot be shown" in told
    check(page.render(found))


def test_before_the_evaluation(made, tmp_path):
    folder = copy(made, tmp_path)
    (folder / "evaluate" / "manifest.json").unlink()
    aside = manifests.load_manifest(folder / "sft")
    (folder / "sft").rename(folder / f"sft.{aside.key}")
    found = workdir.read_workdir(folder)
    assert [one.name for one in found.stages] == ["prepare", "distill"]
    assert "No system has been evaluated yet" in check(page.render(found))


def test_sentences_for_what_cannot_be_reported(made, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: .*holds no stage"):
        report.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="'x' is not one of the systems bm25, sft"):
        report.main([str(made), "--against", "x"])
    with pytest.raises(SystemExit, match="cannot be written"):
        report.main([str(made), "--output", "/dev/null/x"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report.main([str(made), "--output", str(tmp_path / "r.html")])
    assert "pip install 'ranker[report]'" in capsys.readouterr().out


def test_help_waits_for_nothing():
    code = (
        "import sys; from ranker import report\n"
        "try: report.main(['--help'])\n"
        "finally: assert not {'jax', 'matplotlib', 'scipy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "WORKDIR" in done.stdout, done.stderr


def test_charts_of_little_or_odd_values():
    one = charts.line_chart([charts.Series("x", [1.0], [np.nan])], "step", "<loss>")
    assert "&lt;loss&gt;" in one and "nan" not in one
    flat = np.zeros(3)
    assert "nan" not in charts.scatter(flat, flat, (0.0, 0.0), "a", "b")
    assert "nan" not in charts.histogram_chart(np.zeros(0), "a", 0)
    assert "nan" not in charts.dots([("x" * 99, [])], "a")
    for low, high in ((-3.0, 1e6), (0.0, 1e-9), (2.0, 2.0)):
        marks = charts.ticks(low, high)
        assert 1 <= len(marks) <= 8 and all(low <= m <= high for m in marks)


def test_a_png_of_many_points(tmp_path):
    scores = np.random.default_rng(0).normal(size=(2, 6000))
    assert len(figures.sample(*scores)[0]) == 5000
    path = tmp_path / "new" / "x.png"
    figures.write_calibration(path, *scores, names=("t", "s"), line=(1.0, 0.0))
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("zero", [True, False])
def test_intervals_are_drawn_one_a_row(tmp_path, zero):
    rows = [
        charts.Interval("a", 0.2, 0.1, 0.3, True),
        charts.Interval("b", 0.0, -0.1, 0.1, False),
    ]
    sizes = []
    for number in (1, 2):
        path = tmp_path / "new" / f"{number}.png"
        figures.write_intervals(path, rows[:number], "difference", zero=zero)
        header = path.read_bytes()[:24]
        sizes.append(int.from_bytes(header[20:24], "big"))  # pixels, as PNG says
    assert header.startswith(b"\x89PNG") and sizes[1] > sizes[0]


def test_faults_of_scores_are_sentences():
    generator = np.random.default_rng(0)
    teacher = [generator.normal(size=9) for _ in range(9)]

    def faults(student):
        return " ".join(agreement.find_faults(agreement.agreement(teacher, student)))

    assert faults([t * 2 + 1 for t in teacher]) == ""
    assert "student has collapsed" in faults([np.ones(9)] * 9)
    assert "slope is negative" in faults([-t for t in teacher])
    assert "lie at an end of their range" in faults(
        [np.clip(t, -1, 1) for t in teacher]
    )
    assert "equal scores" in faults([np.round(t) for t in teacher])
