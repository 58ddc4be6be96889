"""Logs with a known truth: users, pages and clicks made up from a click model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DAY = 86_400.0
START = 1_767_225_600.0  # 2026-01-01, UTC
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


def page_ctr(pages: Sequence[Page], behaviour: Behaviour) -> float:
    """The true chance that a page is clicked, for users who ask queries alike often.

    >>> one = Page("q", ["a"], [4])
    >>> page_ctr([one], Behaviour())
    0.9
    """
    values = []
    for page in pages:
        none = 1.0
        for k, grade in enumerate(page.grades):
            look = 1.0  # of who has not clicked yet
            if behaviour.model == "pbm":
                look = behaviour.examination[min(k, len(behaviour.examination) - 1)]
            elif behaviour.model == "dbn":
                look = behaviour.continuation**k
            if behaviour.model == "dbn":
                # A first click at k needs k continuations and k refusals before.
                before = math.prod(1 - behaviour.attraction[g] for g in page.grades[:k])
                none -= look * before * behaviour.attraction[grade]
            else:
                none *= 1 - look * behaviour.attraction[grade]
        values.append(1 - none)
    return round(float(np.mean(values)), 12)


def experiment_rows(
    systems: Mapping[str, Sequence[Page]],
    *,
    users: int,
    days: int,
    pages: float,
    behaviour: Behaviour,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of an A/B log: users split evenly, every shown result a row.

    Args:
      systems: arm -> its pages, the same queries in the same order for all.
      users: in all arms together.
      days: of the log.
      pages: mean of a user.
      behaviour: of the users.
      seed: of everything.
    """
    generator = np.random.default_rng(seed)
    arms = list(systems)
    activity = generator.lognormal(-0.5, 1.0, users)
    counts = 1 + generator.poisson(np.maximum(pages - 1, 0) * activity)
    of_user = generator.integers(0, len(arms), users)
    rows: list[dict[str, object]] = []
    for user in range(users):
        arm = arms[of_user[user]]
        chosen = generator.integers(0, len(systems[arm]), counts[user])
        times = np.sort(generator.uniform(0, days * DAY, counts[user])) + START
        for number, (at, time) in enumerate(zip(chosen, times, strict=True)):
            base = {
                "user": f"u{user}",
                "page": f"u{user}-{number}",
                "query": systems[arm][at].query,
                "arm": arm,
            }
            rows += page_rows(systems[arm][at], base, float(time), behaviour, generator)
    return rows


def page_rows(
    page: Page,
    base: Mapping[str, object],
    time: float,
    behaviour: Behaviour,
    generator: np.random.Generator,
    more: Sequence[Mapping[str, object]] | None = None,
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


def write_rows(path: object, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows as an event log: .tsv, .jsonl or .parquet by the path's name."""
    import json
    import pathlib

    where = pathlib.Path(str(path))
    where.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if where.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {name: [row.get(name) for row in rows] for name in columns}
        pq.write_table(pa.table(arrays), where)
        return
    with where.open("w", encoding="utf-8") as file:
        if where.suffix == ".tsv":
            file.write("\t".join(columns) + "\n")
        for row in rows:
            if where.suffix == ".tsv":
                cells = ("" if row.get(c) is None else str(row[c]) for c in columns)
                file.write("\t".join(cells) + "\n")
            else:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
