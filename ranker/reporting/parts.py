"""Pieces of an HTML page that loads nothing and runs no script.

Every text that comes from outside goes through `text`.
"""

import datetime
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import ranker
from ranker.reporting import charts, tables

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def text(value: Any) -> str:
    """Any text, safe in HTML and with its own writing direction."""
    return f"<bdi>{escape(CONTROL.sub('�', str(value)))}</bdi>"


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
<title>{escape(CONTROL.sub("�", name))} · {escape(over)}</title>
<style>{_STYLE}</style></head><body>
<header><p class="over">{escape(over)}</p><h1>{text(name)}</h1>
<p class="dim">ranker {escape(ranker.__version__)} · written {now}</p>
<nav>{links}</nav></header>
<main>{body}</main></body></html>
"""


def warning(line: str) -> str:
    """A note in a box."""
    return f'<p class="warn">{text(line)}</p>'


def html_table(grid: tables.Grid, *, caption: bool = True) -> str:
    """A table, its title above it."""

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
    """A chart with a line below it."""
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def legend(names: Sequence[str]) -> str:
    """Names beside their colours."""
    items = "".join(
        f'<span><i class="key c{at % charts.COLOURS}"></i>{text(name)}</span>'
        for at, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def overview(summary: tables.Summary) -> str:
    """Every system's value of the first measure, as tiles."""
    measure, reference = summary["measures"][0], summary["reference"]
    tiles = []
    for name, system in summary["systems"].items():
        ends, mean = system["interval"][measure], system["difference"][measure]
        if name == reference:
            below = "the reference"
        elif mean is None:
            below = "too few queries to test"
        else:
            below = f"{mean:+.4f} {tables.interval(ends) if ends else ''}"
        strong = " strong" if name == reference else ""
        tiles.append(
            f'<div class="tile{strong}"><p>{text(name)}</p>'
            f"<b>{tables.number(system['metrics'][measure])}</b>"
            f'<p class="dim">{below}</p></div>'
        )
    split = summary.get("split")
    queries = f"held-out queries ({text(split)})" if split else "judged queries"
    return (
        f"<p>{text(measure)} over {summary['queries']:,} {queries}; below it the "
        f"difference from {text(reference)} and its 95 % interval.</p>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def results(summary: tables.Summary) -> str:
    """Values, differences and their tests."""
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
    body = html_table(tables.means_grid(summary))
    if rows:
        body += figure(
            charts.forest(rows, f"{measure} less that of {summary['reference']}"),
            "Mean difference over the queries and its 95 % interval; in colour "
            "where the randomisation test, or of several seeds the t-test, finds "
            f"it significant after Holm's correction (p &lt; {tables.SIGNIFICANT}).",
        )
    if len(summary["systems"]) > 1:
        body += (
            "<details><summary>Every difference, with its tests</summary>"
            f"{html_table(tables.differences_grid(summary))}</details>"
        )
    return body


def slices_section(summary: tables.Summary) -> str:
    """The first measure on each slice."""
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
        + html_table(tables.slices_grid(summary, measure))
    )


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
