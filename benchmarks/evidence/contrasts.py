"""Measures of students' raw scores, and differences with their tests."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ranker.metrics import calibration
from ranker.metrics.significance import crossed_test

MARGIN = 0.005  # of equivalence, in NDCG@10
DRAWS = 2000  # of the bootstrap
FEW = 6  # seeds under which no sign-flip can give p < 0.05


def tau(scores: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Kendall's tau-b within each list, mean over queries, for each seed [S]."""
    upper = np.triu_indices(scores.shape[-1], 1)

    def signs(x):
        return np.sign(x[..., upper[0]] - x[..., upper[1]])

    ours, theirs = signs(scores), signs(teacher)
    size = np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    return ((ours * theirs).sum(-1) / np.maximum(size, 1e-9)).mean(-1)


def within(scores: np.ndarray, grades: np.ndarray) -> float:
    """Pooled accuracy over pairs of one query with different grades; mean of seeds."""
    better = grades[:, :, None] > grades[:, None, :]
    found = []
    for one in scores:  # a seed at a time: thousands of queries are gigabytes
        right = np.sign(one[:, :, None] - one[:, None, :])
        found.append(((right + 1) / 2 * better).sum() / max(better.sum(), 1))
    return float(np.mean(found))


def across(scores, grades, dev, dev_grades) -> tuple[float, float]:
    """Accuracy over pairs of different queries; calibration error, Platt fit on dev."""
    queries = np.repeat(np.arange(len(grades)), grades.shape[1])
    accuracy, _ = calibration.cross_query_accuracy(
        scores.ravel(), grades.ravel(), queries
    )
    fitted = calibration.fit_platt(dev.ravel(), dev_grades.ravel() >= 1)
    error = calibration.expected_calibration_error(
        fitted(scores.ravel()), grades.ravel() >= 1
    )
    return accuracy, error


@dataclass(frozen=True)
class Contrast:
    """A paired difference over seeds and queries."""

    difference: float
    low: float
    high: float
    p: float  # sign-flip over seeds; of fewer than FEW, a crossed t-test
    equivalent: float  # p of two one-sided t tests over seeds, margin MARGIN


def contrast(a: np.ndarray, b: np.ndarray) -> Contrast:
    """Compares values [S, Q] of two arms that share seeds and queries.

    The interval is a bootstrap over seeds and queries, crossed. Equivalence is tested
    over seeds, and over seeds and queries where the seeds are few.
    """
    gaps = a - b
    by_seed = gaps.mean(1)
    S, Q = gaps.shape
    draw = np.random.default_rng(0)
    counts = draw.multinomial(Q, np.full(Q, 1 / Q), size=DRAWS) / Q
    chosen = draw.integers(S, size=(DRAWS, S))
    means = np.take_along_axis(counts @ gaps.T, chosen, axis=1).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    if S < FEW:
        found = crossed_test(a, b, margin=MARGIN)
        p, equivalent = found.p_value, found.p_equivalence
    else:
        signs = np.array(np.meshgrid(*[[1, -1]] * S)).reshape(S, -1).T
        p = (np.abs(signs @ by_seed) >= abs(by_seed.sum()) - 1e-15).mean()
        error = max(by_seed.std(ddof=1) / np.sqrt(S), 1e-12)
        lower = stats.t.sf((by_seed.mean() + MARGIN) / error, S - 1)
        equivalent = max(lower, stats.t.cdf((by_seed.mean() - MARGIN) / error, S - 1))
    return Contrast(
        float(by_seed.mean()), float(low), float(high), float(p), float(equivalent)
    )
