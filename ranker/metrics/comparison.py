"""Several systems on the same queries: values, paired tests, and slices of the queries.

Every system is compared with one reference, query by query, in each measure: the
difference of the two values shown, the p-value of the paired randomisation test of that
very difference, the interval of the differences that the test does not reject, and the
p-value after Holm's correction. The correction is for the systems that are compared
with the reference in one measure; measures are corrected each on their own, as they are
views of one outcome and not independent tries.

A system of several seeds has the mean of its seeds' values, and is tested over seeds
and queries (`significance.crossed_test`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ranker.metrics import ranking, significance, ties
from ranker.metrics.measures import (
    COUNTS,
    GRADED,
    NEEDS_RELEVANT,
    PAIR_MEASURES,
    Measure,
    parse_measure,
)
from ranker.metrics.ranking import RULES, Rules
from ranker.metrics.significance import FEW
from ranker.metrics.slices import NO_VALUE, QueryFields, slice_queries

__all__ = ["NO_VALUE", "QueryFields", "compare", "slice_queries"]

_NOTED = 0.01  # share of queries, pairs or tied documents that is worth a note
_EQUAL = 1e-12  # difference below which two values are tied
_MODELS: dict[str, significance.EffectModel] = {"PNR": "odds", "PNR-macro": "factor"}


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How differences are tested."""

    permutations: int = 10_000  # of the randomisation test
    seed: int = 0  # of the draw
    margin: float | None = None  # of equivalence, in units of the measure


INFERENCE = Inference()


@dataclass(frozen=True)
class Difference:
    """A system minus the reference in one measure, over the queries of both."""

    queries: int
    mean: float
    low: float  # of the 95 % interval; NaN where no p can be below 0.05
    high: float
    p_value: float  # paired randomisation test, two-sided; crossed t-test with seeds
    p_holm: float  # corrected for the other systems in this measure
    p_equivalence: float  # two one-sided tests of the margin; NaN without one
    wins: tuple[int, int, int]  # queries won, tied and lost
    effect_size: float  # Cohen's d_z over queries; NaN without spread
    detectable: float  # smallest true difference found with 80 % power

    @property
    def equivalent(self) -> bool | None:
        """Whether the difference is within the margin; None without one."""
        if math.isnan(self.p_equivalence):
            return None
        return self.p_equivalence < significance.ALPHA


@dataclass(frozen=True)
class Outcome:
    """One measure of one system: a result of each seed."""

    seeds: tuple[ranking.Result, ...]

    @property
    def mean(self) -> float:
        """Mean of the seeds' values."""
        return float(np.mean([one.mean for one in self.seeds]))

    @property
    def sd(self) -> float:
        """Standard deviation over the seeds (n - 1); NaN with one."""
        if len(self.seeds) < 2:
            return math.nan
        return float(np.std([one.mean for one in self.seeds], ddof=1))

    @property
    def queries(self) -> list[str]:
        """Queries of the first seed; all have the same."""
        return self.seeds[0].queries

    def values(self, queries: Sequence[str]) -> Float[np.ndarray, " Q"]:
        """The seeds' mean value of each query; NaN where it takes no part."""
        return np.mean([one.aligned(queries).values for one in self.seeds], axis=0)

    @property
    def parts(self) -> int:
        """Queries with a weight in any seed."""
        return int(np.any([one.weights > 0 for one in self.seeds], axis=0).sum())


@dataclass(frozen=True)
class Ties:
    """What the ties of a system decide."""

    share: float  # of its listed documents that another one equals
    constant: bool  # True: no list has two different scores
    bounds: dict[str, tuple[float, float]]  # measure -> lowest and highest value


