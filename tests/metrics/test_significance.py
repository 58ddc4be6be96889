"""Paired tests: exact values, other implementations, and what simulations show."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ranker.metrics import significance
from ranker.metrics.significance import PairedTotals, paired_tests


def mean_pair(a, b):
    return significance.paired_means(np.asarray(a, float), np.asarray(b, float))


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


def test_all_assignments_are_tried_where_they_are_no_more_than_asked_for():
    gaps, none = np.arange(1.0, 5), np.zeros(4)
    exact = significance.randomisation_test(gaps, none, permutations=2**4)
    assert exact == 2 / 16
    drawn = significance.randomisation_test(gaps, none, permutations=2**4 - 2)
    assert drawn * 15 == pytest.approx(round(drawn * 15))  # the one seen is counted


def test_rounding_parts_neither_equal_differences_nor_interval_and_p():
    tenths = np.array([1.0, 8, -4, 6, 3, -9])  # whole numbers are exact
    expected = significance.randomisation_test(tenths, np.zeros(6))
    assert significance.randomisation_test(tenths / 10, np.zeros(6)) == expected
    gaps = np.array([0.0, 0.1, 0, 0.9, 0.1, 0.3, 0.9])
    assert significance.randomisation_test(gaps, np.zeros(7)) == 0.0625
    low, high = significance.randomisation_interval(gaps, np.zeros(7))
    assert low <= 0 < high


def test_another_seed_draws_other_swaps():
    gaps = np.random.default_rng(0).normal(0.1, 1, 60)
    found = [
        significance.randomisation_test(gaps, np.zeros(60), permutations=500, seed=seed)
        for seed in (0, 0, 1, 2, 3)
    ]
    assert found[0] == found[1] and len(set(found)) > 2


def test_never_zero():
    far = significance.randomisation_test(np.ones(50), np.zeros(50), permutations=999)
    assert far == pytest.approx(1 / 1000)


def test_queries_that_take_no_part_are_left_out():
    a, b = np.array([1.0, 2, 3, np.nan]), np.array([0.0, 0, 0, 9])
    assert significance.randomisation_test(a, b) == pytest.approx(2 / 8)
    assert significance.randomisation_test(b, a) == pytest.approx(2 / 8)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_queries(n):
    with pytest.raises(ValueError, match=f"at least 2 queries, found {n}"):
        significance.randomisation_test(np.ones(n), np.zeros(n))
    with pytest.raises(ValueError, match="shapes"):
        significance.randomisation_test(np.ones(3), np.zeros(4))


# --- pooled ratios, against every swap tried one by one ---


def by_brute_force(pair, margin, delta=0.0):
    """p, and both one-sided p at the margin, from every assignment."""
    (na, nb), (wa, wb) = pair.totals, pair.weights
    n = len(na)

    def difference(swap, shift):
        first, second = [], []
        for q in range(n):
            one, other = (na[q] - shift * wa[q], wa[q]), (nb[q], wb[q])
            first.append(other if swap[q] else one)
            second.append(one if swap[q] else other)
        (t1, w1), (t2, w2) = (map(sum, zip(*x, strict=True)) for x in (first, second))
        return t1 / w1 - t2 / w2

    swaps = list(itertools.product((0, 1), repeat=n))
    tiny = 1e-9

    def share(shift, extreme):
        seen = difference(swaps[0], shift)
        return np.mean([extreme(difference(s, shift), seen) for s in swaps])

    return (
        share(delta, lambda x, seen: abs(x) >= abs(seen) - tiny),
        share(-margin, lambda x, seen: x >= seen - tiny),
        share(margin, lambda x, seen: x <= seen + tiny),
    )


def pooled(seed, n=7):
    generator = np.random.default_rng(seed)
    weights = generator.integers(1, 20, (2, n)).astype(float)
    totals = np.floor(weights * generator.random((2, n)))
    return PairedTotals((totals[0], totals[1]), (weights[0], weights[1]))


@pytest.mark.parametrize("seed", range(4))
def test_a_pooled_ratio_is_tested_by_swapping_its_parts(seed):
    pair = pooled(seed)
    (found,) = paired_tests([pair], margin=0.1)
    p, low, high = by_brute_force(pair, 0.1)
    assert found.p_value == pytest.approx(p)
    assert found.p_equivalence == pytest.approx(max(low, high))
    ratios = [pair.totals[i].sum() / pair.weights[i].sum() for i in (0, 1)]
    assert found.difference == pytest.approx(ratios[0] - ratios[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_what_the_test_does_not_reject(seed):
    pair = pooled(seed)
    (found,) = paired_tests([pair])
    assert found.low < found.difference < found.high
    for end, outside in ((found.low, -1), (found.high, 1)):
        inside = by_brute_force(pair, 1, end - outside * 1e-6)[0]
        beyond = by_brute_force(pair, 1, end + outside * 1e-6)[0]
        assert inside >= 0.05 > beyond


@pytest.mark.parametrize("permutations", [999, 1234])
def test_the_interval_of_drawn_swaps_ends_where_p_falls_below_alpha(permutations):
    gaps, none = np.random.default_rng(1).normal(0.3, 1, 40), np.zeros(40)

    def p(delta):
        return significance.randomisation_test(
            gaps - delta, none, permutations=permutations
        )

    low, high = significance.randomisation_interval(
        gaps, none, permutations=permutations
    )
    assert p(low + 1e-6) >= 0.05 > p(low - 1e-6)
    assert p(high - 1e-6) >= 0.05 > p(high + 1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=16),
    st.sampled_from([300, 10_000]),
)
def test_interval_and_p_never_disagree(gaps, permutations):
    """With ties and zeros, drawn or exact."""
    (found,) = paired_tests(
        [mean_pair(gaps, np.zeros(len(gaps)))], permutations=permutations
    )
    if math.isnan(found.low):
        assert len(gaps) < 6 or found.p_value >= 0.05
    else:
        assert (found.low <= 0 <= found.high) == (found.p_value >= 0.05)
        assert found.low <= found.difference + 1e-12
        assert found.difference <= found.high + 1e-12


def test_no_interval_under_six_queries():
    for n in (5, 6):
        low, high = significance.randomisation_interval(
            np.arange(1.0, n + 1), np.zeros(n)
        )
        assert math.isnan(low) == math.isnan(high) == (n == 5)


def test_a_large_samples_interval_is_that_of_the_t_test():
    gaps = np.random.default_rng(0).normal(0.1, 1, 400)
    ours = significance.randomisation_interval(gaps, np.zeros(400))
    expected = stats.t.interval(0.95, 399, gaps.mean(), stats.sem(gaps))
    np.testing.assert_allclose(ours, expected, atol=0.006)


def test_unbounded_ratios():
    """A PNR without a discordant pair: infinite, no interval, and p by its swaps."""
    ones, zeros = np.ones(8), np.zeros(8)
    (found,) = paired_tests([PairedTotals((ones, ones), (zeros, ones))])
    assert found.difference == math.inf and math.isnan(found.low)
    assert found.p_value == pytest.approx(2 / 2**8)
    (same,) = paired_tests([PairedTotals((ones, ones), (zeros, zeros))])
    assert (same.difference, same.p_value) == (0, 1)


def test_collections_weigh_alike():
    """Two queries there weigh as much as six here."""
    a, b = np.array([1.0] * 6 + [0.2, 0.1]), np.zeros(8)
    pair = PairedTotals((a, b), (np.ones(8), np.ones(8)), np.array([0] * 6 + [1] * 2))
    (found,) = paired_tests([pair])
    assert found.difference == pytest.approx((1 + 0.15) / 2)
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    sums = np.abs(signs @ (a / np.repeat([6, 2], [6, 2]) / 2))
    assert found.p_value == pytest.approx(np.mean(sums >= 0.575 - 1e-9))


# --- simulations: fewer than benchmarks/type_one_error.py has ---


@pytest.mark.parametrize("n", [6, 10, 20])
def test_one_in_twenty_is_rejected_and_not_covered(n):
    """Differences with a true mean of 0.3; 800 samples share their draws."""
    generator = np.random.default_rng(n)
    gaps = generator.normal(0.3, 1, (800, n))
    true, null = (
        paired_tests(
            [mean_pair(one - shift, np.zeros(n)) for one in gaps], permutations=1999
        )
        for shift in (0.0, 0.3)
    )
    rejected = np.mean([one.p_value < 0.05 for one in null])
    covered = np.mean([one.low <= 0.3 <= one.high for one in true])
    # Three standard errors of 800 samples are 0.023; 6 queries reject 2 in 64 at most.
    assert 0.027 - 0.018 * (n == 6) < rejected < 0.073
    assert 0.927 < covered < 0.973 + 0.018 * (n == 6)


@pytest.mark.parametrize("n", [10, 20])
def test_pooled_tests_reject_one_in_twenty(n):
    generator = np.random.default_rng(n)
    pairs = []
    for _ in range(800):
        total = 1.0 + generator.negative_binomial(1, 0.04, n)
        chance = 1 / (1 + np.exp(-generator.normal(0.4, 0.8, (2, n))))
        right = generator.binomial(total.astype(int), chance) * 1.0
        pairs.append(
            PairedTotals((right[0], right[1]), (total - right[0], total - right[1]))
        )
    found = paired_tests(pairs, permutations=1999)
    assert 0.027 < np.mean([one.p_value < 0.05 for one in found]) < 0.073


def test_the_interval_of_a_pooled_pnr_covers_a_true_difference():
    """Without the scale of the model it would cover in 92 of 100."""
    generator, n = np.random.default_rng(0), 20
    pairs, size = [], 400_000
    for rows in (size, *[n] * 400):
        total = generator.integers(20, 61, rows)
        ease = generator.normal(0.4, 0.8, rows)
        logits = [ease + add + 0.5 * generator.normal(size=rows) for add in (0.6, 0)]
        right = [generator.binomial(total, 1 / (1 + np.exp(-x))) * 1.0 for x in logits]
        wrong = [total - x for x in right]
        pairs.append(
            PairedTotals((right[0], right[1]), (wrong[0], wrong[1]), model="odds")
        )
    whole = pairs[0]
    true = np.subtract(
        *[x.sum() / w.sum() for x, w in zip(whole.totals, whole.weights, strict=True)]
    )
    found = paired_tests(pairs[1:], permutations=999)
    assert 0.925 < np.mean([one.low <= true <= one.high for one in found]) < 0.98
    for one in found:
        assert (one.low <= 0 <= one.high) == (one.p_value >= 0.05)


@pytest.mark.parametrize("n", [8, 40])
def test_an_interval_of_ratios_is_the_same_whichever_system_comes_first(n):
    """A system that is worse by a factor is covered as one that is better is."""
    generator = np.random.default_rng(n)
    for _ in range(20):
        values = np.exp(generator.normal([[0.5], [0.0]], 0.7, (2, n)))
        weights = (generator.random((2, n)) > 0.05) * 1.0
        totals = values * weights
        one = PairedTotals(
            (totals[0], totals[1]), (weights[0], weights[1]), model="factor"
        )
        other = PairedTotals(
            (totals[1], totals[0]), (weights[1], weights[0]), model="factor"
        )
        (found,), (turned,) = (
            paired_tests([x], permutations=999) for x in (one, other)
        )
        assert found.low == pytest.approx(-turned.high, rel=1e-9, nan_ok=True)
        assert found.high == pytest.approx(-turned.low, rel=1e-9, nan_ok=True)
        if not math.isnan(found.low):
            assert found.low <= found.difference <= found.high
            assert (found.low <= 0 <= found.high) == (found.p_value >= 0.05)


@pytest.mark.parametrize(("shift", "own"), [(0.4, 0.5), (-0.4, 0.5), (0.6, 0.25)])
def test_the_interval_of_a_mean_ratio_covers_a_true_difference(shift, own):
    """Whether most of the spread is the queries' or a system's own."""
    generator, n = np.random.default_rng(1), 20
    pairs = []
    for _ in range(1000):
        query = generator.normal(0.4, 0.5, n)
        logs = query + [[shift], [0.0]] + generator.normal(0, own, (2, n))
        ratios, ones = np.exp(logs), np.ones(n)
        pairs.append(PairedTotals((ratios[0], ratios[1]), (ones, ones), model="factor"))
    # The mean of exp(normal) is exp(mean + variance / 2).
    true = math.exp(0.4 + (0.25 + own**2) / 2) * (math.exp(shift) - 1)
    found = paired_tests(pairs, permutations=999)
    # 93 to 97 %, and three standard errors of 1,000 samples beyond.
    assert 0.906 < np.mean([one.low <= true <= one.high for one in found]) < 0.986


def test_equivalence_at_its_margin_is_claimed_once_in_twenty():
    generator = np.random.default_rng(0)
    pairs = [mean_pair(generator.normal(1.5, 1, 20), np.zeros(20)) for _ in range(800)]
    found = paired_tests(pairs, permutations=1999, margin=1.5)
    assert 0.027 < np.mean([one.p_equivalence < 0.05 for one in found]) < 0.073


def test_equivalence_is_that_of_two_t_tests_for_a_large_sample():
    generator = np.random.default_rng(1)
    for true in (0.0, 0.1, 0.2):
        gaps = generator.normal(true, 1, 300)
        (found,) = paired_tests([mean_pair(gaps, np.zeros(300))], margin=0.2)
        error = stats.sem(gaps)
        expected = max(
            stats.t.sf((gaps.mean() + 0.2) / error, 299),
            stats.t.cdf((gaps.mean() - 0.2) / error, 299),
        )
        assert found.p_equivalence == pytest.approx(expected, abs=0.012)


# --- seeds ---


def test_one_seed_each_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, (1, 25)), generator.normal(size=(1, 25))
    found = significance.crossed_test(a, b)
    expected = stats.ttest_rel(a[0], b[0])
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_disagree_are_not_significant_though_all_queries_agree():
    a = np.repeat([[1.0], [0.5], [0.25]], 12, axis=1)
    found = significance.crossed_test(a, np.full((1, 12), 0.5))
    # Queries do not differ, so the seeds' own t-test remains: 2 degrees of freedom.
    expected = stats.ttest_1samp([0.5, 0.0, -0.25], 0).pvalue
    assert found.difference == pytest.approx(1 / 12)
    assert found.p_value == pytest.approx(expected)


def test_variances_are_those_of_the_two_way_table():
    """Mean squares by numpy: MS_query + MS_seed - MS_rest over all values."""
    x = np.random.default_rng(3).normal(size=(4, 9)) + np.arange(4)[:, None]
    s, n = x.shape
    rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    ms_query = s * np.var(x.mean(0), ddof=1)
    ms_seed = n * np.var(x.mean(1), ddof=1)
    ms_rest = np.sum(rest**2) / ((s - 1) * (n - 1))
    parts = ms_query / (s * n), (ms_seed - ms_rest) / (s * n)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (s - 1))
    found = significance.crossed_test(x, np.zeros((1, n)), margin=3.0)
    error = math.sqrt(sum(parts))
    assert found.p_value == pytest.approx(2 * stats.t.sf(x.mean() / error, freedom))
    assert found.p_equivalence == pytest.approx(
        stats.t.sf((3 - x.mean()) / error, freedom)
    )


def test_seeds_that_agree_take_nothing_off_the_variance_of_queries():
    """Less noise than chance has between two seeds is none, not less than none."""
    base, apart = np.random.default_rng(0).normal(0.3, 1, 12), np.tile([1.0, -1.0], 6)
    found = significance.crossed_test(
        np.stack([base + apart, base - apart]), np.zeros((1, 12))
    )
    assert found.p_value == pytest.approx(stats.ttest_1samp(base, 0).pvalue)


def test_values_without_any_spread():
    same = significance.crossed_test(np.ones((2, 3)), np.ones((1, 3)), margin=0.1)
    assert (same.p_value, same.p_equivalence) == (1, 0)
    apart = significance.crossed_test(np.ones((2, 3)), np.zeros((1, 3)), margin=0.1)
    assert (apart.p_value, apart.p_equivalence) == (0, 1)
    edge = significance.crossed_test(np.ones((2, 3)), np.zeros((1, 3)), margin=1.0)
    assert edge.p_equivalence == 1  # as far as the margin is not within it
    with pytest.raises(ValueError, match="at least 2 queries"):
        significance.crossed_test(np.ones((2, 1)), np.ones((1, 1)))


@pytest.mark.parametrize("n", [5, 6])
def test_no_interval_of_seeds_under_six_queries(n):
    found = significance.crossed_test(np.ones((2, n)), np.ones((1, n)))
    assert math.isnan(found.low) == math.isnan(found.high) == (n == 5)


# --- what stands beside a test ---


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 100])
@pytest.mark.parametrize("p", [0.8, 0.95, 0.975])
def test_t_quantiles(freedom, p):
    assert significance.t_quantile(p, freedom) == pytest.approx(
        stats.t.ppf(p, freedom), abs=4e-4
    )


def test_the_detectable_difference_is_found_with_its_power():
    n, generator = 40, np.random.default_rng(0)
    unit = np.tile([1.0, -1.0], n // 2) * math.sqrt((n - 1) / n)  # a deviation of 1
    size = significance.detectable(unit)
    gaps = generator.normal(size, 1, (4000, n))
    power = np.mean(stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05)
    assert power == pytest.approx(0.8, abs=0.03)


def test_effect_size_without_spread_is_none():
    assert significance.effect_size(np.array([1.0, 2, 3])) == 2  # of a sample
    assert math.isnan(significance.effect_size(np.ones(4)))
    assert math.isnan(significance.detectable(np.ones(1)))


def test_holm():
    corrected = significance.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert list(corrected) == ["a", "b", "c"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_definition(p):
    """A corrected value is at most alpha where the step-down procedure rejects."""
    names = [str(at) for at in range(len(p))]
    found = significance.holm(dict(zip(names, p, strict=True)))
    assert max(found.values()) <= 1
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for step, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[at] * (len(p) - step) > alpha:
                break
            rejected.add(str(at))
        assert {name for name in names if found[name] <= alpha} == rejected
