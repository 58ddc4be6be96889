"""What `prepare` tells of the data: prepare/report.json, and the lines of it.

Look at it before a teacher is paid for: whether first-stage candidates hold what is
relevant, what was dropped and why, what would have leaked, and what models will cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FILE = "report.json"
BINS = 30


def histogram(values: Sequence[float], *, bins: int = BINS) -> dict[str, Any]:
    """Edges and counts; single values where there are few."""
    if not len(values):
        return {"edges": [], "counts": [], "mean": None, "max": None}
    array = np.asarray(values, np.float64)
    low, high = float(array.min()), float(array.max())
    whole = np.array_equal(array, np.round(array)) and high - low < bins
    edges = (
        np.arange(low - 0.5, high + 1) if whole else np.linspace(low, high, bins + 1)
    )
    counts, edges = np.histogram(array, edges)
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "counts": counts.tolist(),
        "mean": round(float(array.mean()), 3),
        "max": high,
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in lines for a reader."""
    yield f"documents: {report['documents']:,}"
    for name, one in report["splits"].items():
        if not one["queries"] and not one["dropped"]:
            continue
        recall = one["candidate_recall"]
        parts = [f"{one['queries']:,} queries", f"{one['candidates']:,} candidates"]
        parts[1] += f" ({one['source']})" if one["source"] else ""
        if recall is not None:
            parts.append(f"which hold {recall:.1%} of a query's relevant documents")
        if one["judged_without_text"]:
            parts.append(
                f"{one['judged_without_text']:,} of {one['judged']:,} judged documents "
                "have no text"
            )
        parts += [f"dropped: {n:,} ({why})" for why, n in one["dropped"].items()]
        yield f"{name}: {', '.join(parts)}"
    yield from _click_lines(report["clicks"])
    for name, found in report["leaks"].items():
        if any(found.values()):
            told = ", ".join(f"{n:,} {what}" for what, n in found.items() if n)
            yield f"held-out queries removed from {name}: {told}"
    for name, one in report["dropped"].items():
        yield f"skipped in {name}: {one['records']:,} of {one['of']:,}: {one['first']}"
    for name, one in report["given_scores"].items():
        if isinstance(one, dict) and one["count"]:
            first, more = one["first"][:5], one["count"] > 5
            ids = ", ".join(first) + (", ..." if more else "")
            yield f"given scores: {one['count']:,} {name.replace('_', ' ')}: {ids}"
    for role, one in report["lengths"].items():
        yield (
            f"{role}: {one['cut']:.1%} of candidates are longer than {one['length']} "
            "tokens, and cut"
        )
    yield from report["notes"]


def _click_lines(clicks: Mapping[str, Any]) -> Iterator[str]:
    examples = clicks["examples"]
    yield (
        f"clicks: {clicks['rows']:,} rows of {clicks['source']}; examples: "
        f"{', '.join(f'{name} {n:,}' for name, n in examples.items())}; merged: "
        f"{clicks['merged']:,}"
    )
    counted = clicks.get("counted", {})
    if counted.get("by") == "dwell":
        yield (
            f"clicks by dwell: {counted['rows_by_dwell']:,} rows count by their dwell; "
            f"{counted['clicks']:,} clicks count as {counted['counts']:,}"
        )
    for reason, count in clicks["dropped"].items():
        if count:
            yield f"clicks dropped: {count:,} ({reason})"
    if clicks.get("columns_not_used"):
        yield f"click columns not used: {', '.join(clicks['columns_not_used'])}"
