"""`counterfactual`: what users would have clicked, had another ranking been shown.

From the clicks on pages of a logger that showed results at places by chance, and logged
that chance (`propensity`, of the document at its position given the query), the value
of a ranking is estimated: clicks on its first K results a page. Without such chances,
looking chances by rank (a file of `clickmodel`) stand in for them, under the
position-based model. The unit is the user.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from ranker.errors import ConfigError, DataError
from ranker.online import results
from ranker.online.events import Log
from ranker.online.pages import Contradictions, PageRules
from ranker.online.results import Shown

FIELDS = results.FIELDS
LEAST_SIZE = 30  # effective sample below which nothing is said
LEAST_PROPENSITY = 1e-4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `counterfactual` is asked for."""

    depth: int = 10
    clip: float = 10.0  # largest weight of the clipped estimate
    level: float = 0.95
    looks: tuple[float, ...] = ()  # chance of looking by rank; () = logged propensities
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if self.depth < 1:
            raise ConfigError(f"--depth {self.depth}: expected 1 or more")
        if not self.clip >= 1:
            raise ConfigError(f"--clip {self.clip:g}: expected 1 or more")
        if any(not 0 < look for look in self.looks):
            raise ConfigError(
                f"the looking chances {self.looks} hold one that is not above 0"
            )


@dataclass(frozen=True)
class Estimate:
    """A value a page, and how sure it is."""

    value: float
    standard_error: float
    interval: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": list(self.interval),
        }


def target_ranks(
    shown: Shown, run: Mapping[str, Sequence[str]]
) -> tuple[Int[np.ndarray, " N"], np.ndarray]:
    """Rank from 0 of each pair in the run, -1 where the run lacks it; queries it has.

    Args:
      shown: of the log.
      run: documents by query, best first.
    """
    ranks = {
        query: {document: rank for rank, document in enumerate(documents)}
        for query, documents in run.items()
    }
    found = np.full(len(shown.documents), -1, np.int64)
    for at, (query, document) in enumerate(
        zip(shown.queries.tolist(), shown.documents, strict=True)
    ):
        by_document = ranks.get(shown.names[query])
        if by_document is not None:
            found[at] = by_document.get(document, -1)
    has = np.array([name in ranks for name in shown.names], bool)
    return found, has


def weights(
    shown: Shown, ranks: Int[np.ndarray, " N"], *, looks: Sequence[float] = ()
) -> Float[np.ndarray, "P K"]:
    """Importance of each shown result for the target ranking.

    With logged propensities: 1 / propensity where the target has the document at that
    very position, else 0. With looking chances: those of the target's rank over those
    of the shown one.
    """
    real = shown.real
    rank = np.where(real, ranks[np.maximum(shown.pairs, 0)], -1)
    depth = shown.pairs.shape[1]
    if not looks:
        same = rank == np.arange(depth)
        return np.where(same, 1 / np.where(same, shown.propensity, 1.0), 0.0)
    look = np.array([looks[min(k, len(looks) - 1)] for k in range(depth)])
    inside = (rank >= 0) & (rank < depth)
    return np.where(inside, look[np.clip(rank, 0, depth - 1)] / look, 0.0)


