"""Judgements and runs of ranked lists."""

from dataclasses import dataclass

import numpy as np
import pytest

from ranker.data.records import RankedList
from ranker.metrics import runs


@dataclass(frozen=True)
class Named:
    id: str


CORPUS = [Named("a"), Named("b"), Named("c")]
LISTS = [
    RankedList(
        query_id=f"q{n}",
        query="words",
        documents=np.array(rows),
        labels=np.zeros(len(rows), np.float32),
        first_stage=np.zeros(len(rows), np.float32),
        judged_ids=("a", "c"),
        judged_grades=np.array([2, 0], np.int32),
    )
    for n, rows in enumerate([[0, 1], [2, 0, 1]])
]


def test_scores_go_to_the_documents_of_each_list():
    run = runs.run_of(LISTS, CORPUS, np.array([1, 2, 3, 4, 5], np.float32))
    assert run == {"q0": {"a": 1.0, "b": 2.0}, "q1": {"c": 3.0, "a": 4.0, "b": 5.0}}
    assert runs.qrels_of(LISTS) == {q: {"a": 2, "c": 0} for q in ("q0", "q1")}


def test_means_by_hand():
    scores = np.array([1.0, 2.0, 9.0, 8.0, 7.0])
    # The relevant document is second in both.
    found = runs.means(LISTS, CORPUS, scores, ("NDCG@5", "mrr"))
    assert found == {"NDCG@5": pytest.approx(1 / np.log2(3)), "mrr": 0.5}


def test_judged_scores_are_those_that_both_have():
    scores, grades = runs.judged_scores(
        {"q": {"a": 2, "b": 0, "z": 1}}, {"q": {"b": 3.0, "a": 1.0, "x": 9.0}}
    )
    assert [one.tolist() for one in scores] == [[1.0, 3.0]]
    assert [one.tolist() for one in grades] == [[2.0, 0.0]]


def test_agreements_leave_out_what_has_no_pair():
    run = {"q": {"a": 1.0, "b": 2.0}}
    found, values = runs.agreements(
        {"t": run, "s": run, "far": {"q": {"z": 1.0}}},
        {"s": "t", "t": "t", "far": "t", "s2": "none"},
        ["q"],
    )
    assert [*found] == ["s"] and found["s"]["kendall"] == pytest.approx(1)
    assert found["s"]["teacher"] == "t" and values["s"]["kendall"].tolist() == [1.0]


def test_scores_across_queries_of_each_system():
    qrels = {f"q{q}": {f"d{d}": d % 2 for d in range(4)} for q in range(6)}
    good = {q: {d: 3.0 * g for d, g in grades.items()} for q, grades in qrels.items()}
    alone = {"q0": good["q0"]}
    found, notes = runs.comparable_scores(qrels, {"good": good, "alone": alone})
    # 12 documents of each kind: 144 pairs, of which 24 are of one query.
    assert (found["good"]["accuracy"], found["good"]["pairs"]) == (1.0, 120)
    assert found["good"]["documents"] == 24 and found["good"]["base_rate"] == 0.5
    assert found["good"]["ece"]["isotonic"] == 0
    assert "2 queries" in found["alone"]["reason"]
    assert notes == [
        f"alone: scores across queries are not measured: {found['alone']['reason']}"
    ]
