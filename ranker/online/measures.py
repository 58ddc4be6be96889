"""What is measured online: each a ratio of two sums over users.

The paper reports PageCTR, UserCTR, change rate and dwell time and gives no formula;
these are our readings, and docs/online.md says so.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ranker.errors import ConfigError
from ranker.online import pages
from ranker.online.estimates import Moments
from ranker.online.events import Log
from ranker.online.pages import Bucket, Columns, Contradictions, PageRules, View


@dataclass(frozen=True)
class RatioMetric:
    """A ratio of sums over users, by the names of the users' columns."""

    numerator: str
    denominator: str
    better: int  # 1: more is better, -1: less is
    unit: str
    what: str
    needs: str = ""  # field of the log without which there is none
    guardrail: bool = False


MEASURES = {
    "PageCTR": RatioMetric("clicked", "pages", 1, "", "pages with a click / pages"),
    "clicks_per_page": RatioMetric("clicks", "pages", 1, "", "clicks / pages"),
    "UserCTR": RatioMetric("has_click", "one", 1, "", "users with a click / users"),
    "UserDayCTR": RatioMetric(
        "clicked_days", "days", 1, "", "days of users with a click / days of users"
    ),
    "change_rate": RatioMetric(
        "changed",
        "pages",
        -1,
        "",
        "pages followed by a reformulated query without a satisfied click / pages",
        "query",
    ),
    "dwell": RatioMetric(
        "dwell", "known", 1, "s", "seconds of dwell / clicks of known dwell"
    ),
    "satisfied_click_rate": RatioMetric(
        "satisfied", "known", 1, "", "satisfied clicks / clicks of known dwell"
    ),
    "satisfied_clicks_per_page": RatioMetric(
        "satisfied", "pages", 1, "", "satisfied clicks / pages"
    ),
    "abandonment": RatioMetric(
        "abandoned", "sessions", -1, "", "sessions without a click / sessions"
    ),
    "zero_click": RatioMetric(
        "unclicked", "pages", -1, "", "pages without a click / pages"
    ),
    "mrr_of_clicks": RatioMetric(
        "reciprocal",
        "placed_clicked",
        1,
        "",
        "1 / position of the highest click / pages with a click",
        "position",
    ),
    "time_to_click": RatioMetric(
        "wait", "waited", -1, "s", "seconds to the first click / pages with a click"
    ),
    "pages_per_user": RatioMetric(
        "pages", "one", 0, "", "pages / users", guardrail=True
    ),
    "latency": RatioMetric(
        "latency", "timed", -1, "ms", "milliseconds / pages", "latency", guardrail=True
    ),
    "slow_pages": RatioMetric(
        "slow",
        "timed",
        -1,
        "",
        "pages slower than 99 % of the control's / pages",
        "latency",
        guardrail=True,
    ),
}

# Sums over a user's pages: what each page adds.
_ADDS: dict[str, Callable[[Columns], np.ndarray]] = {
    "pages": lambda page: np.ones(len(page["u"])),
    "clicked": lambda page: page["clicks"] > 0,
    "unclicked": lambda page: page["clicks"] == 0,
    "clicks": lambda page: page["clicks"],
    "days": lambda page: _first(page, "day"),
    "clicked_days": lambda page: _first(page, "day", clicked=True),
    "changed": lambda page: page["changed"],
    "dwell": lambda page: page["dwell"],
    "known": lambda page: page["known"],
    "satisfied": lambda page: page["satisfied"],
    "sessions": lambda page: _first(page, "session"),
    "abandoned": lambda page: (
        _first(page, "session") ^ _first(page, "session", clicked=True)
    ),
    "reciprocal": lambda page: np.nan_to_num(1 / page["top"]),
    "placed_clicked": lambda page: ~np.isnan(page["top"]),
    "wait": lambda page: np.nan_to_num(page["wait"]),
    "waited": lambda page: ~np.isnan(page["wait"]),
    "latency": lambda page: np.nan_to_num(page["latency"]),
    "timed": lambda page: ~np.isnan(page["latency"]),
    "slow": lambda page: page["latency"] > page["limit"],
    "triggered": lambda page: page["triggered"],
    "triggered_clicked": lambda page: (
        page["triggered"].astype(bool) & (page["clicks"] > 0)
    ),
}
SUMS = (*_ADDS, "has_click")


def _first(page: Columns, key: str, *, clicked: bool = False) -> np.ndarray:
    """True at the first page of each user's run of `key`, if it has a click."""
    changes = np.ones(len(page["u"]), bool)
    changes[1:] = (page["u"][1:] != page["u"][:-1]) | (page[key][1:] != page[key][:-1])
    if clicked and len(changes):
        starts = np.flatnonzero(changes)
        changes[starts] = np.add.reduceat(page["clicks"], starts) > 0
    return changes


