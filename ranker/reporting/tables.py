"""A comparison as tables: for the terminal, Markdown, and a file of every query.

All take the summary that `Comparison.summary` makes and summary.json holds.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ranker.metrics.comparison import Comparison
from ranker.metrics.measures import COUNTS, parse_measure

SIGNIFICANT = 0.05  # corrected p below which a mean is marked
MARK = "*"
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


def of(measure: str, value: float | None) -> str:
    """A value of a measure: counts are whole, unless they are means over seeds."""
    whole = parse_measure(measure).base in COUNTS and value == round(value or 0)
    return number(value, 0 if whole else 4)


def p_value(value: float | None) -> str:
    """A p-value, of which four digits are enough."""
    if value is None:
        return "-"
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def interval(ends: Sequence[float] | None) -> str:
    """An interval of a difference."""
    return "-" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"


def means_grid(summary: Summary) -> Grid:
    """Every system's values, and what they rest on; marked where they differ."""
    reference, systems = summary["reference"], summary["systems"]
    shown = [
        key for key in ("pairs", "ties") if any(key in s for s in systems.values())
    ]
    rows = []
    for name, system in systems.items():
        cells = []
        for measure in summary["measures"]:
            p = system["p_holm"][measure]
            mark = MARK if p is not None and p < SIGNIFICANT else ""
            sd = system.get("sd_over_seeds", {}).get(measure)
            spread = "" if sd is None else f" ± {number(sd)}"
            cells.append(of(measure, system["metrics"][measure]) + mark + spread)
        counts = [str(system.get("queries", summary["queries"]))]
        if "pairs" in shown:
            counts.append(f"{system['pairs']}")
        if "ties" in shown:
            counts.append(f"{system['ties']:.1%}")
        rows.append([name, *cells, *counts])
    title = f"{summary['queries']} judged {_queries(summary)}"
    if len(rows) > 1:
        title += f"; {MARK} differs from {reference}, Holm-corrected p < {SIGNIFICANT}"
    if any("seeds" in one for one in systems.values()):
        title += "; ± standard deviation over seeds"
    header = ["system", *summary["measures"], "queries", *shown]
    return Grid(title, header, rows, strong=reference)


def _queries(counted: Mapping[str, Any]) -> str:
    return "query" if counted["queries"] == 1 else "queries"


def common(summary: Summary) -> Grid:
    """Every system's values over the queries that all systems have."""
    found = summary["common"]
    rows = [
        [name, *(of(measure, values[measure]) for measure in summary["measures"])]
        for name, values in found["systems"].items()
    ]
    title = f"over the {found['queries']} {_queries(found)} that every system has"
    header = ["system", *summary["measures"]]
    return Grid(title, header, rows, strong=summary["reference"])


def differences_grid(summary: Summary) -> Grid:
    """Every system against the reference, in every measure."""
    margin = summary.get("margin")
    rows = []
    for name, system in summary["systems"].items():
        if name == summary["reference"]:
            continue
        for measure in summary["measures"]:
            wins = system.get("wins", {}).get(measure)
            row = [
                name,
                measure,
                signed(system["difference"][measure]),
                interval(system["interval"][measure]),
                p_value(system["p_value"][measure]),
                p_value(system["p_holm"][measure]),
                "-" if wins is None else "/".join(map(str, wins)),
                str(system.get("tested", {}).get(measure) or "-"),
                number(system.get("effect_size", {}).get(measure), 2),
                number(system.get("detectable", {}).get(measure)),
            ]
            if margin is not None:
                equal = system["equivalent"][measure]
                told = "-" if equal is None else "yes" if equal else "no"
                row.append(f"{told} ({p_value(system['p_equivalence'][measure])})")
            rows.append(row)
    header = ["system", "measure", "difference", "95 % interval", "p", "p (Holm)"]
    header += ["won/tied/lost", "queries", "d_z", "detectable"]
    if margin is not None:
        header.append(f"within ±{margin:g} (p)")
    return Grid(f"less {summary['reference']}, paired", header, rows, left=2)


def signed(value: float | None) -> str:
    """A difference; "-" where there is none."""
    return "-" if value is None else f"{value:+.4f}"


def tie_ranges(summary: Summary) -> Grid | None:
    """How far ties could move each value; None where they move none."""
    rows = []
    for name, system in summary["systems"].items():
        for measure, ends in system.get("tie_range", {}).items():
            if None not in ends and ends[1] - ends[0] > 1e-9:
                value = of(measure, system["metrics"][measure])
                rows.append([name, measure, value, number(ends[0]), number(ends[1])])
    if not rows:
        return None
    header = ["system", "measure", "value", "worst order", "best order"]
    return Grid("with ties broken otherwise", header, rows, left=2)


