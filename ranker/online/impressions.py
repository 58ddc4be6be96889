"""`impressions`: lists of shown results and what their clicks are worth, to train on.

By query, a list is a query with every result that was shown for it, and a label is
clicks by times shown. By page, it is one page with a click: the results in the order
shown, their positions, 1 for a click and 0 for none.

A click weighs 1 / the chance that its rank is looked at, at most `clip`: inverse
propensity weighting (Joachims et al., 2017, arXiv 1608.04468). By query that goes into
the labels; by page the weights are a column of their own. Without propensities every
click counts 1, which overrates what is shown at the top.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ranker.errors import ConfigError, DataError
from ranker.online import results
from ranker.online.events import Log
from ranker.online.pages import Contradictions, PageRules
from ranker.online.results import Shown

FIELDS = results.FIELDS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `impressions` is asked for."""

    depth: int = 10
    looks: tuple[float, ...] = ()  # chance of looking by rank; () = 1 everywhere
    clip: float = 20.0  # largest weight of a click
    least: int = 1  # pages of a query, below which it is left out
    by: Literal["query", "page"] = "query"  # what a list is
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if self.depth < 1 or self.least < 1:
            raise ConfigError("--depth and --least must be 1 or more")
        if not self.clip >= 1:
            raise ConfigError(f"--clip {self.clip:g}: expected 1 or more")


def click_weights(depth: int, *, looks: Sequence[float], clip: float) -> np.ndarray:
    """What a click at each rank counts, float [depth]; ranks beyond as the last."""
    ranks = [looks[min(k, len(looks) - 1)] if looks else 1.0 for k in range(depth)]
    return np.minimum(1 / np.array(ranks), clip)


def label(
    shown: Shown, *, looks: Sequence[float] = (), clip: float = 20.0
) -> tuple[np.ndarray, np.ndarray]:
    """Label of each pair, and times shown.

    Args:
      shown: pages with their clicks.
      looks: chance of looking by rank; () = 1 everywhere.
      clip: largest weight of a click.
    """
    weight = click_weights(shown.pairs.shape[1], looks=looks, clip=clip)
    real = shown.real
    number = len(shown.documents)
    worth = np.bincount(shown.pairs[real], (shown.clicks * weight)[real], number)
    times = np.bincount(shown.pairs[real], minlength=number)
    return worth / np.maximum(times, 1), times


def analyse(
    log: Log, settings: Settings
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The report, for JSON, and the lists that have a click.

    Raises:
      DataError: where no list has a click.
    """
    found = Contradictions()
    shown = results.load_pages(log, settings.rules, found, depth=settings.depth)
    labels, times = label(shown, looks=settings.looks, clip=settings.clip)
    pages = np.bincount(shown.query, minlength=len(shown.names))
    clicked = np.bincount(shown.queries, labels, len(shown.names)) > 0
    kept = clicked & (pages >= settings.least)
    if not kept.any():
        raise DataError(
            f"{log.facts['files'][0]}: no query was clicked and shown on "
            f"{settings.least} pages; there is nothing to learn"
        )
    depth = shown.pairs.shape[1]
    if settings.by == "page":
        weight = click_weights(depth, looks=settings.looks, clip=settings.clip)
        taken = np.flatnonzero(shown.clicks.any(1) & kept[shown.query])
        lists = _by_page(shown, taken, weight if settings.looks else None)
        number = len(taken)
    else:
        lists = _by_query(shown, kept, labels, times)
        number = int(kept.sum())
    summary = {
        "command": "impressions",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        "by": settings.by,
        "lists": number,
        "queries": int(kept.sum()),
        "without_a_click": int((~clicked).sum()),
        "shown_too_seldom": int((clicked & ~kept).sum()),
        "pages": len(shown.pairs),
        "clicks": int(shown.clicks.sum()),
        "clicks_by_rank": shown.clicks.sum(0).tolist(),
        "clipped_ranks": [
            k + 1
            for k in range(depth)
            if settings.looks
            and 1 / settings.looks[min(k, len(settings.looks) - 1)] > settings.clip
        ],
        "weights": "1 / chance of looking" if settings.looks else "1 (naive)",
        "notes": []
        if settings.looks
        else [
            "every click counts 1: results that were shown on top seem better than "
            "they are; give --propensities (of clickmodel --out) to undo that"
        ],
    }
    return summary, lists


def _by_query(
    shown: Shown, kept: np.ndarray, labels: np.ndarray, times: np.ndarray
) -> Iterator[dict[str, Any]]:
    pages = np.bincount(shown.query, minlength=len(shown.names))
    order = np.argsort(shown.queries, kind="stable")
    ends = np.searchsorted(shown.queries[order], np.arange(len(shown.names) + 1))
    for at in np.flatnonzero(kept).tolist():
        pairs = order[ends[at] : ends[at + 1]].tolist()
        yield {
            "query": shown.names[at],
            "pages": int(pages[at]),
            "document_ids": [shown.documents[one] for one in pairs],
            "labels": [round(float(labels[one]), 6) for one in pairs],
            "shown": [int(times[one]) for one in pairs],
        }


def _by_page(
    shown: Shown, taken: np.ndarray, weight: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    for page in taken.tolist():
        places = np.flatnonzero(shown.pairs[page] >= 0)
        clicks = shown.clicks[page, places]
        row = {
            "query": shown.names[shown.query[page]],
            "document_ids": [shown.documents[p] for p in shown.pairs[page, places]],
            "labels": clicks.astype(int).tolist(),
            "positions": (places + 1).tolist(),
        }
        if weight is not None:  # results that were not clicked count 1
            found = np.where(clicks, weight[places], 1.0)
            row["weights"] = [round(float(one), 6) for one in found]
        yield row