def effective_size(weight: Float[np.ndarray, "P K"]) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2, of the results that count."""
    below = float((weight**2).sum())
    return float(weight.sum()) ** 2 / below if below > 0 else 0.0


def _estimate(
    values: Float[np.ndarray, " P"], users: np.ndarray, level: float
) -> Estimate:
    """Mean over pages, its error by user (delta method)."""
    _, user = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(user, values), np.bincount(user)
    n, pages = len(sums), len(values)
    value = float(values.mean())
    left = sums - value * counts
    error = math.sqrt(float((left**2).sum()) * n / max(n - 1, 1)) / pages
    half = float(stats.t.ppf((1 + level) / 2, max(n - 1, 1))) * error
    return Estimate(value, error, (value - half, value + half))


@dataclass(frozen=True)
class Reward:
    """A model of clicks, attraction times looking, fitted to pages."""

    look: Float[np.ndarray, " K"]
    attraction: Float[np.ndarray, " N"]

    @classmethod
    def fit(cls, shown: Shown, strength: float = 5.0) -> "Reward":
        """Click rates by rank, and of pairs relative to them, drawn to the mean."""
        real = shown.real
        rate = shown.clicks.sum(0) / np.maximum(real.sum(0), 1)
        look = np.clip(rate / max(rate[0], 1e-6), 1e-3, None)
        seen = np.bincount(
            shown.pairs[real],
            np.broadcast_to(look, real.shape)[real],
            len(shown.documents),
        )
        clicks = np.bincount(
            shown.pairs[real], shown.clicks[real], len(shown.documents)
        )
        mean = clicks.sum() / max(seen.sum(), 1e-9)
        return cls(look, (clicks + strength * mean) / (seen + strength))

    def of(self, shown: Shown) -> Float[np.ndarray, "P K"]:
        """Expected clicks of the shown results."""
        return np.minimum(
            np.where(shown.real, self.attraction[np.maximum(shown.pairs, 0)], 0)
            * self.look,
            1.0,
        )

    def of_target(
        self, shown: Shown, ranks: np.ndarray, mean: float
    ) -> Float[np.ndarray, " Q"]:
        """Expected clicks of the target's results, by query; unseen ones get `mean`."""
        depth = len(self.look)
        inside = (ranks >= 0) & (ranks < depth)
        value = np.minimum(self.attraction[inside] * self.look[ranks[inside]], 1.0)
        total = np.bincount(shown.queries[inside], value, len(shown.names))
        known = np.zeros((len(shown.names), depth), bool)
        known[shown.queries[inside], ranks[inside]] = True
        return total + mean * (~known * self.look).sum(1)


def _doubly_robust(
    shown: Shown, ranks: np.ndarray, weight: np.ndarray, lengths: np.ndarray
) -> Float[np.ndarray, " P"]:
    """A page's value: the model's, corrected by the weighted surprise of the clicks.

    Each half of the users is predicted by a model of the other half, so that the
    correction is unbiased whatever the model.
    """
    values = np.zeros(len(shown.pairs))
    half = (shown.users >> np.uint64(3)) % np.uint64(2) == 1
    for own in (half, ~half):
        if not own.any():
            continue
        other = shown.take(~own) if (~own).any() else shown
        reward, mine = Reward.fit(other), shown.take(own)
        mean = float(np.average(reward.attraction))
        target = reward.of_target(shown, ranks, mean)
        # The run may be shorter than a page: nothing is expected below its end.
        missing = np.arange(len(reward.look)) >= lengths[:, None]
        target = target - mean * (missing * reward.look).sum(1)
        surprise = weight[own] * np.where(mine.real, mine.clicks - reward.of(mine), 0)
        values[own] = target[mine.query] + surprise.sum(1)
    return values


