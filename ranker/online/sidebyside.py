"""`gsb`: judges compare two runs side by side, blind; good, same or bad.

GSB = (good - bad) / (good + same + bad), from the second run's point of view: above 0
the second is the better.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from ranker.errors import DataError
from ranker.online.interleaving import make_key

VERDICTS = ("left", "right", "same")
COLUMNS = ("query_id", "query", "left", "right", "verdict")


def _order(run: Mapping[str, float], depth: int) -> list[str]:
    """trec_eval's: by score, ties by id from the last to the first."""
    return sorted(run, key=lambda one: (run[one], one), reverse=True)[:depth]


@dataclass(frozen=True)
class Sheet:
    """What judges see, and the key that they do not."""

    rows: list[dict[str, str]]  # of COLUMNS
    sides: dict[str, str]  # query -> the run on the left
    same: list[str]  # queries whose results do not differ: the same by definition
    names: tuple[str, str]


def make_sheet(
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    queries: Mapping[str, str] | None = None,
    documents: Mapping[str, str] | None = None,
    depth: int = 10,
    count: int | None = None,
    salt: str = "",
) -> Sheet:
    """A sheet of the queries whose first results differ, sides drawn by query.

    Args:
      runs: two systems' scores by query and document; the first is the baseline.
      queries: texts of queries.
      documents: texts to show for documents; ids otherwise.
      depth: results of a side.
      count: of queries, drawn by a digest of their id; None for all.
      salt: of the draw.

    Raises:
      DataError: where the runs share no query, or none whose results differ.
    """
    (first, a), (second, b) = runs.items()
    shared = [query for query in a if query in b]
    if not shared:
        raise DataError(f"the runs {first} and {second} have no query in common")
    same, rows, sides = [], [], {}
    for query in sorted(shared, key=lambda one: make_key(one, "", "", salt=salt)):
        tops = {first: _order(a[query], depth), second: _order(b[query], depth)}
        if tops[first] == tops[second]:
            same.append(query)
            continue
        if count is not None and len(rows) >= count:
            continue
        # One bit of a digest: nobody can tell the sides, and a rerun has the same.
        flipped = make_key(query, "side", "", salt=salt)[0] % 2
        left, right = (second, first) if flipped else (first, second)
        sides[query] = left

        def show(name: str, tops: Mapping[str, list[str]] = tops) -> str:
            shown = [
                f"{rank}. {_plain((documents or {}).get(one, one))}"
                for rank, one in enumerate(tops[name], 1)
            ]
            return " | ".join(shown)

        rows.append(
            {
                "query_id": query,
                "query": _plain((queries or {}).get(query, query)),
                "left": show(left),
                "right": show(right),
                "verdict": "",
            }
        )
    if not rows:
        raise DataError(
            f"the runs {first} and {second} show the same first {depth} results for "
            f"all of {len(shared)} queries: there is nothing to judge"
        )
    return Sheet(rows, sides, same, (first, second))


def _plain(text: str) -> str:
    """A cell of a TSV that no spreadsheet takes for a formula."""
    flat = " ".join(text.split())[:500]
    return f"'{flat}" if flat[:1] in ("=", "+", "-", "@") else flat


def write_sheet(sheet: Sheet) -> tuple[str, str]:
    """The sheet as TSV, and its key as JSON."""
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(row[name] for name in COLUMNS) for row in sheet.rows]
    key = {"names": sheet.names, "left": sheet.sides, "same": sheet.same}
    return "\n".join(lines) + "\n", json.dumps(key, indent=1, ensure_ascii=False)


def read_verdicts(path: str, text: str, key: Mapping[str, Any]) -> dict[str, list[int]]:
    """Verdicts by query: 1 where the second run won, -1 where the first, 0 the same.

    A query may have several rows, of several judges. Empty verdicts are left out.

    Raises:
      DataError: for a row that does not fit, naming file, line and field.
    """
    lines = text.lstrip("\ufeff").splitlines()
    header = [cell.strip() for cell in lines[0].split("\t")] if lines else []
    for name in ("query_id", "verdict"):
        if name not in header:
            raise DataError(
                f"{path}:1: has no column {name!r}; it has {', '.join(header)}"
            )
    at_query, at_verdict = header.index("query_id"), header.index("verdict")
    second = key["names"][1]
    verdicts: dict[str, list[int]] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) <= max(at_query, at_verdict):
            cells += [""] * len(header)
        query, verdict = cells[at_query], cells[at_verdict].strip().lower()
        if query not in key["left"]:
            raise DataError(
                f"{path}:{number}: field 'query_id': found {query!r}, which the key "
                "does not have; is it the key of this sheet?"
            )
        if not verdict:
            continue
        if verdict not in VERDICTS:
            raise DataError(
                f"{path}:{number}: field 'verdict': found {verdict!r}, expected "
                f"{', '.join(VERDICTS)}, or nothing where it was not judged"
            )
        left_is_second = key["left"][query] == second
        won = {"same": 0, "left": 1, "right": -1}[verdict]
        verdicts.setdefault(query, []).append(won if left_is_second else -won)
    if not verdicts:
        raise DataError(f"{path}: holds no verdict; fill the column 'verdict'")
    return verdicts


def judge(
    verdicts: Mapping[str, Sequence[int]],
    *,
    same: int = 0,
    level: float = 0.95,
    names: Sequence[str] = ("a", "b"),
) -> dict[str, Any]:
    """Counts, GSB, its interval and the sign test; the query is the unit.

    Several judges of a query count as one by their mean. Queries whose results are the
    same in both runs were not judged; they count as the same only in `gsb_of_all`.

    >>> found = judge({"q1": [1], "q2": [1], "q3": [0], "q4": [-1]}, same=4)
    >>> found["gsb"], found["gsb_of_all"], found["sign_p_value"]
    (0.25, 0.125, 1.0)
    """
    means = [sum(votes) / len(votes) for votes in verdicts.values()]
    good = sum(1 for one in means if one > 0)
    bad = sum(1 for one in means if one < 0)
    n = len(means)
    signs = [(one > 0) - (one < 0) for one in means]
    gsb = sum(signs) / n
    variance = sum((one - gsb) ** 2 for one in signs) / max(n - 1, 1) / n
    quantile = float(stats.t.ppf((1 + level) / 2, max(n - 1, 1)))
    half = quantile * math.sqrt(variance)
    sign = float(stats.binomtest(good, good + bad).pvalue) if good + bad else 1.0
    return {
        "command": "gsb",
        "names": list(names),
        "good": good,
        "same": n - good - bad,
        "bad": bad,
        "judged": n,
        "judgements": sum(len(votes) for votes in verdicts.values()),
        "gsb": gsb,
        "interval": [max(-1.0, gsb - half), min(1.0, gsb + half)],
        "sign_p_value": sign,
        "unchanged": same,
        "gsb_of_all": sum(signs) / (n + same),
        "level": level,
        "preferred": (names[1] if gsb > 0 else names[0]) if sign < 1 - level else None,
        "notes": []
        if n >= 30
        else [f"{n} queries judged: a small sheet shows large differences alone"],
    }
