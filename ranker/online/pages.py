"""Pages and users of a log: joined, cleaned by stated rules, contradictions counted.

Works bucket by bucket (see `events`). Every rule that leaves something out counts it,
gives the first example, and says what was done.
"""

import collections
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

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
class PageRules:
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
CREATE OR REPLACE TEMP VIEW event AS
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
_PLACES = """
  count(*) FILTER (NOT click AND position BETWEEN 1 AND 62) AS placed,
  count(*) FILTER (NOT click AND position > 62) AS deep,
  bit_count(bit_or(CASE WHEN NOT click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END)) AS places,
  bit_or(CASE WHEN click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END)
  & ~bit_or(CASE WHEN NOT click AND position BETWEEN 1 AND 62
    THEN 1::BIGINT << position ELSE 0 END) AS misplaced,"""
_NO_PLACES = "0 AS placed, 0 AS deep, 0 AS places, 0 AS misplaced,"
_PAGES = """
CREATE OR REPLACE TEMP TABLE page AS
SELECT u, p, {session} AS s, min(time) FILTER (NOT click) AS time,
  max(time) FILTER (NOT click) AS last_time,
  min(arm) FILTER (NOT click) AS arm, max(arm) FILTER (NOT click) AS other_arm,
  any_value(query) FILTER (NOT click) AS query,
  {triggered} AS triggered, {more}
  {latency} AS latency,
  count(*) FILTER (click) AS clicks,
  min(time) FILTER (click) AS first_click, max(time) FILTER (click) AS last_click,
  min(position) FILTER (click) AS top, {places}
  count(*) FILTER (click AND dwell < 0) AS negative,
  count(dwell) FILTER (click AND dwell >= 0) AS known,
  coalesce(sum(least(dwell, {cap})) FILTER (click AND dwell >= 0), 0) AS dwell,
  count(*) FILTER (click AND dwell >= {satisfied}) AS satisfied
FROM event GROUP BY u, p
"""
_TWICE = """
CREATE OR REPLACE TEMP TABLE twice AS
SELECT p FROM page WHERE places < placed{again}
"""
# Only several results or clicks can lie at one position.
_AGAIN = """ UNION
SELECT p FROM event WHERE position IS NOT NULL AND document IS NOT NULL
  AND p IN (SELECT p FROM page WHERE clicks > 1 OR clicks > 0 AND placed + deep > 0
    OR deep > 1)
GROUP BY p, position HAVING min(document) <> max(document)
"""
# In the order of each user's time. What the log lacks is added afterwards.
_SORTED = """
SELECT rowid AS row, u, p, time, coalesce(arm, -1) AS arm,
  coalesce(other_arm, -1) AS other_arm, clicks, negative, known, dwell,
  satisfied, coalesce(top, 'nan'::DOUBLE) AS top,
  coalesce(hash(lower(trim(query))), 0) AS query,
  CASE WHEN first_click >= time AND first_click - last_time <= 86400
    THEN first_click - time ELSE 'nan'::DOUBLE END AS wait{more}
FROM page WHERE time IS NOT NULL ORDER BY u, time, p
"""
_MORE = {  # column -> SQL of it, and what a page has without it
    "session": (", coalesce(s, 0) AS s", ("s", np.uint64(0))),
    "latency": (
        ", coalesce(latency, 'nan'::DOUBLE) AS latency",
        ("latency", np.float64("nan")),
    ),
    "triggered": (", triggered", ("triggered", np.bool_(False))),
}
_ALIKE = """
SELECT list_has_any(string_split(x, ' '), string_split(y, ' '))
    OR levenshtein(x, y) <= (1 - {similarity}) * greatest(length(x), length(y))
FROM (SELECT c.i, lower(trim(a.query)) AS x, lower(trim(b.query)) AS y
  FROM candidate c JOIN page a ON a.rowid = c.a JOIN page b ON b.rowid = c.b)
ORDER BY i
"""
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bucket:
    """One bucket's good pages, in the order of each user's time.

    `pages` has, by page: row (of the table `page`), u, p, time, day, in_test, arm (its
    place in the names given, -1 for none), clicks, satisfied, known (clicks with a
    dwell), dwell (seconds, capped), top (position of the highest click), wait (seconds
    to the first click), latency, changed, session, triggered; NaN for what is not
    known.
    """

    number: int
    pages: Columns