def estimate(
    shown: Shown,
    run: Mapping[str, Sequence[str]],
    *,
    looks: Sequence[float] = (),
    clip: float = 10.0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Estimates of one ranking from pages whose query it has; see the module.

    Args:
      shown: pages of the log.
      run: documents by query, best first.
      looks: chance of looking by rank; () for the logged propensities.
      clip: largest weight of the clipped estimate.
      level: of the intervals.
    """
    ranks, has = target_ranks(shown, run)
    shown = shown.take(has[shown.query])
    depth = shown.pairs.shape[1]
    weight = weights(shown, ranks, looks=looks)
    clicks = shown.clicks & shown.real
    lengths = np.array([len(run.get(name, ())) for name in shown.names])
    asked = np.minimum(lengths, depth)[shown.query].sum()
    inside = (ranks >= 0) & (ranks < depth)
    seen = np.bincount(shown.queries[inside], minlength=len(shown.names))[shown.query]
    if looks:  # on the page itself: what is not there cannot be clicked
        seen = inside[np.maximum(shown.pairs, 0)] & shown.real
    result: dict[str, Any] = {
        "pages": len(shown.pairs),
        "coverage": float(seen.sum() / max(asked, 1)),
        "effective_size": effective_size(weight),
        "largest_weight": float(weight.max(initial=0)),
        "logged": _estimate(clicks.sum(1).astype(float), shown.users, level).summary(),
    }
    values = {
        "ips": (weight * clicks).sum(1),
        "clipped": (np.minimum(weight, clip) * clicks).sum(1),
    }
    if not looks:
        # Of each rank the weights' mean is 1; dividing by what it is takes off noise.
        mean = weight.mean(0)
        rate = (weight * clicks).mean(0) / np.where(mean > 0, mean, 1)
        influence = (weight * (clicks - rate)) / np.where(mean > 0, mean, 1)
        values["snips"] = influence.sum(1) + rate.sum()
        values["dr"] = _doubly_robust(shown, ranks, weight, lengths)
    for name, one in values.items():
        found = _estimate(one, shown.users, level)
        result[name] = found.summary()
    return result


def analyse(
    log: Log, runs: Mapping[str, Mapping[str, Sequence[str]]], settings: Settings
) -> dict[str, Any]:
    """The whole report, for JSON.

    Raises:
      DataError: where the log or its overlap with a run cannot carry an estimate.
    """
    found = Contradictions()
    shown = results.load_pages(log, settings.rules, found, depth=settings.depth)
    file = log.facts["files"][0]
    if not settings.looks:
        missing = int((shown.real & np.isnan(shown.propensity)).sum())
        if missing:
            raise DataError(
                f"{file}: {missing:,} shown results have no propensity (the chance "
                "that the logger put that document there); log it with every result, "
                "or give --propensities FILE of looking chances by rank"
            )
    systems = {}
    for name, run in runs.items():
        if not any(query in run for query in shown.names):
            raise DataError(
                f"{file}: no page has a query of the run {name!r}; are the run's ids "
                "those of the log's column query? --queries FILE says which text an id "
                "has"
            )
        one = estimate(
            shown,
            run,
            looks=settings.looks,
            clip=settings.clip,
            level=settings.level,
        )
        _refuse(name, one, file)
        systems[name] = one
    return {
        "command": "counterfactual",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        "depth": settings.depth,
        "clip": settings.clip,
        "level": settings.level,
        "by": "looking chances" if settings.looks else "logged propensities",
        "systems": systems,
        "notes": _notes(systems, settings),
    }


def _refuse(name: str, one: Mapping[str, Any], file: str) -> None:
    if one["largest_weight"] > 1 / LEAST_PROPENSITY:
        raise DataError(
            f"{file}: the smallest propensity that counts for {name!r} is "
            f"{1 / one['largest_weight']:.1e}, below {LEAST_PROPENSITY:g}: one click "
            "would weigh as ten thousand pages; log with more exploration"
        )
    if one["effective_size"] < LEAST_SIZE:
        raise DataError(
            f"{file}: the effective sample of {name!r} is {one['effective_size']:.1f} "
            f"results of {one['pages']:,} pages, below {LEAST_SIZE}: the logger almost "
            "never showed what this run shows. Log more, or with more exploration, or "
            "compare a run nearer to the logger's; no number is better than a wrong one"
        )


def _notes(systems: Mapping[str, Mapping[str, Any]], settings: Settings) -> list[str]:
    notes = []
    for name, one in systems.items():
        if one["coverage"] < 0.95:
            notes.append(
                f"{name}: {one['coverage']:.0%} of its first {settings.depth} results "
                f"were {'on the page' if settings.looks else 'ever shown'} for their "
                "query; the others count as never clicked (in dr: as the mean), so the "
                "estimates are too low"
            )
    if settings.looks:
        notes.append(
            "by looking chances: right if users look by rank alone; snips and dr need "
            "logged propensities"
        )
    return notes
