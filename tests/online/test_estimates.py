"""Estimates against tea-tasting, cluster-robust least squares and the literature."""

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
import tea_tasting as tt

from ranker.online import estimates, planning, simulate
from ranker.online.estimates import Moments


def _sample(seed=0, users=3000, **more):
    crowd = simulate.Crowd(users=users, before=0.8, **more)
    return simulate.draw_users(crowd, np.random.default_rng(seed))


def _arms(values, arm):
    return Moments.of(values[arm == 0]), Moments.of(values[arm == 1])


@pytest.mark.parametrize("cuped", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_delta_method_and_cuped_equal_tea_tasting(seed, cuped):
    values, arm = _sample(seed)
    columns = ["clicks", "pages", "clicks_before", "pages_before"]
    table = pa.table({"variant": arm, **dict(zip(columns, values.T, strict=True))})
    metric = tt.RatioOfMeans(*(columns if cuped else columns[:2]))
    theirs = tt.Experiment(m=metric).analyze(table)["m"]
    ours = estimates.compare_arms(*_arms(values, arm), cuped=cuped)
    for mine, other in (
        (ours.control, theirs.control),
        (ours.treatment, theirs.treatment),
        (ours.difference, theirs.effect_size),
        (ours.interval[0], theirs.effect_size_ci_lower),
        (ours.interval[1], theirs.effect_size_ci_upper),
        (ours.lift, theirs.rel_effect_size),
        (ours.p_value, theirs.pvalue),
    ):
        assert mine == pytest.approx(other, abs=1e-9)
    # Fieller's and their logarithm's interval of the lift agree to a hundredth of it.
    assert ours.lift_interval[0] == pytest.approx(
        theirs.rel_effect_size_ci_lower, abs=2e-3
    )


def test_delta_method_equals_cluster_robust_least_squares():
    """On pages, clustered by user; CR0 divides by n where we divide by n - 1."""
    values, arm = _sample(3, users=800)
    clicked, pages = values[:, 0].astype(int), values[:, 1].astype(int)
    user = np.repeat(np.arange(len(pages)), pages)
    within = np.concatenate([np.arange(n) for n in pages])
    y = (within < clicked[user]).astype(float)
    fit = sm.OLS(y, sm.add_constant(arm[user].astype(float))).fit(
        cov_type="cluster",
        cov_kwds={"groups": user, "use_correction": False, "df_correction": False},
    )
    parts = _arms(values, arm)
    ours = estimates.compare_arms(*parts)
    assert ours.difference == pytest.approx(fit.params[1], abs=1e-9)
    variance = sum(
        estimates.arm_ratio(one).variance * (one.n - 1) / one.n for one in parts
    )
    assert variance**0.5 == pytest.approx(fit.bse[1], abs=1e-9)


def test_fieller_excludes_no_lift_just_where_the_test_rejects():
    seen = set()
    for seed in range(60):
        values, arm = _sample(seed, users=300, lift=0.12)
        one = estimates.compare_arms(*_arms(values, arm))
        low, high = one.lift_interval
        assert (low > 0 or high < 0) == (one.p_value < 0.05)
        seen.add(one.p_value < 0.05)
    assert seen == {True, False}


def test_one_user_twice_is_one_heavier_user():
    """Doubling a user's rows changes weights, never the number of users."""
    values, arm = _sample(5, users=50)
    doubled = values.copy()
    doubled[7] *= 2
    assert estimates.compare_arms(*_arms(doubled, arm)) != estimates.compare_arms(
        *_arms(values, arm)
    )
    assert _arms(doubled, arm)[0].n + _arms(doubled, arm)[1].n == 50


def test_swapped_arms_swap_the_sign():
    values, arm = _sample(6)
    a, b = _arms(values, arm)
    there, back = estimates.compare_arms(a, b), estimates.compare_arms(b, a)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value


def test_sample_ratio():
    """The example of Kohavi, Tang and Xu (2020, chapter 3)."""
    found = estimates.sample_ratio({"A": 821_588, "B": 815_482})
    assert found.p_value == pytest.approx(1.8e-6, rel=0.02) and not found.ok
    planned = estimates.sample_ratio({"A": 900, "B": 100}, {"A": 9, "B": 1})
    assert planned.p_value == 1.0 and planned.ok


def _false_positives(runs, cuped=False, **more):
    """Type I error of the user-level test, heavy-tailed users of correlated CTR."""
    p = []
    for seed in range(runs):
        values, arm = _sample(seed, **more)
        p.append(estimates.compare_arms(*_arms(values, arm), cuped=cuped).p_value)
    return np.mean(np.array(p) < 0.05), p


@pytest.mark.parametrize("cuped", [False, True])
def test_false_positives_are_as_many_as_promised(cuped):
    """400 A/A tests: 99.9 % of the counts of a true 5 % lie within these bounds."""
    rate, _ = _false_positives(400, cuped=cuped, users=1500)
    assert 0.02 <= rate <= 0.09


def test_a_test_by_pages_is_wrong():
    """What docs/online.md warns of: the users' pages are not independent."""
    wrong = 0
    for seed in range(200):
        values, arm = _sample(seed, users=1500)
        clicks = [values[arm == one, 0].sum() for one in (0, 1)]
        pages = [values[arm == one, 1].sum() for one in (0, 1)]
        rate = sum(clicks) / sum(pages)
        error = (rate * (1 - rate) * (1 / pages[0] + 1 / pages[1])) ** 0.5
        wrong += abs(clicks[1] / pages[1] - clicks[0] / pages[0]) / error > 1.96
    assert wrong / 200 > 0.2


def _ever_significant(runs, looks, users, always_valid):
    wrong = 0
    for seed in range(runs):
        values, arm = _sample(seed, users=users)
        for n in np.linspace(200, users, looks).astype(int):
            one = estimates.compare_arms(*_arms(values[:n], arm[:n]))
            p = one.p_value
            if always_valid:
                p, _ = estimates.always_valid(
                    one.difference, one.standard_error, n, planned=users
                )
            if p < 0.05:
                wrong += 1
                break
    return wrong / runs


def test_always_valid_p_values_allow_peeking():
    assert _ever_significant(100, 25, 2000, always_valid=True) <= 0.05 + 0.03
    assert _ever_significant(50, 25, 2000, always_valid=False) > 0.12


def test_resplits_equal_the_test_of_each_split():
    values, _ = _sample(8, users=400)
    p = planning.resplit(values[:, 0], values[:, 1], splits=5, seed=4)
    generator = np.random.default_rng(4)
    bits = generator.integers(0, 2, (5, 400), np.int8)
    for at in range(5):
        a, b = (Moments.of(values[bits[at] == one]) for one in (1, 0))
        assert p[at] == pytest.approx(estimates.compare_arms(a, b).p_value, abs=1e-9)


def test_the_forecast_of_power_is_the_power():
    values, _ = _sample(9, users=20_000)
    whole = Moments.of(values)
    lift, users = 0.08, 1500
    found = planning.power(whole, lift, users, level=0.95, cuped=False)
    hits = 0
    for seed in range(300):
        drawn, arm = _sample(seed, users=users, lift=lift)
        hits += estimates.compare_arms(*_arms(drawn, arm)).p_value < 0.05
    assert 0.3 < found < 0.9
    assert hits / 300 == pytest.approx(found, abs=0.09)  # 3 standard errors
    needed = planning.users_for(whole, lift, power=found, level=0.95, cuped=False)
    assert needed == pytest.approx(users, rel=0.02)
