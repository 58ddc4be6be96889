"""Logs with a known truth: users, pages and clicks made up from a click model."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ranker import storage
from ranker.errors import DataError
from ranker.online.interleaving import make_key, multileave

DAY = 86_400.0
START = 1_767_225_600.0  # 2026-01-01, UTC
_SKEW = 1.3  # how much more often the first queries are asked
EXAMINATION = tuple(1 / (rank + 1) ** 0.7 for rank in range(10))


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Users whose activity is heavy-tailed and goes along with their click rate."""

    users: int = 4000
    pages: float = 6.0  # mean of a user in the test period
    activity_sigma: float = 1.0  # of the log-normal activity
    ctr: float = 0.4  # of the mean user
    ctr_sigma: float = 0.9  # of a user's logit
    correlation: float = 0.5  # of logit and log activity
    before: float = 0.0  # pages of a user in the pre-period, as a multiple
    lift: float = 0.0  # relative, on PageCTR of every treated user


def draw_users(
    crowd: Crowd, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "n 4"], np.ndarray]:
    """Users' clicked pages and pages, now and before, and their arm (0 or 1).

    >>> values, arm = draw_users(Crowd(users=6), np.random.default_rng(0))
    >>> values.shape, bool((values[:, 0] <= values[:, 1]).all())
    ((6, 4), True)
    """
    n = crowd.users
    a, b = generator.standard_normal((2, n))
    b = crowd.correlation * a + math.sqrt(1 - crowd.correlation**2) * b
    activity = np.exp(crowd.activity_sigma * a - crowd.activity_sigma**2 / 2)
    rate = 1 / (
        1 + np.exp(-(math.log(crowd.ctr / (1 - crowd.ctr)) + crowd.ctr_sigma * b))
    )
    arm = generator.integers(0, 2, n)
    now = 1 + generator.poisson(np.maximum(crowd.pages - 1, 0) * activity)
    before = generator.poisson(crowd.pages * crowd.before * activity)
    lifted = np.minimum(rate * (1 + crowd.lift * arm), 1.0)
    return (
        np.stack(
            [
                generator.binomial(now, lifted),
                now,
                generator.binomial(before, rate),
                before,
            ],
            axis=1,
        ).astype(np.float64),
        arm,
    )


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How users look and click; by default a position-based model."""

    model: str = "pbm"  # or cascade, dbn
    examination: tuple[float, ...] = EXAMINATION  # pbm: by rank
    attraction: tuple[float, ...] = (0.04, 0.15, 0.35, 0.7, 0.9)  # by grade
    satisfaction: tuple[float, ...] = (0.05, 0.2, 0.4, 0.7, 0.9)  # dbn: by grade
    continuation: float = 0.9  # dbn


def click(
    grades: np.ndarray, behaviour: Behaviour, generator: np.random.Generator
) -> np.ndarray:
    """Clicks on pages of results.

    Args:
      grades: [P, K] int, of the shown results; below 0 where a page is shorter.
      behaviour: of the users.
      generator: source of chance.

    Returns:
      [P, K] bool.
    """
    real = grades >= 0
    attracted = np.asarray(behaviour.attraction)[np.maximum(grades, 0)]
    chance = generator.random(grades.shape)
    if behaviour.model == "pbm":
        ranks = np.arange(grades.shape[1])
        look = np.array(
            [
                behaviour.examination[min(k, len(behaviour.examination) - 1)]
                for k in ranks
            ]
        )
        return real & (chance < attracted * look)
    clicks = np.zeros(grades.shape, bool)
    looking = np.ones(len(grades), bool)
    satisfied = np.asarray(behaviour.satisfaction)[np.maximum(grades, 0)]
    for k in range(grades.shape[1]):
        clicks[:, k] = looking & real[:, k] & (chance[:, k] < attracted[:, k])
        if behaviour.model == "cascade":
            looking &= ~clicks[:, k]
            continue
        happy = clicks[:, k] & (generator.random(len(grades)) < satisfied[:, k])
        looking &= ~happy & (generator.random(len(grades)) < behaviour.continuation)
    return clicks


@dataclass(frozen=True)
class Page:
    """A query's results in the order of a system."""

    query: str
    documents: Sequence[str]
    grades: Sequence[int]


def _look(rank: int, behaviour: Behaviour) -> float:
    return behaviour.examination[min(rank, len(behaviour.examination) - 1)]


