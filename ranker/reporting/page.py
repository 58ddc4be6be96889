"""The report of a workdir as one HTML page: no script, nothing fetched, all escaped.

Texts of queries and documents come from strangers. They are escaped, stripped of
control characters, and kept in an element of their own writing direction; and the page
forbids scripts and requests to itself, should that ever fail.
"""

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

import ranker
from ranker.metrics import agreement
from ranker.reporting import charts, figures, tables
from ranker.reporting.workdir import (
    Calibration,
    Contents,
    Duel,
    Shown,
    Stage,
    seconds,
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_POINTS = 1500  # of a scatter: a page stays small
_TRAINED = ("cpt", "sft", "distill")


def text(value: Any) -> str:
    """Any text, safe in HTML and with its own writing direction."""
    return f"<bdi>{escape(_CONTROL.sub('�', str(value)))}</bdi>"


def render(contents: Contents) -> str:
    """The whole page."""
    sections = [("overview", "Overview", _overview(contents))]
    summary = contents.summary
    if summary:
        sections.append(("results", "Results", _results(summary)))
        if summary["slices"]:
            sections.append(("slices", "Slices", _slices(summary)))
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


def frame(
    name: str, sections: Sequence[tuple[str, str, str]], *, over: str = "ranker report"
) -> str:
    """A page around its sections.

    Args:
      name: its heading.
      sections: (anchor, heading, HTML) of each.
      over: small line above the heading.
    """
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{body}</section>'
        for key, title, body in sections
    )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(_CONTROL.sub("�", name))} · {escape(over)}</title>
<style>{_STYLE}</style></head><body>
<header><p class="over">{escape(over)}</p><h1>{text(name)}</h1>
<p class="dim">ranker {escape(ranker.__version__)} · written {now}</p>
<nav>{links}</nav></header>
<main>{body}</main></body></html>
"""


# --- pieces ---


def table(grid: tables.Grid, *, caption: bool = True) -> str:
    """A table, scrolled where it is too wide."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if at < grid.left else ' class=n'}>{text(cell)}</{tag}>"
            for at, cell in enumerate(row)
        )

    rows = "".join(
        f"<tr{' class=strong' if row[0] == grid.strong else ''}>{cells(row, 'td')}</tr>"
        for row in grid.rows
    )
    title = f"<caption>{text(grid.title)}</caption>" if caption else ""
    head = f"<thead><tr>{cells(grid.header, 'th')}</tr></thead>"
    if not any(grid.header):
        head = ""
    return (
        f'<div class="scroll"><table>{title}{head}<tbody>{rows}</tbody></table></div>'
    )


