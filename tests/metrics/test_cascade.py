"""A cheap ranker's candidates, of which the best are ranked again."""

import numpy as np
import pytest

from ranker.metrics.cascade import cascade_scores, merge_runs


@pytest.mark.parametrize(
    ("keep", "order"),
    [
        (1, [2, 0, 3, 1]),
        (2, [0, 2, 3, 1]),  # of equals the first is kept
        (3, [3, 0, 2, 1]),
        (4, [1, 3, 0, 2]),
        (9, [1, 3, 0, 2]),
    ],
)
def test_the_best_are_in_the_second_order_and_the_others_behind(keep, order):
    first = np.array([2.0, 1.0, 3.0, 2.0])
    second = np.array([0.2, 9.0, 0.1, 0.3])
    found = cascade_scores(first, second, keep)
    assert np.argsort(-found, kind="stable").tolist() == order
    kept = np.argsort(-first, kind="stable")[:keep]
    assert found[kept].tolist() == second[kept].tolist()
    assert second.tolist() == [0.2, 9.0, 0.1, 0.3]


def test_distances_below_are_those_of_the_first():
    found = cascade_scores(np.array([9.0, 5.0, 4.5]), np.array([7.0, 1.0, 2.0]), 1)
    assert found.tolist() == [7.0, 6.0, 5.5]


def test_runs_are_merged_query_by_query():
    first = {"q": {"a": 1.0, "b": 2.0, "z": 9.0}, "r": {"a": 1.0}}
    second = {"q": {"b": 0.5, "a": 0.75}}
    assert merge_runs(first, second, 1) == {"q": {"b": 0.5, "a": -0.5}}
