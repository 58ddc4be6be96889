"""Is a difference between two systems more than chance? Paired, over queries."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

_CHUNK = 2**22  # signs drawn at a time


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
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
    return a[both] - b[both]


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
    differences = _differences(a, b)
    n = len(differences)
    seen = abs(differences.sum())
    # Sums in another order differ in the last digits; those count as equal.
    threshold = seen - 1e-9 * max(1.0, np.abs(differences).sum())
    if 2**n <= permutations:
        signs = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * 2.0 - 1
        return float(np.mean(np.abs(signs @ differences) >= threshold))
    generator = np.random.default_rng(seed)
    extreme = done = 0
    while done < permutations:
        count = min(permutations - done, max(1, _CHUNK // n))
        bits = np.unpackbits(
            generator.integers(0, 256, (count, -(-n // 8)), np.uint8), axis=1, count=n
        )
        # sum(sign * d) = 2 * sum(bit * d) - sum(d)
        sums = 2 * (bits.astype(np.float64) @ differences)
        extreme += int(np.sum(np.abs(sums - differences.sum()) >= threshold))
        done += count
    return (extreme + 1) / (permutations + 1)


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
    differences = _differences(a, b)
    n = len(differences)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    for first in range(0, samples, step := max(1, _CHUNK // n)):
        count = min(step, samples - first)
        drawn = differences[generator.integers(0, n, (count, n), np.int32)]
        means[first : first + count] = drawn.mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several tests (Holm, 1979); keeps the names' order."""
    corrected: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}
