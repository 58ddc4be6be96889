"""Ranking metrics as trec_eval defines them, in float64, vectorised over queries.

Conventions, all of them trec_eval's:

- documents are ordered by score alone, ties by document id from the last to the first
  (compared as UTF-8 bytes);
- an unjudged document is not relevant, and a negative grade gains nothing;
- the ideal ranking is over all judged documents, found or not;
- a query with judgements but nothing relevant counts 0;
- a query that the run lacks counts 0 (`complete=True`, trec_eval -c), or is left out.

Every printed value is a ratio of two sums over queries, `totals` / `weights`: a mean
has the weight 1 for each query, a pooled measure its number of pairs. A query's total
and weight never depend on other queries.

PNR, the positive-negative ratio, is not in trec_eval. Over pairs of judged documents of
one query, both in the run, with different grades: concordant pairs over discordant
pairs, where a pair with equal scores counts half to each. `PNR` pools the pairs of all
queries (micro); `PNR-macro` is the mean over the queries that have a discordant pair.
Without a discordant pair the ratio is unbounded: infinity, or NaN without any pair.
`OPA`, ordered pair accuracy, is concordant / all pairs, pooled; so PNR = OPA / (1 -
OPA); `OPA-macro` is the mean of the queries' accuracies. With `complete=true` all
judged pairs count: a document that the run lacks is below all that it has, and two of
those are tied.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ranker.metrics.measures import COUNTS, PAIR_MEASURES, Measure, parse_measure

Qrels = Mapping[str, Mapping[str, float]]  # query -> document -> grade
Run = Mapping[str, Mapping[str, float]]  # query -> document -> score


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What counts, for all measures of an evaluation."""

    relevance: float = 1  # lowest grade that counts as relevant (trec_eval -l)
    complete: bool = True  # a judged query that a run lacks counts 0; else it is out
    depth: int | None = None  # documents of a query that count (trec_eval -M)
    judged_only: bool = False  # drop documents without a judgement (trec_eval -J)
    ignore_identical_ids: bool = False  # drop a document with its query's id
    complete_pairs: bool = False  # PNR and OPA over all judged pairs

    def __post_init__(self):
        if not self.relevance > 0:
            raise ValueError(f"relevance must be above 0, found {self.relevance}")


RULES = Rules()
_FEW_TIES = 2  # times the list, documents to compare before sorting all is faster


@dataclass(frozen=True)
class Result:
    """One measure of one run: sum of `totals` over sum of `weights`, and its parts.

    `values` is the measure of each query alone: NaN where the query takes no part, and
    infinity for a PNR without a discordant pair.
    """

    queries: list[str]
    values: Float[np.ndarray, " Q"]
    totals: Float[np.ndarray, " Q"]
    weights: Float[np.ndarray, " Q"]
    mean: float
    summed: bool = False  # a count: the weights add up to 1

    def aligned(self, queries: Sequence[str]) -> "Result":
        """The same of other queries; NaN, with weight 0, of those that it lacks."""
        if self.queries == queries:
            return self
        rows = {query: row for row, query in enumerate(self.queries)}
        at = np.array([rows.get(query, -1) for query in queries], np.int64)
        values = np.append(self.values, np.nan)[at]
        totals, weights = (np.append(x, 0.0)[at] for x in (self.totals, self.weights))
        if self.summed and weights.any():
            weights = weights / weights.sum()
        return make_result(list(queries), values, totals, weights, summed=self.summed)


def make_result(
    queries: list[str],
    values: np.ndarray,
    totals: np.ndarray,
    weights: np.ndarray,
    *,
    summed: bool = False,
) -> Result:
    """A result with its mean: infinity where only unbounded queries are, NaN without.

    Args:
      queries: Q of them.
      values: [Q], each query's own value.
      totals: [Q], numerators.
      weights: [Q], denominators.
      summed: whether it is a count.
    """
    total, weight = float(totals.sum()), float(weights.sum())
    unbounded = total > 0 or bool(np.isinf(values).any())
    mean = total / weight if weight else math.inf if unbounded else math.nan
    return Result(queries, values, totals, weights, mean, summed)


