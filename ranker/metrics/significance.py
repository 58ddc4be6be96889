"""Is a difference between two systems more than chance? Paired, over queries."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

_CHUNK = 2**22  # signs drawn at a time


def _differences(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "1 Q"]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"expected values of the same queries, found shapes {a.shape} and {b.shape}"
        )
    both = ~(np.isnan(a) | np.isnan(b))  # a query that takes no part in one
    if both.sum() < 2:
        raise ValueError(
            f"a paired test needs at least 2 queries, found {int(both.sum())}"
        )
    return (a[both] - b[both])[None]


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
    return float(p_values(_differences(a, b), permutations=permutations, seed=seed)[0])


def bootstrap_interval(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    *,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of a - b (Efron, 1979; Sakai, 2006).

    Raises:
      ValueError: for different shapes, or under 2 queries in both.
    """
    low, high = intervals(
        _differences(a, b), samples=samples, level=level, seed=seed
    ).T[:, 0]
    return float(low), float(high)


def p_values(
    differences: Float[np.ndarray, "C Q"], *, permutations: int, seed: int
) -> Float[np.ndarray, " C"]:
    """`randomisation_test` of C comparisons at once, with the same draws for all."""
    n = differences.shape[1]
    seen = np.abs(differences.sum(axis=1))
    # Sums in another order differ in the last digits; those count as equal.
    slack = 1e-9 * np.maximum(1.0, np.abs(differences).sum(axis=1))
    exact = 2**n <= permutations
    extreme = np.zeros(len(differences))
    generator = np.random.default_rng(seed)
    total = 2**n if exact else permutations
    for first in range(0, total, step := max(1, _CHUNK // n)):
        count = min(step, total - first)
        if exact:
            bits = (np.arange(first, first + count)[:, None] >> np.arange(n)) & 1
        else:
            drawn = generator.integers(0, 256, (count, -(-n // 8)), np.uint8)
            bits = np.unpackbits(drawn, axis=1, count=n)
        # The sum of sign * difference, a sign being 2 * bit - 1.
        sums = 2 * (bits.astype(np.float64) @ differences.T) - differences.sum(axis=1)
        extreme += np.sum(np.abs(sums) >= seen - slack, axis=0)
    return extreme / total if exact else (extreme + 1) / (total + 1)


def intervals(
    differences: Float[np.ndarray, "C Q"],
    *,
    samples: int,
    level: float = 0.95,
    seed: int,
) -> Float[np.ndarray, "C 2"]:
    """`bootstrap_interval` of C comparisons at once, with the same draws for all."""
    n = differences.shape[1]
    generator = np.random.default_rng(seed)
    means = np.empty((samples, len(differences)))
    for first in range(0, samples, step := max(1, _CHUNK // n)):
        count = min(step, samples - first)
        drawn = generator.integers(0, n, (count, n), np.int32)
        # How often each query was drawn, so that one product serves every comparison.
        drawn += (np.arange(count, dtype=np.int32) * n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        means[first : first + count] = times.astype(np.float64) @ differences.T / n
    tails = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(means, tails, axis=0).T


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several tests (Holm, 1979); keeps the names' order."""
    corrected: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}
