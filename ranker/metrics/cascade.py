"""Two rankers in turn: a cheap one sees all candidates, a good one the best of them."""

import numpy as np
from jaxtyping import Float

from ranker.metrics.ranking import Run


def cascade_scores(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], keep: int
) -> Float[np.ndarray, " n"]:
    """Scores of a cascade over one list: its order, in one number a document.

    The `keep` best of `first` have their scores of `second`; the others come after
    them in the order of `first`, shifted below, so their scores order and mean nothing
    else.

    Args:
      first: scores of the cheap ranker.
      second: of the good one; those of documents that are left out are not read.
      keep: documents that the good one sees.

    Example:
      >>> cascade_scores(np.array([3.0, 2.0, 1.0]), np.array([0.1, 0.7, 9.0]), 2)
      array([ 0.1,  0.7, -0.9])
    """
    order = np.argsort(-first, kind="stable")
    kept, left = order[:keep], order[keep:]
    merged = np.array(second, np.float64)
    if len(left):
        gap = first[left].max() - first[left]
        merged[left] = merged[kept].min() - 1.0 - gap
    return merged


def merge_runs(first: Run, second: Run, keep: int) -> dict[str, dict[str, float]]:
    """`cascade_scores` of every query that both runs have."""
    merged = {}
    for query in second:
        names = list(second[query])
        cheap = np.array([first[query][name] for name in names], np.float64)
        good = np.array([second[query][name] for name in names], np.float64)
        merged[query] = dict(
            zip(names, cascade_scores(cheap, good, keep).tolist(), strict=True)
        )
    return merged
