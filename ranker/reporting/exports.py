"""A comparison for other programs: CSV for a spreadsheet, LaTeX for a paper."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ranker.reporting import tables
from ranker.reporting.inputs import MACRO
from ranker.reporting.tables import Grid, Summary

_COLUMNS = (
    *("collection", "system", "measure", "value", "queries", "pairs", "ties"),
    *("seeds", "sd_over_seeds", "difference", "low", "high", "p", "p_holm"),
    *("won", "tied", "lost", "effect_size", "detectable", "equivalent"),
    "p_equivalence",
)


def csv_text(summary: Summary) -> str:
    """A line for each collection, system and measure; empty cells for no number."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(summary))
    return file.getvalue().rstrip("\n")


def _parts(summary: Summary) -> dict[str, Summary]:
    """Summaries by collection, the macro mean last."""
    if "collections" not in summary:
        return {"": summary}
    return {**summary["collections"], MACRO: summary}


def _rows(summary: Summary) -> Iterator[dict[str, Any]]:
    for collection, part in _parts(summary).items():
        for name, system in part["systems"].items():
            for measure in part["measures"]:
                yield {
                    key: value
                    for key, value in _row(system, measure).items()
                    if value is not None
                } | {"collection": collection, "system": name, "measure": measure}


def _row(system: Mapping[str, Any], measure: str) -> dict[str, Any]:
    ends = system["interval"][measure] or (None, None)
    wins = system["wins"][measure] or (None, None, None)
    return {
        "value": system["metrics"][measure],
        **{key: system.get(key) for key in ("queries", "ties", "seeds")},
        "pairs": system.get("counted_pairs", {}).get(measure),
        "sd_over_seeds": system.get("sd_over_seeds", {}).get(measure),
        "difference": system["difference"][measure],
        "low": ends[0],
        "high": ends[1],
        "p": system["p_value"][measure],
        "p_holm": system["p_holm"][measure],
        **dict(zip(("won", "tied", "lost"), wins, strict=True)),
        **{
            key: system[key][measure]
            for key in ("effect_size", "detectable", "equivalent", "p_equivalence")
        },
    }


# --- LaTeX ---

_SPECIAL = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
_MINUS = re.compile(r"(?<![\w$])-(?=\d)")  # of a number
_WIDE = 8  # columns from which a table may not fit a page
_FITTED = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


def latex_text(summary: Summary) -> str:
    """The tables of values and of differences, and the packages that they need."""
    found = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs,graphicx}"]
    for collection, part in _parts(summary).items():
        where = f"{collection}: " if collection else ""
        found.append(tabular(tables.means_grid(part), where))
        if len(part["systems"]) > 1:
            found.append(tabular(tables.differences_grid(part), where))
    return "\n\n".join(found)


def tabular(grid: Grid, where: str = "") -> str:
    """A table in LaTeX; `where` begins its caption."""
    columns = "".join("l" if at < grid.left else "r" for at in range(len(grid.header)))

    def line(cells: list[str]) -> str:
        words, numbers = cells[: grid.left], cells[grid.left :]
        shown = [*map(escape, words), *map(_number, numbers)]
        # After the \\ of the line before, a [ or * would be read as its argument.
        begin = "{}" if shown[0][:1] in ("[", "*") else ""
        return begin + " & ".join(shown) + r" \\"

    wide = len(grid.header) >= _WIDE
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(where + grid.title)}}}",
            *([_FITTED] if wide else []),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(grid.header),
            r"\midrule",
            *(line(row) for row in grid.rows),
            r"\bottomrule",
            r"\end{tabular}" + "}" * wide,
            r"\end{table}",
        ]
    )


def _number(cell: str) -> str:
    """A number, with a minus that is as long as one; a dash for none."""
    return "--" if cell == "-" else _MINUS.sub("$-$", escape(cell))


def escape(text: str) -> str:
    r"""A text as LaTeX shows it.

    >>> print(escape("a_b & 95 %"))
    a\_b \& 95 \%
    """
    return "".join(_SPECIAL.get(one, one) for one in text)
