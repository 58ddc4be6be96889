"""A comparison as tables: for the terminal, Markdown, and a file of every query.

All take the summary that `Comparison.summary` makes and summary.json holds.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ranker.metrics.comparison import Comparison

SIGNIFICANT = 0.05  # corrected p below which a mean is marked
MARK = "*"
_BY_ACCURACY = ("PNR", "PNR-macro")  # whose differences are of pair accuracies
Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table as texts; the first `left` columns are words, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int = 1
    strong: str = ""  # first cell of the row that stands out


def number(value: float | None, digits: int = 4) -> str:
    """A number as tables show it; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def p_value(value: float | None) -> str:
    """A p-value, of which four digits are enough."""
    if value is None:
        return "-"
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def interval(ends: Sequence[float] | None) -> str:
    """An interval of a difference."""
    return "-" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"


def means(summary: Summary) -> Grid:
    """Every system's means; marked where they differ from the reference's."""
    reference = summary["reference"]
    rows = []
    for name, system in summary["systems"].items():
        cells = []
        for measure in summary["measures"]:
            p = system["p_holm"][measure]
            mark = MARK if p is not None and p < SIGNIFICANT else ""
            cells.append(number(system["metrics"][measure]) + mark)
        rows.append([name, *cells])
    title = f"{summary['queries']} judged queries"
    if len(rows) > 1:
        title += f"; {MARK} differs from {reference}, Holm-corrected p < {SIGNIFICANT}"
    return Grid(title, ["system", *summary["measures"]], rows, strong=reference)


def differences(summary: Summary) -> Grid:
    """Every system against the reference, in every measure."""
    rows = [
        [
            name,
            f"{measure}, by OPA" if measure in _BY_ACCURACY else measure,
            "-"
            if system["difference"][measure] is None
            else f"{system['difference'][measure]:+.4f}",
            interval(system["interval"][measure]),
            p_value(system["p_value"][measure]),
            p_value(system["p_holm"][measure]),
        ]
        for name, system in summary["systems"].items()
        for measure in summary["measures"]
        if name != summary["reference"]
    ]
    header = ["system", "measure", "difference", "95 % interval", "p", "p (Holm)"]
    return Grid(f"less {summary['reference']}, paired", header, rows, left=2)


def slices(summary: Summary, measure: str) -> Grid:
    """Every system's mean of one measure over each slice of the queries."""
    names = list(summary["systems"])
    rows = [
        [
            one["field"],
            one["value"],
            str(one["queries"]),
            *(number(one["metrics"][name][measure]) for name in names),
        ]
        for one in summary["slices"]
    ]
    return Grid(
        f"{measure} by slice", ["field", "slice", "queries", *names], rows, left=2
    )


def agreement(summary: Summary) -> Grid:
    """Each student's scores beside its teacher's."""
    measures = {
        "kendall": "Kendall tau",
        "spearman": "Spearman",
        "slope": "slope",
        "intercept": "intercept",
        "r_squared": "R2",
        "teacher_ties": "ties, teacher",
        "student_ties": "ties, student",
        "teacher_saturation": "saturation, teacher",
        "student_saturation": "saturation, student",
    }
    students = summary["agreement"]
    rows = [
        [name, *(number(one[key]) for one in students.values())]
        for key, name in measures.items()
    ]
    header = [f"{name} / {one['teacher']}" for name, one in students.items()]
    title = "scores of a student beside its teacher's"
    return Grid(title, ["student / teacher", *header], rows)


def grids(summary: Summary) -> list[Grid]:
    """All tables that a summary has something for."""
    found = [means(summary)]
    if len(summary["systems"]) > 1:
        found.append(differences(summary))
    if summary["slices"]:
        found.append(slices(summary, summary["measures"][0]))
    if summary.get("agreement"):
        found.append(agreement(summary))
    return found


def show(tables: Sequence[Grid]) -> None:
    """Prints tables to standard output, headers broken at words where room is short."""
    # What reads a pipe has no width.
    room = Console().width if sys.stdout.isatty() else 200
    for grid in tables:
        columns = list(zip(grid.header, *grid.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        if sum(widths) + 3 * len(widths) + 1 > room:
            # A number is never shortened: a long line is better.
            widths = [
                max(map(len, [*header.split(), *cells])) for header, *cells in columns
            ]
        table = Table(title=grid.title, title_justify="left")
        for at, (name, width) in enumerate(zip(grid.header, widths, strict=True)):
            justify = "left" if at < grid.left else "right"
            table.add_column(name, justify=justify, width=width)
        for row in grid.rows:
            table.add_row(
                *(_plain(cell) for cell in row),
                style="bold" if row[0] == grid.strong else "",
            )
        Console(width=max(room, sum(widths) + 3 * len(widths) + 1)).print(table)


def _plain(cell: str) -> str:
    return cell.replace("[", r"\[")  # rich would read [+0.1, +0.2] as markup


def markdown(grid: Grid) -> str:
    """A table in Markdown, its title as a line above."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---" if at < grid.left else "---:" for at in range(len(grid.header))]
    lines = [line(grid.header), line(rule), *(line(row) for row in grid.rows)]
    return f"{grid.title}\n\n" + "\n".join(lines) + "\n"


def markdown_page(summary: Summary) -> str:
    """All tables of a summary in Markdown."""
    return "\n".join(markdown(grid) for grid in grids(summary))


def per_query(
    comparison: Comparison,
    more: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    json_lines: bool = False,
) -> str:
    """A line for every query and system: its value in each measure.

    Args:
      comparison: whose values.
      more: other values of the comparison's queries, by system and name.
      json_lines: JSON, and null where a query takes no part; else cells between tabs
        below a header, and an empty one.
    """
    others = dict.fromkeys(name for values in more.values() for name in values)
    names = [*comparison.measures, *others]
    nothing = [math.nan] * len(comparison.queries)
    lines = [] if json_lines else ["\t".join(["query", "system", *names])]
    for system in comparison.results:
        columns = [comparison.values(system, name) for name in comparison.measures]
        columns += [more.get(system, {}).get(name, nothing) for name in others]
        for at, query in enumerate(comparison.queries):
            found = [float(column[at]) for column in columns]
            values = [None if math.isnan(value) else value for value in found]
            if json_lines:
                row = {"query": query, "system": system}
                row |= dict(zip(names, values, strict=True))
                lines.append(json.dumps(row, ensure_ascii=False))
            else:
                cells = ["" if value is None else repr(value) for value in values]
                lines.append("\t".join([query, system, *cells]))
    return "\n".join(lines)
