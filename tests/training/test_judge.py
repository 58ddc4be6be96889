"""The teacher judges the negatives, on a collection of twelve documents."""

import json

import numpy as np
import pytest

from configs import quickstart
from ranker import config
from ranker.data.prepare import prepare
from ranker.data.records import RankedList
from ranker.errors import ConfigError, DataError, StageError
from ranker.scoring import given
from ranker.training import judge
from ranker.training.inputs import rank_lists, scored_lists

LABELS = np.array([2, 0, 0, 1, 0, 0], np.float32)
SCORES = np.array([4.0, 6.0, 3.5, 1.0, 0.5, -1.0], np.float32)


def ranked(labels=LABELS, judged=(1, 0, 0, 1, 1, 0)):
    return RankedList(
        query_id="q",
        query="query",
        documents=np.arange(10, 16),
        labels=np.array(labels, np.float32),
        first_stage=-np.arange(6, dtype=np.float32),
        judged_ids=(),
        judged_grades=np.zeros(0, np.int32),
        judged=np.array(judged, bool),
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(margin=0.0), [1]),  # above the best positive, 4.0
        (dict(margin=0.5), [1]),  # 3.5 is not above 3.5
        (dict(margin=0.6), [1, 2]),
        (dict(margin=5.1), [1, 2, 5]),  # place 4 was judged irrelevant
        (dict(margin=0.2, unit="relative"), [1, 2]),  # 0.2 of 4 - (-1)
        (dict(margin=0.1, unit="relative"), [1]),
    ],
)
def test_suspects_lie_within_the_margin(settings, expected):
    found = judge.suspects(ranked(), SCORES, config.Judge(action="drop", **settings))
    assert np.flatnonzero(found).tolist() == expected


def test_lists_without_a_positive_have_no_suspects():
    settings = config.Judge(action="drop", margin=9.0)
    nothing = ranked(labels=np.zeros(6))
    assert not judge.suspects(nothing, SCORES, settings).any()
    # A label that no judgement stands behind, as of a second round, is not a positive.
    unjudged = ranked(judged=(0,) * 6)
    assert not judge.suspects(unjudged, SCORES, settings).any()


