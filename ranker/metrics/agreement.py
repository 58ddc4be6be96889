"""How far a student orders and scores documents as its teacher does; float64, numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

ListScores = Float[np.ndarray, " L"]

_AT_AN_END = 1e-3  # of the range; scores this near to the lowest or highest are clipped
_MANY_TIES = 0.1  # share of pairs
_MUCH_SATURATION = 0.05  # share of scores


@dataclass(frozen=True)
class Agreement:
    """Scores of a student beside a teacher's, of the documents of many lists.

    Correlations are means over the lists in which both have two different scores; NaN
    without such a list.
    """

    lists: int
    documents: int
    kendall: float  # tau-b, which corrects for ties
    spearman: float  # rank correlation, equal scores at their mean rank
    slope: float  # of the least-squares line student = slope * teacher + intercept
    intercept: float  # score units of the student
    r_squared: float  # share of the student's variance that the line explains
    teacher_ties: float  # share of the pairs of a list with equal teacher scores
    student_ties: float  # share of the pairs of a list with equal student scores
    teacher_saturation: float  # share of scores at an end of their range, beyond two
    student_saturation: float  # share of scores at an end of their range, beyond two


def agreement(
    teacher: Sequence[ListScores], student: Sequence[ListScores]
) -> Agreement:
    """Compares two models that scored the same lists.

    Args:
      teacher: scores of each list's documents.
      student: scores of the same documents in the same order.

    Raises:
      ValueError: when the lists differ in number or length, or hold no document.
    """
    if [len(one) for one in teacher] != [len(one) for one in student]:
        raise ValueError("teacher and student have not scored the same lists")
    if not sum(len(one) for one in teacher):
        raise ValueError("there is no document to compare teacher and student on")
    pairs = [
        (np.asarray(t, np.float64), np.asarray(s, np.float64))
        for t, s in zip(teacher, student, strict=True)
    ]
    kendall, spearman = correlations(teacher, student)
    all_t = np.concatenate([t for t, _ in pairs])
    all_s = np.concatenate([s for _, s in pairs])
    slope, intercept = fit_affine(all_t, all_s)
    return Agreement(
        lists=len(pairs),
        documents=len(all_t),
        kendall=_mean(kendall),
        spearman=_mean(spearman),
        slope=slope,
        intercept=intercept,
        r_squared=_r_squared(all_s, slope * all_t + intercept),
        teacher_ties=_ties([t for t, _ in pairs]),
        student_ties=_ties([s for _, s in pairs]),
        teacher_saturation=saturation(all_t),
        student_saturation=saturation(all_s),
    )


def correlations(
    teacher: Sequence[ListScores], student: Sequence[ListScores]
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Kendall's tau-b and Spearman's rho of each list; NaN where one scores all equal.

    Args:
      teacher: scores of each list's documents.
      student: scores of the same documents in the same order.
    """
    found = np.full((2, len(teacher)), np.nan)
    for at, (t, s) in enumerate(zip(teacher, student, strict=True)):
        if len(t) > 1 and np.ptp(t) > 0 and np.ptp(s) > 0:
            found[0, at] = _statistic(stats.kendalltau(t, s))
            found[1, at] = _statistic(stats.spearmanr(t, s))
    return found[0], found[1]


def in_both(
    teacher: Mapping[str, Mapping[str, float]],
    student: Mapping[str, Mapping[str, float]],
    queries: Sequence[str],
) -> tuple[list[ListScores], list[ListScores]]:
    """Scores of the documents that both runs have for each of the queries.

    >>> in_both({"q": {"a": 1.0, "b": 2.0}}, {"q": {"b": 0.5, "c": 9.0}}, ["q"])
    ([array([2.])], [array([0.5])])
    """
    of_teacher, of_student = [], []
    for query in queries:
        t, s = teacher.get(query, {}), student.get(query, {})
        names = [name for name in t if name in s]
        of_teacher.append(np.array([t[name] for name in names], np.float64))
        of_student.append(np.array([s[name] for name in names], np.float64))
    return of_teacher, of_student


def fit_affine(x: ListScores, y: ListScores) -> tuple[float, float]:
    """Least squares of y = slope * x + intercept; slope 0 where all x are equal.

    >>> fit_affine(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    (2.0, 1.0)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centred = x - x.mean()
    variance = float(np.mean(centred**2))
    slope = float(np.mean(centred * (y - y.mean()))) / variance if variance else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def saturation(scores: ListScores) -> float:
    """Share of the scores within 0.1 % of the range from its ends, beyond any heap.

    Near 0 for raw scores; a sigmoid or a clip on the way heaps them up at the ends. As
    many as the most frequent score between the ends has do not count at either: the
    grades 0 to 3 are not clipped scores.

    >>> saturation(np.array([0.0, 0.0, 0.0, 0.4, 1.0]))
    0.4
    """
    scores = np.asarray(scores, np.float64)
    span = np.ptp(scores)
    if span == 0:
        return 1.0 if len(scores) > 1 else 0.0
    low = scores <= scores.min() + _AT_AN_END * span
    high = scores >= scores.max() - _AT_AN_END * span
    counts = np.unique(scores[~low & ~high], return_counts=True)[1]
    heap = int(counts.max(initial=1))
    beyond = max(int(low.sum()) - heap, 0) + max(int(high.sum()) - heap, 0)
    return beyond / len(scores)


def _r_squared(y: ListScores, line: ListScores) -> float:
    if np.ptp(y) == 0:  # the mean of equal numbers may differ from them by rounding
        return float("nan")
    return 1 - float(np.sum((y - line) ** 2)) / float(np.sum((y - y.mean()) ** 2))


def _ties(lists: Sequence[ListScores]) -> float:
    tied = total = 0
    for scores in lists:
        counts = np.unique(scores, return_counts=True)[1]
        tied += int(np.sum(counts * (counts - 1)) // 2)
        total += len(scores) * (len(scores) - 1) // 2
    return tied / total if total else 0.0


def _statistic(result: Any) -> float:  # scipy's results have no types
    return float(result.statistic)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def find_faults(found: Agreement) -> list[str]:
    """Sentences about scores that a ranker should not give; none for sound ones."""
    faults = []
    for who in ("teacher", "student"):
        ties = getattr(found, f"{who}_ties")
        heaped = getattr(found, f"{who}_saturation")
        if ties == 1:
            faults.append(f"The {who} has collapsed: it scores all documents alike.")
            continue
        if ties > _MANY_TIES:
            faults.append(
                f"The {who} gives {ties:.0%} of the pairs of a list equal scores."
            )
        if heaped > _MUCH_SATURATION:
            faults.append(
                f"{heaped:.0%} of the {who}'s scores lie at an end of their range: are "
                "they clipped, or passed through a sigmoid?"
            )
    if found.slope < 0:
        faults.append("The student orders against its teacher: the slope is negative.")
    return faults
