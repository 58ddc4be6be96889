"""The page of `ranker.prepare`: what the data holds, in tables and charts.

It shows report.json and nothing else, so it can be written again at any time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ranker.reporting import charts, tables
from ranker.reporting.parts import figure, frame, html_table, warning

_MOST = 100_000  # values of a chart


def render(name: str, report: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
      name: its heading.
      report: what prepare/report.json holds.
    """
    sections = [
        ("splits", "Queries and candidates", _splits(report)),
        ("grades", "Grades", _grades(report["splits"])),
        ("clicks", "Clicks", _clicks(report["clicks"])),
        ("lengths", "Lengths", _lengths(report["lengths"])),
        ("left-out", "What was left out", _left_out(report)),
    ]
    return frame(name, sections, over="ranker data")


def _grid(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    return html_table(tables.Grid(title=title, header=list(header), rows=cells, left=1))


def _splits(report: Mapping[str, Any]) -> str:
    rows = []
    for name, one in report["splits"].items():
        recall = one["candidate_recall"]
        each = one["candidates"] / one["queries"] if one["queries"] else 0.0
        rows.append(
            [
                name,
                f"{one['queries']:,}",
                f"{each:.1f}",
                "" if recall is None else f"{recall:.1%}",
                f"{one['judged']:,}",
                f"{one['judged_without_text']:,}",
                one["source"],
            ]
        )
    header = (
        "split",
        "queries",
        "candidates a query",
        "relevant documents among them",
        "judgements",
        "without text",
        "candidates from",
    )
    notes = "".join(map(warning, report["notes"]))
    return notes + _grid(f"{report['documents']:,} documents", header, rows)


def _grades(splits: Mapping[str, Any]) -> str:
    grades = sorted({int(grade) for one in splits.values() for grade in one["grades"]})
    rows = [
        [name, *(f"{one['grades'].get(str(grade), 0):,}" for grade in grades)]
        for name, one in splits.items()
        if one["grades"]
    ]
    if not rows:
        return "<p>No judgement.</p>"
    return _grid("Judgements of each grade", ["split", *map(str, grades)], rows)


def _clicks(clicks: Mapping[str, Any]) -> str:
    rows = [["rows read", f"{clicks['rows']:,}"], ["merged", f"{clicks['merged']:,}"]]
    rows += [[f"dropped: {why}", f"{n:,}"] for why, n in clicks["dropped"].items()]
    rows += [[f"examples, {one}", f"{n:,}"] for one, n in clicks["examples"].items()]
    if found := clicks.get("counted"):
        rows.append(["clicks of the rows that are left", f"{found['clicks']:,}"])
        if found["by"] == "dwell":
            rows += [
                ["rows that count by their dwell", f"{found['rows_by_dwell']:,}"],
                ["clicks after that (count_by=dwell)", f"{found['counts']:,}"],
            ]
    parts = [_grid(f"From {clicks['source']}", ("", "rows"), rows)]
    if found := clicks.get("a_query"):
        values = _spread(list(map(float, found)), list(found.values()))
        chart = charts.histogram_chart(
            values, "documents clicked of a query", 0, bins=20
        )
        parts.append(figure(chart, "20 stands for 20 and more"))
    if found := clicks.get("positions"):
        series = [
            charts.Series(
                "clicked",
                [float(position) for position in found],
                [one["clicked"] / one["rows"] for one in found.values()],
            )
        ]
        chart = charts.line_chart(series, "position", "share clicked")
        parts.append(figure(chart, "Share of rows that were clicked, by position"))
    return "".join(parts)


def _lengths(lengths: Mapping[str, Any]) -> str:
    parts = []
    for role, one in lengths.items():
        for what in ("queries", "candidates"):
            found = one[what]
            if not found["counts"]:
                continue
            edges = found["edges"]
            middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
            values = _spread(middles, found["counts"])
            label = f"tokens of {what}, {role}"
            said = f"mean {found['mean']:.1f}, longest {found['max']:.0f}"
            if what == "candidates":
                said += f"; {one['cut']:.1%} are over {one['length']} and cut"
            chart = charts.histogram_chart(values, label, 0, bins=len(middles))
            parts.append(figure(chart, said))
    return "".join(parts) or "<p>No candidate.</p>"


def _left_out(report: Mapping[str, Any]) -> str:
    rows = [
        [f"held-out queries in {name}, {what.replace('_', ' ')}", f"{count:,}", ""]
        for name, found in report["leaks"].items()
        for what, count in found.items()
    ]
    rows += [
        [f"malformed in {name}", f"{one['records']:,} of {one['of']:,}", one["first"]]
        for name, one in report["dropped"].items()
    ]
    rows += [
        [f"queries of {name}", f"{count:,}", why]
        for name, one in report["splits"].items()
        for why, count in one["dropped"].items()
    ]
    rows += [
        [name.replace("_", " "), f"{one['count']:,}", ", ".join(one["first"][:5])]
        for name, one in report["given_scores"].items()
        if isinstance(one, dict)
    ]
    return _grid("Left out", ("what", "how many", "why, or which"), rows)


def _spread(values: Sequence[float], counts: Sequence[int]) -> np.ndarray:
    """Each value as often as it counts, or in proportion where that is too often."""
    array = np.asarray(counts, np.float64)
    share = min(1.0, _MOST / max(array.sum(), 1.0))
    times = np.where(array > 0, np.maximum(array * share, 1), 0).astype(int)
    return np.repeat(np.asarray(values, np.float64), times)