def available(log: Log) -> list[str]:
    """The measures that this log has what it takes for."""
    return [
        name for name, one in MEASURES.items() if not one.needs or one.needs in log.has
    ]


def check_primary(name: str, log: Log) -> str:
    """The measure of that name, whatever its case.

    Raises:
      ConfigError: where there is none, or the log lacks what it needs.
    """
    for one in MEASURES:
        if one.lower() == name.lower().replace("-", "_"):
            if one not in available(log):
                raise ConfigError(
                    f"--primary {name} needs the column {MEASURES[one].needs!r}, which "
                    f"is empty in the log; choose of {', '.join(available(log))}"
                )
            return one
    raise ConfigError(
        f"--primary {name}: no such measure; choose of {', '.join(MEASURES)}"
    )


Days = dict[tuple[str, int], np.ndarray]


def make_users(
    log: Log,
    rules: PageRules,
    found: Contradictions,
    view: View,
    *,
    slow: float = 0.0,
    days_of: str = "",
) -> Days:
    """Makes `users`, a row a user of the test; returns what each day adds to a measure.

    A user's row has arm, the sums of `SUMS` in the test period, the same with `before_`
    of the pre-period, the segments of one of its pages, and `one`. By arm and day: see
    `_by_day`.

    Args:
      log: whose connection gets the table.
      rules: what counts as what.
      found: contradictions are added to it.
      view: of `pages.walk`; its segments are columns of `users`.
      slow: milliseconds above which a page is slow.
      days_of: measure of the curve over days, or "".
    """
    arms = list(view.arms or ())
    has_before = view.before is not None and log.facts["first"] < view.before

    def work(log: Log, bucket: Bucket) -> tuple[pa.Table, Days]:
        page = {**bucket.pages, "limit": np.full(len(bucket.pages["u"]), slow)}
        tested = page["in_test"].astype(bool)
        now, before = page, {name: column[:0] for name, column in page.items()}
        if not tested.all():
            now, before = (
                {name: column[rows] for name, column in page.items()}
                for rows in (tested, ~tested)
            )
        days = _by_day(now, MEASURES[days_of], arms) if days_of else {}
        users = _sums(now, _starts(now, "u"))
        if has_before:
            users |= _before(users["u"], before)
        names = pa.nulls(len(users["u"]), pa.string())
        if arms:
            places = users["arm"].astype(np.int32)
            names = pa.DictionaryArray.from_arrays(places, arms)
        return _with_segments(log, pa.table(users | {"arm": names}), view), days

    total: Days = {}
    for number, (users, days) in enumerate(
        pages.work_through(log, rules, found, view, work)
    ):
        log.connection.register("new", users)
        verb = "INSERT INTO" if number else "CREATE OR REPLACE TABLE"
        log.connection.execute(f"{verb} sums {'' if number else 'AS'} FROM new")
        log.connection.unregister("new")
        for key, numbers in days.items():
            total[key] = total.get(key, 0.0) + numbers
    nothing = [f"0.0 AS before_{name}" for name in SUMS] + ["1.0 AS before_one"]
    more = "" if has_before else ", " + ", ".join(nothing)
    log.connection.execute(f"CREATE OR REPLACE VIEW users AS SELECT *{more} FROM sums")
    return total


def _with_segments(log: Log, users: pa.Table, view: View) -> pa.Table:
    """With the least of each user's values, from the bucket's table `page`."""
    if not view.segments:
        return users
    columns = "".join(
        f', (SELECT min("{name}") FROM page WHERE page.u = new.u) AS "{name}"'
        for name in view.segments
    )
    log.connection.register("new", users)
    found = log.connection.sql(f"SELECT *{columns} FROM new").to_arrow_table()
    log.connection.unregister("new")
    return found


