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
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

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
    """Where a run put the judged documents of Q queries: J of one query at most.

    Documents without a judgement gain nothing and only take up ranks, so metrics need
    no more than this. A row is in order of rank; what `found` leaves out is padding.
    """

    queries: list[str]
    found: Bool[np.ndarray, "Q J"]  # True: a document that is judged and in the run
    ranks: Int[np.ndarray, "Q J"]  # from 0
    grades: Int[np.ndarray, "Q J"]  # 0 in the padding
    scores: Float[np.ndarray, "Q J"]
    ideal: Int[np.ndarray, "Q I"]  # grades above 0, found or not, highest first; or 0
    relevance: int  # lowest grade that counts as relevant

    def within(self, k: int | None) -> Bool[np.ndarray, "Q J"]:
        """True for the found documents among the first k; None: among all."""
        return self.found if k is None else self.found & (self.ranks < k)

    def relevant(self, k: int | None) -> Bool[np.ndarray, "Q J"]:
        """True for the relevant documents among the first k."""
        return self.within(k) & (self.grades >= self.relevance)

    def select(self, rows: Sequence[int]) -> "Ranked":
        """Some of the queries."""
        at = np.asarray(rows, np.int64)
        return Ranked(
            [self.queries[row] for row in rows],
            self.found[at],
            self.ranks[at],
            self.grades[at],
            self.scores[at],
            self.ideal[at],
            self.relevance,
        )

    @property
    def num_relevant(self) -> Float[np.ndarray, " Q"]:
        """Relevant documents of each query, found or not."""
        return (self.ideal >= self.relevance).sum(axis=1).astype(np.float64)


def rank(
    qrels: Qrels,
    run: Run,
    *,
    complete: bool = True,
    relevance: int = 1,
    depth: int | None = None,
) -> Ranked:
    """Finds the judged documents in a run, ordered as trec_eval orders it.

    Args:
      qrels: grades by query and document.
      run: scores by query and document.
      complete: take in judged queries that the run lacks (trec_eval -c).
      relevance: lowest grade that counts as relevant, from 1 (trec_eval -l).
      depth: documents of each query that count, from the first; None: all
        (trec_eval -M).

    Raises:
      ValueError: when no query of `run` has a judgement, or a score is NaN.
    """
    if relevance < 1:
        raise ValueError(f"relevance must be a grade from 1, found {relevance}")
    if not any(query in qrels for query in run):
        raise ValueError(
            "the run and the judgements have no query in common; is this the run of "
            "another split, or are its columns mixed up?"
        )
    queries = [query for query in qrels if complete or query in run]
    rows, ideals = [], []
    for query in queries:
        judgements, listed = qrels[query], run.get(query, {})
        grades = np.fromiter(judgements.values(), np.int64, len(judgements))
        ideals.append((np.sort(grades[grades > 0])[::-1],))
        # A document that is not in the run has no score: None, which becomes NaN.
        scores = np.array(list(map(listed.get, judgements)), np.float64)
        both = ~np.isnan(scores)
        grades, scores = grades[both], scores[both]
        ranks = _ranks(query, listed, scores, itertools.compress(judgements, both))
        order = np.argsort(ranks)
        if depth is not None:
            order = order[: np.sum(ranks < depth)]
        rows.append((ranks[order], grades[order], scores[order]))
    found, (ranks, grades, scores) = _pad(rows)
    ideal = _pad(ideals)[1][0]
    return Ranked(
        queries,
        found,
        ranks.astype(np.int64),
        grades.astype(np.int64),
        scores,
        ideal.astype(np.int64),
        relevance,
    )


def _ranks(
    query: str,
    listed: Mapping[str, float],
    mine: Float[np.ndarray, " J"],
    names: Iterable[str],
) -> Int[np.ndarray, " J"]:
    """Ranks from 0 of some documents of a query: by score, ties by id backwards."""
    scores = np.fromiter(listed.values(), np.float64, len(listed))
    if np.isnan(scores).any():
        bad = list(listed)[int(np.flatnonzero(np.isnan(scores))[0])]
        raise ValueError(f"query {query!r}: document {bad!r} has the score NaN")
    if not len(mine):
        return np.zeros(0, np.int64)
    # Most runs have few ties, and then there is no need to sort the ids.
    rising, order = np.sort(scores), np.argsort(mine)
    not_above = np.searchsorted(rising, mine[order], side="right")
    below = np.searchsorted(rising, mine[order], side="left")
    if (not_above - below == 1).all():
        ranks = np.empty(len(mine), np.int64)
        ranks[order] = len(scores) - not_above
        return ranks
    # Code points of two strings compare as their UTF-8 bytes do.
    backwards = sorted(listed, reverse=True)
    values = np.fromiter(map(listed.__getitem__, backwards), np.float64, len(listed))
    place = np.empty(len(listed), np.int64)
    place[np.argsort(-values, kind="stable")] = np.arange(len(listed))
    by_name = dict(zip(backwards, place.tolist(), strict=True))
    return np.fromiter(map(by_name.__getitem__, names), np.int64, len(mine))


