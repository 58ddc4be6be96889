"""`clickmodel`: click models of a log, how well they fit, and their propensities."""

import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker.errors import ConfigError, DataError
from ranker.online import clickmodels, results
from ranker.online.clickmodels import MODELS, ClickedPages, Prior
from ranker.online.events import Log
from ranker.online.pages import Contradictions, PageRules

_OFTEN = 50  # times a pair is to be shown
_FEW = 1000  # pages below which a fit says little


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `clickmodel` is asked for."""

    models: tuple[str, ...] = ("pbm",)
    depth: int = 10
    held_out: float = 0.2
    prior: float = 2.0  # trials
    iterations: int = 200
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ConfigError(
                f"--held-out {self.held_out}: expected above 0 and below 1"
            )
        if self.prior < 0:
            raise ConfigError(f"--prior {self.prior:g}: expected 0 trials or more")
        if self.depth < 1 or self.iterations < 1:
            raise ConfigError("--depth and --iterations must be 1 or more")


PairClicks = tuple[str, str, float, int]  # query, document, attraction, times shown


def analyse(
    log: Log, settings: Settings
) -> tuple[dict[str, Any], Iterator[PairClicks]]:
    """The report, for JSON, and the attraction of each pair by the best model.

    Raises:
      DataError: for a log without shown results, or one without clicks.
    """
    found = Contradictions()
    shown = results.load_pages(log, settings.rules, found, depth=settings.depth)
    data = ClickedPages(shown.pairs, shown.clicks, len(shown.documents))
    if not data.clicks.any():
        raise DataError(
            f"{log.facts['files'][0]}: no shown result was clicked; a click needs the "
            "page of its result and its position or document_id"
        )
    # By user, so that nobody's pages lie on both sides.
    share = (shown.users >> np.uint64(8)) % np.uint64(1000)
    held = share < np.uint64(round(1000 * settings.held_out))
    if held.all() or not held.any():
        raise DataError(
            f"{log.facts['files'][0]}: {len(np.unique(shown.users)):,} users are too "
            "few to hold some out; change --held-out, or log more users"
        )
    train, test = (
        ClickedPages(data.pairs[rows], data.clicks[rows], data.num_pairs)
        for rows in (~held, held)
    )
    names = MODELS if "all" in settings.models else settings.models
    fitted, models = {}, {}
    prior = Prior(settings.prior)
    for name in names:
        model = clickmodels.fit_clicks(
            train, name, prior=prior, iterations=settings.iterations
        )
        fitted[name] = model
        models[name] = _measure(model, train, test)
    best = min(models, key=lambda name: models[name]["conditional_perplexity"])
    summary = {
        "command": "clickmodel",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        "pages": len(train.pairs),
        "held_out_pages": len(test.pairs),
        "pairs": data.num_pairs,
        "depth": settings.depth,
        "models": models,
        "best": best,
        "notes": _notes(train, test),
    }
    counts = np.bincount(data.pairs[data.real], minlength=data.num_pairs)
    pairs = (
        (shown.names[q], document, float(a), int(n))
        for q, document, a, n in zip(
            shown.queries,
            shown.documents,
            fitted[best].attraction,
            counts,
            strict=True,
        )
    )
    return summary, pairs


def _measure(
    model: clickmodels.ClickModel, train: ClickedPages, test: ClickedPages
) -> dict[str, Any]:
    marginal, by_rank = clickmodels.perplexity(model.marginal(test), test)
    conditional, _ = clickmodels.perplexity(model.conditional(test), test)
    return {
        "perplexity": marginal,
        "perplexity_by_rank": by_rank.tolist(),
        "conditional_perplexity": conditional,
        "propensities": clickmodels.propensities(model, train).tolist(),
        "parameters": model.parameters(),
    }


def _notes(train: ClickedPages, test: ClickedPages) -> list[str]:
    notes = []
    if len(train.pairs) < _FEW:
        notes.append(f"{len(train.pairs):,} pages: a click model wants far more")
    shown = np.bincount(train.pairs[train.real])
    often = float(shown[shown > 0].mean())
    if often < _OFTEN:
        notes.append(
            f"a result was shown {often:.0f} times on average: with under {_OFTEN} the "
            "looking chances of any click model are biased; take a longer log, or the "
            "most frequent queries"
        )
    seen = np.zeros(train.num_pairs, bool)
    seen[train.pairs[train.real]] = True
    new = 1 - float(seen[test.pairs[test.real]].mean())
    if new > 0.2:
        notes.append(
            f"{new:.0%} of the held-out results were never shown to the users that the "
            "models were fitted to: their attraction is the prior's"
        )
    by_rank = [len(np.unique(row[row >= 0])) for row in train.pairs.T]
    moved = sum(by_rank) / max(len(np.unique(train.pairs[train.real])), 1)
    if moved < 1.5:
        notes.append(
            f"a result was shown at {moved:.1f} different ranks on average: looking "
            "and attraction can hardly be told apart; shuffle some pages"
        )
    return notes


def as_file(summary: dict[str, Any]) -> dict[str, Any]:
    """The looking chances of the best model, as `read_file` reads them."""
    best = summary["best"]
    return {
        "model": best,
        "propensities": summary["models"][best]["propensities"],
        "pages": summary["pages"],
    }


def read_file(path: pathlib.Path) -> tuple[float, ...]:
    """Looking chances by rank, of a file that `clickmodel --out` wrote.

    Raises:
      DataError: where it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = tuple(float(one) for one in found["propensities"])
        if not values or not all(0 < one <= 10 for one in values):
            raise ValueError("its propensities are not chances above 0")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: holds no looking chances by rank ({error}); it is written by "
            "python -m ranker.online clickmodel --out"
        ) from error
    return values
