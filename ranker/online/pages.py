"""Pages and users of a log: joined, cleaned by stated rules, contradictions counted.

Works bucket by bucket (see `events`). Every rule that leaves something out counts it,
gives the first example, and says what was done.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ranker.errors import ConfigError
from ranker.online.events import Log

FIELDS = (
    "session",
    "query",
    "arm",
    "document",
    "position",
    "dwell",
    "latency",
    "triggered",
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What counts as what; stated in every report."""

    dwell_cap: float = 600.0  # seconds; longer stays count as so long
    satisfied: float = 30.0  # seconds of dwell that make a click a satisfied one
    gap: float = 1800.0  # seconds without an event that end a session
    refresh: float = 2.0  # seconds within which the same query again is a reload
    bot_pages: int = 1000  # pages of a user on one day, above which it is a bot
    similarity: float = 0.5  # share of letters that two queries must keep in common
    censored: str = "leave-out"  # clicks without a known dwell: or "cap"

    def __post_init__(self):
        for name in ("dwell_cap", "satisfied", "gap", "bot_pages"):
            if not getattr(self, name) > 0:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} is {getattr(self, name)}; it must be above 0"
                )
        if self.satisfied > self.dwell_cap:
            raise ConfigError(
                f"--satisfied {self.satisfied:g} is above --dwell-cap "
                f"{self.dwell_cap:g}: no click could be satisfied; lower the one or "
                "raise the other"
            )
        if self.censored not in ("leave-out", "cap"):
            raise ConfigError(f"--censored {self.censored}: expected leave-out or cap")


@dataclass
class Contradictions:
    """What rows say against each other, by kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, count: int, example: Callable[[], str]) -> None:
        """Counts `count` more of a kind."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            if kind not in self.examples:
                self.examples[kind] = example()

    def summary(self) -> dict[str, dict[str, Any]]:
        """For JSON: each kind with its number, an example and what was done."""
        return {
            kind: {
                "count": self.counts[kind],
                "example": self.examples[kind],
                "what": KINDS[kind][0],
                "done": KINDS[kind][1],
                "advice": KINDS[kind][2],
            }
            for kind in KINDS
            if kind in self.counts
        }


# kind -> (what it is, what was done with it, what to do)
KINDS = {
    "click_without_page": (
        "clicks whose page this user was never shown",
        "left out",
        "log the page before its clicks, with the same user and page id",
    ),
    "page_without_arm": (
        "pages without an arm in the test period",
        "left out",
        "log the arm with every page of an eligible query",
    ),
    "user_in_two_arms": (
        "users that saw more than one arm",
        "left out, with all their pages",
        "assign by a digest of the user's id, and look for shared or reset ids",
    ),
    "position_twice": (
        "pages with two results at one position",
        "left out",
        "give every shown result of a page a position of its own",
    ),
    "page_twice": (
        "page ids shown again over a minute later",
        "counted as one page, at its first time",
        "give every page view an id of its own",
    ),
    "click_without_team": (
        "clicks on results without a team",
        "kept; they favour no ranker",
        "log the team with every shown result, or with the click",
    ),
    "click_not_shown": (
        "pages with a click at a position where no result was shown",
        "kept; the click counts",
        "log every shown result, or none",
    ),
    "clock_jump": (
        "clicks before their page, or over a day after it",
        "kept as clicks; their times are left out",
        "take both times from one clock, of the server and not of the browser",
    ),
    "negative_dwell": (
        "clicks with a negative dwell",
        "kept as clicks; their dwell is left out",
        "take both times from one clock",
    ),
    "bot": (
        "users with more pages on one day than a person reads (--bot-pages)",
        "left out, with all their pages",
        "raise --bot-pages if these are people",
    ),
    "refresh": (
        "pages reloaded within seconds without a click (--refresh)",
        "the reload counts, the page before it does not",
        "nothing, unless there are many",
    ),
}