def _pad(
    rows: Sequence[tuple[np.ndarray, ...]],
) -> tuple[Bool[np.ndarray, "Q J"], list[np.ndarray]]:
    """Rows of several arrays each, as one [Q, J] array of each, 0 in the padding."""
    lengths = np.array([len(row[0]) for row in rows], np.int64)
    width = max(int(lengths.max(initial=0)), 1)
    real = np.arange(width) < lengths[:, None]
    padded = []
    for parts in zip(*rows, strict=True):
        values = np.zeros(real.shape)
        values[real] = np.concatenate(parts)
        padded.append(values)
    return real, padded


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)


def _discount(ranks: np.ndarray) -> np.ndarray:
    return 1 / np.log2(ranks + 2)


def _normalised(
    ranked: Ranked, gain: Callable[[np.ndarray], np.ndarray], k: int | None
) -> np.ndarray:
    """DCG / ideal DCG; `gain` of a grade below 1 must be 0."""
    gains = np.where(ranked.within(k), gain(ranked.grades), 0.0)
    ideal = gain(ranked.ideal[:, :k])
    return _divide(
        np.sum(gains * _discount(ranked.ranks), axis=1),
        np.sum(ideal * _discount(np.arange(ideal.shape[1])), axis=1),
    )


def ndcg(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """DCG / ideal DCG, gain = grade (Jarvelin and Kekalainen, 2002).

    This is trec_eval's ndcg and ndcg_cut.
    """
    return _normalised(ranked, lambda grades: np.maximum(grades, 0.0), k)


def ndcg_exponential(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """NDCG with gain = 2 ** grade - 1 (Burges et al., 2005)."""
    # Relative to a query's highest grade: the ratio stays and nothing overflows.
    top = ranked.ideal[:, :1].astype(np.float64)
    return _normalised(
        ranked, lambda grades: np.exp2(np.maximum(grades, 0) - top) - np.exp2(-top), k
    )


def reciprocal_rank(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """1 / rank of the first relevant document, 0 without one."""
    relevant = ranked.relevant(k)
    first = np.take_along_axis(ranked.ranks, relevant.argmax(axis=1)[:, None], axis=1)
    return np.where(relevant.any(axis=1), 1 / (first[:, 0] + 1), 0.0)


def average_precision(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Mean over all relevant documents of the precision at their rank."""
    relevant = ranked.relevant(k)
    precision = np.cumsum(relevant, axis=1) / (ranked.ranks + 1)
    return _divide(np.sum(precision * relevant, axis=1), ranked.num_relevant)


def precision(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over k."""
    assert k is not None
    return np.sum(ranked.relevant(k), axis=1) / k


def r_precision(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Precision at the number of relevant documents."""
    assert k is None
    among = ranked.relevant(None) & (ranked.ranks < ranked.num_relevant[:, None])
    return _divide(among.sum(axis=1), ranked.num_relevant)


def recall(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over all relevant ones."""
    return _divide(np.sum(ranked.relevant(k), axis=1), ranked.num_relevant)


def success(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """1 with a relevant document among the first k, else 0."""
    return np.any(ranked.relevant(k), axis=1).astype(np.float64)


def expected_reciprocal_rank(
    ranked: Ranked, k: int | None = None
) -> Float[np.ndarray, " Q"]:
    """ERR (Chapelle et al., 2009): a user stops at a document with chance R(grade).

    R(g) = (2 ** g - 1) / 2 ** g_max, g_max being the highest grade of all judgements.
    """
    top = max(int(ranked.ideal.max(initial=0)), 1)
    gains = np.exp2(np.maximum(ranked.grades, 0) - float(top)) - np.exp2(-float(top))
    stop = np.where(ranked.within(k), gains, 0.0)
    reached = np.cumprod(1 - stop, axis=1)
    reached = np.concatenate([np.ones((len(stop), 1)), reached[:, :-1]], axis=1)
    return np.sum(reached * stop / (ranked.ranks + 1), axis=1)


def pair_counts(ranked: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Concordant and discordant pairs of each query, float64 [Q]; ties half to each."""
    concordant = np.zeros(len(ranked.queries))
    discordant = np.zeros(len(ranked.queries))
    for q, found in enumerate(ranked.found):
        grades, scores = ranked.grades[q, found], ranked.scores[q, found]
        for grade in np.unique(grades)[1:]:
            below = np.sort(scores[grades < grade])
            mine = scores[grades == grade]
            lower = np.searchsorted(below, mine, side="left").sum()
            not_higher = np.searchsorted(below, mine, side="right").sum()
            ties = (not_higher - lower) / 2
            concordant[q] += lower + ties
            discordant[q] += len(below) * len(mine) - not_higher + ties
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


def _mean_ratio(accuracy: np.ndarray, concordant: float, discordant: float) -> float:
    bounded = accuracy[accuracy < 1]  # the queries that have a discordant pair
    if not len(bounded):
        return ratio(concordant, discordant)
    return float(np.mean(bounded / (1 - bounded)))


def _share(accuracy: np.ndarray, concordant: float, discordant: float) -> float:
    total = concordant + discordant
    return concordant / total if total else math.nan


Measure = Callable[[Ranked, int | None], np.ndarray]

MEASURES: dict[str, Measure] = {
    "NDCG": ndcg,
    "NDCG-exp": ndcg_exponential,
    "MRR": reciprocal_rank,
    "MAP": average_precision,
    "P": precision,
    "R": recall,
    "Rprec": r_precision,
    "Success": success,
    "ERR": expected_reciprocal_rank,
}
_POOLED: dict[str, Callable[[np.ndarray, float, float], float]] = {
    "PNR": lambda accuracy, concordant, discordant: ratio(concordant, discordant),
    "PNR-macro": _mean_ratio,
    "OPA": _share,
}
PAIR_MEASURES = tuple(_POOLED)
_NEEDS_CUT, _WITHOUT_CUT = ("P", "Success"), ("Rprec", *PAIR_MEASURES)


def parse_measure(name: str) -> tuple[str, int | None]:
    """Splits "NDCG@5" into ("NDCG", 5).

    Raises:
      ValueError: for an unknown measure, or a cut that it does not take.
    """
    match = re.fullmatch(r"([A-Za-z-]+)(?:@([1-9]\d{0,8}))?", name)
    base, cut = match.groups() if match else (name, None)
    known = base in MEASURES or base in PAIR_MEASURES
    if known and base not in (_NEEDS_CUT if cut is None else _WITHOUT_CUT):
        return base, int(cut) if cut else None
    names = [*MEASURES, *PAIR_MEASURES]
    valid = [one if one in _WITHOUT_CUT else f"{one}@k" for one in names]
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown measure {name!r}{hint} Valid are {', '.join(valid)}, with k from 1; "
        f"all but {' and '.join(_NEEDS_CUT)} also without @k"
    )


def evaluate(
    qrels: Qrels,
    run: Run,
    measures: Sequence[str],
    *,
    complete: bool = True,
    relevance: int = 1,
    depth: int | None = None,
) -> dict[str, Result]:
    """Measures a run against judgements.

    Args:
      qrels: grades by query and document.
      run: scores by query and document.
      measures: names as `parse_measure` takes them.
      complete: a judged query that the run lacks counts 0; False: it is left out.
      relevance: lowest grade that counts as relevant, for all but NDCG, ERR and pairs.
      depth: documents of each query that count, from the first; None: all.

    Returns:
      Per measure its value for each query, and their mean (pooled for PNR and OPA).

    Raises:
      ValueError: for an unknown measure, a NaN score, or no query in common.
    """
    parsed = {name: parse_measure(name) for name in measures}  # before the long part
    ranked = rank(qrels, run, complete=complete, relevance=relevance, depth=depth)
    return measure(ranked, tuple(parsed))


def measure(ranked: Ranked, measures: Sequence[str]) -> dict[str, Result]:
    """Measures what `rank` has ranked, as `evaluate` does."""
    results = {}
    for name in measures:
        base, k = parse_measure(name)
        if base in MEASURES:
            values = MEASURES[base](ranked, k)
            mean = float(values.mean()) if len(values) else math.nan
        else:
            values, concordant, discordant = _pair_accuracy(ranked)
            mean = _POOLED[base](values, concordant, discordant)
        results[name] = Result(ranked.queries, values, mean)
    return results
