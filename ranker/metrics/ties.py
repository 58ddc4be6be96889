"""How much of a ranking its ties decide.

trec_eval orders documents of one score by their ids. That is reproducible and says
nothing of the system: a constant scorer gets whatever its ids happen to spell. The
bounds here are the values that each measure would have with every tie broken in the
best and in the worst way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from ranker.metrics import ranking
from ranker.metrics.measures import PAIR_MEASURES, Measure


def tied_share(ranked: ranking.Ranked) -> float:
    """Share of the listed documents that have the score of another one; 0 of none."""
    listed = int(ranked.listed.sum())
    return int(ranked.tied.sum()) / listed if listed else 0.0


def is_constant(ranked: ranking.Ranked) -> bool:
    """True when every list of two documents or more is one tie."""
    long = ranked.listed > 1
    equal = np.where(ranked.found, ranked.equal, ranked.listed[:, None]).min(axis=1)
    whole = (ranked.tied == ranked.listed) & (equal == ranked.listed)
    return bool(long.any() and whole[long].all())


def bounds(
    ranked: ranking.Ranked, measures: Sequence[Measure]
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each measure over the ways of breaking ties.

    For PNR and OPA, which count a tied pair half to each side, the bounds count it
    wholly to one.
    """
    found = ranking.measure(ranked, measures)
    orders = [ranked]
    if np.any(ranked.found & (ranked.equal > 1)):
        gaining = ranked.grades > 0
        everything = np.ones_like(ranked.found)
        orders += [
            reordered(ranked, gaining, -ranked.grades),
            reordered(ranked, ~gaining, ranked.grades),
            reordered(ranked, everything, ranked.grades),
            reordered(ranked, ~everything, -ranked.grades),
        ]
    ordered = [one for one in measures if one.base not in PAIR_MEASURES]
    tried = [ranking.measure(one, ordered) for one in orders]
    limits = {}
    for one in measures:
        if one.base in PAIR_MEASURES:
            limits[one.name] = ranking.pair_bounds(ranked, one)
            continue
        values = np.stack([results[one.name].values for results in tried])
        low, high = (
            ranking.make_result(
                ranked.queries, ends, ends, found[one.name].weights
            ).mean
            for ends in (values.min(axis=0), values.max(axis=0))
        )
        limits[one.name] = low, high
    return limits


def reordered(
    ranked: ranking.Ranked,
    front: Bool[np.ndarray, "Q J"],
    key: Float[np.ndarray, "Q J"],
) -> ranking.Ranked:
    """The lists with ties broken otherwise.

    Args:
      ranked: lists.
      front: documents that come first among their equals; the others come last, after
        those that nobody judged.
      key: order within the two, rising.
    """
    far = np.iinfo(np.int64).max
    group = np.where(ranked.found, ranked.above, far)
    order = np.lexsort((key, ~front, group), axis=-1)
    moved = {
        name: np.take_along_axis(getattr(ranked, name), order, axis=1)
        for name in ("found", "grades", "scores", "above", "equal")
    }
    group, front = (np.take_along_axis(x, order, axis=1) for x in (group, front))
    places = np.broadcast_to(np.arange(group.shape[1]), group.shape)
    new = np.diff(group, axis=1, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    last = np.diff(group, axis=1, append=-1) != 0
    ends = np.where(last, places + 1, group.shape[1])
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    begin, end = moved["above"], moved["above"] + moved["equal"]
    ranks = np.where(front, begin + places - first, end - (ends - places))
    # Documents that nobody judged lie between the two: ranks rise along the row.
    return dataclasses.replace(
        ranked, ranks=np.where(moved["found"], ranks, 0), **moved
    )