@dataclass(frozen=True)
class Ranked:
    """Where a run put the judged documents of Q queries: J of one query at most.

    Documents without a judgement gain nothing and only take up ranks, so metrics need
    no more than this. A row is in order of rank; what `found` leaves out is padding.
    """

    queries: list[str]
    found: Bool[np.ndarray, "Q J"]  # True: a document that is judged and in the run
    ranks: Int[np.ndarray, "Q J"]  # from 0
    grades: Float[np.ndarray, "Q J"]  # 0 in the padding
    scores: Float[np.ndarray, "Q J"]
    above: Int[np.ndarray, "Q J"]  # documents of the list with a higher score
    equal: Int[np.ndarray, "Q J"]  # documents of the list with the same score
    missing: Float[np.ndarray, "Q M"]  # grades of judged documents not in the run, NaN
    ideal: Float[np.ndarray, "Q I"]  # grades of all judged, highest first, or -inf
    listed: Int[np.ndarray, " Q"]  # documents in the run
    tied: Int[np.ndarray, " Q"]  # of these, documents with another one's score
    top: float  # highest grade of all judgements, whatever queries are selected
    rules: Rules

    def within(self, k: int | None) -> Bool[np.ndarray, "Q J"]:
        """True for the found documents among the first k; None: among all."""
        depth = self.rules.depth
        last = min((one for one in (k, depth) if one is not None), default=None)
        return self.found if last is None else self.found & (self.ranks < last)

    def relevant(self, k: int | None) -> Bool[np.ndarray, "Q J"]:
        """True for the relevant documents among the first k."""
        return self.within(k) & (self.grades >= self.rules.relevance)

    def select(self, rows: Sequence[int]) -> "Ranked":
        """Some of the queries."""
        at = np.asarray(rows, np.int64)
        parts = {
            one.name: getattr(self, one.name)[at]
            for one in dataclasses.fields(self)
            if isinstance(getattr(self, one.name), np.ndarray)
        }
        queries = [self.queries[row] for row in rows]
        return dataclasses.replace(self, queries=queries, **parts)

    def condensed(self) -> "Ranked":
        """The lists without the documents that nobody judged."""
        places = np.broadcast_to(np.arange(self.ranks.shape[1]), self.ranks.shape)
        return dataclasses.replace(self, ranks=places)

    def with_relevance(self, relevance: float | None) -> "Ranked":
        """With another lowest relevant grade; None: as it is."""
        if relevance is None or relevance == self.rules.relevance:
            return self
        rules = dataclasses.replace(self.rules, relevance=relevance)
        return dataclasses.replace(self, rules=rules)

    @property
    def num_relevant(self) -> Float[np.ndarray, " Q"]:
        """Relevant documents of each query, found or not."""
        return (self.ideal >= self.rules.relevance).sum(axis=1).astype(np.float64)


def rank(qrels: Qrels, run: Run, rules: Rules = RULES) -> Ranked:
    """Finds the judged documents in a run, ordered as trec_eval orders it.

    Args:
      qrels: grades by query and document.
      run: scores by query and document.
      rules: what counts.

    Raises:
      ValueError: when no query of `run` has a judgement, or a score is NaN.
    """
    if not any(query in qrels for query in run):
        raise ValueError(
            "the run and the judgements have no query in common; is this the run of "
            "another split, or are its columns mixed up?"
        )
    queries = [query for query in qrels if rules.complete or query in run]
    rows, missing, ideals, counts = [], [], [], []
    for query in queries:
        judgements = qrels[query]
        listed = _listed(query, run.get(query, {}), judgements, rules)
        grades = np.fromiter(judgements.values(), np.float64, len(judgements))
        ideals.append((np.sort(grades)[::-1],))
        # A document that is not in the run has no score: None, which becomes NaN.
        scores = np.array(list(map(listed.get, judgements)), np.float64)
        both = ~np.isnan(scores)
        missing.append((grades[~both],))
        grades, scores = grades[both], scores[both]
        names = itertools.compress(judgements, both)
        places, tied = _places(query, listed, scores, names)
        order = np.argsort(places[0])
        rows.append(tuple(one[order] for one in (*places, grades, scores)))
        counts.append((len(listed), tied))
    found, (ranks, above, equal, grades, scores) = _pad(rows, 0.0)
    listed, tied = np.array(counts, np.int64).reshape(-1, 2).T
    highest = max((max(one.values(), default=0) for one in qrels.values()), default=0)
    return Ranked(
        queries,
        found,
        ranks.astype(np.int64),
        grades,
        scores,
        above.astype(np.int64),
        equal.astype(np.int64),
        _pad(missing, np.nan)[1][0],
        _pad(ideals, -np.inf)[1][0],
        listed,
        tied,
        float(max(highest, 0)),
        rules,
    )


