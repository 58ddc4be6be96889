"""`interleave`: which ranker users prefer, from a log of interleaved pages."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from ranker.errors import ConfigError, DataError
from ranker.metrics.significance import holm
from ranker.online import pages
from ranker.online.events import Log
from ranker.online.interleaving import BOTH
from ranker.online.pages import Contradictions, PageRules, View

FIELDS = (*pages.FIELDS, "team", "score")
CREDITS = ("clicks", "satisfied", "dwell")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `interleave` is asked for."""

    credit: str = "clicks"  # what a click is worth: 1, 1 where satisfied, or its dwell
    by: str = "team"  # or score: the credit that the log gives each result
    level: float = 0.95
    names: Mapping[str, str] = field(default_factory=dict)  # team -> what to call it
    rules: PageRules = field(default_factory=PageRules)

    def __post_init__(self):
        if self.credit not in CREDITS:
            raise ConfigError(f"--credit {self.credit}: expected {', '.join(CREDITS)}")


@dataclass(frozen=True)
class Preference:
    """Of one ranker, a, over another, b."""

    wins: int  # pages
    losses: int
    ties: int  # pages with clicks that favour neither
    users: int  # with such a page
    delta: float
    interval: tuple[float, float]
    p_value: float
    sign_p_value: float  # over users, exact

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "users": self.users,
            "delta": self.delta,
            "interval": list(self.interval),
            "p_value": self.p_value,
            "sign_p_value": self.sign_p_value,
        }


def prefer(
    wins: np.ndarray, losses: np.ndarray, ties: np.ndarray, *, level: float = 0.95
) -> Preference:
    """Preference from each user's pages, [users] each; the user is the unit.

    delta = (wins + ties / 2) / all - 1 / 2 (Chapelle et al., 2012), from -1/2 to 1/2.
    Its p-value is of the t-test that users' wins less losses are 0 in the mean, so that
    one busy user is one vote, if a heavy one; its interval is Fieller's, which leaves
    out 0 just where that test rejects. The sign test asks for how many users a won more
    pages than b.

    >>> one = prefer(np.array([2, 1, 3]), np.array([1, 1, 0]), np.array([0, 0, 1]))
    >>> one.wins, one.losses, one.ties, round(one.delta, 4)
    (6, 2, 1, 0.2222)
    """
    wins, losses, ties = (np.asarray(one, np.float64) for one in (wins, losses, ties))
    some = wins + losses + ties > 0
    wins, losses, ties = wins[some], losses[some], ties[some]
    n, total = len(wins), float((wins + losses + ties).sum())
    lead = wins - losses
    up, down = int((lead > 0).sum()), int((lead < 0).sum())
    sign = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    counts = int(wins.sum()), int(losses.sum()), int(ties.sum())
    delta = float(lead.sum() / total / 2) if total else 0.0
    if n < 2:
        return Preference(*counts, n, delta, (-0.5, 0.5), 1.0, sign)
    t = stats.t(n - 1)
    mean, error = float(lead.mean()), float(lead.std(ddof=1)) / math.sqrt(n)
    if error > 0:
        p_value = float(2 * t.sf(abs(mean) / error))
    else:
        p_value = 1.0 if mean == 0 else sign
    ends = _fieller(lead / 2, wins + losses + ties, float(t.ppf((1 + level) / 2)))
    return Preference(*counts, n, delta, ends, p_value, sign)


def _fieller(
    above: np.ndarray, below: np.ndarray, quantile: float
) -> tuple[float, float]:
    """Interval of the ratio of two means over the same users (Fieller, 1954)."""
    covariance = np.cov(above, below) / len(above) * quantile**2
    a = float(below.mean() ** 2 - covariance[1, 1])
    b = float(above.mean() * below.mean() - covariance[0, 1])
    inside = b * b - a * float(above.mean() ** 2 - covariance[0, 0])
    if a <= 0 or inside < 0:
        return (-0.5, 0.5)
    root = math.sqrt(inside)
    return (max(-0.5, (b - root) / a), min(0.5, (b + root) / a))


_WORTH = {
    "clicks": "1.0",
    "satisfied": "(dwell >= {satisfied})::DOUBLE",
    "dwell": "coalesce(least(greatest(dwell, 0), {cap}), 0)",
}
# The credit of a page's clicked results by team; a result counts once.
_CREDIT = """
SELECT k.u, k.p, k.day, c.team, sum(c.credit) AS credit, sum(c.signed) AS signed
FROM kept k LEFT JOIN (
  SELECT e.u, e.p, coalesce(any_value(e.team), any_value(d.team), any_value(r.team))
      AS team,
    max({worth}) AS credit,
    max({worth}) * coalesce(any_value(e.score), any_value(d.score),
      any_value(r.score), 0) AS signed
  FROM event e
  LEFT JOIN shown d ON d.u = e.u AND d.p = e.p AND d.document = e.document
  LEFT JOIN shown r ON r.u = e.u AND r.p = e.p AND r.position = e.position
  WHERE e.click
  GROUP BY e.u, e.p, coalesce(e.document, e.position::UBIGINT)) c
ON c.u = k.u AND c.p = k.p WHERE k.in_test GROUP BY ALL
"""


