"""Reports of online evaluation: tables for the terminal, and one page with plots.

All take the summary that a command of `ranker.online` makes and writes as JSON.
"""

import math
from collections.abc import Callable, Sequence

from ranker.reporting import charts, parts, tables
from ranker.reporting.tables import Grid, Summary

_TITLES = {
    "ab": "A/B test",
    "interleave": "Interleaving",
    "power": "Power",
    "aa": "A/A check",
    "gsb": "Side by side",
    "clickmodel": "Click models",
    "counterfactual": "Counterfactual estimate",
    "impressions": "Lists of clicks",
    "clicks": "Click log",
    "simulate": "Simulated log",
}


def grids(summary: Summary) -> list[Grid]:
    """All tables of a report."""
    found = _GRIDS[summary["command"]](summary)
    if summary.get("contradictions"):
        found.append(contradictions(summary))
    return found


def percent(value: float | None, digits: int = 2) -> str:
    """A relative number, signed."""
    return "-" if value is None else f"{100 * value:+.{digits}f} %"


def _ends(ends: Sequence[float | None]) -> str:
    if ends[0] is None and ends[1] is None:
        return "no bound"
    return f"[{percent(ends[0])}, {percent(ends[1])}]"


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def contradictions(summary: Summary) -> Grid:
    """What the log's rows said against each other."""
    rows = [
        [one["what"], f"{one['count']:,}", one["done"], one["example"], one["advice"]]
        for one in summary["contradictions"].values()
    ]
    header = ["in the log", "count", "done", "the first", "what to do"]
    return Grid("contradictions", header, rows)


# --- ab ---


def _ab(summary: Summary) -> list[Grid]:
    found = [_arms(summary), _ratio(summary)]
    for arm, by_measure in summary.get("comparisons", {}).items():
        found.append(_effects(summary, arm, by_measure))
    for arm, one in summary.get("sequential", {}).items():
        found.append(
            Grid(
                f"{arm}, looked at after each day (always valid)",
                ["looks", "p", "interval of the difference", "decided on"],
                [
                    [
                        str(one["looks"]),
                        tables.p_value(one["p_value"]),
                        "no bound yet"
                        if one["interval"][0] is None
                        else tables.interval(one["interval"]),
                        one["decided_on"] or "not decided",
                    ]
                ],
                left=0,
            )
        )
    if summary.get("segments"):
        found.append(_segments(summary))
    if "triggered" in summary:
        found.append(_triggered(summary))
    return found


def _arms(summary: Summary) -> Grid:
    rows = [
        [arm, f"{one['users']:,}", f"{one['pages']:,}", f"{one['clicks']:,}"]
        + [f"{v:,.0f}" for v in one.get("latency", {}).values()]
        for arm, one in summary["arms"].items()
    ]
    header = ["arm", "users", "pages", "clicks"]
    if any("latency" in one for one in summary["arms"].values()):
        header += ["p50 ms", "p95 ms", "p99 ms"]
    rows = [row + ["-"] * (len(header) - len(row)) for row in rows]
    return Grid("arms", header, rows, strong=summary["control"])


def _ratio(summary: Summary) -> Grid:
    srm = summary["srm"]
    rows = [
        [arm, f"{count:,}", f"{srm['expected'][arm]:,.1f}"]
        for arm, count in srm["observed"].items()
    ]
    said = "as planned" if srm["ok"] else "MISMATCH"
    title = f"split of users: {said}, p = {srm['p_value']:.2g}"
    return Grid(title, ["arm", "users", "expected"], rows)