@dataclass(frozen=True)
class Slice:
    """Queries that share a value of a field, and each system's means over them."""

    field: str
    value: str
    queries: int
    metrics: dict[str, dict[str, float]]  # system -> measure -> mean


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds."""

    reference: str
    measures: tuple[str, ...]
    queries: list[str]  # judged queries, in the order of the judgements
    results: dict[str, dict[str, Outcome]]  # system -> measure
    differences: dict[str, dict[str, Difference | None]]  # None: too few queries
    slices: list[Slice]
    # system -> measure of pairs -> judged pairs that it counts
    pairs: dict[str, dict[str, int]] = field(default_factory=dict)
    ties: dict[str, Ties] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def values(self, system: str, name: str) -> Float[np.ndarray, " Q"]:
        """A measure of each of `queries`; NaN where the query takes no part."""
        return self.results[system][name].values(self.queries)

    def common(self) -> list[str]:
        """The queries that every system has."""
        each = [{*next(iter(one.values())).queries} for one in self.results.values()]
        return [query for query in self.queries if all(query in one for one in each)]

    def summary(self) -> dict[str, Any]:
        """All but the values of single queries, as JSON takes it: None for no number.

        Per system `queries`, `pairs` (of the first measure of pairs), `ties`, and by
        measure `metrics` (values), `tie_range`, `counted` (queries that enter the
        value), `counted_pairs`, and against the reference
        `difference`, `interval`, `p_value`, `p_holm`, `wins`, `effect_size`,
        `detectable` and with a margin `equivalent` and `p_equivalence`, which are None
        for the reference. Systems of several seeds have `seeds` and `sd_over_seeds`.
        """
        common = self.common()
        found = {
            "reference": self.reference,
            "measures": list(self.measures),
            "queries": len(self.queries),
            "systems": {name: self._system(name) for name in self.results},
            "slices": [_slice_summary(one) for one in self.slices],
            "notes": list(self.notes),
        }
        if len(common) < max(len(self._queries(name)) for name in self.results):
            found["common"] = {
                "queries": len(common),
                "systems": {
                    name: {
                        key: finite(_over(one, common)) for key, one in outcomes.items()
                    }
                    for name, outcomes in self.results.items()
                },
            }
        return found

    def _queries(self, system: str) -> list[str]:
        return next(iter(self.results[system].values())).queries

    def _pairs(self, system: str) -> dict[str, Any]:
        counted = self.pairs.get(system)
        if not counted:
            return {}
        return {"pairs": next(iter(counted.values())), "counted_pairs": counted}

    def _system(self, name: str) -> dict[str, Any]:
        results = self.results[name]
        against = {
            one: self.differences.get(name, {}).get(one) for one in self.measures
        }
        found: dict[str, Any] = {
            "queries": len(self._queries(name)),
            **self._pairs(name),
            "metrics": {one: finite(results[one].mean) for one in self.measures},
            "counted": {one: results[one].parts for one in self.measures},
        }
        if name in self.ties:
            found["ties"] = self.ties[name].share
            found["constant"] = self.ties[name].constant
            found["tie_range"] = {
                one: [finite(end) for end in ends]
                for one, ends in self.ties[name].bounds.items()
            }
        seeds = len(next(iter(results.values())).seeds)
        if seeds > 1:
            found["seeds"] = seeds
            found["sd_over_seeds"] = {m: finite(results[m].sd) for m in self.measures}
        return found | difference_summary(against)


def difference_summary(found: Mapping[str, Difference | None]) -> dict[str, Any]:
    """Differences by measure, as `Comparison.summary` holds them."""
    return {
        "difference": {m: d and finite(d.mean) for m, d in found.items()},
        "interval": {
            m: [d.low, d.high] if d and math.isfinite(d.low + d.high) else None
            for m, d in found.items()
        },
        "tested": {m: d and d.queries for m, d in found.items()},
        "p_value": {m: d and d.p_value for m, d in found.items()},
        "p_holm": {m: d and d.p_holm for m, d in found.items()},
        "p_equivalence": {m: d and finite(d.p_equivalence) for m, d in found.items()},
        "equivalent": {m: d and d.equivalent for m, d in found.items()},
        "wins": {m: d and list(d.wins) for m, d in found.items()},
        "effect_size": {m: d and finite(d.effect_size) for m, d in found.items()},
        "detectable": {m: d and finite(d.detectable) for m, d in found.items()},
    }


def _slice_summary(one: Slice) -> dict[str, Any]:
    return {
        "field": one.field,
        "value": one.value,
        "queries": one.queries,
        "metrics": {
            system: {name: finite(value) for name, value in values.items()}
            for system, values in one.metrics.items()
        },
    }


def finite(value: float) -> float | None:
    """The number, or None for infinity and NaN, which JSON has not."""
    return value if math.isfinite(value) else None


def _over(outcome: Outcome, queries: Sequence[str]) -> float:
    return float(np.mean([one.aligned(queries).mean for one in outcome.seeds]))


Runs = Mapping[str, ranking.Run | Sequence[ranking.Run]]


def compare(
    qrels: ranking.Qrels,
    runs: Runs,
    measures: Sequence[str],
    *,
    reference: str,
    rules: Rules = RULES,
    tests: Inference = INFERENCE,
    fields: QueryFields | None = None,
) -> Comparison:
    """Measures every run, and compares each with the reference.

    Args:
      qrels: grades by query and document.
      runs: of each system, scores by query and document; a sequence: of its seeds.
      measures: names as `measures.parse_measure` takes them.
      reference: system that the others are compared with.
      rules: what counts.
      tests: how differences are tested.
      fields: values of the queries; each field of two values or more makes slices.

    Raises:
      ValueError: for a reference that is not a system, an unknown measure, a NaN
        score, a run without a judged query, judgements that give nothing but 0, or
        a field that cannot be cut into slices.
    """
    if reference not in runs:
        raise ValueError(
            f"the reference {reference!r} is not one of the systems {', '.join(runs)}"
        )
    parsed = [parse_measure(name) for name in dict.fromkeys(measures)]
    notes = check_judgements(qrels, parsed, rules)
    queries = list(qrels)
    groups = {
        name: slice_queries(name, {query: values.get(query) for query in queries})
        for name, values in (fields or {}).items()
    }
    ranked = {name: _rank(name, qrels, run, rules) for name, run in runs.items()}
    results = {
        name: _outcomes([ranking.measure(seed, parsed) for seed in seeds])
        for name, seeds in ranked.items()
    }
    pairs = _count_pairs(ranked, parsed)
    tied = {name: _find_ties(seeds, parsed) for name, seeds in ranked.items()}
    found = Comparison(
        reference,
        tuple(one.name for one in parsed),
        queries,
        results,
        _differences(results, reference, tests),
        _slices(ranked, groups, parsed),
        pairs,
        tied,
    )
    notes += _denominators(found) + _tie_notes(found) + _untested(found)
    return Comparison(**{**found.__dict__, "notes": notes})


def _rank(
    name: str,
    qrels: ranking.Qrels,
    run: ranking.Run | Sequence[ranking.Run],
    rules: Rules,
) -> list[ranking.Ranked]:
    seeds = [run] if isinstance(run, Mapping) else run
    try:
        return [ranking.rank(qrels, one, rules) for one in seeds]
    except ValueError as error:
        raise ValueError(f"system {name!r}: {error}") from error


def _outcomes(seeds: Sequence[dict[str, ranking.Result]]) -> dict[str, Outcome]:
    """By measure. A query that a seed lacks takes no part in any of the seeds."""
    first = next(iter(seeds[0].values())).queries
    others = [{*next(iter(one.values())).queries} for one in seeds[1:]]
    shared = [query for query in first if all(query in one for one in others)]
    return {
        name: Outcome(tuple(one[name].aligned(shared) for one in seeds))
        for name in seeds[0]
    }


# --- judgements ---


def check_judgements(
    qrels: ranking.Qrels, measures: Sequence[Measure], rules: Rules
) -> list[str]:
    """Notes on queries that count 0 whatever a run does.

    Raises:
      ValueError: when that is all of them, for one of the measures.
    """
    highest = [max(one.values(), default=0) for one in qrels.values()]
    top = max(highest, default=0)
    for one in measures:
        level = rules.relevance if one.rel is None else one.rel
        graded = one.base in GRADED or one.max is not None
        if one.base in NEEDS_RELEVANT and not graded and top < level:
            raise ValueError(
                f"{one.name}: no document is relevant: the highest grade of all "
                f"judgements is {top:g}, and relevant are those from {level:g} on; "
                "lower --relevance, or the measure's rel"
            )
        if graded and top <= 0 and not one.gains:
            raise ValueError(
                f"{one.name}: no document is relevant: the highest grade of all "
                f"judgements is {top:g}, and grades gain something above 0"
            )
    without = [
        q for q, one in zip(qrels, highest, strict=True) if one < rules.relevance
    ]
    if not without:
        return []
    return [
        f"{len(without)} of {len(qrels)} queries, such as {without[0]!r}, have no "
        f"relevant document (grade {rules.relevance:g} or higher): they count 0 for "
        "every system"
    ]


# --- differences ---


def _differences(
    results: Mapping[str, Mapping[str, Outcome]], reference: str, tests: Inference
) -> dict[str, dict[str, Difference | None]]:
    """Every system against the reference, corrected by Holm's rule in each measure."""
    keys = [
        (name, one)
        for name, outcomes in results.items()
        if name != reference
        for one in outcomes
    ]
    both = [(results[name][one], results[reference][one]) for name, one in keys]
    models: list[significance.EffectModel] = [
        _MODELS.get(parse_measure(one).base, "shift") for _, one in keys
    ]
    tried = dict(zip(keys, _tests(both, models, tests), strict=True))
    corrected = {
        one: significance.holm(
            {
                name: test.p_value
                for (name, m), test in tried.items()
                if m == one and test
            }
        )
        for _, one in keys
    }
    differences = {name: {} for name in results if name != reference}
    for (name, one), pair in zip(keys, both, strict=True):
        test = tried[name, one]
        differences[name][one] = (
            None
            if test is None
            else described_test(test, corrected[one][name], *query_gaps(*pair))
        )
    return differences