def analyse(log: Log, settings: Settings) -> dict[str, Any]:
    """The whole report, for JSON.

    Raises:
      DataError: for a log without teams.
    """
    need = "score" if settings.by == "score" else "team"
    if need not in log.has:
        raise DataError(
            f"{log.facts['files'][0]}: the column {need!r} is missing or empty; log "
            "with every shown result, or with every click, the ranker that placed it: "
            "a, b or both"
        )
    found = Contradictions()
    chunks, named = [], set()
    for bucket in pages.walk(log, settings.rules, found, View(extra=("team", "score"))):
        pages.make_kept(log, bucket)
        log.connection.execute(
            "CREATE OR REPLACE TEMP TABLE shown AS SELECT u, p, document, position, "
            "any_value(team) AS team, any_value(score) AS score FROM event "
            "WHERE NOT click AND (document IS NOT NULL OR position IS NOT NULL) "
            "GROUP BY ALL"
        )
        rows = log.connection.execute("SELECT DISTINCT team FROM event").fetchall()
        named |= {team for (team,) in rows if team}
        worth = _WORTH[settings.credit].format(
            satisfied=settings.rules.satisfied, cap=settings.rules.dwell_cap
        )
        worth = worth.replace("dwell", "e.dwell") if "dwell" in worth else worth
        chunks.append(log.connection.execute(_CREDIT.format(worth=worth)).fetchnumpy())
    names = sorted(named - {BOTH, "tie", "none"})
    return _report(log, settings, found, names, chunks)


def _report(
    log: Log,
    settings: Settings,
    found: Contradictions,
    names: list[str],
    chunks: list[dict[str, np.ndarray]],
) -> dict[str, Any]:
    columns = {
        name: np.ma.concatenate([np.ma.asarray(one[name]) for one in chunks])
        for name in ("u", "p", "day", "team", "credit", "signed")
    }
    teams = np.ma.filled(columns["team"].astype(object), "")
    credit = np.ma.filled(columns["credit"].astype(np.float64), 0.0)
    nameless = int(((teams == "") & (credit > 0)).sum())
    if nameless and settings.by == "team":
        found.add("click_without_team", nameless, lambda: "see the clicks' results")
    summary: dict[str, Any] = {
        "command": "interleave",
        "log": dict(log.facts),
        "credit": settings.credit,
        "by": settings.by,
        "level": settings.level,
        "contradictions": found.summary(),
        "pages": int(len(np.unique(np.ma.filled(columns["p"], 0)))),
        "notes": [],
    }
    page, where = np.unique(
        np.stack([np.ma.filled(columns[c], 0) for c in ("u", "p")], 1),
        axis=0,
        return_inverse=True,
    )
    where = where.ravel()
    totals = np.zeros((len(page), max(len(names), 2)))
    if settings.by == "score":
        names = ["a", "b"]
        signed = np.bincount(
            where, np.ma.filled(columns["signed"].astype(float), 0.0), len(page)
        )
        totals[:, 0], totals[:, 1] = np.maximum(signed, 0), np.maximum(-signed, 0)
    for at, name in enumerate(names if settings.by == "team" else ()):
        totals[:, at] = np.bincount(where, credit * (teams == name), len(page))
    if len(names) < 2:
        raise DataError(
            f"{log.facts['files'][0]}: found the team "
            f"{names[0] if names else '(none)'!r} alone; an interleaving needs two: "
            "is the team logged with every shown result?"
        )
    clicked = np.bincount(where, credit, len(page)) > 0
    summary["clicked_pages"] = int(clicked.sum())
    summary["pairs"] = _pairs(names, totals, clicked, page[:, 0], settings)
    first = summary["pairs"][0]
    summary |= {key: first[key] for key in first}
    return summary


def _pairs(
    names: list[str],
    totals: np.ndarray,
    clicked: np.ndarray,
    users: np.ndarray,
    settings: Settings,
) -> list[dict[str, Any]]:
    _, user = np.unique(users, return_inverse=True)
    count = int(user.max()) + 1 if len(user) else 0
    pairs = []
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            lead = totals[:, a] - totals[:, b]
            outcomes = (lead > 0, lead < 0, (lead == 0) & clicked)
            sums = [np.bincount(user, one, count) for one in outcomes]
            one = prefer(*sums, level=settings.level)
            called = [settings.names.get(names[at], names[at]) for at in (a, b)]
            winner = None
            if one.p_value < 1 - settings.level:
                winner = called[0] if one.delta > 0 else called[1]
            pairs.append(
                {"a": called[0], "b": called[1], **one.summary(), "preferred": winner}
            )
    if len(pairs) > 1:
        corrected = holm({str(at): one["p_value"] for at, one in enumerate(pairs)})
        for at, one in enumerate(pairs):
            one["p_holm"] = corrected[str(at)]
            if one["p_holm"] >= 1 - settings.level:
                one["preferred"] = None
    return pairs
