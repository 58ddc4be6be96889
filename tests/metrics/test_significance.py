import numpy as np
import pytest
from scipy import stats

from ranker.metrics import significance


def test_exact_for_few_queries():
    a, b = np.array([3.0, 2.0, 5.0]), np.array([1.0, 1.0, 1.0])
    # All differences point one way: 2 of the 8 assignments are as extreme.
    assert significance.randomisation_test(a, b) == pytest.approx(2 / 8)
    assert significance.randomisation_test(a, a) == 1.0


def test_agrees_with_scipy():
    generator = np.random.default_rng(0)
    a = generator.normal(0.12, 1, 200)
    b = generator.normal(0, 1, 200)
    expected = stats.permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    ).pvalue
    ours = significance.randomisation_test(a, b, permutations=5000)
    assert ours == pytest.approx(expected, abs=0.03)
    assert ours == significance.randomisation_test(b, a, permutations=5000)
    assert ours == significance.randomisation_test(a, b, permutations=5000)


def test_never_zero_and_uniform_under_the_null():
    generator = np.random.default_rng(0)
    far = significance.randomisation_test(np.ones(50), np.zeros(50), permutations=999)
    assert far == pytest.approx(1 / 1000)
    values = [
        significance.randomisation_test(
            generator.normal(size=30), generator.normal(size=30), permutations=199
        )
        for _ in range(200)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_queries_that_take_no_part_are_left_out():
    a, b = np.array([1.0, 2, 3, np.nan]), np.array([0.0, 0, 0, 9])
    assert significance.randomisation_test(a, b) == pytest.approx(2 / 8)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_queries(n):
    with pytest.raises(ValueError, match=f"at least 2 queries, found {n}"):
        significance.randomisation_test(np.ones(n), np.zeros(n))
    with pytest.raises(ValueError, match="shapes"):
        significance.randomisation_test(np.ones(3), np.zeros(4))


def test_holm():
    corrected = significance.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert list(corrected) == ["a", "b", "c"]
