"""Scores of a teacher from outside: from files to an exported student."""

import json
import math
import pathlib
import runpy
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ranker import check, config, manifests, run
from ranker.data.prepare import prepare
from ranker.errors import DataError
from ranker.training.inputs import scored_lists

_path = pathlib.Path(__file__).with_name("data") / "loaded.py"
load = runpy.run_path(str(_path))["load"]
ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "given_scores.py"
SCORES = [
    json.loads(line)
    for line in (ROOT / "configs/given_scores_smoke/scores.jsonl")
    .read_text()
    .split("\n")
    if line
]
COUNT = 256  # 32 queries of 8 documents


def settings(given, **fields):
    found = config.load(
        f"{CONFIG}:smoke", [f"--config.given_scores={given}"], of=config.Pipeline
    )
    return config.replace(found, **fields)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_jsonl(folder):
    (folder / "scores.jsonl").write_text(lines(SCORES))
    return folder / "scores.jsonl"


def write_run(folder):
    text = "".join(
        f"{one['query_id']} Q0 {one['document_id']} 1 {one['score']} vllm\n"
        for one in SCORES
    )
    (folder / "scores.trec").write_text(text)
    return folder / "scores.trec"


def write_parquet(folder):
    pq.write_table(pa.Table.from_pylist(SCORES), folder / "scores.parquet")
    return folder / "scores.parquet"


def write_pattern(folder):
    for part in range(3):
        (folder / f"part-{part}.jsonl").write_text(lines(SCORES[part::3]))
    (folder / "notes.txt").write_text("not scores\n")
    return folder / "part-*.jsonl"


def write_folder(folder):
    inside = folder / "scores"
    inside.mkdir()
    (inside / "a.jsonl").write_text(lines(SCORES[:100]))
    pq.write_table(pa.Table.from_pylist(SCORES[100:]), inside / "b.parquet")
    return inside


WRITERS = [write_jsonl, write_run, write_parquet, write_pattern, write_folder]


def teacher_scores(prepared):
    """By query and document."""
    corpus, found = prepared.corpus(), {}
    for split in ("train", "unlabelled"):
        lists = prepared.lists(split)
        for number in range(len(lists)):
            one = lists[number]
            for row, score in zip(one.documents.tolist(), one.teacher, strict=True):
                found[one.query_id, corpus[row].id] = float(score)
    return found


@pytest.mark.parametrize("write", WRITERS, ids=lambda one: one.__name__[6:])
def test_scores_are_the_same_from_every_kind_of_file(write, tmp_path):
    given = settings(write(tmp_path))
    prepared = prepare(given.data, given.reading, tmp_path / "run")
    found = teacher_scores(prepared)
    assert len(found) == COUNT
    for one in SCORES:
        score = found[one["query_id"], one["document_id"]]
        assert math.isclose(score, one["score"], abs_tol=1e-6)


def test_scores_that_are_missing_or_no_numbers_are_named(tmp_path, capsys):
    path, first = tmp_path / "scores.jsonl", SCORES[0]
    pair = f"query '{first['query_id']}', document '{first['document_id']}'"
    path.write_text(lines([{**first, "score": None}, *SCORES[1:]]))
    given = settings(path)
    with pytest.raises(DataError, match=rf"1 scores are not finite: {pair}: nan"):
        prepare(given.data, given.reading, tmp_path / "run")
    skipped = settings(path, data=config.replace(given.data, on_error="skip"))
    prepared = prepare(skipped.data, skipped.reading, tmp_path / "skipped")
    report = prepared.manifest.facts["report"]["given_scores"]
    assert report["not_finite"] == {"count": 1, "first": [f"{pair}: nan"]}
    # A whole query, an unknown document, and a held-out query.
    lost = first["query_id"]
    rest = [one for one in SCORES if one["query_id"] != lost]
    path.write_text(
        lines(
            [
                *rest,
                {**rest[0], "document_id": "nowhere"},
                {"query_id": "q40", "document_id": "d1", "score": 1.0},
            ]
        )
    )
    prepared = prepare(given.data, given.reading, tmp_path / "fewer")
    report = prepared.manifest.facts["report"]["given_scores"]
    assert report["queries_without_a_score"]["first"] == [lost]
    unknown = f"{rest[0]['query_id']} nowhere"
    assert report["documents_not_in_the_corpus"]["first"] == [unknown]
    assert report["queries_not_used"]["first"] == ["q40"]
    assert report["teacher_scores"] == COUNT - 8
    said = capsys.readouterr().out
    assert f"given scores: 1 queries without a score: {lost}" in said