def _effects(summary: Summary, arm: str, by_measure: Summary) -> Grid:
    primary, level = summary["primary"], 1 - summary["level"]
    rows = []
    order = [primary, *(name for name in by_measure if name != primary)]
    for name in order:
        if name not in by_measure:
            continue
        one = by_measure[name]
        p_holm = one["p_holm"]
        mark = ""
        if p_holm is not None and p_holm < level and one["lift"] is not None:
            good = one["lift"] * one["better"]
            mark = {1: "better", -1: "worse", 0: "differs"}[(good > 0) - (good < 0)]
        rows.append(
            [
                f"{name} (primary)" if name == primary else name,
                _value(one["control"]),
                _value(one["treatment"]),
                percent(one["lift"]),
                _ends(one["lift_interval"]),
                tables.p_value(one["p_value"]),
                tables.p_value(p_holm),
                mark,
            ]
        )
    cuped = any(one["theta"] for one in by_measure.values())
    title = f"{arm} against {summary['control']}, by user"
    title += ", adjusted by the pre-period (CUPED)" if cuped else ""
    ends = f"{100 * summary['level']:g} % interval"
    header = [
        "measure",
        summary["control"],
        arm,
        "lift",
        ends,
        "p",
        "p (Holm)",
        "",
    ]
    return Grid(title, header, rows, strong=f"{primary} (primary)")


def _segments(summary: Summary) -> Grid:
    rows = [
        [
            one["segment"],
            str(one["value"]),
            one["arm"],
            f"{one['users']:,}",
            percent(one["lift"]),
            _ends(one["lift_interval"]),
            tables.p_value(one["p_value"]),
            tables.p_value(one["p_holm"]),
        ]
        for one in summary["segments"]
    ]
    header = ["segment", "value", "arm", "users", "lift", "interval", "p", "p (Holm)"]
    return Grid(f"{summary['primary']} by segment", header, rows, left=3)


def _triggered(summary: Summary) -> Grid:
    one = summary["triggered"]
    rows = [
        [
            arm,
            _value(effect["control"]),
            _value(effect["treatment"]),
            percent(effect["lift"]),
            _ends(effect["lift_interval"]),
            tables.p_value(effect["p_value"]),
        ]
        for arm, effect in one["comparisons"].items()
    ]
    title = (
        f"{one['measure']} on pages that the arms answer differently: "
        f"{one['share_of_pages']:.1%} of pages, {one['users']:,} users"
    )
    if "srm" in one and not one["srm"]["ok"]:
        title += (
            f"; MISMATCH of triggered users, p = {one['srm']['p_value']:.2g}: the "
            "trigger is not the same for both arms"
        )
    header = ["arm", summary["control"], "arm's", "lift", "interval", "p"]
    return Grid(title, header, rows)


# --- the others ---


def _interleave(summary: Summary) -> list[Grid]:
    rows = [
        [
            one["a"],
            one["b"],
            f"{one['wins']:,}",
            f"{one['losses']:,}",
            f"{one['ties']:,}",
            f"{one['users']:,}",
            f"{one['delta']:+.4f}",
            tables.interval(one["interval"]),
            tables.p_value(one["p_value"]),
            tables.p_value(one["sign_p_value"]),
            one["preferred"] or "neither",
        ]
        for one in summary["pairs"]
    ]
    header = [
        "a",
        "b",
        "a wins",
        "b wins",
        "ties",
        "users",
        "delta",
        "interval",
        "p",
        "p (sign)",
        "preferred",
    ]
    title = (
        f"{summary['clicked_pages']:,} clicked pages, credit by {summary['credit']}; "
        "delta = (wins + ties / 2) / all - 1/2"
    )
    return [Grid(title, header, rows, left=2)]


def _power(summary: Summary) -> list[Grid]:
    rows = []
    for one in summary["rows"]:
        row = [percent(one["lift"])]
        for key in ("plain", "cuped"):
            if key not in one:
                continue
            days = one[key]["days"]
            row += [
                f"{one[key]['users']:,}",
                "never" if days is None else f"{days:,}",
            ]
            if "power" in one[key]:
                row.append(f"{one[key]['power']:.3f}")
        rows.append(row)
    header = ["lift"]
    for key in ("plain", "cuped"):
        if key in summary["rows"][0]:
            said = " (CUPED)" if key == "cuped" else ""
            header += [f"users{said}", f"days{said}"]
            if summary["asked_users"]:
                header.append(f"power of {summary['asked_users']:,}{said}")
    title = (
        f"{summary['measure']} {_value(summary['value'])} of {summary['users']:,} "
        f"users; power {summary['power']:g}, both arms together"
    )
    return [Grid(title, header, rows, left=0)]