@dataclass(frozen=True, kw_only=True)
class View:
    """What is looked at in a log, beside the rules."""

    arms: Sequence[str] | None = None  # their names; None where arms do not matter
    before: float | None = None  # when the test begins; earlier is the pre-period
    extra: tuple[str, ...] = ()  # fields that `event` has beside
    segments: tuple[str, ...] = ()  # columns of the log that `page` has beside
    triggers: str = ""  # SQL of a boolean by the page's query; "": the log's own


_WORKERS = 4  # buckets at a time; each takes some 300 MB
_Note = tuple[str, str, int, Any]  # kind, what the example is, count, its hash
_T = TypeVar("_T")


def walk(
    log: Log, rules: PageRules, found: Contradictions, view: View | None = None
) -> Iterator[Bucket]:
    """Makes each bucket's tables `event` and `page`, and its good pages.

    Args:
      log: as read.
      rules: what counts as what.
      found: contradictions are added to it.
      view: what is looked at.
    """
    for number in range(log.buckets):
        bucket, notes = _open(log, rules, number, view or View())
        _write_down(log, found, notes)
        yield bucket


def work_through(
    log: Log,
    rules: PageRules,
    found: Contradictions,
    view: View,
    work: Callable[[Log, Bucket], _T],
) -> Iterator[_T]:
    """What `work` makes of each bucket, in order; several buckets at a time.

    Each of the log's threads has a connection of its own, with the bucket's tables
    `event` and `page`: `work` gets the log through it.
    """
    workers = min(log.threads, log.buckets, _WORKERS)
    logs: queue.SimpleQueue[Log] = queue.SimpleQueue()
    for _ in range(workers):
        logs.put(log.again())

    def one(number: int) -> tuple[_T, list[_Note]]:
        mine = logs.get()
        try:
            bucket, notes = _open(mine, rules, number, view)
            return work(mine, bucket), notes
        finally:
            logs.put(mine)

    with ThreadPoolExecutor(workers) as pool:
        ahead: collections.deque[Any] = collections.deque()
        for number in range(log.buckets + workers):
            if number < log.buckets:
                ahead.append(pool.submit(one, number))
            if number >= workers:
                made, notes = ahead.popleft().result()
                _write_down(log, found, notes)
                yield made
    while not logs.empty():
        logs.get().connection.close()


def _open(
    log: Log, rules: PageRules, number: int, view: View
) -> tuple[Bucket, list[_Note]]:
    start = -1.0 if view.before is None else float(view.before)
    _make_tables(log, rules, number, view)
    has = set(log.has) | ({"triggered"} if view.triggers else set())
    more = "".join(sql for name, (sql, _) in _MORE.items() if name in has)
    columns: Any = log.connection.execute(_SORTED.format(more=more)).fetchnumpy()
    pages = {name: _plain(column) for name, column in columns.items()}
    for name, (_, (column, value)) in _MORE.items():
        if name not in has:
            pages[column] = np.full(len(pages["u"]), value)
    _order(log, rules, pages, start)
    notes = _note(log, view.arms, start, pages)
    kept, more_notes = _keep(log, rules, pages, view.arms is not None)
    return Bucket(number, kept), notes + more_notes


def _write_down(log: Log, found: Contradictions, notes: Sequence[_Note]) -> None:
    for kind, what, count, example in notes:
        found.add(
            kind,
            count,
            lambda what=what, number=example: f"{what} {log.name(what, int(number))!r}",
        )


def _plain(column: np.ndarray) -> np.ndarray:
    """Without a mask: NaN in its place."""
    if not isinstance(column, np.ma.MaskedArray):
        return column
    if column.dtype == np.uint64:  # a query that is not known is like no other
        return np.asarray(column.filled(0))
    return np.ma.filled(column.astype(np.float64), np.nan)


