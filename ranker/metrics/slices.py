"""Cutting the queries into slices by a field: its texts, its numbers, or thirds."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

_FEW = 5  # different numbers that are slices of their own; more are cut into thirds
_MANY = 30  # different texts that can be slices
_THIRDS = ("low", "middle", "high")
_BY_FREQUENCY = ("tail", "torso", "head")
NO_VALUE = "no value"

QueryFields = Mapping[str, Mapping[str, str | float]]  # field -> query -> value


def slice_queries(
    field: str, values: Mapping[str, str | float | None]
) -> dict[str, Sequence[str]]:
    """Cuts queries into slices by their values of a field.

    Texts and up to 5 different numbers make a slice each. More numbers are cut into
    thirds of the queries, equal numbers staying together: low, middle and high, or for
    a field called frequency tail, torso and head. Queries without a value come last.

    Raises:
      ValueError: for over 30 different texts.

    >>> slice_queries("intent", {"a": "buy", "b": "learn", "c": "buy"})
    {'buy': ['a', 'c'], 'learn': ['b']}
    >>> frequencies = {"a": 1, "b": 1, "c": 2, "d": 3, "e": 5, "f": 8, "g": 13}
    >>> list(slice_queries("frequency", frequencies))
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
