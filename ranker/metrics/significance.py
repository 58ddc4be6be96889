"""Is a difference between two systems more than chance? Paired, over queries.

A measure of a system is sum(totals) / sum(weights) over queries (see
`ranker.metrics.ranking`), so a mean and a pooled ratio such as PNR are tested alike:
the randomisation test swaps the two systems' totals and weights query by query and
computes the difference of the two ratios anew. The interval holds every difference that
the same test, with the same swaps, would not reject; so interval and p never disagree.

For a draw of swaps and a supposed difference delta (subtracted from the first system:
totals less delta * weights), the difference is a - delta * b with two numbers a, b of
the draw, and of the seen order a0 - delta. The draw is at least as extreme where
|a - delta * b| >= |a0 - delta|, that is for delta between (a0 - a) / (1 - b) and
(a0 + a) / (1 + b). Interval ends are quantiles of those, without any search. For means
these two are the mean differences of the swapped queries and of the others.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

ALPHA = 0.05  # level of the tests; intervals hold 1 - ALPHA
FEW = 6  # queries from which a randomisation test can give p < ALPHA: 2 / 2 ** 6
POWER = 0.8  # of the smallest detectable difference
_CHUNK = 2**22  # swaps drawn at a time
_SAME = 1e-12
_STEPS = 50  # to an end of a PNR's interval; ten do
_SMALLEST_SCALE = 1e-3
# What `_power` may be: the estimate is rough, and small samples of ratios are skewed.
_POWERS = (-1.0, 0.3)  # with them intervals cover 93 to 97 %, by simulation


EffectModel = Literal["shift", "odds", "factor"]


@dataclass(frozen=True)
class PairedTotals:
    """Totals and weights of two systems on the same n queries.

    `blocks` numbers the collection of each query; the statistic is then the mean over
    collections of the difference of ratios.
    """

    totals: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    weights: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    blocks: Int[np.ndarray, " n"] | None = None
    # How one system may differ from the other: by a constant added to each value; as
    # the ratio of two parts of one whole (PNR); or by a factor (PNR-macro's ratios).
    model: EffectModel = "shift"


@dataclass(frozen=True)
class Finding:
    """What a paired test finds; NaN for an end of an interval that has none."""

    queries: int
    difference: float
    low: float
    high: float
    p_value: float  # two-sided
    p_equivalence: float  # the larger of two one-sided tests; NaN without a margin


def paired_means(
    a: Float[np.ndarray, " Q"], b: Float[np.ndarray, " Q"]
) -> PairedTotals:
    """A pair for the difference of two means; queries with a NaN take no part.

    Raises:
      ValueError: for different shapes, or under 2 queries in both.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"expected values of the same queries, found shapes {a.shape} and {b.shape}"
        )
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2:
        raise ValueError(
            f"a paired test needs at least 2 queries, found {int(both.sum())}"
        )
    ones = np.ones(int(both.sum()))
    return PairedTotals((a[both], b[both]), (ones, ones))


