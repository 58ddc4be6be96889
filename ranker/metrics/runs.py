"""Judgements and runs of ranked lists, as metrics take them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from ranker.metrics import calibration, ranking


class List(Protocol):
    """A query with its candidates and judgements; `data.records.RankedList` is one."""

    @property
    def query_id(self) -> str:
        """Id of the query."""
        ...

    @property
    def documents(self) -> Int[np.ndarray, " L"]:
        """Corpus rows of the candidates."""
        ...

    @property
    def judged_ids(self) -> Sequence[str]:
        """Ids of the judged documents."""
        ...

    @property
    def judged_grades(self) -> Int[np.ndarray, " J"]:
        """Their grades."""
        ...


class ListRecords(Protocol):
    """Anything of a length whose records are read by number."""

    def __len__(self) -> int:
        """Records."""
        ...

    def __getitem__(self, at: int, /) -> Any:
        """One record."""
        ...


def _lists(lists: ListRecords) -> Iterator[List]:
    return (lists[at] for at in range(len(lists)))


def qrels_of(lists: ListRecords) -> dict[str, dict[str, int]]:
    """Grades by query and document, of every list's query."""
    return {
        one.query_id: {
            document: int(grade)
            for document, grade in zip(one.judged_ids, one.judged_grades, strict=True)
        }
        for one in _lists(lists)
    }


def run_of(
    lists: ListRecords, corpus: ListRecords, scores: Float[np.ndarray, " P"]
) -> dict[str, dict[str, float]]:
    """Scores by query and document.

    Args:
      lists: `List`s.
      corpus: documents with an `id`, by row.
      scores: of all candidates, in the order of the lists.
    """
    run: dict[str, dict[str, float]] = {}
    names: dict[int, str] = {}
    values = iter(np.asarray(scores).tolist())
    for one in _lists(lists):
        documents = run.setdefault(one.query_id, {})
        for row in one.documents.tolist():
            if row not in names:
                names[row] = corpus[row].id
            documents[names[row]] = float(next(values))
    return run


def means(
    lists: ListRecords,
    corpus: ListRecords,
    scores: Float[np.ndarray, " P"],
    measures: Sequence[str],
) -> dict[str, float]:
    """Means over the queries of the candidates ordered by `scores`; see `run_of`.

    Args:
      lists: with their judgements.
      corpus: documents by place.
      scores: of the candidates of all lists, in order.
      measures: names as `measures.parse_measure` takes them.

    Raises:
      ValueError: for an unknown measure.
    """
    run = run_of(lists, corpus, scores)
    found = ranking.evaluate(qrels_of(lists), run, measures)
    return {name: one.mean for name, one in found.items()}


def agreements(
    runs: Mapping[str, ranking.Run],
    teachers: Mapping[str, str],
    queries: Sequence[str],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Each student's scores beside its teacher's: a summary, and values by query.

    Args:
      runs: scores by query and document, of each system.
      teachers: student -> teacher; a pair without scores of both is left out.
      queries: over which.
    """
    from ranker.metrics import agreement  # brings scipy, which others need not wait for

    found, values = {}, {}
    for student, teacher in teachers.items():
        if student == teacher or teacher not in runs:
            continue
        both = agreement.in_both(runs[teacher], runs[student], queries)
        if not sum(map(len, both[0])):
            continue
        fields = dataclasses.asdict(agreement.agreement(*both))
        found[student] = {
            "teacher": teacher,
            **{k: v if math.isfinite(v) else None for k, v in fields.items()},
        }
        kendall, spearman = agreement.correlations(*both)
        values[student] = {"kendall": kendall, "spearman": spearman}
    return found, values


def judged_scores(
    qrels: ranking.Qrels, run: ranking.Run
) -> tuple[list[Float[np.ndarray, " L"]], list[Float[np.ndarray, " L"]]]:
    """Scores and grades of the judged documents that a run has, query by query.

    >>> judged_scores({"q": {"a": 2, "b": 0}}, {"q": {"a": 0.5, "c": 9.0}})
    ([array([0.5])], [array([2.])])
    """
    scores, grades = [], []
    for query, judgements in qrels.items():
        listed = run.get(query, {})
        both = [name for name in judgements if name in listed]
        scores.append(np.array([listed[name] for name in both], np.float64))
        grades.append(np.array([judgements[name] for name in both], np.float64))
    return scores, grades


def comparable_scores(
    qrels: ranking.Qrels, runs: Mapping[str, ranking.Run], *, relevance: float = 1
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """How comparable each system's scores are between queries, as JSON takes it.

    Args:
      qrels: grades by query and document.
      runs: scores by query and document, of each system.
      relevance: lowest grade that counts as relevant.

    Returns:
      Per system the fields of `calibration.CrossQuery`, or `reason` where it cannot be
      measured; and a note of each of those.
    """
    found, notes = {}, []
    for name, run in runs.items():
        scores, grades = judged_scores(qrels, run)
        try:
            one = calibration.cross_query(scores, grades, relevance=relevance)
        except ValueError as error:
            found[name] = {"reason": str(error)}
            notes.append(f"{name}: scores across queries are not measured: {error}")
            continue
        fields = dataclasses.asdict(one)
        found[name] = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in fields.items()
        }
    return found, notes