def _listed(
    query: str,
    listed: Mapping[str, float],
    judgements: Mapping[str, float],
    rules: Rules,
) -> Mapping[str, float]:
    """The documents of a query that the rules leave in its list."""
    if rules.judged_only:
        listed = {name: score for name, score in listed.items() if name in judgements}
    if rules.ignore_identical_ids and query in listed:
        listed = {name: score for name, score in listed.items() if name != query}
    return listed


def _places(
    query: str,
    listed: Mapping[str, float],
    mine: Float[np.ndarray, " J"],
    names: Iterable[str],
) -> tuple[Int[np.ndarray, "3 J"], int]:
    """Ranks from 0 of some documents of a query, and how many are above and equal.

    The order is by score, ties by id backwards. Also the number of documents of the
    whole list that share their score with another.
    """
    values = np.fromiter(listed.values(), np.float64, len(listed))
    rising = np.sort(values)
    if len(rising) and rising[-1] != rising[-1]:  # NaN comes last
        bad = next(name for name, score in listed.items() if score != score)
        raise ValueError(f"query {query!r}: document {bad!r} has the score NaN")
    same = rising[1:] == rising[:-1]
    tied = 0
    if same.any():
        tied = int(np.sum(np.append(same, False) | np.append(False, same)))
    # Looking up rising values is faster.
    order = np.argsort(mine)
    not_above = np.searchsorted(rising, mine[order], side="right")
    equal = not_above - np.searchsorted(rising, mine[order], side="left")
    places = np.empty((3, len(mine)), np.int64)
    places[1, order], places[2, order] = len(rising) - not_above, equal
    if not tied or (equal == 1).all():  # no need to sort the ids
        places[0] = places[1]
        return places, tied
    places[0] = _break_ties(values, list(listed), places, list(names))
    return places, tied


def _break_ties(
    values: Float[np.ndarray, " N"],
    listed: list[str],
    places: Int[np.ndarray, "3 J"],
    names: list[str],
) -> Int[np.ndarray, " J"]:
    """Ranks of the documents `names`, see `_places`, ties by id backwards.

    Code points of two strings compare as their UTF-8 bytes do.
    """
    above, equal = places[1], places[2]
    ranks = above.copy()
    tied = np.flatnonzero(equal > 1)
    if equal[tied].sum() <= _FEW_TIES * len(listed):  # look at the ties alone
        falling = np.argsort(-values, kind="stable")
        for at in tied.tolist():
            group = falling[above[at] : above[at] + equal[at]].tolist()
            mine = names[at]
            ranks[at] += sum(listed[other] > mine for other in group)
        return ranks
    backwards = sorted(range(len(listed)), key=listed.__getitem__, reverse=True)
    order = np.argsort(-values[backwards], kind="stable")
    place = np.empty(len(listed), np.int64)
    place[order] = np.arange(len(listed))
    by_name = {
        listed[at]: rank for at, rank in zip(backwards, place.tolist(), strict=True)
    }
    return np.fromiter(map(by_name.__getitem__, names), np.int64, len(names))