def described_test(
    test: significance.Finding, p_holm: float, spread: np.ndarray, gaps: np.ndarray
) -> Difference:
    """A test with what stands beside it.

    Args:
      test: what was found.
      p_holm: its corrected p-value.
      spread: [n], the queries' differences, of which the measure's is the mean.
      gaps: [Q], differences of the queries' own values; NaN without one.
    """
    known = gaps[~np.isnan(gaps)]
    close = np.abs(known) < _EQUAL
    won, lost = (int(np.sum((sign * known > 0) & ~close)) for sign in (1, -1))
    return Difference(
        test.queries,
        test.difference,
        test.low,
        test.high,
        test.p_value,
        p_holm,
        test.p_equivalence,
        (won, int(close.sum()), lost),
        significance.effect_size(spread),
        significance.detectable(spread),
    )


def query_gaps(mine: Outcome, other: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """`spread` and `gaps` of `described_test`, over the queries of both."""
    queries = shared_queries(mine, other)
    spread = [pseudo_values(one, queries).mean(axis=0) for one in (mine, other)]
    values, others = mine.values(queries), other.values(queries)
    with np.errstate(invalid="ignore"):
        gaps = np.where(values == others, 0.0, values - others)
    return spread[0] - spread[1], gaps


def shared_queries(mine: Outcome, other: Outcome) -> list[str]:
    """Queries that both systems have."""
    if mine.queries == other.queries:
        return mine.queries
    known = {*other.queries}
    return [query for query in mine.queries if query in known]


def pseudo_values(outcome: Outcome, queries: Sequence[str]) -> Float[np.ndarray, "S n"]:
    """Values of which each seed's measure is the mean: exact for means.

    For a pooled ratio R these are R + n * (total - R * weight) / sum of weights, whose
    spread is that of the ratio to first order (the delta method).
    """
    rows = []
    for seed in outcome.seeds:
        one = seed.aligned(queries)
        weight = one.weights.sum()
        if not weight or not math.isfinite(one.mean):
            rows.append(np.full(len(queries), np.nan))
            continue
        rest = one.totals - one.mean * one.weights
        rows.append(one.mean + len(queries) * rest / weight)
    return np.stack(rows)


def _tests(
    both: Sequence[tuple[Outcome, Outcome]],
    models: Sequence[significance.EffectModel],
    tests: Inference,
) -> list[significance.Finding | None]:
    """A test of each; None under two queries. Equal queries share their draws."""
    found: list[significance.Finding | None] = [None] * len(both)
    groups: dict[tuple[int, bytes], list[tuple[int, significance.PairedTotals]]] = {}
    for at, (mine, other) in enumerate(both):
        queries = shared_queries(mine, other)
        if len(mine.seeds) > 1 or len(other.seeds) > 1:
            x, y = pseudo_values(mine, queries), pseudo_values(other, queries)
            if len(queries) > 1 and np.isfinite(x).all() and np.isfinite(y).all():
                found[at] = significance.crossed_test(x, y, margin=tests.margin)
            continue
        one, two = (x.seeds[0].aligned(queries) for x in (mine, other))
        active = (one.weights != 0) | (two.weights != 0)
        active |= (one.totals != 0) | (two.totals != 0)
        if active.sum() > 1:
            pair = significance.PairedTotals(
                (one.totals[active], two.totals[active]),
                (one.weights[active], two.weights[active]),
                model=models[at],
            )
            key = len(queries), active.tobytes()
            groups.setdefault(key, []).append((at, pair))
    for members in groups.values():
        done = significance.paired_tests(
            [pair for _, pair in members],
            permutations=tests.permutations,
            seed=tests.seed,
            margin=tests.margin,
        )
        for (at, _), test in zip(members, done, strict=True):
            found[at] = test
    return found


# --- denominators and ties ---


def _count_pairs(
    ranked: Mapping[str, Sequence[ranking.Ranked]], measures: Sequence[Measure]
) -> dict[str, dict[str, int]]:
    """Judged pairs that enter each PNR and OPA, of the seed that has fewest."""
    asked = [one for one in measures if one.base in PAIR_MEASURES]
    counted = {}
    for name, seeds in ranked.items():
        known = {  # equal ones are counted once
            one.complete: min(ranking.num_pairs(seed, one) for seed in seeds)
            for one in {one.complete: one for one in asked}.values()
        }
        counted[name] = {one.name: known[one.complete] for one in asked}
    return counted


def _find_ties(seeds: Sequence[ranking.Ranked], measures: Sequence[Measure]) -> Ties:
    asked = [one for one in measures if one.base not in COUNTS]
    each = [ties.bounds(one, asked) for one in seeds]
    return Ties(
        float(np.mean([ties.tied_share(one) for one in seeds])),
        all(ties.is_constant(one) for one in seeds),
        {
            one.name: (
                float(np.mean([limits[one.name][0] for limits in each])),
                float(np.mean([limits[one.name][1] for limits in each])),
            )
            for one in asked
        },
    )


def _denominators(found: Comparison) -> list[str]:
    """Notes where systems are measured on different queries or pairs."""
    notes = []
    counts = {name: len(found._queries(name)) for name in found.results}
    known: list[tuple[str, dict[str, int]]] = [("queries", counts)]
    told = set()
    for one in next(iter(found.pairs.values()), {}):
        pairs = {name: counted[one] for name, counted in found.pairs.items()}
        if tuple(pairs.values()) not in told:
            known.append(("judged pairs", pairs))
        told.add(tuple(pairs.values()))
    for one in found.measures:
        if one.lower().startswith(("opa-macro", "pnr-macro")):
            parts = {name: x[one].parts for name, x in found.results.items()}
            known.append((f"queries with a pair in {one}", parts))
    for what, per_system in known:
        most = max(per_system.values(), default=0)
        best = next((name for name, n in per_system.items() if n == most), "")
        for name, number in per_system.items():
            if most - number > _NOTED * most:
                remedy = "; compare OPA(complete=true), which counts them all"
                if what == "queries":
                    remedy = "; compare the means over common queries"
                notes.append(
                    f"{name}: its values are over {number:,} {what}, those of {best} "
                    f"over {most:,}{remedy}"
                )
    return notes


def _tie_notes(found: Comparison) -> list[str]:
    notes = []
    for name, one in found.ties.items():
        moves = {
            measure: ends
            for measure, ends in one.bounds.items()
            if ends[1] - ends[0] > 1e-9
        }
        if one.constant:
            told = f"{name}: a constant scorer: all documents of a query have one score"
        elif one.share > _NOTED:
            told = f"{name}: {one.share:.1%} of its documents have an equal score"
        else:
            continue
        if moves:
            measure, ends = max(moves.items(), key=lambda item: item[1][1] - item[1][0])
            told += (
                f"; ties go by document id, and by how they go {measure} could be "
                f"{ends[0]:.4f} to {ends[1]:.4f}"
            )
        notes.append(told)
    return notes


def _untested(found: Comparison) -> list[str]:
    """Notes where there were too few queries for a test or an interval."""
    notes = []
    for system, by_measure in found.differences.items():
        names = [name for name, one in by_measure.items() if one is None]
        if names:
            notes.append(
                f"{system} and {found.reference} have fewer than 2 queries in common "
                f"with a value of {', '.join(names)}; a paired test needs at least 2"
            )
        few = [name for name, one in by_measure.items() if one and one.queries < FEW]
        if few:
            either = found.results[system], found.results[found.reference]
            seeds = max(len(one[few[0]].seeds) for one in either)
            reason = f"no p can be below {significance.ALPHA}, so there is no interval"
            if seeds > 1:
                reason = "too few for an interval"
            notes.append(
                f"{system} and {found.reference} have fewer than {FEW} queries in "
                f"common for {', '.join(few)}: {reason}"
            )
    return notes


# --- slices ---


def _slices(
    ranked: Mapping[str, Sequence[ranking.Ranked]],
    groups: Mapping[str, Mapping[str, Sequence[str]]],
    measures: Sequence[Measure],
) -> list[Slice]:
    rows = {
        name: [{query: row for row, query in enumerate(one.queries)} for one in seeds]
        for name, seeds in ranked.items()
    }
    slices = []
    for name, by_value in groups.items():
        if len(by_value) < 2:
            continue  # one slice of all queries is the table again
        for value, members in by_value.items():
            metrics = {}
            for system, seeds in ranked.items():
                found = []
                for one, known in zip(seeds, rows[system], strict=True):
                    chosen = [known[q] for q in members if q in known]
                    found.append(ranking.measure(one.select(chosen), measures))
                metrics[system] = {
                    key.name: float(np.mean([one[key.name].mean for one in found]))
                    for key in measures
                }
            slices.append(Slice(name, value, len(members), metrics))
    return slices
