"""How sure a difference between two arms is; the user is what was randomised.

Every measure is a ratio of two sums over users (clicks over pages, dwell over clicks,
users with a click over users). The users of an arm are independent of each other, their
pages are not: so variances are those of the users' sums, by the delta method (Deng et
al., 2018, arXiv 1803.06336), and a test by pages is never made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

NUMERATOR, DENOMINATOR, BEFORE_NUMERATOR, BEFORE_DENOMINATOR = range(4)
SRM_LEVEL = 0.001  # p-value below which an arm's share of users is not chance


@dataclass(frozen=True)
class Moments:
    """What a sample of users says of a ratio and of the same ratio before the test.

    The four variables are the user's numerator and denominator, and those of the
    pre-period (zeros without one).
    """

    n: int  # users
    mean: Float[np.ndarray, " 4"]
    covariance: Float[np.ndarray, "4 4"]  # of the sample: divided by n - 1

    @classmethod
    def of(cls, values: Float[np.ndarray, "n 4"]) -> "Moments":
        """Those of users given one by one."""
        values = np.asarray(values, np.float64)
        n = len(values)
        centred = values - values.mean(0)
        return cls(n, values.mean(0), centred.T @ centred / max(n - 1, 1))


def pool_moments(parts: Sequence[Moments]) -> Moments:
    """The moments of several samples taken as one.

    >>> a, b = np.eye(4), np.arange(20.0).reshape(5, 4)
    >>> whole = Moments.of(np.concatenate([a, b]))
    >>> both = pool_moments([Moments.of(a), Moments.of(b)])
    >>> bool(np.allclose(whole.covariance, both.covariance)), both.n
    (True, 9)
    """
    n = sum(one.n for one in parts)
    mean = sum((one.n * one.mean for one in parts), np.zeros(4)) / max(n, 1)
    total = np.zeros((4, 4))
    for one in parts:
        shift = one.mean - mean
        total += max(one.n - 1, 0) * one.covariance + one.n * np.outer(shift, shift)
    return Moments(n, mean, total / max(n - 1, 1))


def _gradient(one: Moments, over: int, under: int) -> Float[np.ndarray, " 4"]:
    """Of the ratio of two means, by the four means."""
    gradient = np.zeros(4)
    gradient[over] = 1 / one.mean[under]
    gradient[under] = -one.mean[over] / one.mean[under] ** 2
    return gradient


@dataclass(frozen=True)
class Value:
    """An estimate of a ratio and the variance of that estimate."""

    value: float
    variance: float
    n: int


def slope(whole: Moments) -> float:
    """CUPED's coefficient: how much of the ratio the pre-period's ratio foretells.

    Deng et al. (2013, section 3.3), for ratios by linearisation. 0 without a
    pre-period.
    """
    if whole.mean[BEFORE_DENOMINATOR] <= 0 or whole.mean[DENOMINATOR] <= 0:
        return 0.0
    now = _gradient(whole, NUMERATOR, DENOMINATOR)
    before = _gradient(whole, BEFORE_NUMERATOR, BEFORE_DENOMINATOR)
    variance = before @ whole.covariance @ before
    if not variance > 0:
        return 0.0
    return float(now @ whole.covariance @ before / variance)


def arm_ratio(one: Moments, *, theta: float = 0.0, centre: float = 0.0) -> Value:
    """The ratio of an arm by the delta method.

    Args:
      one: of the arm's users.
      theta: CUPED's coefficient, 0 for none.
      centre: the pre-period's ratio over all arms.
    """
    if one.n < 2 or not one.mean[DENOMINATOR] > 0:
        return Value(math.nan, math.nan, one.n)
    value = one.mean[NUMERATOR] / one.mean[DENOMINATOR]
    gradient = _gradient(one, NUMERATOR, DENOMINATOR)
    if theta and one.mean[BEFORE_DENOMINATOR] > 0:
        before = one.mean[BEFORE_NUMERATOR] / one.mean[BEFORE_DENOMINATOR]
        value -= theta * (before - centre)
        gradient -= theta * _gradient(one, BEFORE_NUMERATOR, BEFORE_DENOMINATOR)
    variance = float(gradient @ one.covariance @ gradient) / one.n
    return Value(float(value), max(variance, 0.0), one.n)


@dataclass(frozen=True)
class Effect:
    """The difference of a treatment from a control."""

    control: float
    treatment: float
    difference: float
    standard_error: float
    interval: tuple[float, float]  # of the difference
    lift: float  # relative: treatment / control - 1
    lift_interval: tuple[float, float]  # Fieller; infinite where there is no bound
    p_value: float
    theta: float = 0.0  # CUPED's coefficient
    variance_kept: float = 1.0  # of the difference, by CUPED

    def summary(self) -> dict[str, Any]:
        """For JSON; what is not finite is null."""

        def plain(value: float) -> float | None:
            return float(value) if math.isfinite(value) else None

        return {
            "control": plain(self.control),
            "treatment": plain(self.treatment),
            "difference": plain(self.difference),
            "standard_error": plain(self.standard_error),
            "interval": [plain(end) for end in self.interval],
            "lift": plain(self.lift),
            "lift_interval": [plain(end) for end in self.lift_interval],
            "p_value": plain(self.p_value),
            "theta": plain(self.theta),
            "variance_kept": plain(self.variance_kept),
        }


def fieller(treatment: Value, control: Value, quantile: float) -> tuple[float, float]:
    """Interval of treatment / control - 1 (Fieller, 1954), for independent arms.

    It leaves out 0 just where the test of the difference, at the same quantile, rejects
    equality. Where the control cannot be told from 0 there is no bound: infinities.

    >>> low, high = fieller(Value(1.1, 1e-4, 9), Value(1.0, 1e-4, 9), 1.96)
    >>> round(low, 4), round(high, 4)
    (0.0713, 0.1296)
    """
    t2 = quantile**2
    a = control.value**2 - t2 * control.variance
    b = control.value * treatment.value
    c = treatment.value**2 - t2 * treatment.variance
    inside = b * b - a * c
    if a <= 0 or inside < 0 or not math.isfinite(inside):
        return (-math.inf, math.inf)
    root = math.sqrt(inside)
    return ((b - root) / a - 1, (b + root) / a - 1)


def _welch(control: Value, treatment: Value) -> float:
    """Degrees of freedom of the difference (Welch, 1947)."""
    total = control.variance + treatment.variance
    parts = [(one.variance, one.n) for one in (control, treatment)]
    below = sum(variance**2 / (n - 1) for variance, n in parts if n > 1)
    return total**2 / below if below > 0 else math.inf


def compare_arms(
    control: Moments, treatment: Moments, *, level: float = 0.95, cuped: bool = False
) -> Effect:
    """A treatment against a control: difference, lift, interval and p-value.

    The p-value is of Welch's t-test on the linearised users, two-sided.

    Args:
      control: of the control's users.
      treatment: of the treatment's users.
      level: of the intervals.
      cuped: subtract what the pre-period foretells.
    """
    plain = [arm_ratio(one) for one in (control, treatment)]
    theta, centre = 0.0, 0.0
    if cuped:
        whole = pool_moments([control, treatment])
        theta = slope(whole)
        if theta:
            centre = whole.mean[BEFORE_NUMERATOR] / whole.mean[BEFORE_DENOMINATOR]
    a, b = (arm_ratio(o, theta=theta, centre=centre) for o in (control, treatment))
    difference, variance = b.value - a.value, a.variance + b.variance
    error = math.sqrt(variance) if variance >= 0 else math.nan
    freedom = _welch(a, b)
    quantile = float(stats.t.ppf((1 + level) / 2, freedom))
    if error > 0:
        p_value = float(2 * stats.t.sf(abs(difference) / error, freedom))
    else:
        p_value = 1.0 if difference == 0 else math.nan
    before = plain[0].variance + plain[1].variance
    return Effect(
        a.value,
        b.value,
        difference,
        error,
        (difference - quantile * error, difference + quantile * error),
        b.value / a.value - 1 if a.value else math.nan,
        fieller(b, a, quantile),
        p_value,
        theta,
        variance / before if before > 0 else 1.0,
    )


# --- looking more than once ---


def mixture(users: int, *, planned: int, level: float = 0.95) -> float:
    """The mixing variance, times users, of a confidence sequence.

    It is tuned to be narrowest at `planned` users (Waudby-Smith et al., 2021, arXiv
    2103.06476, appendix B.2), and must be chosen before the data is seen.
    """
    alpha = 1 - level
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned
    return users * rho2


def always_valid(
    difference: float,
    standard_error: float,
    users: int,
    *,
    planned: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """P-value and half width of an asymptotic confidence sequence.

    However often and whenever one looks, the chance that p ever falls to 1 - `level`
    or below without an effect is at most 1 - `level` (Waudby-Smith et al., 2021,
    theorem 2.2: a normal mixture).

    Args:
      difference: seen so far.
      standard_error: of it.
      users: in both arms so far.
      planned: users at which the sequence is to be narrowest.
      level: of the sequence.

    >>> p, half = always_valid(0.0, 1.0, 5_000, planned=5_000)
    >>> p, round(half, 2)
    (1.0, 3.04)
    """
    if not standard_error > 0 or not math.isfinite(difference):
        return 1.0, math.inf
    m = mixture(users, planned=planned, level=level)
    log_half = math.log(math.sqrt(m + 1) / (1 - level))
    half = standard_error * math.sqrt(2 * (m + 1) / m * log_half)
    z2 = (difference / standard_error) ** 2
    p_value = math.sqrt(m + 1) * math.exp(-z2 / 2 * m / (m + 1))
    return min(1.0, p_value), half


# --- were the users split as they should have been? ---


@dataclass(frozen=True)
class SampleRatio:
    """The test of the arms' sizes."""

    observed: dict[str, int]
    expected: dict[str, float]  # users
    chi2: float
    p_value: float

    @property
    def ok(self) -> bool:
        """Whether the split can be what was meant."""
        return self.p_value >= SRM_LEVEL

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "observed": self.observed,
            "expected": self.expected,
            "chi2": self.chi2,
            "p_value": self.p_value,
            "ok": self.ok,
        }


def sample_ratio(
    users: Mapping[str, int], shares: Mapping[str, float] | None = None
) -> SampleRatio:
    """Chi-squared test that users fell to arms as planned (Fabijan et al., 2019).

    Args:
      users: in each arm.
      shares: planned weight of each arm, of any sum; equal where not given.

    >>> round(sample_ratio({"A": 821_588, "B": 815_482}).p_value, 8)
    1.82e-06
    """
    weights = {arm: (shares or {}).get(arm, 1.0) for arm in users}
    total, weight = sum(users.values()), sum(weights.values())
    expected = {arm: total * weights[arm] / weight for arm in users}
    chi2 = sum((users[arm] - expected[arm]) ** 2 / expected[arm] for arm in users)
    p_value = float(stats.chi2.sf(chi2, max(len(users) - 1, 1)))
    return SampleRatio(dict(users), expected, chi2, p_value)