def _pad(
    rows: Sequence[tuple[np.ndarray, ...]], padding: float
) -> tuple[Bool[np.ndarray, "Q J"], list[np.ndarray]]:
    """Rows of several arrays each, as one [Q, J] array of each."""
    lengths = np.array([len(row[0]) for row in rows], np.int64)
    width = max(int(lengths.max(initial=0)), 1)
    real = np.arange(width) < lengths[:, None]
    padded = []
    for parts in zip(*rows, strict=True):
        values = np.full(real.shape, padding)
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
    """DCG / ideal DCG; the ideal list is in order of gain."""
    gains = np.where(ranked.within(k), gain(ranked.grades), 0.0)
    ideal = gain(ranked.ideal)
    if (np.diff(ideal, axis=1) > 0).any():  # a gain that falls with the grade
        ideal = -np.sort(-ideal, axis=1)
    ideal = ideal[:, :k]
    return _divide(
        np.sum(gains * _discount(ranked.ranks), axis=1),
        np.sum(ideal * _discount(np.arange(ideal.shape[1])), axis=1),
    )


def ndcg(
    ranked: Ranked,
    k: int | None = None,
    *,
    gains: Sequence[tuple[float, float]] = (),
) -> Float[np.ndarray, " Q"]:
    """DCG / ideal DCG, gain = grade (Jarvelin and Kekalainen, 2002).

    This is trec_eval's ndcg and ndcg_cut. `gains` gives grades another gain than
    themselves.
    """

    def gain(grades: np.ndarray) -> np.ndarray:
        found = np.maximum(grades, 0.0)
        for grade, value in gains:
            found = np.where(grades == grade, value, found)
        return found

    return _normalised(ranked, gain, k)


