"""Several collections: each counts the same."""

import itertools

import numpy as np
import pytest

from ranker.metrics.comparison import Inference, compare
from ranker.metrics.macro import macro


def made(queries, ranks):
    """One relevant document a query; its rank in each system's run of each seed."""
    qrels = {f"q{n}": {"a": 1} for n in range(queries)}

    def run(ranks):
        return {
            f"q{n}": {"a": 1.0, **{f"x{m}": 2.0 + m for m in range(rank - 1)}}
            for n, rank in enumerate(np.broadcast_to(ranks, queries).tolist())
        }

    runs = {name: [run(one) for one in seeds] for name, seeds in ranks.items()}
    return compare(qrels, runs, ["MRR"], reference="base", tests=Inference(margin=0.5))


def test_means_and_the_exact_test():
    north = made(6, {"base": [2], "ours": [1]})  # 0.5 and 1
    south = made(2, {"base": [2], "ours": [[1, 4]]})  # 0.5 and 0.625
    found = macro({"north": north, "south": south}, Inference(margin=0.5))
    assert found["base"]["metrics"]["MRR"] == 0.5
    assert found["ours"]["metrics"]["MRR"] == pytest.approx((1 + 0.625) / 2)
    assert found["ours"]["difference"]["MRR"] == pytest.approx((0.5 + 0.125) / 2)
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    gaps = np.array([0.5 / 12] * 6 + [0.5 / 4, -0.25 / 4])
    p = np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9)
    assert found["ours"]["p_value"]["MRR"] == pytest.approx(p)
    assert found["ours"]["p_holm"]["MRR"] == pytest.approx(p)
    assert found["ours"]["wins"]["MRR"] == [7, 0, 1]
    assert found["base"]["p_value"]["MRR"] is None
    assert found["ours"]["equivalent"]["MRR"] in (True, False)


def test_a_system_that_one_collection_lacks_has_no_macro_mean():
    north = made(6, {"base": [2], "ours": [1], "third": [3]})
    south = made(6, {"base": [2], "ours": [1]})
    assert [*macro({"north": north, "south": south})] == ["base", "ours"]


def test_one_query_in_all_has_no_test():
    one = made(1, {"base": [2], "ours": [1]})
    found = macro({"only": one})
    assert found["ours"]["metrics"]["MRR"] == 1 and found["ours"]["queries"] == 1
    assert found["ours"]["p_value"]["MRR"] is None
    both = macro({"north": one, "south": made(1, {"base": [2], "ours": [1]})})
    assert both["ours"]["p_value"]["MRR"] == 0.5 and both["ours"]["queries"] == 2


def test_collections_of_seeds_count_the_same_whatever_their_size():
    north = made(6, {"base": [2], "ours": [1, 1]})
    south = made(2, {"base": [2], "ours": [4, 4, 1]})
    found = macro({"north": north, "south": south})
    # Of the seeds that both have; the value shown is of all.
    assert found["ours"]["difference"]["MRR"] == pytest.approx((0.5 - 0.25) / 2)
    assert found["ours"]["metrics"]["MRR"] == pytest.approx(
        (1 + (0.25 * 2 + 1) / 3) / 2
    )
    assert found["ours"]["tested"]["MRR"] == 8


def test_several_systems_over_collections_are_corrected():
    systems = {"base": [2], "ours": [1], "third": [[1, 1, 1, 2, 1, 4]]}
    found = macro({name: made(6, systems) for name in ("north", "south")})
    p, q = (found[name]["p_value"]["MRR"] for name in ("ours", "third"))
    assert p < q
    assert found["ours"]["p_holm"]["MRR"] == pytest.approx(2 * p)
    assert found["third"]["p_holm"]["MRR"] == pytest.approx(max(2 * p, q))


def test_seeds_over_collections():
    north = made(6, {"base": [2], "ours": [1, 4]})
    south = made(3, {"base": [2], "ours": [1, 4]})
    found = macro({"north": north, "south": south})
    assert found["ours"]["difference"]["MRR"] == pytest.approx(0.125)
    # Two seeds at 0.5 and -0.25 alone decide: t with one degree of freedom.
    assert found["ours"]["p_value"]["MRR"] > 0.7