_EVENTS = """
CREATE OR REPLACE TEMP TABLE event AS
SELECT u, p, {session} AS s, click, time, {arm} AS arm, {query} AS query,
  {position} AS position, {document} AS document, {latency} AS latency,
  {triggered} AS triggered, {more}
  {dwell} AS dwell
FROM {rows}
"""
# The stay at a result lasts until the user's next event, if that comes soon.
_NEXT = (
    "CASE WHEN click THEN CASE WHEN lead(time) OVER last_ - time <= {gap} "
    "THEN lead(time) OVER last_ - time END END"
)
_PAGES = """
CREATE OR REPLACE TEMP TABLE page AS
SELECT u, p, any_value(s) AS s, min(time) FILTER (NOT click) AS time,
  max(time) FILTER (NOT click) AS last_time,
  min(arm) FILTER (NOT click) AS arm, max(arm) FILTER (NOT click) AS other_arm,
  any_value(query) FILTER (NOT click) AS query,
  coalesce(bool_or(triggered) FILTER (NOT click), false) AS triggered, {more}
  max(latency) FILTER (NOT click) AS latency,
  count(*) FILTER (click) AS clicks,
  min(time) FILTER (click) AS first_click, max(time) FILTER (click) AS last_click,
  min(position) FILTER (click) AS top,
  count(*) FILTER (NOT click AND position BETWEEN 1 AND 62) AS placed,
  bit_count(bit_or(CASE WHEN NOT click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END)) AS places,
  bit_or(CASE WHEN click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END)
  & ~bit_or(CASE WHEN NOT click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END) AS misplaced,
  count(*) FILTER (click AND dwell < 0) AS negative,
  count(dwell) FILTER (click AND dwell >= 0) AS known,
  coalesce(sum(least(dwell, {cap})) FILTER (click AND dwell >= 0), 0) AS dwell,
  count(*) FILTER (click AND dwell >= {satisfied}) AS satisfied
FROM event GROUP BY u, p
"""
_TWICE = """
CREATE OR REPLACE TEMP TABLE twice AS
SELECT p FROM page WHERE places < placed UNION
SELECT p FROM event WHERE position IS NOT NULL AND document IS NOT NULL
GROUP BY p, position HAVING min(document) <> max(document)
"""
# In the order of a user's time; before it, what comes next.
_ORDERED = """
CREATE OR REPLACE TEMP TABLE ordered AS
SELECT * EXCLUDE (next_query, next_time, last_seen),
  next_time - time <= {refresh} AND next_query = lower(trim(query)) AND clicks = 0
    AS reloaded,
  next_time - time <= {gap} AND next_query <> lower(trim(query)) AND satisfied = 0
    AND (list_has_any(string_split(next_query, ' '),
                      string_split(lower(trim(query)), ' '))
      OR levenshtein(next_query, lower(trim(query)))
        <= (1 - {similarity}) * greatest(length(next_query), length(trim(query))))
    AS changed,
  (last_seen IS NULL OR time - last_seen > {gap}) AS opens,
  floor(time / 86400)::INTEGER AS day
FROM (SELECT *, lead(lower(trim(query))) OVER w AS next_query,
    lead(time) OVER w AS next_time, lag(time) OVER w AS last_seen
  FROM page WHERE time IS NOT NULL WINDOW w AS (PARTITION BY u ORDER BY time, p))
"""


@dataclass(frozen=True)
class Bucket:
    """One bucket's pages, in the table `kept` of the log's connection."""

    number: int
    has_dwell: bool  # as logged, not taken from the next event


def walk(
    log: Log,
    rules: Rules,
    found: Contradictions,
    *,
    needs_arm: bool = True,
    before: float | None = None,
    segments: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    triggers: str = "",
) -> Iterator[Bucket]:
    """Makes the tables of each bucket in turn: `event`, and `kept`, its good pages.

    `kept` has, by page: u, s, time, day, arm, query, clicks, satisfied, known (clicks
    with a dwell), dwell (seconds, capped), top (position of the highest click), wait
    (seconds to the first click), latency, changed, session (number within the user),
    triggered, in_test, and the segments.

    Args:
      log: as read.
      rules: what counts as what.
      found: contradictions are added to it.
      needs_arm: pages of the test period without an arm are left out.
      before: time at which the test begins; earlier pages are the pre-period.
      segments: columns of the log.
      extra: fields that `event` has beside.
      triggers: SQL that joins a boolean by the page's query, or "" for the log's own.
    """
    connection = log.connection
    start = "-1" if before is None else repr(float(before))
    has_dwell = "dwell" in log.has

    def column(name: str, kind: str) -> str:
        return f'"{name}"' if name in log.has else f"NULL::{kind}"

    kinds = {"score": "DOUBLE", "propensity": "DOUBLE"}
    segment = "".join(f'"{name}", ' for name in segments) + "".join(
        f'{column(name, kinds.get(name, "VARCHAR"))} AS "{name}", ' for name in extra
    )
    for number in range(log.buckets):
        dwell = '"dwell"' if has_dwell else _NEXT.format(gap=rules.gap)
        sql = _EVENTS.format(
            session="s" if "session" in log.has else "NULL::UBIGINT",
            arm=column("arm", "VARCHAR"),
            query=column("query", "VARCHAR"),
            position=column("position", "INTEGER"),
            document=column("document", "UBIGINT"),
            latency=column("latency", "FLOAT"),
            triggered=triggers or column("triggered", "BOOLEAN"),
            more=segment,
            dwell=dwell,
            rows=log.rows(number),
        )
        if not has_dwell:
            sql += " WINDOW last_ AS (PARTITION BY u ORDER BY time, click)"
        connection.execute(sql)
        connection.execute(
            _PAGES.format(
                cap=rules.dwell_cap,
                satisfied=rules.satisfied,
                more="".join(
                    f'any_value("{name}") FILTER (NOT click) AS "{name}", '
                    for name in segments
                ),
            )
        )
        connection.execute(_TWICE)
        connection.execute(
            _ORDERED.format(
                refresh=rules.refresh, gap=rules.gap, similarity=rules.similarity
            )
        )
        _note(log, found, start, needs_arm)
        _keep(log, rules, found, start, needs_arm)
        yield Bucket(number, has_dwell)