def figure(svg: str, caption: str) -> str:
    """A chart and what it shows; the caption is HTML."""
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def legend(names: Sequence[str]) -> str:
    """The colours of names, in their order."""
    items = "".join(
        f'<span><i class="key c{at % charts.COLOURS}"></i>{text(name)}</span>'
        for at, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def _duration(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- sections ---


def _overview(contents: Contents) -> str:
    notes = "".join(f'<p class="warn">{text(line)}</p>' for line in contents.missing)
    summary = contents.summary
    if not summary:
        return notes + _progress(contents.stages)
    measure, reference = summary["measures"][0], summary["reference"]
    tiles = []
    for name, system in summary["systems"].items():
        ends, mean = system["interval"][measure], system["difference"][measure]
        if name == reference:
            below = "the reference"
        elif ends is None:
            below = "too few queries to test"
        else:
            below = f"{mean:+.4f} {tables.interval(ends)}"
        strong = " strong" if name == reference else ""
        tiles.append(
            f'<div class="tile{strong}"><p>{text(name)}</p>'
            f"<b>{tables.number(system['metrics'][measure])}</b>"
            f'<p class="dim">{below}</p></div>'
        )
    return (
        f"{notes}<p>{text(measure)} over {summary['queries']:,} held-out queries "
        f"({text(summary.get('split', 'test'))}); below it the difference from "
        f"{text(reference)} and its 95 % interval.</p>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _progress(stages: Sequence[Stage]) -> str:
    rows = [
        [one.name, one.manifest.kind, "done" if one.manifest.done else "not finished"]
        for one in stages
    ]
    return table(tables.Grid("", ["stage", "kind", "state"], rows, 3), caption=False)


def _results(summary: tables.Summary) -> str:
    measure = summary["measures"][0]
    rows = [
        charts.Interval(
            name,
            system["difference"][measure],
            low=interval[0],
            high=interval[1],
            strong=system["p_holm"][measure] < tables.SIGNIFICANT,
        )
        for name, system in summary["systems"].items()
        if (interval := system["interval"][measure]) is not None
    ]
    body = table(tables.means(summary))
    if rows:
        body += figure(
            charts.forest(rows, f"{measure} less that of {summary['reference']}"),
            "Mean difference over the queries and its 95 % bootstrap interval; in "
            "colour where the paired randomisation test finds it significant after "
            f"Holm's correction (p &lt; {tables.SIGNIFICANT}).",
        )
    if len(summary["systems"]) > 1:
        body += (
            "<details><summary>Every difference, with its tests</summary>"
            f"{table(tables.differences(summary))}</details>"
        )
    return body


def _slices(summary: tables.Summary) -> str:
    names, measure = list(summary["systems"]), summary["measures"][0]
    rows = [
        (
            f"{one['field']}: {one['value']}",
            [
                (name, value, at % charts.COLOURS)
                for at, name in enumerate(names)
                if (value := one["metrics"][name][measure]) is not None
            ],
        )
        for one in summary["slices"]
    ]
    return (
        legend(names)
        + figure(charts.dots(rows, measure), f"Mean {text(measure)} of each slice.")
        + table(tables.slices(summary, measure))
    )


def _curve(stage: Stage) -> str:
    steps, losses = stage.curve("loss")
    facts, metrics = stage.manifest.facts, stage.manifest.facts.get("metrics", {})
    named = sorted({n for row in stage.metrics for n in row if n.startswith("dev_")})
    lines = [charts.Series("loss", steps, losses, 0)] if steps else []
    body = ""
    if lines:
        body += figure(charts.lines(lines, "step", "training loss"), "")
    for name in named:
        series = charts.Series(
            name, *stage.curve(name), 1, len(stage.curve(name)[0]) > 1
        )
        if len(series.x) > 1:
            body += figure(charts.lines([series], "step", name), "")
    rates = [
        row["tokens_per_second"]
        for row in stage.metrics
        if isinstance(row.get("tokens_per_second"), int | float)
    ]
    took = seconds(stage.metrics)
    shown = {
        "kind": stage.manifest.kind,
        "steps": facts.get("steps", int(max(steps, default=0))),
        "state": "done" if stage.manifest.done else "not finished",
        **({"last loss": f"{losses[-1]:.4g}"} if losses else {}),
        **{
            name: f"{value:.4f}"
            for name, value in metrics.items()
            if name in named and isinstance(value, int | float)
        },
        **({"tokens/s (median)": f"{np.median(rates):,.0f}"} if rates else {}),
        **({"time": _duration(took)} if took else {}),
    }
    if stage.broken_lines:
        shown["unreadable lines in metrics.jsonl"] = str(stage.broken_lines)
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in shown.items())
    return f'<div class="card"><h3>{text(stage.name)}</h3>{body}<dl>{items}</dl></div>'


def _calibration(one: Calibration) -> str:
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
        charts.histogram(one.teacher_scores, f"scores of {one.teacher}", 1)
        + charts.histogram(one.student_scores, f"scores of {one.student}", 2)
        + (
            charts.histogram(known, "Kendall's tau of a query", 3) if len(known) else ""
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
        + table(tables.Grid("", ["", ""], rows), caption=False)
        + f"</div><div>{histograms}</div></div>"
    )


def _real(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:.4f}"


def _queries(contents: Contents) -> str:
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


def _document(one: Shown) -> str:
    grade = "not judged" if one.grade is None else f"grade {one.grade}"
    kind = "g" if one.grade and one.grade > 0 else "z"
    title = f"<b>{text(one.title)}</b>" if one.title else ""
    return (
        f'<li><span class="badge {kind}">{grade}</span> '
        f'<span class="dim">{text(one.id)} · {one.score:.4g}</span>{title}'
        f"<p>{text(one.text)}</p></li>"
    )


def _provenance(contents: Contents) -> str:
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
    body = table(tables.Grid("", header, rows, 6), caption=False)
    body += (
        '<p class="dim">A key is a digest of a stage\'s settings and of the keys of '
        "what it was made from: equal keys, equal results.</p>"
    )
    for one in contents.stages:
        report = one.manifest.facts.get("report")
        if one.manifest.kind == "prepare" and isinstance(report, dict):
            facts = [[name, str(value)] for name, value in report.items()]
            grid = tables.Grid("", ["data", "count"], facts)
            body += f"<h3>Data</h3>{table(grid, caption=False)}"
    body += "<h3>Settings and facts</h3>"
    for one in contents.stages:
        facts = {k: v for k, v in one.manifest.facts.items() if k != "summary"}
        told = {"settings": one.manifest.settings, "facts": facts}
        written = escape(
            _CONTROL.sub("�", json.dumps(told, indent=1, ensure_ascii=False))
        )
        body += (
            f"<details><summary>{text(one.name)}</summary>"
            f'<div class="scroll"><pre>{written}</pre></div></details>'
        )
    return body


_STYLE = (
    """
:root{--bg:#fbfaf8;--card:#fff;--ink:#1d1e22;--dim:#676b74;--line:#e3e1dc;
--soft:#f3f1ec;
--c0:#2f6fdf;--c1:#c2571a;--c2:#2a8a5b;--c3:#8a4fc4;--c4:#b0912a;--c5:#8b8f98;
--c6:#c23b6b;--c7:#1d8a96;--c8:#6b7a1f;--c9:#7a5230;
--warn:#8a5a00;--warnbg:#fff4d6;--good:#1f7a4d;--goodbg:#e2f4ea}
@media(prefers-color-scheme:dark){:root{--bg:#141518;--card:#1c1e22;--ink:#e8e8ea;
--dim:#9a9ea8;--line:#31343b;--soft:#24262b;--c0:#7aa7ff;--c1:#f0935a;--c2:#63c796;
--c3:#bd92ef;--c4:#dcc06a;--c5:#7d828d;
--c6:#f08ab0;--c7:#62c8d3;--c8:#b9c96a;--c9:#c99f7a;
--warn:#ffd27a;--warnbg:#3a2f14;--good:#83dcae;
--goodbg:#173527}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,
-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
sans-serif;overflow-wrap:anywhere}
header,main{max-width:1080px;margin:0 auto;padding:0 24px}
header{padding-top:48px}.over{margin:0;color:var(--dim);font-size:13px;
letter-spacing:.09em;text-transform:uppercase}
h1{font-size:34px;line-height:1.15;margin:4px 0;letter-spacing:-.02em}
h2{font-size:22px;margin:56px 0 14px;letter-spacing:-.01em}
h3{font-size:17px;margin:28px 0 10px}h4{font-size:14px;margin:0 0 8px}
h4 span,.dim{color:var(--dim);font-weight:400;font-size:14px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin-top:18px;padding-bottom:14px;
border-bottom:1px solid var(--line)}nav a{color:var(--c0);text-decoration:none;
font-size:14px}nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px}
.tile,.card,figure,details{background:var(--card);border:1px solid var(--line);
border-radius:10px}.tile{padding:14px 16px}.tile p{margin:0}.tile b{font-size:28px;
font-variant-numeric:tabular-nums;letter-spacing:-.02em}.tile .dim{font-size:13px}
.tile.strong{border-color:var(--c0);box-shadow:inset 0 3px 0 var(--c0)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
.cards.wide{grid-template-columns:repeat(auto-fit,minmax(420px,1fr));align-items:start}
.card{padding:14px 16px}.card h3{margin:0 0 6px}.card figure{border:0;margin:0;
padding:0}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 14px;margin:8px 0 0;
font-size:14px}dt{color:var(--dim)}dd{margin:0;text-align:right;
font-variant-numeric:tabular-nums}
figure{margin:14px 0;padding:12px 14px}figcaption{color:var(--dim);font-size:14px}
figcaption:empty{display:none}figure{overflow-x:auto}
svg.page{min-width:720px}svg{display:block;width:100%;height:auto}
svg text{fill:var(--ink);font-size:12px}svg .tick{fill:var(--dim);
font-variant-numeric:tabular-nums}svg .label{fill:var(--dim)}
.grid{stroke:var(--line)}.axis{stroke:var(--dim)}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.whisker{stroke-width:2.4}
.fit{stroke:var(--c1);stroke-width:1.8}.point{opacity:.4}
"""
    + "".join(f".c{n}{{--c:var(--c{n})}}" for n in range(charts.COLOURS))
    + """
.line,.whisker{stroke:var(--c)}.dot,.bar,.point{fill:var(--c)}.key{background:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:0 0 8px;font-size:14px}
.key{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px}
.scroll{overflow-x:auto;margin:14px 0}table{border-collapse:collapse;width:100%;
font-size:14px;background:var(--card);border:1px solid var(--line)}
caption{text-align:left;color:var(--dim);padding:0 0 8px}
th,td{padding:7px 12px;text-align:left;border-top:1px solid var(--line);
white-space:nowrap;font-variant-numeric:tabular-nums}
th{color:var(--dim);font-weight:600;border-top:0}.n{text-align:right}
tr.strong td{font-weight:650;background:var(--soft)}
details{margin:10px 0;padding:0 14px}summary{cursor:pointer;padding:10px 0}
pre{margin:0 0 12px;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
.duel{display:grid;grid-template-columns:1fr 1fr;gap:18px;padding-bottom:14px}
.duel ol{margin:0;padding-left:22px;font-size:14px}.duel li{margin-bottom:10px}
.duel li b{display:block}.duel li p{margin:2px 0 0;max-height:9em;overflow:hidden}
.badge{font-size:12px;padding:1px 7px;border-radius:9px;background:var(--soft);
color:var(--dim)}.badge.g{background:var(--goodbg);color:var(--good)}
.warn{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:9px 14px;
margin:8px 0;font-size:14px}
@media(max-width:640px){.duel,.cards.wide,.cards{grid-template-columns:1fr}
header,main{padding:0 14px}h1{font-size:27px}}
@media print{nav{display:none}details{break-inside:avoid}}
"""
)