def _make_tables(log: Log, rules: PageRules, number: int, view: View) -> None:
    has_dwell = "dwell" in log.has

    def column(name: str, kind: str) -> str:
        return f'"{name}"' if name in log.has else f"NULL::{kind}"

    names = ", ".join("'" + arm.replace("'", "''") + "'" for arm in view.arms or ())
    arm = (
        f'(list_position([{names}], "arm") - 1)::INTEGER'
        if view.arms
        else "NULL::INTEGER"
    )
    kinds = {"score": "DOUBLE", "propensity": "DOUBLE"}
    more = "".join(f'"{name}", ' for name in view.segments) + "".join(
        f'{column(name, kinds.get(name, "VARCHAR"))} AS "{name}", '
        for name in view.extra
    )
    sql = _EVENTS.format(
        session="s" if "session" in log.has else "NULL::UBIGINT",
        arm=arm,
        query=column("query", "VARCHAR"),
        position=column("position", "INTEGER"),
        document=column("document", "UBIGINT"),
        latency=column("latency", "FLOAT"),
        triggered=view.triggers or column("triggered", "BOOLEAN"),
        more=more,
        dwell='"dwell"' if has_dwell else _NEXT.format(gap=rules.gap),
        rows=log.rows(number),
    )
    if not has_dwell:
        sql += " WINDOW last_ AS (PARTITION BY u ORDER BY time, click)"
    log.connection.execute(sql)
    log.connection.execute(
        _PAGES.format(
            # What the log lacks is not looked for.
            session="any_value(s)" if "session" in log.has else "NULL::UBIGINT",
            latency="max(latency) FILTER (NOT click)"
            if "latency" in log.has
            else "NULL::FLOAT",
            triggered="coalesce(bool_or(triggered) FILTER (NOT click), false)"
            if view.triggers or "triggered" in log.has
            else "false",
            cap=rules.dwell_cap,
            satisfied=rules.satisfied,
            places=_PLACES if log.facts["results"] else _NO_PLACES,
            more="".join(
                f'any_value("{name}") FILTER (NOT click) AS "{name}", '
                for name in view.segments
            ),
        )
    )
    again = _AGAIN if {"position", "document"} <= log.has else ""
    log.connection.execute(_TWICE.format(again=again))


def _order(log: Log, rules: PageRules, pages: Columns, start: float) -> None:
    """What follows from a page's neighbours in the user's time."""
    u, time = pages["u"], pages["time"]
    count = len(u)
    pages["day"] = np.floor(time / 86400).astype(np.int64)
    pages["in_test"] = time >= start
    after = np.zeros(count, bool)  # the next page is of the same user
    after[:-1] = u[1:] == u[:-1]
    wait = np.full(count, np.inf)
    wait[:-1] = np.where(after[:-1], time[1:] - time[:-1], np.inf)
    query = pages["query"]
    same = np.zeros(count, bool)
    same[:-1] = (query[1:] == query[:-1]) & (query[1:] != 0)
    pages["reloaded"] = (wait <= rules.refresh) & same & (pages["clicks"] == 0)
    asked = np.zeros(count, bool)  # both queries are known
    asked[:-1] = (query[1:] != 0) & (query[:-1] != 0)
    changed = (wait <= rules.gap) & asked & ~same & (pages["satisfied"] == 0)
    at = np.flatnonzero(changed)
    if len(at):
        changed[at] = _alike(log, rules, pages["row"][at], pages["row"][at + 1])
    pages["changed"] = changed
    opens = np.ones(count, bool)
    opens[1:] = ~after[:-1] | (wait[:-1] > rules.gap)
    if "session" in log.has:
        _, pages["session"] = np.unique(pages["s"], return_inverse=True)
    else:
        pages["session"] = np.cumsum(opens)


