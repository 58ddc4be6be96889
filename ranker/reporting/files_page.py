"""The evaluation of TREC files as one HTML page, as a workdir's report has it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ranker.metrics import comparison, ranking
from ranker.reporting import charts, parts, tables
from ranker.reporting.parts import text

_TOP = 5  # documents of a query that are shown
_EXTREMES = 5  # queries won and lost that are shown
_BARS = 2_000  # queries of a chart; more are sampled evenly


@dataclass(frozen=True)
class CollectionReport:
    """One collection."""

    found: comparison.Comparison
    qrels: ranking.Qrels
    runs: Mapping[str, ranking.Run]
    texts: Mapping[str, str]  # of queries; may lack any


@dataclass(frozen=True)
class FilesReport:
    """All that the page shows."""

    summary: dict[str, Any]
    collections: Mapping[
        str, CollectionReport
    ]  # one called "" where there is one alone


def render(contents: FilesReport) -> str:
    """The whole page."""
    summary = contents.summary
    notes = "".join(map(parts.warning, summary["notes"]))
    sections = [("overview", "Overview", parts.overview(summary) + notes)]
    sections.append(("results", "Results", parts.results(summary)))
    for at, (name, part) in enumerate(contents.collections.items()):
        one = summary["collections"][name] if name else summary
        title = escape(name) if name else "Queries"
        body = parts.results(one) if name else ""
        sections.append((f"part{at}", title, body + _collection(one, part)))
    told = {k: summary[k] for k in ("settings", "reference", "measures")}
    written = escape(
        parts.CONTROL.sub("�", json.dumps(told, indent=1, ensure_ascii=False))
    )
    body = f'<div class="scroll"><pre>{written}</pre></div>'
    sections.append(("settings", "Settings", body))
    names = ", ".join(contents.collections) or ""
    heading = names or f"{len(summary['systems'])} systems"
    return parts.frame(heading, sections, over="ranker evaluation")


def _collection(summary: tables.Summary, part: CollectionReport) -> str:
    """What single queries tell: ties, slices, differences, and who won where."""
    body = ""
    ranges = tables.tie_ranges(summary)
    if ranges:
        body += parts.html_table(ranges)
    if "common" in summary:
        body += parts.html_table(tables.common(summary))
    if summary.get("across_queries"):
        body += parts.html_table(tables.comparability_grid(summary))
    if summary["slices"]:
        body += parts.slices_section(summary)
    reference, measure = summary["reference"], summary["measures"][0]
    base = part.found.values(reference, measure)
    for name in summary["systems"]:
        if name != reference:
            gaps = part.found.values(name, measure) - base
            body += _against(name, gaps, measure, part)
    return body


def _against(name: str, gaps: np.ndarray, measure: str, part: CollectionReport) -> str:
    """A system against the reference, query by query."""
    known = np.flatnonzero(np.isfinite(gaps))
    if not len(known):
        return ""
    reference = part.found.reference
    shown = gaps[known]
    if len(shown) > _BARS:
        shown = np.sort(shown)[np.linspace(0, len(shown) - 1, _BARS).astype(int)]
    body = f"<h3>{text(name)} less {text(reference)}</h3>" + parts.figure(
        charts.bars(shown, f"{measure}, difference"),
        f"{text(measure)} of each query, {text(name)} less {text(reference)}.",
    )
    order = known[np.argsort(-gaps[known], kind="stable")]
    won = [at for at in order[:_EXTREMES] if gaps[at] > 0]
    lost = [at for at in order[::-1][:_EXTREMES] if gaps[at] < 0]
    for outcome, rows in (("won", won), ("lost", lost)):
        if rows:
            body += f"<p>Queries that {text(name)} {outcome} by most:</p>"
            body += "".join(_duel(name, float(gaps[at]), int(at), part) for at in rows)
    return body


def _duel(name: str, gap: float, at: int, part: CollectionReport) -> str:
    """A query with the first documents of both systems side by side."""
    query = part.found.queries[at]
    columns = "".join(
        f"<div><h4>{text(system)}</h4><ol>"
        f"{_documents(part.runs[system].get(query, {}), part.qrels[query])}</ol></div>"
        for system in (name, part.found.reference)
    )
    words = part.texts.get(query, "")
    return (
        f'<details><summary>{text(words or query)} <span class="dim">'
        f"{text(query) if words else ''} · {gap:+.4f}</span></summary>"
        f'<div class="duel">{columns}</div></details>'
    )


def _documents(listed: Mapping[str, float], grades: Mapping[str, float]) -> str:
    best = sorted(listed, key=lambda one: (listed[one], one), reverse=True)[:_TOP]
    if not best:
        return "<li>nothing found</li>"
    items = []
    for one in best:
        grade = f"grade {grades[one]:g}" if one in grades else "not judged"
        kind = "g" if grades.get(one, 0) > 0 else "z"
        items.append(
            f'<li><span class="badge {kind}">{grade}</span> {text(one)} '
            f'<span class="dim">{listed[one]:.4g}</span></li>'
        )
    return "".join(items)