def test_candidates_of_a_run_that_have_no_score_are_named(tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(ROOT / "configs" / "given_scores_smoke", folder)
    (folder / "runs").mkdir()
    names = {one["query_id"] for one in SCORES[:64]}  # of train
    text = "".join(f"{name} Q0 {doc} 1 2 t\n" for name in names for doc in ("d1", "d2"))
    (folder / "runs" / "bm25.train.trec").write_text(text)
    found = load(folder, given_scores=str(folder / "scores.jsonl"))
    scored = {(one["query_id"], one["document_id"]) for one in SCORES}
    missing = {
        f"{name} {doc}"
        for name in names
        for doc in ("d1", "d2")
        if (name, doc) not in scored
    }
    report = found.report["given_scores"]["candidates_without_a_score"]
    assert report["count"] == len(missing) and set(report["first"]) == missing


def test_a_pipeline_without_a_teacher_needs_scores_and_a_collection():
    smoke = settings("scores.jsonl")
    none = config.replace(smoke.data, given_scores="")
    with pytest.raises(config.ConfigError, match="teacher, cpt, sft: none"):
        config.replace(smoke, given_scores="", data=none)
    made = config.replace(smoke.data, path="")
    with pytest.raises(config.ConfigError, match="synthetic collection has no scores"):
        config.replace(smoke, data=made)
    # A config with a teacher can be told to take scores in its place.
    found = config.load(
        str(ROOT / "configs" / "qwen3_reranker_to_bert.py"),
        ["--config.given_scores=scores.parquet", "--config.compare"],
        of=config.Pipeline,
    )
    assert list(found.stages()) == ["given", "distill", "evaluate", "export"]
    # Nothing is fetched of a teacher that does not score.
    assert found.reading.teacher_tokenizer == found.student.path
    assert found.reading.teacher_template == "pair"


@pytest.mark.slow
def test_a_run_distils_evaluates_and_exports(tmp_path, capsys):
    scores = write_parquet(tmp_path)
    flags = [f"--config.given_scores={scores}", "--config.distill.loop.steps=6"]
    flags += ["--config.compare", f"--workdir={tmp_path / 'run'}"]
    run.main(["--config", f"{CONFIG}:smoke", *flags])
    workdir = tmp_path / "run"
    stages = {one.parent.name for one in workdir.glob("*/manifest.json")}
    assert stages == {"prepare", "given", "distill", "evaluate", "export"}
    manifest = manifests.load_manifest(workdir / "given")
    assert manifest.facts["pairs"] == COUNT
    values = [one["score"] for one in SCORES]
    found = [manifest.facts[name] for name in ("min", "mean", "max")]
    np.testing.assert_allclose(found, [min(values), np.mean(values), max(values)])
    # What distil learns from is what the file says of each pair.
    given = settings(scores)
    stage = given.stages()["distill"]
    raw = config.replace(
        stage, objective=config.replace(stage.objective, target_scale="raw")
    )
    prepared = prepare(given.data, given.reading, workdir)
    lists, targets = scored_lists(raw, prepared, workdir)
    corpus, known = prepared.corpus(), teacher_scores(prepared)
    for number in range(len(lists)):
        one = lists[number]
        expected = [known[one.query_id, corpus[row].id] for row in one.documents]
        np.testing.assert_allclose(targets[number], expected, atol=1e-6)
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["systems"]) == ["bm25", "distill"]
    assert check.main([str(workdir / "export")]) == 0
    capsys.readouterr()
    run.main(["--config", f"{CONFIG}:smoke", *flags, "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert [one.split("] ")[1] for one in said if one[0] == "["] == ["done"] * 5
