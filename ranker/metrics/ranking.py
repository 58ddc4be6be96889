"""Ranking metrics as trec_eval defines them, in float64, vectorised over queries.

Conventions, all of them trec_eval's:

- documents are ordered by score alone, ties by document id from the last to the first
  (compared as UTF-8 bytes);
- an unjudged document is not relevant, and a negative grade gains nothing;
- the ideal ranking is over all judged documents, found or not;
- a query with judgements but nothing relevant counts 0;
- a query that the run lacks counts 0 (`complete=True`, trec_eval -c), or is left out.

PNR, the positive-negative ratio, is not in trec_eval. Over pairs of judged documents of
one query, both in the run, with different grades: concordant pairs over discordant
pairs, where a pair with equal scores counts half to each. `PNR` pools the pairs of all
queries (micro); `PNR-macro` is the mean over the queries that have a discordant pair.
Without a discordant pair the ratio is unbounded: infinity, or NaN without any pair.
`OPA`, ordered pair accuracy, is concordant / all pairs, pooled; so PNR = OPA / (1 -
OPA). Queries without a pair have OPA NaN: they take no part.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Qrels = Mapping[str, Mapping[str, int]]  # query -> document -> grade
Run = Mapping[str, Mapping[str, float]]  # query -> document -> score


@dataclass(frozen=True)
class Result:
    """One measure of one run.

    `values` are what tests of significance compare; for PNR they are the queries'
    ordered-pair accuracies, as ratios without a bound have no mean to test.
    """

    queries: list[str]
    values: Float[np.ndarray, " Q"]  # NaN: the query takes no part
    mean: float


@dataclass(frozen=True)
class Ranked:
    """Grades of Q queries in the order of a run, padded to K."""

    queries: list[str]
    grades: Int[np.ndarray, "Q K"]  # 0 where nobody judged, and in the padding
    scores: Float[np.ndarray, "Q K"]
    judged: Float[np.ndarray, "Q K"]  # bool: the document has a judgement
    ideal: Int[np.ndarray, "Q J"]  # all judgements, highest first, 0 in the padding
    relevance: int  # lowest grade that counts as relevant

    @property
    def relevant(self) -> Float[np.ndarray, "Q K"]:
        """1.0 where a document is relevant."""
        return (self.judged & (self.grades >= self.relevance)).astype(np.float64)

    @property
    def num_relevant(self) -> Float[np.ndarray, " Q"]:
        """Relevant documents of each query, found or not."""
        # Padding has grade 0, which would count at relevance 0 or below.
        return np.sum(self.ideal >= max(self.relevance, 1), axis=1).astype(np.float64)


def rank(
    qrels: Qrels, run: Run, *, complete: bool = True, relevance: int = 1
) -> Ranked:
    """Orders each query's documents as trec_eval does.

    Raises:
      ValueError: when no query of `run` has a judgement, or a score is NaN.
    """
    if not any(query in qrels for query in run):
        raise ValueError(
            "the run and the judgements have no query in common; is this the run of "
            "another split, or are its columns mixed up?"
        )
    queries = [query for query in qrels if complete or query in run]
    width = max((len(run.get(query, ())) for query in queries), default=0)
    depth = max((len(qrels[query]) for query in queries), default=0)
    shape = (len(queries), max(width, 1))
    grades = np.zeros(shape, np.int64)
    scores = np.full(shape, -np.inf)
    judged = np.zeros(shape, bool)
    ideal = np.zeros((len(queries), max(depth, 1)), np.int64)
    for q, query in enumerate(queries):
        judgements = qrels[query]
        found = run.get(query, {})
        n = len(found)
        if n:
            names = np.array([name.encode() for name in found], object)
            values = np.fromiter(found.values(), np.float64, n)
            if np.isnan(values).any():
                bad = list(found)[int(np.flatnonzero(np.isnan(values))[0])]
                raise ValueError(f"query {query!r}: document {bad!r} has the score NaN")
            order = np.argsort(-values, kind="stable")
            values = values[order]
            if (values[1:] == values[:-1]).any():
                # By id from the last to the first, then stably by score.
                order = np.array(
                    sorted(range(n), key=names.__getitem__, reverse=True), np.int64
                )
                order = order[
                    np.argsort(
                        -np.fromiter(found.values(), np.float64, n)[order],
                        kind="stable",
                    )
                ]
                values = np.fromiter(found.values(), np.float64, n)[order]
            scores[q, :n] = values
            known = [judgements.get(name) for name in found]
            judged[q, :n] = np.array([grade is not None for grade in known])[order]
            grades[q, :n] = np.array([grade or 0 for grade in known], np.int64)[order]
        ideal[q, : len(judgements)] = sorted(
            (max(0, grade) for grade in judgements.values()), reverse=True
        )
    return Ranked(queries, grades, scores, judged, ideal, relevance)


def _cut(values: np.ndarray, k: int | None) -> np.ndarray:
    return values if k is None else values[:, :k]


def _discounted(gains: np.ndarray) -> np.ndarray:
    return gains @ (1 / np.log2(np.arange(gains.shape[1]) + 2))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)


def ndcg(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """DCG / ideal DCG, gain = grade (Jarvelin and Kekalainen, 2002).

    This is trec_eval's ndcg and ndcg_cut.
    """
    gains = _discounted(np.maximum(_cut(ranked.grades, k), 0).astype(np.float64))
    return _divide(gains, _discounted(_cut(ranked.ideal, k).astype(np.float64)))


def ndcg_exponential(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """NDCG with gain = 2 ** grade - 1 (Burges et al., 2005)."""
    gains = _discounted(np.exp2(np.maximum(_cut(ranked.grades, k), 0)) - 1)
    return _divide(gains, _discounted(np.exp2(_cut(ranked.ideal, k)) - 1))


def reciprocal_rank(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """1 / rank of the first relevant document, 0 without one."""
    relevant = _cut(ranked.relevant, k)
    return np.where(relevant.any(axis=1), 1 / (relevant.argmax(axis=1) + 1), 0.0)


def average_precision(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Mean over all relevant documents of the precision at their rank."""
    relevant = _cut(ranked.relevant, k)
    precision = np.cumsum(relevant, axis=1) / (np.arange(relevant.shape[1]) + 1)
    return _divide(np.sum(precision * relevant, axis=1), ranked.num_relevant)