def page_ctr(
    pages: Sequence[Page], behaviour: Behaviour, asked: np.ndarray | None = None
) -> float:
    """The true chance that a page is clicked.

    Args:
      pages: of a system.
      behaviour: of the users.
      asked: share of each page in the traffic; None for equal ones.

    >>> one = Page("q", ["a"], [4])
    >>> page_ctr([one], Behaviour())
    0.9
    """
    values = []
    for page in pages:
        unclicked, found = 1.0, 0.0
        for rank, grade in enumerate(page.grades):
            look = _look(rank, behaviour) if behaviour.model == "pbm" else 1.0
            if behaviour.model == "dbn":
                look = behaviour.continuation**rank
            chance = behaviour.attraction[grade]
            if behaviour.model == "pbm":
                found += unclicked * look * chance
                unclicked *= 1 - look * chance
            else:  # a first click: the user came so far, and liked nothing before
                found += look * unclicked * chance
                unclicked *= 1 - chance
        values.append(found)
    return round(float(np.average(values, weights=asked)), 12)


def clicks_a_page(
    pages: Sequence[Page], behaviour: Behaviour, asked: np.ndarray | None = None
) -> float:
    """The true number of clicks on a page; arguments as for `page_ctr`.

    >>> one = Page("q", ["a", "b"], [4, 4])
    >>> clicks_a_page([one], Behaviour(examination=(1.0, 0.5)))
    1.35
    """
    values = []
    for page in pages:
        look, found = 1.0, 0.0
        for rank, grade in enumerate(page.grades):
            chance = behaviour.attraction[grade]
            if behaviour.model == "pbm":
                found += _look(rank, behaviour) * chance
                continue
            found += look * chance
            if behaviour.model == "cascade":
                look *= 1 - chance
            else:
                stays = 1 - chance * behaviour.satisfaction[grade]
                look *= stays * behaviour.continuation
        values.append(found)
    return round(float(np.average(values, weights=asked)), 12)


def popularity(queries: int) -> np.ndarray:
    """Share of each query in the traffic that `make_rows` makes."""
    ends = (np.arange(queries + 1) / queries) ** (1 / _SKEW)
    return np.diff(ends)


def rank_by_grade(
    listed: Sequence[tuple[str, Sequence[str], Sequence[int]]],
    noise: float,
    *,
    depth: int,
    seed: int,
) -> list[Page]:
    """Pages of a system that orders by grade plus uniform noise.

    Args:
      listed: query, documents and their grades.
      noise: in grades; 0 is the ideal order.
      depth: results of a page.
      seed: of the noise; the same for systems whose noise is to go together.
    """
    pages = []
    for at, (query, documents, grades) in enumerate(listed):
        drawn = np.random.default_rng([seed, at]).random(len(documents))
        values = -np.asarray(grades) - noise * drawn
        order: list[int] = np.argsort(values, kind="stable")[:depth].tolist()
        pages.append(
            Page(query, [documents[o] for o in order], [grades[o] for o in order])
        )
    return pages


def pages_of_runs(
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    qrels: Mapping[str, Mapping[str, float]],
    depth: int,
) -> dict[str, list[Page]]:
    """Pages of TREC runs, of the queries that all have and that are judged.

    Grades above 4 count as 4, unjudged documents as 0.

    Raises:
      DataError: where no query is left.
    """
    shared = [q for q in qrels if all(q in run for run in runs.values())]
    if not shared:
        raise DataError(
            f"the runs {', '.join(runs)} and the judgements have no query in common"
        )

    def page(query: str, scores: Mapping[str, float]) -> Page:
        order = sorted(scores, key=lambda d: (scores[d], d), reverse=True)[:depth]
        grades = [int(qrels[query].get(d, 0)) for d in order]
        return Page(query, order, [min(max(one, 0), 4) for one in grades])

    return {name: [page(q, run[q]) for q in shared] for name, run in runs.items()}


@dataclass(frozen=True)
class ShownPage:
    """What one user is shown: a page, the arm, and fields of each result."""

    page: Page
    arm: str = ""
    fields: tuple[Mapping[str, object], ...] = ()


Show = Callable[[str, int, str, np.random.Generator], ShownPage]  # user, query, day


def split_users(systems: Mapping[str, Sequence[Page]]) -> Show:
    """An A/B test: a user sees one system, drawn by a digest of the user's id."""
    arms = list(systems)

    def show(
        user: str, query: int, day: str, generator: np.random.Generator
    ) -> ShownPage:
        arm = arms[int.from_bytes(make_key("", user, "")[:8], "big") % len(arms)]
        return ShownPage(systems[arm][query], arm)

    return show


def mix(systems: Mapping[str, Sequence[Page]], *, length: int = 10) -> Show:
    """Team-draft interleaving of two systems, multileaving of more."""

    def show(
        user: str, query: int, day: str, generator: np.random.Generator
    ) -> ShownPage:
        pages = {name: one[query] for name, one in systems.items()}
        grades = {
            document: grade
            for page in pages.values()
            for document, grade in zip(page.documents, page.grades, strict=True)
        }
        text = next(iter(pages.values())).query
        drawn = multileave(
            {name: page.documents for name, page in pages.items()},
            make_key(text, user, day),
            length=length,
        )
        page = Page(text, drawn.documents, [grades[one] for one in drawn.documents])
        return ShownPage(page, "", tuple({"team": team} for team in drawn.teams))

    return show