def _aa(summary: Summary) -> list[Grid]:
    rows = [
        [
            name,
            f"{one['false_positives']:.1%}",
            "as expected" if one["ok"] else "WRONG",
            tables.p_value(one["uniform_p_value"]),
        ]
        for name, one in summary["measures"].items()
    ]
    low, high = summary["expected"]
    title = (
        f"{summary['splits']:,} random halvings of {summary['users']:,} users; "
        f"{low:.1%} to {high:.1%} false positives expected"
    )
    return [Grid(title, ["measure", "false positives", "", "uniform p"], rows)]


def _gsb(summary: Summary) -> list[Grid]:
    if "sheet" in summary:
        row = [
            summary["sheet"],
            f"{summary['queries']:,}",
            f"{summary['unchanged']:,}",
        ]
        return [Grid("sheet", ["file", "queries to judge", "unchanged"], [row])]
    a, b = summary["names"]
    row = [
        f"{summary['good']}",
        f"{summary['same']}",
        f"{summary['bad']}",
        f"{summary['gsb']:+.4f}",
        tables.interval(summary["interval"]),
        tables.p_value(summary["sign_p_value"]),
        f"{summary['gsb_of_all']:+.4f}",
        summary["preferred"] or "neither",
    ]
    header = [
        f"{b} better",
        "same",
        f"{a} better",
        "GSB",
        "interval",
        "p (sign)",
        "GSB with unchanged",
        "preferred",
    ]
    return [Grid(f"{summary['judged']} queries judged", header, [row], left=0)]


def _clickmodel(summary: Summary) -> list[Grid]:
    models = summary["models"]
    rows = [
        [
            name,
            f"{one['perplexity']:.4f}",
            f"{one['conditional_perplexity']:.4f}",
            *(f"{value:.3f}" for value in one["perplexity_by_rank"]),
        ]
        for name, one in models.items()
    ]
    depth = summary["depth"]
    ranks = [str(rank) for rank in range(1, depth + 1)]
    held = Grid(
        f"perplexity on {summary['held_out_pages']:,} held-out pages, and by rank",
        ["model", "all", "given clicks above", *ranks],
        rows,
        strong=summary["best"],
    )
    looks = Grid(
        f"chance of being looked at by rank, of {summary['pages']:,} pages",
        ["model", *ranks],
        [
            [name, *(f"{value:.3f}" for value in one["propensities"])]
            for name, one in models.items()
        ],
        strong=summary["best"],
    )
    return [held, looks]


def _counterfactual(summary: Summary) -> list[Grid]:
    found = []
    for name, one in summary["systems"].items():
        rows = [
            [
                key,
                f"{one[key]['value']:.4f}",
                f"[{one[key]['interval'][0]:.4f}, {one[key]['interval'][1]:.4f}]",
            ]
            for key in ("logged", "ips", "clipped", "snips", "dr")
            if key in one
        ]
        title = (
            f"{name}: clicks on the first {summary['depth']} results a page, by "
            f"{summary['by']}; {one['pages']:,} pages, effective sample "
            f"{one['effective_size']:,.0f} results, {one['coverage']:.0%} covered"
        )
        found.append(Grid(title, ["estimate", "clicks a page", "interval"], rows))
    return found


def _impressions(summary: Summary) -> list[Grid]:
    row = [
        summary["out"],
        *(
            f"{summary[key]:,}"
            for key in (
                "lists",
                "pages",
                "clicks",
                "without_a_click",
                "shown_too_seldom",
            )
        ),
        summary["weights"],
    ]
    header = [
        "file",
        "lists",
        "pages",
        "clicks",
        "queries without a click",
        "shown too seldom",
        "weight of a click",
    ]
    return [Grid("lists to learn from", header, [row])]


def _clicks(summary: Summary) -> list[Grid]:
    names = ("clicks", "written", "without_query", "without_document", "with_dwell")
    row = [summary["out"], *(f"{summary[name]:,}" for name in names)]
    header = ["file", *(name.replace("_", " ") for name in names)]
    return [Grid("a click log for continued pre-training", header, [row])]