def precision(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over k."""
    assert k is not None
    return np.sum(_cut(ranked.relevant, k), axis=1) / k


def recall(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over all relevant ones."""
    return _divide(np.sum(_cut(ranked.relevant, k), axis=1), ranked.num_relevant)


def expected_reciprocal_rank(
    ranked: Ranked, k: int | None = None
) -> Float[np.ndarray, " Q"]:
    """ERR (Chapelle et al., 2009): a user stops at a document with chance R(grade).

    R(g) = (2 ** g - 1) / 2 ** g_max, g_max being the highest grade of all judgements.
    """
    top = max(int(ranked.ideal.max(initial=0)), 1)
    stop = (np.exp2(np.maximum(_cut(ranked.grades, k), 0)) - 1) / 2**top
    reached = np.cumprod(1 - stop, axis=1)
    reached = np.concatenate([np.ones((len(stop), 1)), reached[:, :-1]], axis=1)
    return np.sum(reached * stop / (np.arange(stop.shape[1]) + 1), axis=1)


def pair_counts(ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Concordant and discordant pairs of each query, float64 [Q]; ties half to each."""
    concordant = np.zeros(len(ranked.queries))
    discordant = np.zeros(len(ranked.queries))
    for q in range(len(ranked.queries)):
        judged = ranked.judged[q]
        grades, scores = ranked.grades[q, judged], ranked.scores[q, judged]
        better = grades[:, None] > grades[None, :]
        higher = np.sign(scores[:, None] - scores[None, :])[better]
        ties = np.sum(higher == 0) / 2
        concordant[q] = np.sum(higher > 0) + ties
        discordant[q] = np.sum(higher < 0) + ties
    return concordant, discordant


def ratio(concordant: float, discordant: float) -> float:
    """Concordant over discordant; infinity without discordant, NaN without any pair."""
    if discordant == 0:
        return math.inf if concordant else math.nan
    return concordant / discordant


def _pair_accuracy(ranked: Ranked) -> tuple[np.ndarray, float, float]:
    concordant, discordant = pair_counts(ranked)
    total = concordant + discordant
    accuracy = np.where(total > 0, concordant / np.maximum(total, 0.5), np.nan)
    return accuracy, float(concordant.sum()), float(discordant.sum())


Measure = Callable[[Ranked, int | None], np.ndarray]

MEASURES: dict[str, Measure] = {
    "NDCG": ndcg,
    "NDCG-exp": ndcg_exponential,
    "MRR": reciprocal_rank,
    "MAP": average_precision,
    "P": precision,
    "R": recall,
    "ERR": expected_reciprocal_rank,
}
PAIR_MEASURES = ("PNR", "PNR-macro", "OPA")


def parse_measure(name: str) -> tuple[str, int | None]:
    """Splits "NDCG@5" into ("NDCG", 5).

    Raises:
      ValueError: for an unknown measure, or a cut that it does not take.
    """
    match = re.fullmatch(r"([A-Za-z-]+)(?:@([1-9]\d*))?", name)
    base, cut = match.groups() if match else (name, None)
    if base in MEASURES and not (base == "P" and cut is None):
        return base, int(cut) if cut else None
    if base in PAIR_MEASURES and cut is None:
        return base, None
    valid = [f"{one}@k" for one in MEASURES] + list(PAIR_MEASURES)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown measure {name!r}{hint} Valid are {', '.join(valid)}, with k from 1; "
        "all but P also without @k"
    )


def evaluate(
    qrels: Qrels,
    run: Run,
    measures: Sequence[str],
    *,
    complete: bool = True,
    relevance: int = 1,
) -> dict[str, Result]:
    """Measures a run against judgements.

    Args:
      qrels: grades by query and document.
      run: scores by query and document.
      measures: names as `parse_measure` takes them.
      complete: a judged query that the run lacks counts 0; False: it is left out.
      relevance: lowest grade that counts as relevant, for all but NDCG, ERR and pairs.

    Returns:
      Per measure its value for each query, and their mean (pooled for PNR and OPA).

    Raises:
      ValueError: for an unknown measure, a NaN score, or no query in common.
    """
    parsed = {name: parse_measure(name) for name in measures}
    ranked = rank(qrels, run, complete=complete, relevance=relevance)
    results = {}
    for name, (base, k) in parsed.items():
        if base in MEASURES:
            values = MEASURES[base](ranked, k)
            mean = float(values.mean()) if len(values) else math.nan
        else:
            values, concordant, discordant = _pair_accuracy(ranked)
            if base == "OPA":
                total = concordant + discordant
                mean = concordant / total if total else math.nan
            elif base == "PNR":
                mean = ratio(concordant, discordant)
            else:
                bounded = values[values < 1]
                mean = (
                    float(np.mean(bounded / (1 - bounded)))
                    if len(bounded)
                    else (ratio(concordant, discordant))
                )
        results[name] = Result(ranked.queries, values, mean)
    return results