def explore(pages: Sequence[Page], *, share: float) -> Show:
    """A logger that shuffles a share of its pages, and logs what it did by chance.

    The propensity of a result at its place is 1 - share where it is the ranking's own,
    and share / K more, as a shuffled page has it anywhere alike.
    """

    def show(
        user: str, query: int, day: str, generator: np.random.Generator
    ) -> ShownPage:
        own = pages[query]
        count = len(own.documents)
        order = np.arange(count)
        if generator.random() < share:
            order = generator.permutation(count)
        fields = tuple(
            {"propensity": round((1 - share) * (at == k) + share / count, 9)}
            for k, at in enumerate(order.tolist())
        )
        page = Page(
            own.query,
            [own.documents[at] for at in order.tolist()],
            [own.grades[at] for at in order.tolist()],
        )
        return ShownPage(page, "", fields)

    return show


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Who comes, how often and for how long."""

    users: int = 2000
    days: int = 14
    pages: float = 5.0  # mean of a user
    seed: int = 0


def make_rows(
    show: Show, queries: int, traffic: Traffic, behaviour: Behaviour
) -> Iterator[dict[str, object]]:
    """Rows of a log, user by user, every shown result and every click one.

    Args:
      show: what a user sees.
      queries: that are asked, the first ones more often.
      traffic: of the log.
      behaviour: of the users.
    """
    generator = np.random.default_rng(traffic.seed)
    activity = generator.lognormal(-0.5, 1.0, traffic.users)
    extra = np.maximum(traffic.pages - 1, 0)
    counts = 1 + generator.poisson(extra * activity)
    for number, count in enumerate(counts.tolist()):
        user = f"u{number}"
        asked = (generator.random(count) ** _SKEW * queries).astype(int)
        times = np.sort(generator.uniform(0, traffic.days * DAY, count)) + START
        for at, (query, time) in enumerate(zip(asked.tolist(), times, strict=True)):
            day = str(np.datetime64(int(time // DAY), "D"))
            shown = show(user, query, day, generator)
            base: dict[str, object] = {
                "user": user,
                "page": f"{user}-{at}",
                "query": shown.page.query,
            }
            if shown.arm:
                base["arm"] = shown.arm
            yield from page_rows(
                shown.page, base, float(time), behaviour, generator, more=shown.fields
            )


def page_rows(
    page: Page,
    base: Mapping[str, object],
    time: float,
    behaviour: Behaviour,
    generator: np.random.Generator,
    *,
    more: Sequence[Mapping[str, object]] = (),
) -> list[dict[str, object]]:
    """The rows of one page view: its results, then its clicks with their dwell.

    Args:
      page: as shown.
      base: fields of every row.
      time: of the page.
      behaviour: of the user.
      generator: source of chance.
      more: fields of each result, such as its team or propensity.
    """
    grades = np.array([page.grades], np.int64)
    clicked = click(grades, behaviour, generator)[0]
    extra = more or [{}] * len(page.documents)
    rows: list[dict[str, object]] = []
    for rank, document in enumerate(page.documents):
        rows.append(
            {
                **base,
                "time": round(time, 3),
                "event": "page",
                "document_id": document,
                "position": rank + 1,
                **extra[rank],
            }
        )
    after = time
    for rank in np.flatnonzero(clicked).tolist():
        after += float(generator.exponential(4.0)) + 0.5
        dwell = float(
            np.exp(1.6 + 0.55 * page.grades[rank] + 0.6 * generator.standard_normal())
        )
        rows.append(
            {
                **base,
                "time": round(after, 3),
                "event": "click",
                "document_id": page.documents[rank],
                "position": rank + 1,
                "dwell": round(dwell, 1),
                **extra[rank],
            }
        )
        after += dwell
    return rows


COLUMNS = (
    "time",
    "user",
    "page",
    "event",
    "query",
    "arm",
    "document_id",
    "position",
    "dwell",
    "team",
    "propensity",
)


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Writes rows as an event log, .tsv or .jsonl by the path's name; their number.

    A TSV has all `COLUMNS` and those of the first row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, columns = 0, list(COLUMNS)
    with storage.writing(path, "w") as file:
        for row in rows:
            if path.suffix == ".tsv":
                if not count:
                    columns += [name for name in row if name not in columns]
                    file.write("\t".join(columns) + "\n")
                cells = ("" if row.get(c) is None else str(row[c]) for c in columns)
                file.write("\t".join(cells) + "\n")
            else:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            count += 1
    return count
