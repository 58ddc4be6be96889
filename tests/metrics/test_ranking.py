"""Metrics by hand, and against trec_eval's own outputs."""

import gzip
import json
import math
import pathlib

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.metrics import ranking
from ranker.metrics.ranking import Rules

CHECK = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "trec_check"
needs_check = pytest.mark.skipif(
    not CHECK.is_dir(), reason="trec_eval's outputs are not beside the checkout"
)
TREC = CHECK / "trec_eval_test"

QRELS = {"q": {"a": 3, "b": 0, "c": 1, "d": 2}}
RUN = {"q": {"b": 9.0, "a": 8.0, "x": 7.0, "c": 6.0}}


def value(measure, qrels=QRELS, run=RUN, **rules):
    return evaluate(qrels, run, [measure], **rules)[measure].mean


def evaluate(qrels, run, measures, **rules):
    return ranking.evaluate(qrels, run, measures, Rules(**rules))


def test_values_by_hand():
    discount = [1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)]
    ideal = 3 * discount[0] + 2 * discount[1] + discount[2]
    gains = 3 * discount[1] + discount[3]
    assert value("NDCG") == pytest.approx(gains / ideal)
    assert value("NDCG@2") == pytest.approx(
        3 * discount[1] / (3 * discount[0] + 2 * discount[1])
    )
    exponential = 7 * discount[0] + 3 * discount[1] + discount[2]
    assert value("NDCG-exp") == pytest.approx(
        (7 * discount[1] + discount[3]) / exponential
    )
    assert value("MRR") == 0.5 and value("MRR@1") == 0
    assert value("MAP") == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert value("P@2") == 0.5 and value("P@8") == pytest.approx(2 / 8)
    assert value("R@2") == pytest.approx(1 / 3)
    assert value("MRR", relevance=3) == 0.5 and value("R@9", relevance=2) == 0.5
    r = [0, 7 / 8, 0, 1 / 8]
    assert value("ERR") == pytest.approx(r[1] / 2 + (1 - r[1]) * r[3] / 4)


def test_pairs_by_hand():
    # Judged and found: b0 > a3 > c1. Of 3 pairs (a, b), (a, c), (c, b) one is right.
    assert value("OPA") == pytest.approx(1 / 3)
    assert value("PNR") == pytest.approx(1 / 2)
    tied = {"q": {"a": 1.0, "b": 1.0, "c": 0.0}}
    # (a, b) tied counts half to each; (a, c) is right; (c, b) is wrong.
    assert value("PNR", run=tied) == pytest.approx(1.5 / 1.5)
    assert value("PNR", run={"q": {"a": 2.0, "b": 1.0}}) == math.inf
    assert math.isnan(value("PNR", run={"q": {"a": 2.0, "x": 1.0}}))


def test_micro_and_macro_pnr():
    qrels = {
        "q": {"a": 1, "b": 0},
        "r": {"a": 2, "b": 1, "c": 0},
        "s": {"a": 1, "b": 0},
    }
    run = {
        "q": {"a": 1.0, "b": 2.0},  # 0 : 1
        "r": {"a": 3.0, "b": 1.0, "c": 2.0},  # 2 : 1
        "s": {"a": 2.0, "b": 1.0},  # 1 : 0, unbounded
    }
    assert value("PNR", qrels, run) == pytest.approx(3 / 2)
    assert value("PNR-macro", qrels, run) == pytest.approx((0 + 2) / 2)
    accuracy = value("OPA", qrels, run)
    assert value("PNR", qrels, run) == pytest.approx(accuracy / (1 - accuracy))
    found = ranking.evaluate(qrels, run, ["PNR", "OPA", "OPA-macro"])
    np.testing.assert_allclose(found["PNR"].values, [0, 2, np.inf])
    np.testing.assert_allclose(found["OPA"].values, [0, 2 / 3, 1])
    assert found["OPA-macro"].mean == pytest.approx((0 + 2 / 3 + 1) / 3)


def test_order_is_by_score_and_ties_by_id_backwards():
    qrels = {"q": {"b": 1}}
    assert value("MRR", qrels, {"q": {"a": 1.0, "b": 1.0}}) == 1
    assert value("MRR", qrels, {"q": {"c": 1.0, "b": 1.0}}) == 0.5
    # Bytes decide, so "é" comes behind "z".
    assert value("MRR", {"q": {"é": 1}}, {"q": {"z": 1.0, "é": 1.0}}) == 1
    # 64 bits: what differs in float64 is no tie.
    assert value("MRR", qrels, {"q": {"c": 1.0, "b": 1.0 + 1e-12}}) == 1


def test_queries_that_are_missing_or_have_nothing_relevant():
    qrels = {"q": {"a": 1}, "missing": {"a": 1}, "nothing": {"a": 0}}
    run = {"q": {"a": 1.0}, "nothing": {"a": 1.0}, "unjudged": {"a": 1.0}}
    assert value("NDCG", qrels, run) == pytest.approx(1 / 3)
    assert value("NDCG", qrels, run, complete=False) == pytest.approx(1 / 2)
    assert value("MAP", qrels, run) == pytest.approx(1 / 3)
    assert (
        value("NDCG", {"q": {"a": 1}, "r": {"a": 1}}, {"q": {"a": 1.0}, "r": {}}) == 0.5
    )