def _by_day(page: Columns, one: RatioMetric, arms: Sequence[str]) -> Days:
    """What each day adds, by arm, to sums over users of their totals so far.

    A row is (users, num, den, num^2, den^2, num*den of the totals after the day less
    those before it, num and den of the day alone).
    """
    starts = _starts(page, "u", "day")
    if not len(starts):
        return {}
    sums = _sums(page, starts, {one.numerator, one.denominator, "clicks"})
    u, place = sums["u"], np.arange(len(starts))
    opens = np.concatenate([[True], u[1:] != u[:-1]])
    seen = place - np.maximum.accumulate(np.where(opens, place, 0))  # earlier days

    def totals(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """After the day, before it, and of the day alone."""
        alone = sums[name]
        if name == "one":
            return alone, (seen > 0).astype(np.float64), alone
        after = alone.copy()
        for day in range(1, int(seen.max()) + 1):
            at = np.flatnonzero(seen == day)
            after[at] += after[at - 1]
        earlier = after - alone
        if name == "has_click":
            return np.minimum(after, 1), np.minimum(earlier, 1), alone
        return after, earlier, alone

    n1, n0, n = totals(one.numerator)
    d1, d0, d = totals(one.denominator)
    day = sums["day"] - sums["day"].min()
    width = int(day.max()) + 1
    code = sums["arm"].astype(np.int64) * width + day
    adds = [opens, n1 - n0, d1 - d0, n1 * n1 - n0 * n0, d1 * d1 - d0 * d0]
    adds += [n1 * d1 - n0 * d0, n, d]
    table = np.stack([np.bincount(code, add.astype(float)) for add in adds], axis=1)
    first = int(sums["day"].min())
    return {
        (str(arms[at // width]), first + at % width): np.asarray(table[at], float)
        for at in map(int, np.unique(code))
    }


def _starts(page: Columns, *keys: str) -> np.ndarray:
    """Where another user, or another day of one, begins."""
    changes = np.ones(len(page["u"]), bool)
    changes[1:] = np.logical_or.reduce([page[k][1:] != page[k][:-1] for k in keys])
    return np.flatnonzero(changes)


def _places(wanted: np.ndarray, users: np.ndarray) -> np.ndarray:
    return np.searchsorted(users, wanted)


def _sums(
    page: Columns, starts: np.ndarray, names: Collection[str] = ()
) -> dict[str, Any]:
    """Sums over pages between `starts`, and what the first of them says.

    Args:
      page: columns of pages.
      starts: where the sums begin.
      names: of the sums; () = all.
    """
    found: dict[str, Any] = {
        name: np.add.reduceat(add(page).astype(np.float64), starts)
        if len(starts)
        else np.zeros(0)
        for name, add in _ADDS.items()
        if not names or name in names
    }
    found["has_click"] = (found["clicks"] > 0).astype(np.float64)
    found["one"] = np.ones(len(starts))
    for name in ("u", "arm", "day"):
        found[name] = page[name][starts]
    found["first_day"] = found["day"]
    return found


def _before(users: np.ndarray, page: Columns) -> dict[str, np.ndarray]:
    """The sums of the pre-period, for the users of the test; 0 where there are none."""
    names = [*SUMS, "one"]
    if not len(page["u"]):
        nothing = np.zeros(len(users))
        return {f"before_{name}": nothing for name in SUMS} | {
            "before_one": np.ones(len(users))
        }
    sums = _sums(page, _starts(page, "u"))
    at = np.minimum(_places(users, sums["u"]), len(sums["u"]) - 1)
    here = sums["u"][at] == users
    found = {f"before_{name}": np.where(here, sums[name][at], 0.0) for name in names}
    found["before_one"] = np.ones(len(users))
    return found


def moments(
    connection: duckdb.DuckDBPyConnection,
    numerator: str,
    denominator: str,
    *,
    by: str = "arm",
    where: str = "true",
) -> dict[str, Moments]:
    """Moments of a ratio and of its pre-period, by arm or another column of `users`."""
    columns = [numerator, denominator, f"before_{numerator}", f"before_{denominator}"]
    means = ", ".join(f"avg({name})" for name in columns)
    pairs = [(a, b) for a in range(4) for b in range(a, 4)]
    products = ", ".join(f"covar_samp({columns[a]}, {columns[b]})" for a, b in pairs)
    rows = connection.execute(
        f"SELECT {by} AS key, count(*), {means}, {products} FROM users "
        f"WHERE {where} AND {by} IS NOT NULL GROUP BY key ORDER BY key"
    ).fetchall()
    found: dict[str, Moments] = {}
    for key, n, *numbers in rows:
        covariance = np.zeros((4, 4))
        for (a, b), value in zip(pairs, numbers[4:], strict=True):
            covariance[a, b] = covariance[b, a] = 0.0 if value is None else value
        found[str(key)] = Moments(n, np.array(numbers[:4], np.float64), covariance)
    return found


def of_measure(
    connection: duckdb.DuckDBPyConnection, name: str, **more: str
) -> Mapping[str, Moments]:
    """Moments of a measure, by arm."""
    one = MEASURES[name]
    return moments(connection, one.numerator, one.denominator, **more)
