"""Several collections in one comparison: each counts the same, whatever its size."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ranker.metrics import significance
from ranker.metrics.comparison import (
    INFERENCE,
    Comparison,
    Inference,
    described_test,
    difference_summary,
    finite,
    pseudo_values,
    query_gaps,
    shared_queries,
)


def macro(
    found: Mapping[str, Comparison], tests: Inference = INFERENCE
) -> dict[str, dict[str, Any]]:
    """Means over collections of every system that all collections have, with tests.

    The randomisation test swaps within queries of all collections, and its statistic is
    the mean over collections of the differences; so p and interval are of the number
    shown. Systems of several seeds are tested by `significance.crossed_test` on values
    weighted so that each collection counts the same.

    Args:
      found: comparison of each collection, with the same measures and reference.
      tests: how differences are tested.

    Returns:
      Per system what `Comparison.summary` has of one.
    """
    first = next(iter(found.values()))
    names = [
        name
        for name in first.results
        if all(name in one.results for one in found.values())
    ]
    tried: dict[str, dict[str, significance.Finding | None]] = {
        measure: {
            name: _test(found, name, measure, tests)
            for name in names
            if name != first.reference
        }
        for measure in first.measures
    }
    systems = {}
    for name in names:
        outcomes = [one.results[name] for one in found.values()]
        differences = {}
        for measure in first.measures:
            test = tried[measure].get(name)
            p = {n: t.p_value for n, t in tried[measure].items() if t}
            corrected = significance.holm(p)
            differences[measure] = test and described_test(
                test, corrected[name], *_gaps(found, name, measure)
            )
        systems[name] = {
            "queries": sum(len(next(iter(one.values())).queries) for one in outcomes),
            "metrics": {
                measure: finite(float(np.mean([one[measure].mean for one in outcomes])))
                for measure in first.measures
            },
            **difference_summary(differences),
        }
    return systems


def _gaps(
    found: Mapping[str, Comparison], name: str, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of all queries; the spread weighted so that each collection counts the same."""
    parts = [
        query_gaps(one.results[name][measure], one.results[one.reference][measure])
        for one in found.values()
    ]
    total = sum(len(spread) for spread, _ in parts)
    return (
        np.concatenate([x * total / (len(parts) * len(x)) for x, _ in parts]),
        np.concatenate([gaps for _, gaps in parts]),
    )


def _test(
    found: Mapping[str, Comparison], name: str, measure: str, tests: Inference
) -> significance.Finding | None:
    """Over all collections; None where one of them has no query in common."""
    rows, totals, weights, blocks, seeds = [], ([], []), ([], []), [], False
    for at, one in enumerate(found.values()):
        both = one.results[name][measure], one.results[one.reference][measure]
        queries = shared_queries(*both)
        if not queries:
            return None
        seeds |= any(len(x.seeds) > 1 for x in both)
        rows.append([pseudo_values(x, queries) for x in both])
        for i, x in enumerate(both):
            aligned = x.seeds[0].aligned(queries)
            totals[i].append(aligned.totals)
            weights[i].append(aligned.weights)
        blocks.append(np.full(len(queries), at))
    if sum(map(len, blocks)) < 2:
        return None
    if seeds:
        return _seeds_test(rows, tests)
    joined = [[np.concatenate(parts) for parts in x] for x in (totals, weights)]
    pair = significance.PairedTotals(
        (joined[0][0], joined[0][1]),
        (joined[1][0], joined[1][1]),
        np.concatenate(blocks),
    )
    (test,) = significance.paired_tests(
        [pair], permutations=tests.permutations, seed=tests.seed, margin=tests.margin
    )
    return test


def _seeds_test(
    rows: list[list[np.ndarray]], tests: Inference
) -> significance.Finding | None:
    """Collections have the same seeds of a system, else only as many as all have."""
    total = sum(mine.shape[1] for mine, _ in rows)
    values = []
    for i in (0, 1):
        least = min(len(both[i]) for both in rows)
        share = [total / (len(rows) * both[i].shape[1]) for both in rows]
        parts = [both[i][:least] * s for both, s in zip(rows, share, strict=True)]
        values.append(np.concatenate(parts, axis=1))
    if not all(np.isfinite(x).all() for x in values):
        return None
    return significance.crossed_test(values[0], values[1], margin=tests.margin)