def test_negative_grades_gain_nothing():
    assert value("NDCG", {"q": {"a": -2, "b": 1}}, {"q": {"a": 2.0, "b": 1.0}}) == (
        pytest.approx(1 / math.log2(3))
    )


def test_runs_that_cannot_be_measured():
    with pytest.raises(ValueError, match="no query in common"):
        ranking.evaluate({"q": {"a": 1}}, {"r": {"a": 1.0}}, ["MAP"])
    with pytest.raises(ValueError, match="relevance must be above 0, found 0"):
        value("MAP", relevance=0)
    with pytest.raises(ValueError, match="'q': document 'a' has the score NaN"):
        ranking.evaluate({"q": {"a": 1}}, {"q": {"a": math.nan}}, ["MAP"])


def test_results_of_other_queries_take_no_part():
    qrels = {"q": {"a": 1}, "r": {"a": 1, "b": 1}}
    run = {"q": {"a": 1.0}, "r": {"x": 2.0, "a": 1.0}}
    found = ranking.evaluate(qrels, run, ["MRR", "num_rel"])
    mean = found["MRR"].aligned(["r", "z"])
    assert mean.queries == ["r", "z"] and mean.mean == 0.5
    assert mean.values[0] == 0.5 and math.isnan(mean.values[1])
    assert mean.weights.tolist() == [1, 0]
    # A count is a sum, of whichever queries.
    assert found["num_rel"].mean == 3
    assert found["num_rel"].aligned(["r", "z"]).mean == 2
    assert math.isnan(found["num_rel"].aligned(["z"]).mean)
    assert found["MRR"].aligned(["q", "r"]) is found["MRR"]


def test_only_so_many_documents_count_at_a_depth():
    run = {"q": {"x": 9.0, "a": 8.0, "c": 7.0, "b": 6.0}}
    for depth, mrr, retrieved in ((1, 0, 1), (2, 0.5, 2), (None, 0.5, 4)):
        assert value("MRR", run=run, depth=depth) == mrr
        assert value("num_ret", run=run, depth=depth) == retrieved
    assert value("R@9", run=run, depth=2) == pytest.approx(1 / 3)


def test_own_and_unjudged_documents_are_dropped_where_the_rules_say():
    qrels = {"q": {"a": 1, "q": 1}}
    run = {"q": {"q": 3.0, "x": 2.0, "a": 1.0}}
    assert value("MRR", qrels, run) == 1
    assert value("MRR", qrels, run, ignore_identical_ids=True) == 0.5
    only = {"judged_only": True, "ignore_identical_ids": True}
    assert value("MRR", qrels, run, **only) == 1
    assert value("num_ret", qrels, run, judged_only=True) == 2


# --- another implementation ---

_FROM_PYTREC = {
    "map": "MAP",
    "recip_rank": "MRR",
    "ndcg": "NDCG",
    "Rprec": "Rprec",
    "ndcg_cut_5": "NDCG@5",
    "map_cut_3": "MAP@3",
    "P_4": "P@4",
    "recall_5": "R@5",
    "success_2": "Success@2",
}
_ids = st.text("abcé漢🙂9", min_size=1, max_size=3)


# Grades from 0 and relevance 1: pytrec_eval's NDCG hangs at others now and then.
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(_ids, st.integers(0, 4), min_size=1, max_size=9),
    st.dictionaries(_ids, st.sampled_from([-1.5, 0.0, 0.25, 3.0]), max_size=12),
)
def test_any_list_is_measured_as_pytrec_eval_does(judged, listed):
    """Ties by the dozen, ids of any script, documents that only one side knows."""
    evaluator = pytrec_eval.RelevanceEvaluator({"q": judged}, {*_FROM_PYTREC})
    expected = evaluator.evaluate({"q": listed}).get("q", {})
    ours = ranking.evaluate({"q": judged}, {"q": listed}, [*_FROM_PYTREC.values()])
    for theirs, name in _FROM_PYTREC.items():
        assert ours[name].mean == pytest.approx(expected.get(theirs, 0.0)), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(_ids, st.integers(-1, 4), min_size=1, max_size=9),
    st.dictionaries(_ids, st.sampled_from([-1.5, 0.0, 0.25, 3.0]), max_size=12),
)
def test_pairs_are_those_counted_one_by_one(judged, listed):
    ranked = ranking.rank({"q": judged}, {"q": listed})
    both = [name for name in judged if name in listed]
    signs = [
        np.sign(listed[a] - listed[b])
        for a in both
        for b in both
        if judged[a] > judged[b]
    ]
    ties = sum(sign == 0 for sign in signs) / 2
    (concordant,), (discordant,), (tied,) = ranking.pair_counts(ranked)
    assert concordant == sum(sign > 0 for sign in signs)
    assert discordant == sum(sign < 0 for sign in signs)
    assert tied == 2 * ties


