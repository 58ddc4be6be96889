"""Several systems on the same queries: means, paired tests, and slices of the queries.

Every system is compared with one reference, query by query, in each measure: the mean
difference, its 95 % bootstrap interval, the p-value of the paired randomisation test,
and that value after Holm's correction. The correction is for the systems that are
compared with the reference in one measure; measures are corrected each on their own, as
they are views of one outcome and not independent tries.

PNR, PNR-macro and OPA are tested by the queries' ordered-pair accuracies (see
`ranker.metrics.ranking`): their differences are differences of those.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ranker.metrics import ranking, significance

LEVEL = 0.95  # of the intervals
_FEW = 5  # different numbers that are slices of their own; more are cut into thirds
_MANY = 30  # different texts that can be slices
_THIRDS = ("low", "middle", "high")
_BY_FREQUENCY = ("tail", "torso", "head")
NO_VALUE = "no value"

Fields = Mapping[str, Mapping[str, str | float]]  # field -> query -> value


@dataclass(frozen=True)
class Difference:
    """A system minus the reference in one measure, over the queries of both."""

    queries: int
    mean: float
    low: float  # of the 95 % bootstrap interval
    high: float
    p_value: float  # paired randomisation test, two-sided
    p_holm: float  # corrected for the other systems in this measure


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
    results: dict[str, dict[str, ranking.Result]]  # system -> measure
    differences: dict[str, dict[str, Difference | None]]  # None: too few queries
    slices: list[Slice]

    def values(self, system: str, name: str) -> Float[np.ndarray, " Q"]:
        """A measure of each of `queries`; NaN where the query takes no part."""
        return _aligned(self.results[system][name], self.queries)

    def summary(self) -> dict[str, Any]:
        """All but the values of single queries, as JSON takes it: None for no number.

        Per system `queries`, and by measure `metrics` (means), `difference`,
        `interval`, `p_value` and `p_holm`, which are None for the reference.
        """
        systems: dict[str, Any] = {}
        for name, results in self.results.items():
            found = {
                one: self.differences.get(name, {}).get(one) for one in self.measures
            }
            systems[name] = {
                "queries": len(next(iter(results.values())).queries),
                "metrics": {one: _finite(results[one].mean) for one in self.measures},
                "difference": {m: d and d.mean for m, d in found.items()},
                "interval": {m: d and [d.low, d.high] for m, d in found.items()},
                "p_value": {m: d and d.p_value for m, d in found.items()},
                "p_holm": {m: d and d.p_holm for m, d in found.items()},
            }
        slices = [
            {
                "field": one.field,
                "value": one.value,
                "queries": one.queries,
                "metrics": {
                    system: {name: _finite(value) for name, value in values.items()}
                    for system, values in one.metrics.items()
                },
            }
            for one in self.slices
        ]
        return {
            "reference": self.reference,
            "measures": list(self.measures),
            "queries": len(self.queries),
            "systems": systems,
            "slices": slices,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare(
    qrels: ranking.Qrels,
    runs: Mapping[str, ranking.Run],
    measures: Sequence[str],
    *,
    reference: str,
    complete: bool = True,
    relevance: int = 1,
    depth: int | None = None,
    permutations: int = 10_000,
    seed: int = 0,
    fields: Fields | None = None,
) -> Comparison:
    """Measures every run, and compares each with the reference.

    Args:
      qrels: grades by query and document.
      runs: scores by query and document, of each system.
      measures: names as `ranking.parse_measure` takes them.
      reference: system that the others are compared with.
      complete: a judged query that a run lacks counts 0; False: it is left out.
      relevance: lowest grade that counts as relevant.
      depth: documents of each query that count, from the first; None: all.
      permutations: of the randomisation test, and samples of the bootstrap.
      seed: of both.
      fields: values of the queries; each field of two values or more makes slices.

    Raises:
      ValueError: for a reference that is no system, an unknown measure, a NaN score, a
        run without a judged query, or a field that cannot be cut into slices.
    """
    if reference not in runs:
        raise ValueError(
            f"the reference {reference!r} is none of the systems {', '.join(runs)}"
        )
    for name in measures:
        ranking.parse_measure(name)
    queries = list(qrels)
    groups = {
        field: cut(field, {query: values.get(query) for query in queries})
        for field, values in (fields or {}).items()
    }
    ranked = {}
    for name, run in runs.items():
        try:
            ranked[name] = ranking.rank(
                qrels, run, complete=complete, relevance=relevance, depth=depth
            )
        except ValueError as error:
            raise ValueError(f"system {name!r}: {error}") from error
    results = {name: ranking.measure(one, measures) for name, one in ranked.items()}
    differences = {name: {} for name in runs if name != reference}
    tests = [(name, one) for name in differences for one in measures]
    tried = _paired_tests(
        [
            _aligned(results[name][one], queries)
            - _aligned(results[reference][one], queries)
            for name, one in tests
        ],
        permutations,
        seed,
    )
    for one in measures:
        p = {
            name: test[-1]
            for (name, measure), test in zip(tests, tried, strict=True)
            if measure == one and test
        }
        corrected = significance.holm(p)
        for (name, measure), test in zip(tests, tried, strict=True):
            if measure == one:
                differences[name][one] = (
                    Difference(*test, corrected[name]) if test else None
                )
    return Comparison(
        reference,
        tuple(measures),
        queries,
        results,
        differences,
        _slices(ranked, groups, measures),
    )


def _aligned(result: ranking.Result, queries: Sequence[str]) -> np.ndarray:
    if result.queries == queries:
        return result.values
    known = dict(zip(result.queries, result.values.tolist(), strict=True))
    return np.array([known.get(query, math.nan) for query in queries])


def _paired_tests(
    differences: Sequence[np.ndarray], permutations: int, seed: int
) -> list[tuple[int, float, float, float, float] | None]:
    """Queries, mean, low, high and last p of each; None under two queries.

    Differences over the same queries share their draws, which cost the most.
    """
    groups: dict[bytes, list[int]] = {}
    for at, one in enumerate(differences):
        groups.setdefault(np.isnan(one).tobytes(), []).append(at)
    found: list[tuple[int, float, float, float, float] | None]
    found = [None] * len(differences)
    for members in groups.values():
        here = ~np.isnan(differences[members[0]])
        n = int(here.sum())
        if n < 2:
            continue
        rows = np.stack([differences[at][here] for at in members])
        p = significance.p_values(rows, permutations=permutations, seed=seed)
        ends = significance.intervals(
            rows, samples=permutations, level=LEVEL, seed=seed
        )
        for row, at in enumerate(members):
            found[at] = (
                n,
                float(rows[row].mean()),
                float(ends[row, 0]),
                float(ends[row, 1]),
                float(p[row]),
            )
    return found


# --- slices ---


def _slices(
    ranked: Mapping[str, ranking.Ranked],
    groups: Mapping[str, Mapping[str, Sequence[str]]],
    measures: Sequence[str],
) -> list[Slice]:
    rows = {
        name: {query: row for row, query in enumerate(one.queries)}
        for name, one in ranked.items()
    }
    slices = []
    for field, by_value in groups.items():
        if len(by_value) < 2:
            continue  # one slice of all queries is the table again
        for value, members in by_value.items():
            metrics = {}
            for name, one in ranked.items():
                chosen = [rows[name][q] for q in members if q in rows[name]]
                found = ranking.measure(one.select(chosen), measures)
                metrics[name] = {key: result.mean for key, result in found.items()}
            slices.append(Slice(field, value, len(members), metrics))
    return slices


def cut(
    field: str, values: Mapping[str, str | float | None]
) -> dict[str, Sequence[str]]:
    """Cuts queries into slices by their values of a field.

    Texts and up to 5 different numbers make a slice each. More numbers are cut into
    thirds of the queries, equal numbers staying together: low, middle and high, or for
    a field called frequency tail, torso and head. Queries without a value come last.

    Raises:
      ValueError: for over 30 different texts.

    >>> cut("intent", {"a": "buy", "b": "learn", "c": "buy"})
    {'buy': ['a', 'c'], 'learn': ['b']}
    >>> frequencies = {"a": 1, "b": 1, "c": 2, "d": 3, "e": 5, "f": 8, "g": 13}
    >>> list(cut("frequency", frequencies))
    ['tail (1 to 2)', 'torso (3 to 5)', 'head (8 to 13)']
    """
    given = {query: value for query, value in values.items() if value not in (None, "")}
    without = [query for query in values if query not in given]
    numbers = {query: _number(value) for query, value in given.items()}
    slices: dict[str, Sequence[str]] = {}
    if given and not any(math.isnan(one) for one in numbers.values()):
        slices = _cut_numbers(field, numbers)
    else:
        texts = sorted({str(value) for value in given.values()})
        if len(texts) > _MANY:
            raise ValueError(
                f"the field {field!r} has {len(texts)} different texts, such as "
                f"{texts[0]!r}; slices need a field of numbers, or of at most {_MANY} "
                "different texts"
            )
        for text in texts:
            slices[text] = [q for q, value in given.items() if str(value) == text]
    if without:
        slices[NO_VALUE] = without
    return slices


def _number(value: str | float | None) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _cut_numbers(field: str, numbers: Mapping[str, float]) -> dict[str, Sequence[str]]:
    different = sorted(set(numbers.values()))
    if len(different) <= _FEW:
        return {
            f"{number:g}": [q for q, one in numbers.items() if one == number]
            for number in different
        }
    names = _BY_FREQUENCY if field.lower() == "frequency" else _THIRDS
    first, second = np.quantile(
        list(numbers.values()), [1 / 3, 2 / 3], method="inverted_cdf"
    )
    ends = (-math.inf, first, second, math.inf)
    slices: dict[str, Sequence[str]] = {}
    for name, low, high in zip(names, ends[:-1], ends[1:], strict=True):
        members = [q for q, one in numbers.items() if low < one <= high]
        if members:
            inside = [numbers[q] for q in members]
            slices[f"{name} ({min(inside):g} to {max(inside):g})"] = members
    return slices