def randomisation_test(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the paired randomisation test (Smucker et al., 2007).

    How often swapping the two systems at random, query by query, makes a mean
    difference at least as large as the one seen. With few queries every assignment is
    tried and the value is exact; else `permutations` are drawn and the one seen is
    counted among them, so that p is never 0.

    Args:
      a: values of one system; NaN where a query takes no part.
      b: values of the other, of the same queries.
      permutations: how many to draw.
      seed: of the draw.

    Raises:
      ValueError: for different shapes, or under 2 queries in both.
    """
    (found,) = paired_tests([paired_means(a, b)], permutations=permutations, seed=seed)
    return found.p_value


def randomisation_interval(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    *,
    permutations: int = 10_000,
    seed: int = 0,
    alpha: float = ALPHA,
) -> tuple[float, float]:
    """The mean differences that `randomisation_test` does not reject at `alpha`.

    NaN at both ends when no p can be below `alpha`: under 6 queries for 0.05.

    Raises:
      ValueError: for different shapes, or under 2 queries in both.
    """
    (found,) = paired_tests(
        [paired_means(a, b)], permutations=permutations, seed=seed, alpha=alpha
    )
    return found.low, found.high


def paired_tests(
    pairs: Sequence[PairedTotals],
    *,
    permutations: int = 10_000,
    seed: int = 0,
    alpha: float = ALPHA,
    margin: float | None = None,
) -> list[Finding]:
    """Tests pairs over the same n queries, with the same swaps for all.

    Args:
      pairs: of n queries each, in the same blocks.
      permutations: swaps to draw; all 2 ** n are tried where that is not more.
      seed: of the draw.
      alpha: level of the interval.
      margin: of equivalence, in units of the measure; None: not tested.
    """
    n = len(pairs[0].totals[0])
    exact = 2**n <= permutations
    total = 2**n if exact else permutations
    seen = _observed(pairs)
    slack = 1e-9 * np.maximum(1.0, np.abs(np.where(np.isfinite(seen), seen, 0)))
    count = np.zeros((3, len(pairs)))  # extreme, below the margin, above it
    ends, flipped = [], []
    for bits in _draws(n, total, exact, seed):
        a, b = swapped(pairs, bits)
        count[0] += np.sum(np.abs(a) >= np.abs(seen) - slack, axis=0)
        if margin is not None:
            for row, sign in ((1, 1), (2, -1)):
                moved = sign * (a + sign * margin * b)
                there = sign * (seen + sign * margin)
                count[row] += np.sum(moved >= there - slack, axis=0)
        ends.append(_limits(seen, a, b))
        flipped.append(
            [None if one.model == "shift" else _flipped(one, bits) for one in pairs]
        )
    low, high = (np.concatenate(x) for x in zip(*ends, strict=True))
    # The order seen is one of the draws, where not all are tried.
    p = (count + (not exact)) / (total + (not exact))
    intervals = _interval(low, high, alpha, exact)
    findings = []
    for at, one in enumerate(pairs):
        found = intervals[:, at]
        equal = math.nan if margin is None else float(p[1:, at].max())
        if one.model != "shift" and one.blocks is None and math.isfinite(seen[at]):
            parts = np.concatenate([chunk[at] for chunk in flipped], axis=1)
            found, equal = _modelled(one, parts, (found, equal), alpha, exact, margin)
        low_, high_ = _agreeing(found, float(seen[at]), p[0, at] >= alpha)
        findings.append(
            Finding(n, float(seen[at]), low_, high_, float(p[0, at]), equal)
        )
    return findings


def _draws(n: int, total: int, exact: bool, seed: int) -> Iterator[np.ndarray]:
    """Swaps [N, n], some at a time: 1 for a swapped query, else 0."""
    generator = np.random.default_rng(seed)
    for first in range(0, total, step := max(1, _CHUNK // n)):
        size = min(step, total - first)
        if exact:
            bits = (np.arange(first, first + size)[:, None] >> np.arange(n)) & 1
        else:
            drawn = generator.integers(0, 256, (size, -(-n // 8)), np.uint8)
            bits = np.unpackbits(drawn, axis=1, count=n)
        yield bits.astype(np.float64)


def _agreeing(
    ends: Float[np.ndarray, " 2"], seen: float, holds: bool
) -> tuple[float, float]:
    """The interval, with 0 inside if and only if the test does not reject it."""
    low, high = float(ends[0]), float(ends[1])
    if not math.isfinite(low + high + seen):
        return math.nan, math.nan
    if holds:  # rounding may not part them
        return min(low, 0.0), max(high, 0.0)
    if low <= 0 <= high:
        tiny = float(np.finfo(np.float64).tiny)
        return (tiny, high) if seen > 0 else (low, -tiny)
    return low, high


def _flipped(
    pair: PairedTotals, bits: Float[np.ndarray, "N n"]
) -> Float[np.ndarray, "4 N"]:
    """Sums over the swapped queries: totals and weights of the first, of the second."""
    columns = [x[i] for i in (0, 1) for x in (pair.totals, pair.weights)]
    return (bits @ np.stack(columns, axis=1)).T


def _modelled(
    pair: PairedTotals,
    flipped: Float[np.ndarray, "4 N"],
    plain: tuple[Float[np.ndarray, " 2"], float],
    alpha: float,
    exact: bool,
    margin: float | None,
) -> tuple[Float[np.ndarray, " 2"], float]:
    """Interval and p of equivalence of a pair whose model is not a shift.

    `plain` has those of a shift: where the interval begins from, and what holds for a
    factor of a value that is not above 0.
    """
    ends, equal = plain
    if not np.isfinite(ends).all():
        return plain
    if pair.model == "odds":
        ends = _odds_interval(pair, flipped, ends, alpha, exact)
        if margin is not None:
            equal = _odds_equivalence(pair, flipped, margin, exact)
    elif pair.totals[1].sum() > 0:
        ends = _factor_interval(pair, flipped, alpha, exact)
    return ends, equal


def _odds_draws(
    pair: PairedTotals, flipped: Float[np.ndarray, "4 N"], delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both numbers of a draw for a ratio of two parts of one whole, such as PNR.

    A system with the higher ratio has the lower weights, so totals less delta * weights
    are not exchangeable with the other system's. Supposing that the ratios differ by
    delta, the first system's weights should be 1 / scale of the second's, with scale =
    (1 + R + delta) / (1 + R) and R the second's ratio. Swapped are scale times its
    parts; at delta = 0 that is the plain swap.
    """
    (n1, n2), (w1, w2) = (
        [float(x.sum()) for x in both] for both in (pair.totals, pair.weights)
    )
    scale = max((1 + n2 / w2 + delta) / (1 + n2 / w2), _SMALLEST_SCALE)
    t1, v1, t2, v2 = flipped
    here, there = scale * (w1 - v1) + v2, scale * v1 + w2 - v2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (scale * (n1 - t1) + t2) / here
        right = (scale * t1 + n2 - t2) / there
        a = np.where(left == right, 0.0, left - right)
        b = scale * ((w1 - v1) / here - v1 / there)
    return a, b


def _factor_draws(
    pair: PairedTotals, flipped: Float[np.ndarray, "4 N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Both numbers of a draw where one system's values are a multiple of the other's.

    Supposing that the first system's value is x and not the second's, R, its totals
    times R / x are exchangeable with the second's. Then the difference of a draw is
    proportional to a - x * b, and the one seen to R1 - x.
    """
    (n1, n2), (w1, w2) = (
        [float(x.sum()) for x in both] for both in (pair.totals, pair.weights)
    )
    t1, v1, t2, v2 = flipped
    here, there = w1 - v1 + v2, v1 + w2 - v2
    with np.errstate(divide="ignore", invalid="ignore"):
        a = (n1 - t1) / here - t1 / there
        b = ((n2 - t2) / there - t2 / here) / (n2 / w2)
    return a, b


def _factor_interval(
    pair: PairedTotals, flipped: Float[np.ndarray, "4 N"], alpha: float, exact: bool
) -> Float[np.ndarray, " 2"]:
    """The differences that belong to the factors that `_factor_draws` does not reject.

    A factor c of a lower system whose value is R stands for the difference R * (c - 1).
    R is known from the lower system, and from the higher one over c: it is the first
    times (seen factor / c) ** `_power`. If the systems change places, the ends change
    their signs and nothing else. No interval where no factor is too small, or too
    large.
    """
    first, second = (
        float(pair.totals[i].sum() / pair.weights[i].sum()) for i in (0, 1)
    )
    a, b = _factor_draws(pair, flipped)
    low, high = _limits(np.array([first]), a[:, None], b[:, None])
    factors = _interval(low, high, alpha, exact)[:, 0] / second
    if not (first > 0 and factors.min() > 0 and math.isfinite(factors.max())):
        return np.full(2, math.nan)
    power = _power(pair)
    ends = []
    for factor in factors:
        one = power if factor >= 1 else 1 - power
        one = float(np.clip(one, *_POWERS))
        one = one if factor >= 1 else 1 - one
        ends.append(second * (factor - 1) * (first / second / factor) ** one)
    return np.array(ends)


def _power(pair: PairedTotals) -> float:
    """With which an end of the difference is as far, in its standard error, as c is.

    Standard errors are of the delta method: of R1 - R2, and of R1 - c * R2 at the seen
    factor c, which is R2 times that of c.
    """
    ratios, rest = [], []
    for totals, weights in zip(pair.totals, pair.weights, strict=True):
        ratios.append(float(totals.sum() / weights.sum()))
        rest.append((totals - ratios[-1] * weights) / weights.sum())
    factor = ratios[0] / ratios[1]
    if abs(factor - 1) < 1e-9:
        return 0.5
    error, other = (float(np.linalg.norm(rest[0] - x * rest[1])) for x in (1, factor))
    if other <= _SAME * error:
        return -math.inf if factor > 1 else math.inf
    return (1 - error / other) * factor / (factor - 1)


def _odds_interval(
    pair: PairedTotals,
    flipped: Float[np.ndarray, "4 N"],
    start: Float[np.ndarray, " 2"],
    alpha: float,
    exact: bool,
) -> Float[np.ndarray, " 2"]:
    """The interval of `_odds_draws`: each end is a fixed point."""
    seen = _observed([pair])
    found = []
    for side in (0, 1):
        end = float(start[side])
        for _ in range(_STEPS):
            a, b = _odds_draws(pair, flipped, end)
            low, high = _limits(seen, a[:, None], b[:, None])
            before, end = end, float(_interval(low, high, alpha, exact)[side, 0])
            if not math.isfinite(end) or abs(end - before) < 1e-9 * (1 + abs(end)):
                break
        found.append(end)
    return np.array(found)


def _odds_equivalence(
    pair: PairedTotals, flipped: Float[np.ndarray, "4 N"], margin: float, exact: bool
) -> float:
    """The larger p of two one-sided tests of a ratio; see `_odds_draws`."""
    seen = float(_observed([pair])[0])
    found = []
    for sign in (1, -1):
        a, b = _odds_draws(pair, flipped, -sign * margin)
        count = np.sum(sign * (a + sign * margin * b) >= sign * seen + margin - 1e-9)
        found.append((count + (not exact)) / (len(a) + (not exact)))
    return float(max(found))


def _blocks(pairs: Sequence[PairedTotals]) -> list[np.ndarray]:
    blocks = pairs[0].blocks
    if blocks is None:
        return [np.ones(len(pairs[0].totals[0]), bool)]
    return [blocks == one for one in np.unique(blocks)]


def _ratio(totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals / weights


def _observed(pairs: Sequence[PairedTotals]) -> np.ndarray:
    """The difference of each pair; 0 where both are unbounded."""
    found = np.zeros(len(pairs))
    blocks = _blocks(pairs)
    for at, one in enumerate(pairs):
        parts = []
        for rows in blocks:
            first, second = (
                _ratio(one.totals[i][rows].sum(), one.weights[i][rows].sum())
                for i in (0, 1)
            )
            parts.append(0.0 if first == second else first - second)
        found[at] = np.mean(parts)
    return found


def swapped(
    pairs: Sequence[PairedTotals], bits: Float[np.ndarray, "N n"]
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
    """A and b of every draw and pair, see the module; a bit of 1 swaps a query."""
    a = np.zeros((len(bits), len(pairs)))
    b = np.zeros_like(a)
    blocks = _blocks(pairs)
    for rows in blocks:
        totals, weights = (
            [
                np.stack([getattr(p, name)[i][rows] for p in pairs], axis=1)
                for i in (0, 1)
            ]
            for name in ("totals", "weights")
        )
        flips = bits if rows.all() else bits[:, rows]
        moved = flips @ (totals[0] - totals[1])
        away = flips @ weights[0]
        change = flips @ (weights[0] - weights[1])
        first, second = (x.sum(axis=0) for x in weights)
        here, there = first - change, second + change
        with np.errstate(divide="ignore", invalid="ignore"):
            left = (totals[0].sum(axis=0) - moved) / here
            right = (totals[1].sum(axis=0) + moved) / there
            difference = np.where(left == right, 0.0, left - right)
            share = (first - away) / here - away / there
        a += difference / len(blocks)
        b += share / len(blocks)
    return a, b


def _limits(
    seen: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Between which supposed differences a draw is at least as extreme."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (seen - a) / (1 - b), (seen + a) / (1 + b)
        gone = 1 - b < _SAME  # nothing swapped that has a weight
        one = np.where(gone, np.where(a > seen, -np.inf, np.inf), one)
        whole = 1 + b < _SAME  # everything swapped
        other = np.where(whole, np.where(a + seen > 0, np.inf, -np.inf), other)
        always = (gone & (np.abs(a - seen) < _SAME)) | (
            whole & (np.abs(a + seen) < _SAME)
        )
        always |= ~np.isfinite(a) | ~np.isfinite(b)
    low, high = np.minimum(one, other), np.maximum(one, other)
    return np.where(always, -np.inf, low), np.where(always, np.inf, high)


def _interval(
    low: np.ndarray, high: np.ndarray, alpha: float, exact: bool
) -> Float[np.ndarray, "2 C"]:
    """The differences at which a share `alpha` of the draws is as extreme."""
    total = len(low)
    needed = alpha * total if exact else alpha * (total + 1) - 1
    place = max(math.ceil(needed - 1e-9), 1) - 1
    return np.stack(
        [
            np.partition(low, place, axis=0)[place],
            -np.partition(-high, place, axis=0)[place],
        ]
    )


# --- several seeds ---


def crossed_test(
    a: Float[np.ndarray, "S Q"],
    b: Float[np.ndarray, "R Q"],
    *,
    alpha: float = ALPHA,
    margin: float | None = None,
) -> Finding:
    """Tests the difference of two systems of S and R seeds, over seeds and queries.

    Seeds and queries are both samples, crossed: a value is system + query + seed +
    rest. The variance of the mean difference is that over queries of the mean over
    seeds, plus for each system with two seeds or more that over seeds of the mean over
    queries, less what the rest adds to it. The t-test has Satterthwaite's degrees of
    freedom (1946; Searle, Casella and McCulloch, 1992, chapter 4).

    Args:
      a: values of one system by seed and query.
      b: values of the other on the same queries; its seeds are other trainings.
      alpha: level of the interval.
      margin: of equivalence; None: not tested.

    Returns:
      What is found; without an interval under 6 queries, as of the randomisation test.

    Raises:
      ValueError: for different queries, or under 2 of them.
    """
    from scipy import stats  # a second of loading that only seeds need

    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if a.shape[1:] != b.shape[1:] or a.shape[1] < 2:
        raise ValueError(
            "a paired test needs at least 2 queries, the same of both systems, found "
            f"shapes {a.shape} and {b.shape}"
        )
    n = a.shape[1]
    mean = float(a.mean() - b.mean())
    parts = [(float(np.var(a.mean(axis=0) - b.mean(axis=0), ddof=1)) / n, n - 1.0)]
    for x in (a, b):
        if len(x) > 1:
            parts.append(_seed_variance(x))
    variance = sum(one for one, _ in parts)
    low = high = mean
    p, equal = float(mean == 0), math.nan if margin is None else 0.0
    if variance > 0:
        freedom = variance**2 / sum(one**2 / df for one, df in parts)
        error = math.sqrt(variance)
        reach = float(stats.t.ppf(1 - alpha / 2, freedom)) * error
        low, high = mean - reach, mean + reach
        p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
        if margin is not None:
            equal = float(stats.t.sf((margin - abs(mean)) / error, freedom))
    elif margin is not None:
        equal = float(abs(mean) >= margin)
    if n < FEW:
        low = high = math.nan
    return Finding(n, mean, low, high, p, equal)


def _seed_variance(x: Float[np.ndarray, "S Q"]) -> tuple[float, float]:
    """Variance of the mean over queries due to seeds alone, and its freedom."""
    seeds, n = x.shape
    by_seed = x.mean(axis=1)
    rest = x - by_seed[:, None] - x.mean(axis=0) + x.mean()
    noise = float(np.sum(rest**2)) / ((seeds - 1) * (n - 1))
    between = float(np.var(by_seed, ddof=1))
    return max(between - noise / n, 0.0) / seeds, seeds - 1.0


# --- what stands beside a test ---


def effect_size(differences: Float[np.ndarray, " n"]) -> float:
    """Cohen's d_z: mean over standard deviation of the queries' differences.

    >>> effect_size(np.array([1.0, 2.0, 3.0]))
    2.0
    """
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(np.mean(differences)) / spread if spread > 0 else math.nan


def detectable(differences: Float[np.ndarray, " n"]) -> float:
    """The smallest true mean difference that such a test finds with 80 % power.

    (t(0.975) + t(0.8)) * standard deviation / sqrt(n), with n - 1 degrees of freedom.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    quantiles = t_quantile(1 - ALPHA / 2, n - 1) + t_quantile(POWER, n - 1)
    return quantiles * float(np.std(differences, ddof=1)) / math.sqrt(n)


def t_quantile(p: float, freedom: float) -> float:
    """Student's t quantile by Hill's expansion (1970): 4 digits from 5 degrees on.

    >>> round(t_quantile(0.975, 10), 3)
    2.228
    """
    z = statistics.NormalDist().inv_cdf(p)
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    powers = [z**k for k in range(10)]
    terms = (
        (powers[3] + z) / 4,
        (5 * powers[5] + 16 * powers[3] + 3 * z) / 96,
        (3 * powers[7] + 19 * powers[5] + 17 * powers[3] - 15 * z) / 384,
        (
            79 * powers[9]
            + 776 * powers[7]
            + 1482 * powers[5]
            - 1920 * powers[3]
            - 945 * z
        )
        / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several tests (Holm, 1979); keeps the names' order."""
    corrected: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}
