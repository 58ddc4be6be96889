"""Calibration and order across queries, against other implementations."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ranker.metrics import calibration


def made(n=4000, slope=1.7, intercept=-0.6, seed=0):
    """Scores whose probability of relevance is known."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n)
    p = 1 / (1 + np.exp(-(slope * scores + intercept)))
    return scores, generator.random(n) < p, p


def test_platt_finds_the_line_that_made_the_labels():
    scores, relevant, p = made(40_000)
    found = calibration.fit_platt(scores, relevant)
    assert found.slope == pytest.approx(1.7, abs=0.06)
    assert found.intercept == pytest.approx(-0.6, abs=0.05)
    np.testing.assert_allclose(found(scores), p, atol=0.02)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-6)])
def test_platt_is_scipys_minimum_on_any_scale(shift, scale):
    scores, relevant, _ = made(300)
    ones, zeros = relevant.sum(), (~relevant).sum()
    targets = np.where(relevant, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(line):
        z = line[0] * scores + line[1]
        return np.sum(np.logaddexp(0, z) - targets * z)

    best = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    found = calibration.fit_platt(scores * scale + shift, relevant)
    expected = 1 / (1 + np.exp(-(best[0] * scores + best[1])))
    np.testing.assert_allclose(found(scores * scale + shift), expected, atol=1e-5)


def test_platt_of_separable_scores_is_finite():
    found = calibration.fit_platt(np.array([0.0, 1.0]), np.array([False, True]))
    # With two documents the targets are 1/3 and 2/3: the line through their logits.
    assert found.slope == pytest.approx(2 * math.log(2), rel=1e-6)
    assert found.intercept == pytest.approx(-math.log(2), rel=1e-6)


def test_isotonic_by_hand():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    relevant = np.array([False, True, False, True, True])
    found = calibration.fit_isotonic(scores, relevant)
    # 2 and 3 violate the order and are pooled at 1/2.
    np.testing.assert_allclose(found(scores), [0, 0.5, 0.5, 1, 1])
    assert found(np.array([-9.0, 1.5, 3.5, 99.0])).tolist() == [0, 0.25, 0.75, 1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_isotonic_is_scipys(rows):
    scores = np.array([score for score, _ in rows], np.float64)
    relevant = np.array([one for _, one in rows])
    if not 0 < relevant.sum() < len(rows):
        return
    values, places = np.unique(scores, return_inverse=True)
    weights = np.bincount(places)
    means = np.bincount(places, relevant) / weights
    expected = optimize.isotonic_regression(means, weights=weights).x[places]
    found = calibration.fit_isotonic(scores, relevant)
    np.testing.assert_allclose(found(scores), expected, atol=1e-12)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_a_fitted_probability_is_calibrated(method):
    scores, relevant, _ = made()
    queries = np.arange(len(scores)) // 10
    p = calibration.cross_fitted(method, scores * 40 + 7, relevant, queries)
    error = calibration.expected_calibration_error(p, relevant)
    # The error of the truth itself, over bins of 400, is about 0.018.
    assert error < 0.035
    assert calibration.brier_score(p, relevant) < calibration.brier_score(
        np.full(len(p), relevant.mean()), relevant
    )


def test_cross_fitting_has_not_seen_the_query():
    scores, relevant, _ = made(60)
    queries = np.arange(60) // 6
    found = calibration.cross_fitted("platt", scores, relevant, queries, folds=5)
    outside = queries % 5 != 2
    expected = calibration.fit_platt(scores[outside], relevant[outside])
    np.testing.assert_allclose(found[~outside], expected(scores[~outside]))


def test_calibration_error_by_hand():
    p = np.array([0.1, 0.1, 0.1, 0.9])
    y = np.array([False, False, True, True])
    bins = calibration.reliability(p, y, bins=4)  # equal ones share a bin
    assert [one.documents for one in bins] == [3, 1]
    expected = 0.75 * (1 / 3 - 0.1) + 0.25 * 0.1
    assert calibration.expected_calibration_error(p, y, bins=4) == (
        pytest.approx(expected)
    )
    nothing = np.zeros(0)
    assert math.isnan(calibration.expected_calibration_error(nothing, nothing > 0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)),
        min_size=1,
        max_size=25,
    )
)
def test_pairs_across_queries_are_those_counted_one_by_one(rows):
    queries, grades, scores = (np.array(one) for one in zip(*rows, strict=True))
    right = total = 0.0
    for a in range(len(rows)):
        for b in range(len(rows)):
            if queries[a] != queries[b] and grades[a] > grades[b]:
                total += 1
                right += (np.sign(scores[a] - scores[b]) + 1) / 2
    share, pairs = calibration.cross_query_accuracy(scores, grades, queries)
    assert pairs == total
    assert share == pytest.approx(right / total) if total else math.isnan(share)


def test_a_shift_of_whole_queries_is_seen_across_queries_alone():
    generator = np.random.default_rng(0)
    grades = [generator.integers(0, 3, 20) for _ in range(60)]
    good = [one + generator.normal(0, 0.5, 20) for one in grades]
    shifted = [one + 30 * generator.normal() for one in good]
    same = calibration.cross_query(good, grades, relevance=2)
    moved = calibration.cross_query(shifted, grades, relevance=2)
    within = calibration.ordered_pairs(good[0], grades[0])
    assert within == calibration.ordered_pairs(shifted[0], grades[0])
    assert same.accuracy > 0.9 and abs(moved.accuracy - 0.5) < 0.1
    assert same.documents == 1200 and same.pairs == moved.pairs
    assert same.brier["platt"] < 0.1 < moved.brier["platt"]


