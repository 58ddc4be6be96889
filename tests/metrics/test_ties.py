"""Ties: how many, and how far they could move a value, against every order tried."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.metrics import ranking, ties
from ranker.metrics.measures import parse_measure

NAMES = ("NDCG@3", "NDCG-exp", "MRR", "MAP", "P@2", "R@3", "Rprec", "Success@1")
NAMES += ("ERR", "RBP", "RBP-residual", "Bpref", "Judged@2", "MAP(judged_only=true)")
MEASURES = [parse_measure(name) for name in NAMES]


def test_by_hand():
    qrels = {"q": {"a": 1, "b": 0}, "r": {"a": 1}}
    flat = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}, "r": {"a": 2.0, "b": 1.0}}
    ranked = ranking.rank(qrels, flat)
    assert ties.tied_share(ranked) == pytest.approx(3 / 5)
    assert not ties.is_constant(ranked)
    found = ties.bounds(ranked, [parse_measure("MRR"), parse_measure("OPA")])
    assert found["MRR"] == pytest.approx(((1 / 3 + 1) / 2, 1.0))
    assert found["OPA"] == (0.0, 1.0)
    assert ranking.evaluate(qrels, flat, ["OPA"])["OPA"].mean == 0.5
    same = {"q": {"a": 1.0, "x": 1.0}, "r": {"a": 2.0}}
    assert ties.is_constant(ranking.rank(qrels, same))
    apart = {"q": {"a": 1.0, "x": 2.0}, "r": {"a": 2.0}}
    ranked = ranking.rank(qrels, apart)
    assert ties.tied_share(ranked) == 0 and not ties.is_constant(ranked)
    assert ties.bounds(ranked, [parse_measure("MRR")])["MRR"] == (0.75, 0.75)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(-1, 3), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([1.0, 2.0]), min_size=1),
)
def test_bounds_are_the_extremes_of_every_order(judged, listed):
    names = list(listed)
    tried = {name: [] for name in NAMES}
    for order in itertools.permutations(range(len(names))):
        # Orders of the ties are orders of all, by score first.
        nudge = {n: listed[n] + o / 100 for n, o in zip(names, order, strict=True)}
        for name, one in ranking.evaluate({"q": judged}, {"q": nudge}, NAMES).items():
            tried[name].append(one.mean)
    found = ties.bounds(ranking.rank({"q": judged}, {"q": listed}), MEASURES)
    for name, values in tried.items():
        assert found[name] == pytest.approx((min(values), max(values))), name


def test_a_reordered_list_keeps_its_documents():
    generator = np.random.default_rng(0)
    qrels = {
        f"q{q}": {f"d{n}": int(g) for n, g in enumerate(row)}
        for q, row in enumerate(generator.integers(0, 3, (5, 8)))
    }
    run = {
        f"q{q}": {f"d{n}": float(s) for n, s in enumerate(row)}
        for q, row in enumerate(generator.integers(0, 3, (5, 11)))
    }
    ranked = ranking.rank(qrels, run)
    moved = ties.reordered(ranked, ranked.grades > 0, -ranked.grades)
    for one in (ranked, moved):
        ranks = np.where(one.found, one.ranks, 99)
        assert (np.diff(ranks, axis=1)[one.found[:, 1:]] > 0).all()
    before, after = (
        sorted(zip(x.grades[x.found], x.scores[x.found], strict=True))
        for x in (ranked, moved)
    )
    assert before == after