def _alike(log: Log, rules: PageRules, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the queries of pairs of pages share a word, or most letters."""
    candidate = pa.table({"i": np.arange(len(a)), "a": a, "b": b})
    log.connection.register("candidate", candidate)
    found = log.connection.execute(_ALIKE.format(similarity=rules.similarity))
    alike = next(iter(found.fetchnumpy().values()))
    log.connection.unregister("candidate")
    return np.asarray(alike, bool)


def _note(
    log: Log, arms: Sequence[str] | None, start: float, pages: Columns
) -> list[_Note]:
    """The contradictions within pages."""
    conditions = {
        "click_without_page": ("clicks", "time IS NULL"),
        "position_twice": ("1", "doubled"),
        "page_twice": ("1", "last_time - time > 60"),
        "click_not_shown": ("1", "time IS NOT NULL AND placed > 0 AND misplaced <> 0"),
        "negative_dwell": ("negative", "negative > 0"),
        "clock_jump": (
            "1",
            "time IS NOT NULL AND clicks > 0 AND (first_click < time OR last_click - "
            "last_time > 86400)",
        ),
    }
    if arms is not None:
        conditions["page_without_arm"] = ("1", f"time >= {start!r} AND arm IS NULL")
    columns = ", ".join(
        f"coalesce(sum({count}) FILTER ({where}), 0)::BIGINT, min(p) FILTER ({where})"
        for count, where in conditions.values()
    )
    row = log.connection.execute(
        f"SELECT {columns} FROM (SELECT *, p IN (FROM twice) AS doubled FROM page)"
    ).fetchone()
    assert row
    notes: list[_Note] = [
        (kind, "page", count, example)
        for kind, count, example in zip(conditions, row[::2], row[1::2], strict=True)
    ]
    return [*notes, _noted("refresh", "page", pages["p"][pages["reloaded"]])]


def _noted(kind: str, what: str, names: np.ndarray) -> _Note:
    return kind, what, len(names), int(names.min()) if len(names) else None


def _keep(
    log: Log, rules: PageRules, pages: Columns, needs_arm: bool
) -> tuple[Columns, list[_Note]]:
    """Leaves out users and pages by the rules."""
    u, day = pages["u"], pages["day"]
    new_user = np.concatenate([[True], u[1:] != u[:-1]])[: len(u)]
    new_day = new_user.copy()
    new_day[1:] |= day[1:] != day[:-1]
    user = np.cumsum(new_user) - 1
    bots = np.zeros(int(new_user.sum()), bool)
    of_day = np.bincount(np.cumsum(new_day) - 1) if len(u) else np.zeros(0, int)
    bots[user[new_day][of_day > rules.bot_pages]] = True
    left_out = bots.copy()
    names = u[new_user]
    notes = [_noted("bot", "user", names[bots])]
    keep = ~pages["reloaded"]
    if needs_arm:
        tested = pages["in_test"] & (pages["arm"] >= 0)
        low, high = np.zeros((2, len(bots)), int)
        if len(u):  # pages lie by user
            first = np.flatnonzero(new_user)
            arm = np.where(tested, pages["arm"], 1 << 30)
            low = np.minimum.reduceat(arm, first)
            other = np.where(tested, pages["other_arm"], -1)
            high = np.maximum.reduceat(other, first)
        two = (low < high) & (high >= 0)
        notes.append(_noted("user_in_two_arms", "user", names[two]))
        left_out |= two
        keep &= ~pages["in_test"] | (pages["arm"] >= 0)
    keep &= ~left_out[user]
    twice = log.connection.execute("SELECT p FROM twice").fetchnumpy()["p"]
    if len(twice):
        keep &= ~np.isin(pages["p"], twice)
    kept = {name: column[keep] for name, column in pages.items()}
    if rules.censored == "cap":
        # A stay whose end is not known counts as a long one.
        unknown = kept["clicks"] - kept["known"] - kept["negative"]
        kept["dwell"] = kept["dwell"] + unknown * rules.dwell_cap
        kept["known"] = kept["known"] + unknown
        kept["satisfied"] = kept["satisfied"] + unknown
    return kept, notes


def make_kept(log: Log, bucket: Bucket) -> None:
    """Makes the table `kept` of a bucket's good pages: u, p, query, day, in_test."""
    columns = {name: bucket.pages[name] for name in ("row", "day", "in_test")}
    log.connection.register("good", pa.table(columns))
    log.connection.execute(
        "CREATE OR REPLACE TEMP TABLE kept AS SELECT page.u, page.p, page.query, "
        "good.day, good.in_test FROM page JOIN good ON good.row = page.rowid"
    )
    log.connection.unregister("good")


def rules_in_words(rules: PageRules, has_dwell: bool) -> Mapping[str, str]:
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