def _count(
    log: Log, found: Contradictions, kind: str, sql: str, column: str = "page"
) -> None:
    """Counts what a query yields, `(id, number)` a row."""
    row = log.connection.execute(
        f"SELECT coalesce(sum(n), 0)::BIGINT, min(i) FROM ({sql})"
    ).fetchone()
    assert row
    count, example = row
    found.add(kind, count, lambda: f"{column} {log.name(column, example)!r}")


def _note(log: Log, found: Contradictions, start: str, needs_arm: bool) -> None:
    """Counts the contradictions within pages."""
    pages = {
        "click_without_page": "SELECT p AS i, clicks AS n FROM page WHERE time IS NULL",
        "position_twice": "SELECT p AS i, 1 AS n FROM twice",
        "page_twice": "SELECT p AS i, 1 AS n FROM page WHERE last_time - time > 60",
        "click_not_shown": "SELECT p AS i, 1 AS n FROM page "
        "WHERE time IS NOT NULL AND placed > 0 AND misplaced <> 0",
        "negative_dwell": "SELECT p AS i, negative AS n FROM page WHERE negative > 0",
        "clock_jump": "SELECT p AS i, 1 AS n FROM page WHERE time IS NOT NULL AND "
        "clicks > 0 AND (first_click < time OR last_click - last_time > 86400)",
        "refresh": "SELECT p AS i, 1 AS n FROM ordered WHERE reloaded",
    }
    if needs_arm:
        pages["page_without_arm"] = (
            f"SELECT p AS i, 1 AS n FROM page WHERE time >= {start} AND arm IS NULL"
        )
    for kind, sql in pages.items():
        _count(log, found, kind, sql)


def _keep(
    log: Log, rules: Rules, found: Contradictions, start: str, needs_arm: bool
) -> None:
    """Leaves out users and pages by the rules."""
    connection = log.connection
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE bot AS SELECT DISTINCT u FROM ordered "
        f"GROUP BY u, day HAVING count(*) > {rules.bot_pages}"
    )
    _count(log, found, "bot", "SELECT u AS i, 1 AS n FROM bot", "user")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE contaminated AS SELECT u FROM ordered "
        f"WHERE time >= {start} GROUP BY u HAVING min(arm) <> max(other_arm)"
    )
    if needs_arm:
        _count(
            log,
            found,
            "user_in_two_arms",
            "SELECT u AS i, 1 AS n FROM contaminated",
            "user",
        )
    arm = f"AND (time < {start} OR arm IS NOT NULL)" if needs_arm else ""
    two = "AND u NOT IN (FROM contaminated)" if needs_arm else ""
    if rules.censored == "cap":
        # A stay whose end is not known counts as a long one.
        unknown = "(clicks - known - negative)"
        dwell = f"dwell + {unknown} * {rules.dwell_cap}"
        known, satisfied = f"known + {unknown}", f"satisfied + {unknown}"
    else:
        dwell, known, satisfied = "dwell", "known", "satisfied"
    connection.execute(
        f"""
CREATE OR REPLACE TEMP TABLE kept AS
SELECT * REPLACE ({dwell} AS dwell, {known} AS known, {satisfied} AS satisfied),
  time >= {start} AS in_test, clicks - known - negative AS censored,
  CASE WHEN first_click >= time AND first_click - last_time <= 86400
    THEN first_click - time END AS wait,
  {"s" if "session" in log.has else _SESSION} AS session
FROM ordered
WHERE p NOT IN (FROM twice) AND NOT coalesce(reloaded, false) {arm} {two}
  AND u NOT IN (FROM bot)"""
    )


_SESSION = (
    "sum(opens::INTEGER) OVER (PARTITION BY u ORDER BY time, p ROWS UNBOUNDED "
    "PRECEDING)::UBIGINT"
)


def describe(rules: Rules, has_dwell: bool) -> Mapping[str, str]:
    """The rules in words, for the report."""
    source = "as logged" if has_dwell else "from a click to the user's next event"
    rest = (
        "left out"
        if rules.censored == "leave-out"
        else f"counted as {rules.dwell_cap:g} s"
    )
    return {
        "dwell": f"{source}, at most {rules.dwell_cap:g} s; clicks whose dwell is not "
        f"known are {rest}",
        "satisfied click": f"dwell of at least {rules.satisfied:g} s",
        "session": f"as logged, else ended by {rules.gap:g} s without a page",
        "change": f"a different query within {rules.gap:g} s that shares a word or "
        f"keeps {rules.similarity:.0%} of the letters, without a satisfied click "
        "between",
        "reload": f"the same query again within {rules.refresh:g} s without a click",
        "bot": f"over {rules.bot_pages:,} pages on one day",
    }
