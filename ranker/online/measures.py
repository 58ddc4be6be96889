"""What is measured online: each a ratio of two sums over users.

The paper reports PageCTR, UserCTR, change rate and dwell time and gives no formula;
these are our readings, and docs/online.md says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from ranker.errors import ConfigError
from ranker.online.estimates import Moments
from ranker.online.events import Log
from ranker.online.pages import Bucket


@dataclass(frozen=True)
class Measure:
    """A ratio of sums over users, by the names of the users' columns."""

    numerator: str
    denominator: str
    better: int  # 1: more is better, -1: less is
    unit: str
    what: str
    needs: str = ""  # field of the log without which there is none
    guardrail: bool = False


MEASURES = {
    "PageCTR": Measure("clicked", "pages", 1, "", "pages with a click / pages"),
    "clicks_per_page": Measure("clicks", "pages", 1, "", "clicks / pages"),
    "UserCTR": Measure("has_click", "one", 1, "", "users with a click / users"),
    "UserDayCTR": Measure(
        "clicked_days", "days", 1, "", "days of users with a click / days of users"
    ),
    "change_rate": Measure(
        "changed",
        "pages",
        -1,
        "",
        "pages followed by a reformulated query without a satisfied click / pages",
        "query",
    ),
    "dwell": Measure(
        "dwell", "known", 1, "s", "seconds of dwell / clicks of known dwell"
    ),
    "satisfied_click_rate": Measure(
        "satisfied", "known", 1, "", "satisfied clicks / clicks of known dwell"
    ),
    "satisfied_clicks_per_page": Measure(
        "satisfied", "pages", 1, "", "satisfied clicks / pages"
    ),
    "abandonment": Measure(
        "abandoned", "sessions", -1, "", "sessions without a click / sessions"
    ),
    "zero_click": Measure(
        "unclicked", "pages", -1, "", "pages without a click / pages"
    ),
    "mrr_of_clicks": Measure(
        "reciprocal",
        "placed_clicked",
        1,
        "",
        "1 / position of the highest click / pages with a click",
        "position",
    ),
    "time_to_click": Measure(
        "wait", "waited", -1, "s", "seconds to the first click / pages with a click"
    ),
    "pages_per_user": Measure("pages", "one", 0, "", "pages / users", guardrail=True),
    "latency": Measure(
        "latency", "timed", -1, "ms", "milliseconds / pages", "latency", guardrail=True
    ),
    "slow_pages": Measure(
        "slow",
        "timed",
        -1,
        "",
        "pages slower than 99 % of the control's / pages",
        "latency",
        guardrail=True,
    ),
}

# Sums over a user's pages.
_SUMS = {
    "pages": "count(*)",
    "clicked": "count(*) FILTER (clicks > 0)",
    "unclicked": "count(*) FILTER (clicks = 0)",
    "clicks": "sum(clicks)",
    "has_click": "(sum(clicks) > 0)::INTEGER",
    "days": "count(DISTINCT day)",
    "clicked_days": "count(DISTINCT day) FILTER (clicks > 0)",
    "changed": "count(*) FILTER (changed)",
    "dwell": "coalesce(sum(dwell), 0)",
    "known": "sum(known)",
    "satisfied": "sum(satisfied)",
    "sessions": "count(DISTINCT session)",
    "abandoned": "count(DISTINCT session) - "
    "count(DISTINCT session) FILTER (clicks > 0)",
    "reciprocal": "coalesce(sum(1.0 / top), 0)",
    "placed_clicked": "count(top)",
    "wait": "coalesce(sum(wait), 0)",
    "waited": "count(wait)",
    "latency": "coalesce(sum(latency), 0)",
    "timed": "count(latency)",
    "slow": "count(*) FILTER (latency > {slow})",
    "triggered": "count(*) FILTER (triggered)",
    "triggered_clicked": "count(*) FILTER (triggered AND clicks > 0)",
}
SUMS = tuple(_SUMS)


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


def make_users(
    log: Log,
    buckets: Iterator[Bucket],
    *,
    pre_period: bool,
    slow: float = 0.0,
    segments: Sequence[str] = (),
    days_of: str = "",
) -> None:
    """Makes the table `users`, a row a user of the test, and `user_days`.

    A user's row has arm, the sums of `SUMS` in the test period, the same with `before_`
    of the pre-period, the segments of its first page, and `one`. `user_days` has the
    sums that the measure `days_of` needs, by user and day.

    Args:
      log: whose connection gets the tables.
      buckets: of `pages.walk`.
      pre_period: there are pages before the test.
      slow: milliseconds above which a page is slow.
      segments: columns of the log.
      days_of: measure of the curve over days, or "".
    """
    sums = {name: sql.format(slow=slow) for name, sql in _SUMS.items()}
    now = ", ".join(
        f"coalesce({_filtered(sql, 'in_test')}, 0)::DOUBLE AS {name}"
        for name, sql in sums.items()
    )
    before = "".join(
        f", coalesce({_filtered(sql, 'NOT in_test')}, 0)::DOUBLE AS before_{name}"
        if pre_period
        else f", 0::DOUBLE AS before_{name}"
        for name, sql in sums.items()
    )
    more = "".join(
        f', arg_min("{name}", time) FILTER (in_test) AS "{name}"' for name in segments
    )
    select = (
        f"SELECT u, min(arm) FILTER (in_test) AS arm, 1::DOUBLE AS one, {now}{before}, "
        f"1::DOUBLE AS before_one{more}, min(day) FILTER (in_test) AS first_day "
        "FROM kept GROUP BY u HAVING count(*) FILTER (in_test) > 0"
    )
    measure = MEASURES.get(days_of)
    for bucket in buckets:
        _append(log.connection, "users", select, first=bucket.number == 0)
        if measure:
            day_sums = ", ".join(
                f"({sums[name]})::DOUBLE AS {name}"
                for name in {measure.numerator, measure.denominator}
                if name in sums
            )
            _append(
                log.connection,
                "user_days",
                f"SELECT u, day, min(arm) AS arm, {day_sums or '0 AS nothing'} "
                "FROM kept WHERE in_test GROUP BY u, day",
                first=bucket.number == 0,
            )


def _filtered(sql: str, condition: str) -> str:
    """An aggregate over those rows alone."""
    if "FILTER (" in sql:
        return sql.replace("FILTER (", f"FILTER ({condition} AND ").replace(
            "count(DISTINCT session) -",
            f"count(DISTINCT session) FILTER ({condition}) -",
        )
    if sql.startswith("(sum(clicks)"):
        return f"(sum(clicks) FILTER ({condition}) > 0)::INTEGER"
    if sql.startswith("coalesce("):
        inner = sql.removeprefix("coalesce(").removesuffix(", 0)")
        return f"{inner} FILTER ({condition})"
    return f"{sql} FILTER ({condition})"


def _append(
    connection: duckdb.DuckDBPyConnection, table: str, select: str, *, first: bool
) -> None:
    verb = f"CREATE OR REPLACE TABLE {table} AS" if first else f"INSERT INTO {table}"
    connection.execute(f"{verb} {select}")


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
