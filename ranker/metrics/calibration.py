"""Scores across queries: calibration to probabilities, and how comparable they are.

A ranking loss fixes the order of one query's documents and nothing else. A threshold
("show a document from 0.6 on") or a blend with other signals needs scores that mean the
same for every query. Two numbers tell how far they do: the expected calibration error
of a probability fitted to the scores, and the share of rightly ordered pairs among
documents of *different* queries. numpy, float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Method = Literal["platt", "isotonic"]
METHODS: tuple[Method, ...] = ("platt", "isotonic")

_STEPS = 100  # of Newton's method, which needs about ten
_SMALL = 1e-10  # gradient at which it stops


@dataclass(frozen=True, kw_only=True)
class Platt:
    """P(relevant | score) = 1 / (1 + exp(-(slope * score + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
        """Probabilities of the scores, float64."""
        x = self.slope * np.asarray(scores, np.float64) + self.intercept
        return _sigmoid(x)


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """P(relevant | score) by a rising curve: straight lines between these points.

    Below the first point and above the last the curve is flat.
    """

    scores: tuple[float, ...]  # rising
    probabilities: tuple[float, ...]  # never falling

    def __call__(self, scores: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
        """Probabilities of the scores, float64."""
        return np.interp(
            np.asarray(scores, np.float64), self.scores, self.probabilities
        )


Calibration = Platt | Isotonic


def fit_calibration(
    method: Method, scores: Float[np.ndarray, " N"], relevant: Bool[np.ndarray, " N"]
) -> Calibration:
    """Fits a calibration by its name.

    Args:
      method: "platt" (two numbers; for few judgements) or "isotonic" (any rising
        curve; for a thousand judgements or more).
      scores: raw scores, finite.
      relevant: True for the relevant documents.

    Raises:
      ValueError: for another method, different shapes, a score that is not finite, or
        documents that are all relevant or all not.
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration {method!r}; use {' or '.join(METHODS)}")
    return (fit_platt if method == "platt" else fit_isotonic)(scores, relevant)


def fit_platt(
    scores: Float[np.ndarray, " N"], relevant: Bool[np.ndarray, " N"]
) -> Platt:
    """Platt's scaling: logistic regression of relevance on the score.

    Targets are (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) instead of 1 and 0 (Platt, 1999,
    equation 2.2), so that separable scores get a finite slope. Newton's method with
    step halving (Lin, Lin and Weng, 2007).

    Raises:
      ValueError: see `fit_calibration`.
    """
    scores, relevant = _checked(scores, relevant)
    ones = int(relevant.sum())
    zeros = len(relevant) - ones
    targets = np.where(relevant, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    # Newton's method on standardised scores; the line is scaled back at the end.
    centre, scale = float(scores.mean()), float(scores.std()) or 1.0
    x = np.stack([(scores - centre) / scale, np.ones_like(scores)], axis=1)
    line = np.array([0.0, math.log((ones + 1) / (zeros + 1))])

    def loss(line: np.ndarray) -> float:
        z = x @ line
        return float(np.sum(np.logaddexp(0, z) - targets * z))

    here = loss(line)
    for _ in range(_STEPS):
        p = _sigmoid(x @ line)
        gradient = x.T @ (p - targets)
        if np.abs(gradient).max() < _SMALL * len(scores):
            break
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while (there := loss(line - size * step)) > here and size > 1e-10:
            size /= 2
        if there > here:
            break
        line, here = line - size * step, there
    slope = float(line[0]) / scale
    return Platt(slope=slope, intercept=float(line[1]) - slope * centre)


def fit_isotonic(
    scores: Float[np.ndarray, " N"], relevant: Bool[np.ndarray, " N"]
) -> Isotonic:
    """The rising curve nearest to relevance in squares (pool adjacent violators).

    A block of pooled scores keeps its first and last score, so that the curve is flat
    over it and a straight line between blocks (Zadrozny and Elkan, 2002).

    Raises:
      ValueError: see `fit_calibration`.
    """
    scores, relevant = _checked(scores, relevant)
    values, places = np.unique(scores, return_inverse=True)
    counts = np.bincount(places).astype(np.float64)
    sums = np.bincount(places, weights=relevant.astype(np.float64))
    blocks: list[list[float]] = []  # first place, last place, sum, count
    for at, (total, count) in enumerate(
        zip(sums.tolist(), counts.tolist(), strict=True)
    ):
        blocks.append([at, at, total, count])
        # The mean of a block may not be below that of the block before it.
        while len(blocks) > 1 and (
            blocks[-2][2] * blocks[-1][3] >= blocks[-1][2] * blocks[-2][3]
        ):
            _, last, total, count = blocks.pop()
            blocks[-1][1] = last
            blocks[-1][2] += total
            blocks[-1][3] += count
    knots: dict[float, float] = {}
    for first, last, total, count in blocks:
        knots[float(values[int(first)])] = total / count
        knots[float(values[int(last)])] = total / count
    return Isotonic(scores=tuple(knots), probabilities=tuple(knots.values()))


def to_json(calibration: Calibration) -> dict[str, Any]:
    """The calibration as a JSON object, for a contract or a summary."""
    if isinstance(calibration, Platt):
        return {
            "method": "platt",
            "slope": calibration.slope,
            "intercept": calibration.intercept,
        }
    return {
        "method": "isotonic",
        "scores": list(calibration.scores),
        "probabilities": list(calibration.probabilities),
    }


def from_json(fields: Mapping[str, Any]) -> Calibration:
    """The calibration that `to_json` wrote.

    Raises:
      ValueError: for an unknown method, a missing number, or a curve that falls.
    """
    method = fields.get("method")
    try:
        if method == "platt":
            found = Platt(
                slope=float(fields["slope"]), intercept=float(fields["intercept"])
            )
            if not math.isfinite(found.slope + found.intercept):
                raise ValueError("slope and intercept must be finite")
            return found
        if method == "isotonic":
            x = np.array(fields["scores"], np.float64)
            y = np.array(fields["probabilities"], np.float64)
            if x.ndim != 1 or not len(x) or x.shape != y.shape:
                raise ValueError("scores and probabilities must be as many, from one")
            if not np.isfinite(x).all() or (np.diff(x) <= 0).any():
                raise ValueError("scores must be finite and rise")
            if (np.diff(y) < 0).any() or not ((y >= 0) & (y <= 1)).all():
                raise ValueError("probabilities must be within 0 and 1 and not fall")
            return Isotonic(scores=tuple(x.tolist()), probabilities=tuple(y.tolist()))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"calibration {method!r}: missing or no number: {error}"
        ) from error
    raise ValueError(f"unknown calibration {method!r}; use {' or '.join(METHODS)}")


def cross_fitted(
    method: Method,
    scores: Float[np.ndarray, " N"],
    relevant: Bool[np.ndarray, " N"],
    queries: Int[np.ndarray, " N"],
    *,
    folds: int = 5,
) -> Float[np.ndarray, " N"]:
    """Probabilities of documents by calibrations that have not seen their query.

    Queries are dealt to the folds in turn; each fold is predicted by what the others
    fit. A calibration that is measured on its own fit looks better than it is.

    Args:
      method: see `fit_calibration`.
      scores: raw scores.
      relevant: True for the relevant documents.
      queries: number of each document's query.
      folds: how many; at most the number of queries.

    Raises:
      ValueError: see `fit_calibration`; and for fewer than two queries.
    """
    scores, relevant = _checked(scores, relevant)
    names, places = np.unique(queries, return_inverse=True)
    folds = min(folds, len(names))
    if folds < 2:
        raise ValueError(f"cross-fitting needs at least 2 queries, found {len(names)}")
    fold = places % folds
    found = np.empty(len(scores))
    for one in range(folds):
        inside = fold == one
        found[inside] = fit_calibration(method, scores[~inside], relevant[~inside])(
            scores[inside]
        )
    return found


@dataclass(frozen=True)
class Bin:
    """Documents of like probability, and how many of them are relevant."""

    documents: int
    probability: float  # mean
    relevant: float  # share


def reliability(
    probabilities: Float[np.ndarray, " N"],
    relevant: Bool[np.ndarray, " N"],
    *,
    bins: int = 10,
) -> list[Bin]:
    """Bins of as equal a number of documents as ties allow, by rising probability."""
    order = np.argsort(probabilities, kind="stable")
    p, y = np.asarray(probabilities)[order], np.asarray(relevant, bool)[order]
    # A document belongs to the bin in which the run of its equals begins.
    begins = np.searchsorted(p, p, side="left")
    which = begins * bins // max(len(p), 1)
    return [
        Bin(
            int((which == at).sum()),
            float(p[which == at].mean()),
            float(y[which == at].mean()),
        )
        for at in np.unique(which)
    ]


def expected_calibration_error(
    probabilities: Float[np.ndarray, " N"],
    relevant: Bool[np.ndarray, " N"],
    *,
    bins: int = 10,
) -> float:
    """Mean distance of probability and share of relevant documents over the bins.

    Bins hold equally many documents, and weigh by their number (Naeini et al., 2015;
    Nixon et al., 2019, on equal mass). 0 is perfect; NaN without a document.

    >>> p, y = np.array([0.2, 0.2, 0.8, 0.8]), np.array([False, True, True, True])
    >>> round(expected_calibration_error(p, y, bins=2), 3)  # (0.3 + 0.2) / 2
    0.25
    """
    found = reliability(probabilities, relevant, bins=bins)
    total = sum(one.documents for one in found)
    if not total:
        return math.nan
    return (
        sum(one.documents * abs(one.probability - one.relevant) for one in found)
        / total
    )


def brier_score(
    probabilities: Float[np.ndarray, " N"], relevant: Bool[np.ndarray, " N"]
) -> float:
    """Mean squared distance of probability and relevance (Brier, 1950).

    >>> brier_score(np.array([0.5, 1.0]), np.array([True, True]))
    0.125
    """
    y = np.asarray(relevant, np.float64)
    return float(np.mean((np.asarray(probabilities, np.float64) - y) ** 2))


def cross_query_accuracy(
    scores: Float[np.ndarray, " N"],
    grades: Float[np.ndarray, " N"],
    queries: Int[np.ndarray, " N"],
) -> tuple[float, int]:
    """Share of rightly ordered pairs of documents of different queries.

    A pair has different grades; equal scores count half. A model that orders each
    query well and shifts whole queries at random is near 0.5.

    Returns:
      The share, NaN without a pair, and the number of pairs.

    >>> scores, grades = np.array([1.0, 0.0, 9.0, 8.0]), np.array([1, 0, 1, 0])
    >>> cross_query_accuracy(scores, grades, np.array([0, 0, 1, 1]))  # 1 < 8, 9 > 0
    (0.5, 2)
    """
    scores, grades = np.asarray(scores, np.float64), np.asarray(grades, np.float64)
    right, total = ordered_pairs(scores, grades)
    _, places = np.unique(queries, return_inverse=True)
    order = np.argsort(places, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
        inside = ordered_pairs(scores[rows], grades[rows])
        right, total = right - inside[0], total - inside[1]
    return (right / total if total else math.nan), total


def ordered_pairs(
    scores: Float[np.ndarray, " N"], grades: Float[np.ndarray, " N"]
) -> tuple[float, int]:
    """Concordant pairs, equal scores counted half, and all pairs of unequal grades."""
    right, total = 0.0, 0
    for grade in np.unique(grades)[1:]:
        below = np.sort(scores[grades < grade])
        mine = scores[grades == grade]
        lower = int(np.searchsorted(below, mine, side="left").sum())
        not_higher = int(np.searchsorted(below, mine, side="right").sum())
        right += (lower + not_higher) / 2
        total += len(below) * len(mine)
    return right, total


@dataclass(frozen=True)
class CrossQuery:
    """How comparable a system's scores are between queries."""

    documents: int
    pairs: int  # of documents of different queries and different grades
    accuracy: float  # share of those ordered rightly; NaN without a pair
    ece: dict[str, float]  # method -> expected calibration error, cross-fitted
    brier: dict[str, float]  # method -> Brier score, cross-fitted
    base_rate: float  # share of relevant documents; its Brier score is r * (1 - r)


def cross_query(
    scores: Sequence[Float[np.ndarray, " L"]],
    grades: Sequence[Float[np.ndarray, " L"]],
    *,
    relevance: float = 1,
    bins: int = 10,
) -> CrossQuery:
    """Measures scores across queries, on the judged documents of each list.

    Args:
      scores: of each query's judged documents.
      grades: of the same documents.
      relevance: lowest grade that counts as relevant.
      bins: of the calibration error.

    Raises:
      ValueError: for fewer than two queries, or documents that are all relevant or all
        not.
    """
    flat = np.concatenate([np.asarray(one, np.float64) for one in scores])
    known = np.concatenate([np.asarray(one, np.float64) for one in grades])
    queries = np.repeat(np.arange(len(scores)), [len(one) for one in scores])
    relevant = known >= relevance
    accuracy, pairs = cross_query_accuracy(flat, known, queries)
    ece, brier = {}, {}
    for method in METHODS:
        probabilities = cross_fitted(method, flat, relevant, queries)
        ece[method] = expected_calibration_error(probabilities, relevant, bins=bins)
        brier[method] = brier_score(probabilities, relevant)
    return CrossQuery(len(flat), pairs, accuracy, ece, brier, float(relevant.mean()))


def _checked(
    scores: np.ndarray, relevant: np.ndarray
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    if scores.shape != relevant.shape or scores.ndim != 1:
        raise ValueError(
            f"expected a score and a judgement of each document, found shapes "
            f"{scores.shape} and {relevant.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a calibration needs finite scores, found NaN or infinity")
    ones = int(relevant.sum())
    if not 0 < ones < len(relevant):
        raise ValueError(
            "a calibration needs relevant documents and others, found "
            f"{ones} relevant of {len(relevant)}"
        )
    return scores, relevant


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
