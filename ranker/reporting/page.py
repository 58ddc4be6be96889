"""The report of a workdir as one HTML page: no script, nothing fetched, all escaped.

Texts of queries and documents come from strangers. They are escaped, stripped of
control characters, and kept in an element of their own writing direction; and the page
forbids scripts and requests to itself, should that ever fail (see `parts`).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from ranker.data import summary
from ranker.manifests import PrepareFacts, TrainResults
from ranker.metrics import agreement
from ranker.reporting import charts, figures, online, parts, tables
from ranker.reporting.parts import figure, frame, html_table, legend, text

__all__ = ["figure", "frame", "html_table", "legend", "render", "text"]
from ranker.reporting.workdir import (
    Duel,
    ShownDocument,
    StageFolder,
    TeacherComparison,
    WorkdirReport,
    seconds,
)

_POINTS = 1500  # of a scatter: a page stays small
_TRAINED = ("cpt", "sft", "distill")


def render(contents: WorkdirReport) -> str:
    """The whole page."""
    sections = [("overview", "Overview", _overview(contents))]
    summary = contents.summary
    if summary:
        sections.append(("results", "Results", parts.results(summary)))
        if summary["slices"]:
            sections.append(("slices", "Slices", parts.slices_section(summary)))
        if summary.get("across_queries"):
            body = html_table(tables.comparability_grid(summary))
            sections.append(("across", "Scores across queries", body))
    if contents.online:
        sections.append(("online", "Online (simulated)", _online(contents.online)))
    trained = [one for one in contents.stages if one.manifest.kind in _TRAINED]
    if trained:
        body = f'<div class="cards">{"".join(map(_curve, trained))}</div>'
        sections.append(("curves", "Training", body))
    if contents.calibrations:
        body = "".join(map(_calibration, contents.calibrations))
        sections.append(("calibration", "Teacher and student", body))
    if contents.won or contents.lost:
        sections.append(("queries", "Queries", _queries(contents)))
    sections.append(("provenance", "Provenance", _provenance(contents)))
    return frame(contents.workdir.resolve().name, sections)


def _duration(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- sections ---


def _overview(contents: WorkdirReport) -> str:
    notes = "".join(map(parts.warning, contents.missing))
    if not contents.summary:
        return notes + _progress(contents.stages)
    return notes + parts.overview(contents.summary)


def _online(summary: tables.Summary) -> str:
    """Teacher, student and BM25 on pages that simulated users share."""
    notes = "".join(map(parts.warning, summary["notes"]))
    said = (
        f"{summary['users']:,} simulated users, {summary['pages']:,} pages, each "
        "filled by all systems in turn (team-draft multileaving); delta above 0: a is "
        "preferred. docs/online.md says how such a test is run with real users."
    )
    grids = "".join(html_table(one) for one in online.grids(summary))
    return f"{notes}<p>{text(said)}</p>{grids}{online.interleave_plots(summary)}"


def _progress(stages: Sequence[StageFolder]) -> str:
    rows = [
        [one.name, one.manifest.kind, "done" if one.manifest.done else "not finished"]
        for one in stages
    ]
    return html_table(
        tables.Grid("", ["stage", "kind", "state"], rows, 3), caption=False
    )


def _curve(stage: StageFolder) -> str:
    steps, losses = stage.curve("loss")
    results = TrainResults(metrics={}, steps=int(max(steps, default=0)), checkpoint=0)
    if stage.manifest.done:
        results = TrainResults.of(stage.manifest.facts)
    named = sorted({n for row in stage.metrics for n in row if n.startswith("dev_")})
    lines = [charts.Series("loss", steps, losses, 0)] if steps else []
    body = ""
    if lines:
        body += figure(charts.line_chart(lines, "step", "training loss"), "")
    for name in named:
        series = charts.Series(
            name, *stage.curve(name), 1, len(stage.curve(name)[0]) > 1
        )
        if len(series.x) > 1:
            body += figure(charts.line_chart([series], "step", name), "")
    rates = [
        row["tokens_per_second"]
        for row in stage.metrics
        if isinstance(row.get("tokens_per_second"), int | float)
    ]
    took = seconds(stage.metrics)
    shown = {
        "kind": stage.manifest.kind,
        "steps": results.steps,
        "state": "done" if stage.manifest.done else "not finished",
        **({"last loss": f"{losses[-1]:.4g}"} if losses else {}),
        **{
            name: f"{value:.4f}"
            for name, value in results.metrics.items()
            if name in named and isinstance(value, int | float)
        },
        **({"tokens/s (median)": f"{np.median(rates):,.0f}"} if rates else {}),
        **({"time": _duration(took)} if took else {}),
    }
    if stage.broken_lines:
        shown["unreadable lines in metrics.jsonl"] = str(stage.broken_lines)
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in shown.items())
    return f'<div class="card"><h3>{text(stage.name)}</h3>{body}<dl>{items}</dl></div>'


def _calibration(one: TeacherComparison) -> str:
    points = figures.sample(one.teacher_scores, one.student_scores, _POINTS)
    found = one.found
    faults = "".join(
        f'<p class="warn">{text(line)}</p>' for line in agreement.find_faults(found)
    )
    names = {
        "kendall": "Kendall's tau-b, mean over queries",
        "spearman": "Spearman's rho, mean over queries",
        "slope": "slope of the fitted line",
        "intercept": "intercept",
        "r_squared": "share of variance explained (R²)",
        "teacher_ties": "tied pairs, teacher",
        "student_ties": "tied pairs, student",
        "teacher_saturation": "scores at an end of their range, teacher",
        "student_saturation": "scores at an end of their range, student",
        "lists": "queries",
        "documents": "documents",
    }
    values = dataclasses.asdict(found)
    rows = [
        [
            label,
            f"{values[key]:,}" if key in ("lists", "documents") else _real(values[key]),
        ]
        for key, label in names.items()
    ]
    known = one.kendall[~np.isnan(one.kendall)]
    histograms = figure(
        charts.histogram_chart(one.teacher_scores, f"scores of {one.teacher}", 1)
        + charts.histogram_chart(one.student_scores, f"scores of {one.student}", 2)
        + (
            charts.histogram_chart(known, "Kendall's tau of a query", 3)
            if len(known)
            else ""
        ),
        "How the scores are distributed, and how well the two agree on each query.",
    )
    return (
        f"<h3>{text(one.student)} beside {text(one.teacher)}</h3>{faults}"
        '<div class="cards wide"><div>'
        + figure(
            charts.scatter(
                *points,
                (found.slope, found.intercept),
                f"{one.teacher} (teacher)",
                f"{one.student} (student)",
            ),
            f"Scores of {len(points[0]):,} of {found.documents:,} documents and the "
            "least-squares line.",
        )
        + html_table(tables.Grid("", ["", ""], rows), caption=False)
        + f"</div><div>{histograms}</div></div>"
    )


def _real(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:.4f}"


def _queries(contents: WorkdirReport) -> str:
    assert contents.summary
    names = (contents.summary["reference"], contents.against)
    measure = contents.summary["measures"][0]
    body = ""
    for outcome, duels in (("won", contents.won), ("lost", contents.lost)):
        if duels:
            heading = f"{text(names[0])} {outcome} most against {text(names[1])}"
            body += f"<h3>{heading}</h3>"
        for at, one in enumerate(duels):
            body += _duel(one, names, measure, at == 0)
    return body


def _duel(one: Duel, names: tuple[str, str], measure: str, opened: bool) -> str:
    columns = "".join(
        f"<div><h4>{text(name)} <span>{text(measure)} {value:.4f}</span></h4><ol>"
        f"{''.join(map(_document, shown)) or '<li>nothing found</li>'}</ol></div>"
        for name, value, shown in zip(names, one.values, one.tops, strict=True)
    )
    lead = one.values[0] - one.values[1]
    return (
        f"<details{' open' if opened else ''}><summary>{text(one.query)} "
        f'<span class="dim">{text(one.query_id)} · {lead:+.4f}</span></summary>'
        f'<div class="duel">{columns}</div></details>'
    )


def _document(one: ShownDocument) -> str:
    grade = "not judged" if one.grade is None else f"grade {one.grade}"
    kind = "g" if one.grade and one.grade > 0 else "z"
    title = f"<b>{text(one.title)}</b>" if one.title else ""
    return (
        f'<li><span class="badge {kind}">{grade}</span> '
        f'<span class="dim">{text(one.id)} · {one.score:.4g}</span>{title}'
        f"<p>{text(one.text)}</p></li>"
    )


def _provenance(contents: WorkdirReport) -> str:
    rows = [
        [
            one.name,
            one.manifest.kind,
            "done" if one.manifest.done else "not finished",
            one.manifest.key,
            ", ".join(f"{k} {v}" for k, v in one.manifest.inputs.items()) or "-",
            one.manifest.version,
        ]
        for one in contents.stages
    ]
    header = ["stage", "kind", "state", "key", "made from", "ranker"]
    body = html_table(tables.Grid("", header, rows, 6), caption=False)
    body += (
        '<p class="dim">A key is a digest of a stage\'s settings and of the keys of '
        "what it was made from: equal keys, equal results.</p>"
    )
    for one in contents.stages:
        if one.manifest.kind == "prepare" and one.manifest.done:
            report = PrepareFacts.of(one.manifest.facts).report
            # Workdirs of earlier versions hold a flat one.
            known = summary.report_lines(report) if "splits" in report else ()
            facts = [[*line.partition(": ")[::2]] for line in known]
            grid = tables.Grid("", ["data", "count"], facts)
            body += f"<h3>Data</h3>{html_table(grid, caption=False)}"
    body += "<h3>Settings and facts</h3>"
    for one in contents.stages:
        facts = {k: v for k, v in one.manifest.facts.items() if k != "summary"}
        told = {"settings": one.manifest.settings, "facts": facts}
        written = escape(
            parts.CONTROL.sub("�", json.dumps(told, indent=1, ensure_ascii=False))
        )
        body += (
            f"<details><summary>{text(one.name)}</summary>"
            f'<div class="scroll"><pre>{written}</pre></div></details>'
        )
    return body