def test_calibrations_at_the_edges_are_taken():
    flat = {"method": "isotonic", "scores": [3], "probabilities": [0]}
    assert calibration.from_json(flat)(np.array([1.0, 9.0])).tolist() == [0, 0]
    step = {"method": "isotonic", "scores": [0, 1, 2], "probabilities": [0, 0, 1]}
    assert calibration.from_json(step)(np.array([1.5])).tolist() == [0.5]


def test_scores_across_queries_by_hand():
    """Two queries of two documents, in ten bins and in two."""
    scores = [np.array([2.0, 1.0]), np.array([4.0, 3.0])]
    grades = [np.array([2.0, 1.0]), np.array([2.0, 0.0])]
    found = calibration.cross_query(scores, grades, relevance=2, bins=2)
    assert (found.documents, found.base_rate) == (4, 0.5)
    # Of different queries: 2 under 3, wrong; 1 under 4, right; 1 over none, wrong.
    assert (found.pairs, found.accuracy) == (3, 1 / 3)
    ones = [np.array([1.0, 0.0])] * 2  # from grade 1 on, unless told otherwise
    assert calibration.cross_query(scores, ones).base_rate == 0.5
    queries, relevant = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0], bool)
    flat = np.concatenate(scores)
    for method in calibration.METHODS:
        p = calibration.cross_fitted(method, flat, relevant, queries)
        assert found.brier[method] == calibration.brier_score(p, relevant)
        assert found.ece[method] == calibration.expected_calibration_error(
            p, relevant, bins=2
        )


def test_bins_hold_as_many_documents_each_as_ties_allow():
    p = np.array([0.9, 0.1, 0.4, 0.4, 0.4, 0.6, 0.2])
    y = p > 0.3
    bins = calibration.reliability(p, y, bins=3)
    # Of 7, the bins begin at places 0, 3 and 5; the run of 0.4 begins at 2.
    assert [one.documents for one in bins] == [5, 2]
    assert [one.relevant for one in bins] == pytest.approx([3 / 5, 1])
    assert [one.probability for one in bins] == pytest.approx([1.5 / 5, 0.75])
    default = calibration.reliability(np.arange(40) / 40, np.ones(40, bool))
    assert [one.documents for one in default] == [4] * 10


@pytest.mark.parametrize("method", calibration.METHODS)
def test_it_survives_json(method):
    scores, relevant, _ = made(100)
    found = calibration.fit_calibration(method, scores, relevant)
    again = calibration.from_json(json.loads(json.dumps(calibration.to_json(found))))
    assert again == found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "unknown calibration None; use platt or isotonic"),
        ({"method": "platt", "slope": 1.0}, "missing or no number: 'intercept'"),
        ({"method": "platt", "slope": math.nan, "intercept": 0}, "must be finite"),
        (
            {"method": "isotonic", "scores": [1, 0], "probabilities": [0, 1]},
            "must be finite and rise",
        ),
        (
            {"method": "isotonic", "scores": [0, 1], "probabilities": [1, 0]},
            "not fall",
        ),
        ({"method": "isotonic", "scores": [], "probabilities": []}, "from one"),
        (
            {"method": "isotonic", "scores": [0, 1], "probabilities": [0.5]},
            "from one",
        ),
        (
            {"method": "isotonic", "scores": [[0]], "probabilities": [[0.5]]},
            "from one",
        ),
        (
            {"method": "isotonic", "scores": [0, 0], "probabilities": [0, 1]},
            "must be finite and rise",
        ),
        (
            {"method": "isotonic", "scores": [0, math.inf], "probabilities": [0, 1]},
            "must be finite and rise",
        ),
        (
            {"method": "isotonic", "scores": [0, 1], "probabilities": [-0.1, 1]},
            "within 0 and 1",
        ),
        (
            {"method": "isotonic", "scores": [0, 1], "probabilities": [0, 1.1]},
            "within 0 and 1",
        ),
        ({"method": "platt", "slope": 1, "intercept": math.inf}, "must be finite"),
        ({"method": "platt", "slope": None, "intercept": 0}, "missing or no number"),
    ],
)
def test_a_broken_calibration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        calibration.from_json(fields)


def test_what_cannot_be_fitted():
    two = np.zeros(2)
    with pytest.raises(ValueError, match="found 0 relevant of 2"):
        calibration.fit_calibration("platt", two, two > 0)
    with pytest.raises(ValueError, match="found 2 relevant of 2"):
        calibration.fit_calibration("isotonic", two, two == 0)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        calibration.fit_calibration("platt", two, np.ones(3, bool))
    with pytest.raises(ValueError, match="finite scores"):
        calibration.fit_calibration(
            "platt", np.array([math.nan, 1]), np.array([True, False])
        )
    with pytest.raises(ValueError, match="unknown calibration 'beta'"):
        calibration.fit_calibration("beta", two, two > 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 queries"):
        calibration.cross_fitted(
            "platt", np.arange(2.0), np.array([True, False]), np.zeros(2, int)
        )