def test_gains_of_huge_grades_stay_finite():
    qrels = {"q": {"a": 2000, "b": 1999}}
    run = {"q": {"b": 2.0, "a": 1.0}}
    ideal = 1 + 0.5 / math.log2(3)
    assert value("NDCG-exp", qrels, run) == pytest.approx(
        (0.5 + 1 / math.log2(3)) / ideal
    )
    assert value("ERR", qrels, run) == pytest.approx(0.5 + 0.5 / 2)


# --- trec_eval's own outputs ---


def read_qrels(path):
    qrels: dict = {}
    for line in path.read_text().splitlines():
        query, _, document, grade = line.split()
        qrels.setdefault(query, {})[document] = int(grade)
    return qrels


def read_run(path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    run: dict = {}
    with opened as file:
        for line in file:
            query, _, document, _, score, *_ = line.split()
            run.setdefault(query, {})[document] = float(score)
    return run


NAMES = {"map": "MAP", "recip_rank": "MRR", "ndcg": "NDCG", "Rprec": "Rprec"}
NAMES |= {f"success_{k}": f"Success@{k}" for k in (1, 2, 5, 10, 20)}
NAMES |= {"P_3": "P@3", "P_7": "P@7", "recall_2000": "R@2000", "ndcg_cut_23": "NDCG@23"}
NAMES |= {f"P_{k}": f"P@{k}" for k in (5, 10, 15, 20, 30, 100, 200, 500, 1000)}
NAMES |= {f"recall_{k}": f"R@{k}" for k in (5, 10, 15, 20, 30, 100, 200, 500, 1000)}
NAMES |= {
    f"ndcg_cut_{k}": f"NDCG@{k}" for k in (5, 10, 15, 20, 30, 100, 200, 500, 1000)
}
NAMES |= {f"map_cut_{k}": f"MAP@{k}" for k in (5, 10, 15, 20, 30, 100, 200, 500, 1000)}


def check_output(name, qrels, run, *, per_query, at_least, **options):
    """Compares every line of a trec_eval output whose measure is ours."""
    results = evaluate(qrels, run, sorted(NAMES.values()), **options)
    compared = 0
    for line in (TREC / name).read_text().splitlines():
        measure, query, printed = line.split()
        if measure not in NAMES or (query != "all" and not per_query):
            continue
        result = results[NAMES[measure]]
        mine = result.mean
        if query != "all":
            mine = result.values[result.queries.index(query)]
        assert f"{mine:.4f}" == printed, (name, measure, query, mine, printed)
        compared += 1
    assert compared >= at_least


@needs_check
def test_trec_eval_all_measures():
    qrels, run = read_qrels(TREC / "qrels.test"), read_run(TREC / "results.test")
    check_output("out.test", qrels, run, per_query=False, at_least=5)
    check_output("out.test.a", qrels, run, per_query=False, at_least=30)
    check_output("out.test.aq", qrels, run, per_query=True, at_least=100)


@needs_check
def test_trec_eval_missing_queries():
    qrels, run = read_qrels(TREC / "qrels.test"), read_run(TREC / "results.trunc")
    check_output("out.test.aqc", qrels, run, per_query=True, at_least=100)
    check_output("out.test.aqcM", qrels, run, per_query=True, at_least=100, depth=100)


@needs_check
def test_trec_eval_other_cuts():
    qrels, run = read_qrels(TREC / "qrels.test"), read_run(TREC / "results.test")
    check_output("out.test.meas_params", qrels, run, per_query=True, at_least=44)


@needs_check
def test_trec_eval_graded_with_a_relevance_level():
    qrels, run = read_qrels(TREC / "qrels.rel_level"), read_run(TREC / "results.test")
    check_output("out.test.aql", qrels, run, per_query=True, at_least=100, relevance=2)


@needs_check
def test_acordars_published_table_and_every_query():
    folder = CHECK / "acordar"
    qrels = read_qrels(folder / "qrels.txt")
    expected = json.loads((folder / "expected.json").read_text())
    names = {"ndcg_cut_5": "NDCG@5", "ndcg_cut_10": "NDCG@10", "recip_rank": "MRR"}
    names |= {"map_cut_10": "MAP@10"}
    for name, official in expected["runs"].items():
        run = read_run(folder / "runs" / f"{name}.trec.gz")
        results = ranking.evaluate(qrels, run, [*names.values(), "MAP@5"])
        for theirs, ours in names.items():
            result = results[ours]
            assert abs(result.mean - official["all_c"][theirs]) < 6e-5, (name, ours)
            mine = dict(zip(result.queries, result.values, strict=True))
            for query, values in official["per_query"].items():
                assert abs(mine[query] - values[theirs]) < 6e-5, (name, ours, query)
        for measure, published in expected["published_in_README"].get(name, {}).items():
            assert abs(results[measure].mean - published) <= 0.0002, (name, measure)