def _simulate(summary: Summary) -> list[Grid]:
    rows = [
        [
            name,
            f"{one['PageCTR']:.4f}",
            f"{one['clicks_per_page']:.4f}",
            percent(one["lift"]),
        ]
        for name, one in summary["systems"].items()
    ]
    title = (
        f"the truth of {summary['out']}: {summary['rows']:,} events, "
        f"{summary['design']}, {summary['model']} users, {summary['queries']:,} queries"
    )
    header = ["system", "PageCTR", "clicks a page", "lift of PageCTR"]
    return [Grid(title, header, rows)]


_GRIDS: dict[str, Callable[[Summary], list[Grid]]] = {
    "ab": _ab,
    "interleave": _interleave,
    "power": _power,
    "aa": _aa,
    "gsb": _gsb,
    "clickmodel": _clickmodel,
    "counterfactual": _counterfactual,
    "impressions": _impressions,
    "clicks": _clicks,
    "simulate": _simulate,
}


# --- the page ---


def page_of(summary: Summary) -> list[tuple[str, str, str]]:
    """Its sections."""
    body = "".join(
        f'<p class="warn">{parts.text(line)}</p>'
        for line in [summary.get("stopped"), *summary.get("notes", [])]
        if line
    )
    body += _log_line(summary)
    sections = [("overview", "Overview", body)]
    plots = _PLOTS.get(summary["command"], lambda _: "")(summary)
    if plots:
        sections.append(("plots", "Plots", plots))
    drawn = "".join(parts.html_table(grid) for grid in grids(summary))
    sections.append(("tables", "Tables", drawn))
    if summary.get("rules"):
        rows = [[name, text] for name, text in summary["rules"].items()]
        rules = parts.html_table(Grid("", ["", ""], rows, left=2), caption=False)
        sections.append(("rules", "Rules", rules))
    return sections


def render(summary: Summary) -> str:
    """The whole page."""
    title = _TITLES[summary["command"]]
    return parts.frame(title, page_of(summary), over="ranker online")


def _log_line(summary: Summary) -> str:
    log = summary.get("log")
    if not log:
        return ""
    files = ", ".join(log["files"][:3]) + ("" if len(log["files"]) < 4 else ", ...")
    return (
        f'<p class="dim">{log["rows"]:,} events, {log["clicks"]:,} of them clicks, of '
        f"{parts.text(files)}</p>"
    )