def ndcg_exponential(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """NDCG with gain = 2 ** grade - 1 (Burges et al., 2005)."""
    # Relative to a query's highest grade: the ratio stays and nothing overflows.
    top = np.maximum(ranked.ideal[:, :1], 0.0)
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


def precision(ranked: Ranked, k: int) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over k."""
    return np.sum(ranked.relevant(k), axis=1) / k


def r_precision(ranked: Ranked) -> Float[np.ndarray, " Q"]:
    """Precision at the number of relevant documents."""
    among = ranked.relevant(None) & (ranked.ranks < ranked.num_relevant[:, None])
    return _divide(among.sum(axis=1), ranked.num_relevant)


def recall(ranked: Ranked, k: int | None = None) -> Float[np.ndarray, " Q"]:
    """Relevant documents among the first k, over all relevant ones."""
    return _divide(np.sum(ranked.relevant(k), axis=1), ranked.num_relevant)


def success(ranked: Ranked, k: int) -> Float[np.ndarray, " Q"]:
    """1 with a relevant document among the first k, else 0."""
    return np.any(ranked.relevant(k), axis=1).astype(np.float64)


def judged(ranked: Ranked, k: int) -> Float[np.ndarray, " Q"]:
    """Judged documents among the first k, over k."""
    return np.sum(ranked.within(k), axis=1) / k


def expected_reciprocal_rank(
    ranked: Ranked, k: int | None = None, *, top: float | None = None
) -> Float[np.ndarray, " Q"]:
    """ERR (Chapelle et al., 2009): a user stops at a document with chance R(grade).

    R(g) = (2 ** g - 1) / 2 ** g_max, g_max being `top`, or the highest grade of all
    judgements.

    Raises:
      ValueError: when a grade is above `top`.
    """
    top = max(ranked.top, 1.0) if top is None else _checked_top(ranked, "ERR", top)
    gains = np.exp2(np.maximum(ranked.grades, 0) - top) - np.exp2(-top)
    stop = np.where(ranked.within(k), gains, 0.0)
    reached = np.cumprod(1 - stop, axis=1)
    reached = np.concatenate([np.ones((len(stop), 1)), reached[:, :-1]], axis=1)
    return np.sum(reached * stop / (ranked.ranks + 1), axis=1)


def _checked_top(ranked: Ranked, name: str, top: float) -> float:
    if top < ranked.top:
        raise ValueError(
            f"{name}(max={top:g}): the judgements have the grade {ranked.top:g}; write "
            f"{name}(max={ranked.top:g}) or higher"
        )
    return top


def rank_biased_precision(
    ranked: Ranked, k: int | None = None, *, p: float = 0.8, top: float | None = None
) -> Float[np.ndarray, " Q"]:
    """RBP (Moffat and Zobel, 2008): (1 - p) * sum of gain * p ** (rank - 1).

    The gain is 1 for a relevant document; with `top` it is grade / top.
    """
    gains = ranked.relevant(k).astype(np.float64)
    if top is not None:
        _checked_top(ranked, "RBP", top)
        gains = np.where(ranked.within(k), np.maximum(ranked.grades, 0) / top, 0.0)
    return (1 - p) * np.sum(gains * p**ranked.ranks, axis=1)


def rank_biased_residual(
    ranked: Ranked, k: int | None = None, *, p: float = 0.8
) -> Float[np.ndarray, " Q"]:
    """What RBP could gain if all that is not judged, or below the list, were relevant.

    1 less the weight of the ranks that a judged document has; RBP lies between its
    value and value + residual.
    """
    return 1 - (1 - p) * np.sum(ranked.within(k) * p**ranked.ranks, axis=1)


def binary_preference(ranked: Ranked) -> Float[np.ndarray, " Q"]:
    """Bpref (Buckley and Voorhees, 2004) as trec_eval has it.

    Mean over all relevant documents of 1 - min(n, R) / min(N, R), n being the judged
    and not relevant ones above it, R and N how many are relevant and not.
    """
    relevant = ranked.relevant(None)
    other = ranked.within(None) & ~relevant & (ranked.grades >= 0)
    all_relevant = ranked.num_relevant
    all_others = (ranked.ideal >= 0).sum(axis=1) - all_relevant
    worse = np.minimum(np.cumsum(other, axis=1), all_relevant[:, None])
    share = _divide(
        worse,
        np.broadcast_to(np.minimum(all_relevant, all_others)[:, None], worse.shape),
    )
    return _divide(np.sum((1 - share) * relevant, axis=1), all_relevant)


def pair_counts(
    ranked: Ranked, *, complete: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concordant, discordant and tied pairs of each query, float64 [Q].

    Args:
      ranked: whose judged documents.
      complete: those too that the run lacks, below all others and tied.
    """
    counts = np.zeros((3, len(ranked.queries)))
    within = ranked.within(None)
    for q in range(len(ranked.queries)):
        keep = ranked.found[q] if complete else within[q]
        grades = ranked.grades[q, keep]
        scores = np.where(within[q], ranked.scores[q], -np.inf)[keep]
        if complete:
            missing = ranked.missing[q][~np.isnan(ranked.missing[q])]
            grades = np.append(grades, missing)
            scores = np.append(scores, np.full(len(missing), -np.inf))
        for grade in np.unique(grades)[1:]:
            below = np.sort(scores[grades < grade])
            mine = scores[grades == grade]
            lower = int(np.searchsorted(below, mine, side="left").sum())
            not_higher = int(np.searchsorted(below, mine, side="right").sum())
            more = lower, len(below) * len(mine) - not_higher, not_higher - lower
            counts[:, q] += more
    return counts[0], counts[1], counts[2]


def _of_pairs(
    base: str, right: np.ndarray, wrong: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Values, totals and weights of a measure from the pairs of each query."""
    pairs = right + wrong
    if base in ("OPA", "OPA-macro"):
        values = np.divide(
            right, pairs, out=np.full_like(right, np.nan), where=pairs > 0
        )
        if base == "OPA":
            return values, right, pairs
    else:
        values = np.where(right > 0, np.inf, np.nan)
        np.divide(right, wrong, out=values, where=wrong > 0)
        if base == "PNR":
            return values, right, wrong
    finite = np.isfinite(values)
    return values, np.where(finite, values, 0.0), finite.astype(np.float64)


def pair_bounds(ranked: Ranked, one: Measure) -> tuple[float, float]:
    """A measure of pairs with all tied pairs counted as wrong, and as right.

    Two documents that the run lacks stay half right.
    """
    ties = pair_counts(ranked)[2]
    right, wrong, equal = pair_counts(ranked, complete=_is_complete(ranked, one))
    right, wrong = right + (equal - ties) / 2, wrong + (equal - ties) / 2
    low = make_result(ranked.queries, *_of_pairs(one.base, right, wrong + ties))
    high = make_result(ranked.queries, *_of_pairs(one.base, right + ties, wrong))
    return low.mean, high.mean


def num_pairs(ranked: Ranked, one: Measure) -> int:
    """How many pairs a measure of pairs counts."""
    counts = pair_counts(ranked, complete=_is_complete(ranked, one))
    return int(sum(part.sum() for part in counts))


def _is_complete(ranked: Ranked, one: Measure) -> bool:
    return ranked.rules.complete_pairs if one.complete is None else one.complete


QueryValues = Callable[[Ranked, Measure], np.ndarray]

_MEANS: dict[str, QueryValues] = {
    "NDCG": lambda ranked, m: ndcg(ranked, m.k, gains=m.gains),
    "NDCG-exp": lambda ranked, m: ndcg_exponential(ranked, m.k),
    "MRR": lambda ranked, m: reciprocal_rank(ranked, m.k),
    "MAP": lambda ranked, m: average_precision(ranked, m.k),
    "P": lambda ranked, m: precision(ranked, m.k or 1),
    "R": lambda ranked, m: recall(ranked, m.k),
    "Rprec": lambda ranked, m: r_precision(ranked),
    "Success": lambda ranked, m: success(ranked, m.k or 1),
    "ERR": lambda ranked, m: expected_reciprocal_rank(ranked, m.k, top=m.max),
    "RBP": lambda ranked, m: rank_biased_precision(ranked, m.k, p=m.p, top=m.max),
    "RBP-residual": lambda ranked, m: rank_biased_residual(ranked, m.k, p=m.p),
    "Bpref": lambda ranked, m: binary_preference(ranked),
    "Judged": lambda ranked, m: judged(ranked, m.k or 1),
}
_COUNTS: dict[str, Callable[[Ranked], np.ndarray]] = {
    "num_q": lambda ranked: np.ones(len(ranked.queries)),
    "num_ret": lambda ranked: (
        ranked.listed
        if ranked.rules.depth is None
        else np.minimum(ranked.listed, ranked.rules.depth)
    ),
    "num_rel": lambda ranked: ranked.num_relevant,
    "num_rel_ret": lambda ranked: ranked.relevant(None).sum(axis=1),
}


def evaluate(
    qrels: Qrels, run: Run, measures: Sequence[str], rules: Rules = RULES
) -> dict[str, Result]:
    """Measures a run against judgements.

    Args:
      qrels: grades by query and document.
      run: scores by query and document.
      measures: names as `parse_measure` takes them.
      rules: what counts.

    Returns:
      Per measure its value for each query, and their mean (pooled for PNR and OPA, a
      sum for counts).

    Raises:
      ValueError: for an unknown measure, a NaN score, or no query in common.
    """
    parsed = [parse_measure(name) for name in measures]  # before the long part
    return measure(rank(qrels, run, rules), parsed)


def measure(ranked: Ranked, measures: Sequence[Measure]) -> dict[str, Result]:
    """Measures what `rank` has ranked, as `evaluate` does."""
    pairs: dict[bool, tuple[np.ndarray, ...]] = {}
    return {one.name: _measure(ranked, one, pairs) for one in measures}


def _measure(
    ranked: Ranked, one: Measure, pairs: dict[bool, tuple[np.ndarray, ...]]
) -> Result:
    if one.base in PAIR_MEASURES:
        whole = _is_complete(ranked, one)
        if whole not in pairs:  # counted once for all four measures
            pairs[whole] = pair_counts(ranked, complete=whole)
        right, wrong, ties = pairs[whole]
        return make_result(
            ranked.queries, *_of_pairs(one.base, right + ties / 2, wrong + ties / 2)
        )
    chosen = ranked.with_relevance(one.rel)
    if one.base in COUNTS:
        values = _COUNTS[one.base](chosen).astype(np.float64)
        share = np.full(len(values), 1 / max(len(values), 1))  # their sum, not mean
        return make_result(ranked.queries, values, values, share, summed=True)
    values = _MEANS[one.base](chosen.condensed() if one.judged_only else chosen, one)
    return make_result(ranked.queries, values, values, np.ones(len(values)))