def test_suspects_are_dropped_or_relabelled():
    drop = config.Judge(action="drop", margin=0.6)
    result, found = judge.judge_list(ranked(), SCORES, drop)
    assert found.sum() == 2
    assert result.documents.tolist() == [10, 13, 14, 15]
    assert result.labels.tolist() == [2, 1, 0, 0]
    assert result.teacher.tolist() == [4.0, 1.0, 0.5, -1.0]
    relabel = config.Judge(action="relabel", margin=0.6, grade=2)
    result, _ = judge.judge_list(ranked(), SCORES, relabel)
    assert result.documents.tolist() == list(range(10, 16))
    assert result.labels.tolist() == [2, 2, 2, 1, 0, 0]
    # Nobody has judged them all the same.
    assert result.judged.tolist() == [True, False, False, True, True, False]
    assert result.teacher.tolist() == SCORES.tolist()


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared workdir with scores from outside, and its settings."""
    folder = tmp_path_factory.mktemp("made")
    texts = [f"<b>lamp</b> number {i}" for i in range(12)]
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    lines(folder / "data" / "corpus.jsonl", rows)
    queries = [{"_id": f"q{i}", "text": f"lamp {i}"} for i in range(5)]
    lines(folder / "data" / "queries.jsonl", queries)
    for split, part in (("train", (0, 1, 2)), ("test", (3,))):
        judged = "".join(f"q{i}\td{i}\t1\n" for i in part)
        path = folder / "data" / "qrels" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("query-id\tcorpus-id\tscore\n" + judged)
    # q0: d5 is above its positive d0; q1: nothing near d1; q4 has no judgement.
    scores = {"q0": {"d0": 3.0, "d5": 4.0, "d6": 2.9, "d7": 0.0}}
    scores |= {"q1": {"d1": 5.0, "d2": 0.0}, "q4": {"d1": 1.0, "d2": 2.0}}
    lines(
        folder / "scores.jsonl",
        (
            {"query_id": q, "document_id": d, "score": s}
            for q, found in scores.items()
            for d, s in found.items()
        ),
    )
    data = config.Data(
        path=str(folder / "data"), given_scores=str(folder / "scores.jsonl")
    )
    stage = dict(data=data, text=config.Text())
    prepared = prepare(data, config.Text(), folder / "work")
    outside = config.Given(**stage, name="outside")  # than its teacher's name
    run = given.plan(outside, prepared, folder / "work")
    given.execute(run)
    return folder / "work", prepared, stage


def judged(made, **settings):
    workdir, prepared, stage = made
    wanted = config.Judge(**settings)
    fields = dict(stage, scores="outside", judge=wanted, name=f"j_{wanted.action}")
    return judge.execute(
        judge.plan(config.Judging(**fields), prepared, workdir), replace=True
    )


def distillation(name):
    full = quickstart.get_config("smoke").stages()["distill"]
    return config.replace(full, scores=name)


def test_a_distillation_reads_the_judged_lists_and_their_scores(made):
    workdir, prepared, _ = made
    manifest = judged(made, action="drop", margin=0.5)
    assert manifest.kind == "score" and manifest.facts["pairs"] == 6
    lists, targets = scored_lists(
        config.replace(
            distillation("j_drop"),
            objective=config.Distillation(target_scale="none"),
        ),
        prepared,
        workdir,
    )
    found = {lists[i].query_id: targets[i].tolist() for i in range(len(lists))}
    assert found == {"q0": [3.0, 0.0], "q1": [5.0, 0.0], "q4": [2.0, 1.0]}


def test_a_second_fine_tuning_reads_the_judged_lists(made):
    workdir, prepared, _ = made
    judged(made, action="relabel", margin=0.5)
    stage = quickstart.get_config("smoke").stages()["sft"]
    stage = config.replace(stage, negatives="j_relabel")
    found = rank_lists(stage, prepared, workdir)
    assert {one.query_id: one.labels.tolist() for one in found} == {
        "q0": [1, 1, 1, 0],
        "q1": [1, 0],
    }


def test_the_report_counts_and_the_page_escapes(made):
    workdir, _, _ = made
    judged(made, action="drop", margin=0.5)
    report = json.loads((workdir / "j_drop" / "report.json").read_text())
    examples = report.pop("examples")
    assert report.pop("judge")["margin"] == 0.5
    assert report == {
        "lists": 3,
        "lists_with_a_positive": 2,
        "judged_candidates": 2,
        "unjudged_candidates": 4,
        "dropped": 2,
        "above_every_positive": 1,
        "by_rank": {"1-10": 2},
    }
    assert [one["suspect"]["id"] for one in examples] == ["d5", "d6"]
    assert examples[0]["positive"]["score"] == 3.0
    page = (workdir / "j_drop" / "report.html").read_text()
    assert "&lt;b&gt;lamp&lt;/b&gt; number 5" in page and "<b>lamp" not in page


def test_what_cannot_be_judged_is_said(made):
    workdir, prepared, stage = made
    with pytest.raises(ConfigError, match="judge.action is none"):
        config.Judging(**stage, judge=config.Judge())
    with pytest.raises(ConfigError, match="below 1 where judge.unit is relative"):
        config.Judge(action="drop", margin=1.0, unit="relative")
    judged(made, action="drop", margin=0.5)
    again = config.Judging(
        **stage, name="again", scores="j_drop", judge=config.Judge(action="drop")
    )
    with pytest.raises(StageError, match="'j_drop' holds judged lists"):
        judge.plan(again, prepared, workdir)


def test_lists_that_nobody_judged_stop_the_stage(made, monkeypatch):
    findings = judge.Findings()
    findings.add(ranked(labels=np.zeros(6)), SCORES, np.zeros(6, bool), None)
    assert (findings.lists, findings.with_positive, findings.judged) == (1, 0, 3)
    monkeypatch.setattr(judge.Findings, "add", lambda *_: None)
    monkeypatch.setattr(
        judge, "judge_list", lambda record, *_: (record, np.zeros(0, bool))
    )
    with pytest.raises(DataError, match="none of 0 lists has a positive"):
        judged(made, action="drop", margin=0.7)


def test_the_pipeline_places_the_judge_between_score_and_distill():
    full = quickstart.get_config("smoke")
    assert "judged" not in full.stages()
    judging = config.replace(full, judge=config.Judge(action="drop"))
    stages = judging.stages()
    names = list(stages)
    assert names.index("scores") < names.index("judged") < names.index("distill")
    assert stages["distill"].scores == "judged"
    stages = config.replace(judging, second_sft=full.sft).stages()
    assert stages["sft_second"].negatives == "judged"
    assert stages["sft_second"].parent == "sft"
    assert stages["scores_second"].teacher == "sft_second"
    assert stages["distill"].scores == "judged_second"
    assert "sft_second" in stages["evaluate"].systems
    with pytest.raises(ConfigError, match="second_sft learns from negatives"):
        config.replace(full, second_sft=full.sft)