def comparability_grid(summary: Summary) -> Grid:
    """How comparable scores are between queries."""
    measures = {
        "accuracy": "pairs of different queries ordered right",
        "base_rate": "share of relevant documents",
    }
    systems = summary["across_queries"]
    rows = [
        [label, *(number(one.get(key)) for one in systems.values())]
        for key, label in measures.items()
    ]
    for key, label in (("ece", "calibration error"), ("brier", "Brier score")):
        for method in ("platt", "isotonic"):
            rows.append(
                [
                    f"{label}, {method}",
                    *(number(one.get(key, {}).get(method)) for one in systems.values()),
                ]
            )
    return Grid("scores across queries", ["", *systems], rows)


def slices_grid(summary: Summary, measure: str) -> Grid:
    """Every system's mean of one measure over each slice of the queries."""
    names = list(summary["systems"])
    rows = [
        [
            one["field"],
            one["value"],
            str(one["queries"]),
            *(of(measure, one["metrics"][name][measure]) for name in names),
        ]
        for one in summary["slices"]
    ]
    return Grid(
        f"{measure} by slice", ["field", "slice", "queries", *names], rows, left=2
    )


def agreement_grid(summary: Summary) -> Grid:
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
    if "collections" in summary:
        return _of_collections(summary)
    found = [means_grid(summary)]
    if "common" in summary:
        found.append(common(summary))
    if len(summary["systems"]) > 1:
        found.append(differences_grid(summary))
    ranges = tie_ranges(summary)
    if ranges:
        found.append(ranges)
    if summary["slices"]:
        found.append(slices_grid(summary, summary["measures"][0]))
    if summary.get("across_queries"):
        found.append(comparability_grid(summary))
    if summary.get("agreement"):
        found.append(agreement_grid(summary))
    return found


def _of_collections(summary: Summary) -> list[Grid]:
    """The tables of each collection, then those of the macro mean."""
    found = []
    for name, one in summary["collections"].items():
        found += [
            dataclasses.replace(grid, title=f"{name}: {grid.title}")
            for grid in grids(one)
        ]
    macro = [means_grid(summary)]
    if len(summary["systems"]) > 1:
        macro.append(differences_grid(summary))
    count = len(summary["collections"])
    over = f"macro mean of {count} collection{'s' * (count != 1)}"
    return found + [
        dataclasses.replace(grid, title=f"{over}: {grid.title}") for grid in macro
    ]


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
        table = Table()
        for at, (name, width) in enumerate(zip(grid.header, widths, strict=True)):
            justify = "left" if at < grid.left else "right"
            table.add_column(name, justify=justify, width=width)
        for row in grid.rows:
            table.add_row(
                *(_plain(cell) for cell in row),
                style="bold" if row[0] == grid.strong else "",
            )
        console = Console(width=max(room, sum(widths) + 3 * len(widths) + 1))
        # A title of the table itself would be broken where the table is narrow.
        if grid.title:
            console.print(grid.title, style="italic", markup=False, highlight=False)
        console.print(table)


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
    comparison: Comparison | Mapping[str, Comparison],
    more: Mapping[str, Any],
    *,
    json_lines: bool = False,
) -> str:
    """A line for every query and system: its value in each measure.

    Args:
      comparison: whose values; or one of each collection, which makes a column.
      more: other values of the comparison's queries, by system and name; of several
        collections, by collection.
      json_lines: JSON, and null where a query takes no part or has no bound; else cells
        between tabs below a header, and an empty one.
    """
    if isinstance(comparison, Comparison):
        comparison, more = {"": comparison}, {"": more}
    first = next(iter(comparison.values()))
    found = [v for one in more.values() for v in one.values()]
    others = dict.fromkeys(name for values in found for name in values)
    names = [*first.measures, *others]
    named = [*comparison] != [""]
    keys = [*(["collection"] if named else []), "query", "system"]
    lines = [] if json_lines else ["\t".join([*keys, *names])]
    for collection, one in comparison.items():
        extra = more.get(collection, {})
        for where, values in _rows(one, extra, list(others)):
            cells = ([collection] if named else []) + list(where)
            if json_lines:
                row = dict(zip([*keys, *names], [*cells, *values], strict=True))
                lines.append(json.dumps(row, ensure_ascii=False))
            else:
                shown = ["" if value is None else repr(value) for value in values]
                lines.append("\t".join([*cells, *shown]))
    return "\n".join(lines)


def _rows(
    comparison: Comparison,
    more: Mapping[str, Mapping[str, Sequence[float]]],
    others: Sequence[str],
) -> Iterator[tuple[tuple[str, str], list[float | None]]]:
    """Query and system, and the values of the measures and of `others`."""
    nothing = [math.nan] * len(comparison.queries)
    for system in comparison.results:
        columns = [comparison.values(system, name) for name in comparison.measures]
        columns += [more.get(system, {}).get(name, nothing) for name in others]
        for at, query in enumerate(comparison.queries):
            found = [float(column[at]) for column in columns]
            yield (
                (query, system),
                [value if math.isfinite(value) else None for value in found],
            )
