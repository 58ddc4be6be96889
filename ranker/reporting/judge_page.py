"""The page of judged negatives: how many, where they stood, and what they look like.

It shows report.json and nothing else, so it can be written again at any time.
"""

from collections.abc import Mapping
from typing import Any

from ranker.reporting import tables
from ranker.reporting.parts import frame, html_table, text

_COUNTS = (
    "lists",
    "lists_with_a_positive",
    "judged_candidates",
    "unjudged_candidates",
    "dropped",
    "relabelled",
    "above_every_positive",
)


def render(name: str, report: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
      name: its heading.
      report: what report.json of a judging stage holds.
    """
    sections = [
        ("counts", "What was found", _counts(report)),
        ("ranks", "Where the suspects stood in the first stage", _ranks(report)),
        ("examples", "Those furthest above the best positive", _examples(report)),
    ]
    return frame(name, sections, over="ranker negatives")


def _counts(report: Mapping[str, Any]) -> str:
    judge = report["judge"]
    margin = f"{judge['margin']:g}"
    if judge["unit"] == "relative":
        margin += " of the distance to the list's lowest score"
    rows = [["action", judge["action"]], ["margin below the best positive", margin]]
    if judge["action"] == "relabel":
        rows.append(["grade", str(judge["grade"])])
    rows += [
        [one.replace("_", " "), f"{report[one]:,}"] for one in _COUNTS if one in report
    ]
    return html_table(tables.Grid(title="", header=["", ""], rows=rows, left=1))


def _ranks(report: Mapping[str, Any]) -> str:
    if not report["by_rank"]:
        return "<p>None.</p>"
    rows = [[ranks, f"{count:,}"] for ranks, count in report["by_rank"].items()]
    grid = tables.Grid(title="", header=["ranks", "suspects"], rows=rows, left=1)
    return html_table(grid)


def _examples(report: Mapping[str, Any]) -> str:
    if not report["examples"]:
        return "<p>None.</p>"
    return "".join(map(_example, report["examples"]))


def _example(one: Mapping[str, Any]) -> str:
    def document(kind: str, found: Mapping[str, Any]) -> str:
        return (
            f"<h4>{kind}: {text(found['id'])}, score {found['score']:.4g}, "
            f"place {found['rank']}</h4><p><strong>{text(found['title'])}</strong> "
            f"{text(found['text'])}</p>"
        )

    return (
        f"<article><h3>{text(one['query'])}</h3>"
        f"{document('best positive', one['positive'])}"
        f"{document('suspect', one['suspect'])}</article>"
    )