def _bounded(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _ab_plots(summary: Summary) -> str:
    body = ""
    alpha = 1 - summary["level"]
    for arm, by_measure in summary.get("comparisons", {}).items():
        rows = [
            charts.Interval(
                name,
                100 * one["lift"],
                100 * one["lift_interval"][0],
                100 * one["lift_interval"][1],
                one["p_holm"] is not None and one["p_holm"] < alpha,
            )
            for name, one in by_measure.items()
            if _bounded(one["lift"]) and all(map(_bounded, one["lift_interval"]))
        ]
        if rows:
            body += parts.figure(
                charts.forest(rows, f"lift of {arm} over {summary['control']}, %"),
                "Relative lifts with their intervals, by user; in colour where Holm's "
                "corrected p is significant.",
            )
    for arm, days in summary.get("days", {}).items():
        shown = [one for one in days if all(map(_bounded, one["lift_interval"]))]
        if len(shown) > 1:
            body += _day_plots(summary, arm, shown)
    return body


def _day_plots(summary: Summary, arm: str, days: Sequence[Summary]) -> str:
    at = [float(number) for number in range(1, len(days) + 1)]
    ends = [[100 * one["lift_interval"][end] for one in days] for end in (0, 1)]
    lift = charts.line_chart(
        [
            charts.Series("lift", at, [100 * one["lift"] for one in days], 0),
            charts.Series("low", at, ends[0], charts.GREY),
            charts.Series("high", at, ends[1], charts.GREY),
        ],
        "day",
        f"lift of {arm} so far, %",
    )
    cards = parts.figure(lift, f"{summary['primary']} until the end of each day.")
    key = "always_valid_p" if "sequential" in summary else "p_value"
    p = [one[key] if one[key] is not None else 1.0 for one in days]
    said = (
        "Always-valid p, which may be looked at each day."
        if "sequential" in summary
        else "Fixed-horizon p: only the last one counts."
    )
    chart = charts.line_chart([charts.Series("p", at, p, 1)], "day", "p-value")
    cards += parts.figure(chart, said)
    return f'<div class="cards">{cards}</div>'


def interleave_plots(summary: Summary) -> str:
    """Each pair's delta with its interval."""
    rows = [
        charts.Interval(
            f"{one['a']} over {one['b']}",
            one["delta"],
            one["interval"][0],
            one["interval"][1],
            one["preferred"] is not None,
        )
        for one in summary["pairs"]
    ]
    return parts.figure(
        charts.forest(rows, "delta"),
        "Above 0 users prefer the first; intervals by user.",
    )


def _power_plots(summary: Summary) -> str:
    lifts = [100 * one["lift"] for one in summary["rows"]]
    series = [
        charts.Series(
            key,
            lifts,
            [math.log10(one[key]["users"] or 1) for one in summary["rows"]],
            at,
        )
        for at, key in enumerate(("plain", "cuped"))
        if key in summary["rows"][0]
    ]
    days = summary["users_by_day"]
    arrivals = charts.Series(
        "users",
        [float(n) for n in range(1, len(days) + 1)],
        [float(n) for n in days],
        2,
    )
    cards = parts.figure(
        charts.line_chart(series, "relative lift, %", "log10 of users"), "Users needed."
    )
    if len(days) > 1:
        cards += parts.figure(
            charts.line_chart([arrivals], "day", "users"), "Users so far."
        )
    names = [one.name for one in series]
    return parts.legend(names) + f'<div class="cards">{cards}</div>'


def _aa_plots(summary: Summary) -> str:
    cards = ""
    for at, (name, one) in enumerate(summary["measures"].items()):
        counts = one["histogram"]
        edges = [(n + 0.5) / len(counts) for n in range(len(counts))]
        series = charts.Series(name, edges, [float(c) for c in counts], at % 10)
        flat = [sum(counts) / len(counts)] * len(counts)
        chart = charts.line_chart(
            [series, charts.Series("expected", edges, flat, charts.GREY)],
            "p-value",
            "splits",
        )
        cards += parts.figure(chart, parts.text(name))
    return f'<div class="cards">{cards}</div>'


def _clickmodel_plots(summary: Summary) -> str:
    names = list(summary["models"])
    ranks = [float(rank) for rank in range(1, summary["depth"] + 1)]
    cards = ""
    for key, label, said in (
        ("propensities", "chance of looking", "The first rank's is 1."),
        ("perplexity_by_rank", "perplexity", "On held-out pages; 1 is best."),
    ):
        series = [
            charts.Series(name, ranks, summary["models"][name][key], at)
            for at, name in enumerate(names)
        ]
        cards += parts.figure(charts.line_chart(series, "rank", label), said)
    return parts.legend(names) + f'<div class="cards">{cards}</div>'


def _counterfactual_plots(summary: Summary) -> str:
    rows = [
        charts.Interval(
            f"{name} ({key})",
            one[key]["value"],
            one[key]["interval"][0],
            one[key]["interval"][1],
            key != "logged",
        )
        for name, one in summary["systems"].items()
        for key in ("logged", "ips", "clipped", "snips", "dr")
        if key in one
    ]
    chart = charts.forest(rows, "clicks a page")
    return parts.figure(chart, "Estimates with their intervals, by user.")


_PLOTS: dict[str, Callable[[Summary], str]] = {
    "ab": _ab_plots,
    "interleave": interleave_plots,
    "power": _power_plots,
    "aa": _aa_plots,
    "clickmodel": _clickmodel_plots,
    "counterfactual": _counterfactual_plots,
}
