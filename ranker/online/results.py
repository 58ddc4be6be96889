"""Shown results with their clicks, page by page, as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ranker.errors import DataError
from ranker.online import pages
from ranker.online.events import Log
from ranker.online.pages import Contradictions, PageRules, View

FIELDS = (*pages.FIELDS, "document_id", "propensity")
_ROWS = """
SELECT k.u, k.p, s.position, s.propensity,
  c.position IS NOT NULL AS clicked, k.query, s.document_id
FROM kept k JOIN (
  SELECT u, p, position, any_value(document_id) AS document_id,
    any_value(propensity) AS propensity
  FROM event WHERE NOT click AND position BETWEEN 1 AND {depth}
    AND document_id IS NOT NULL GROUP BY u, p, position) s
ON s.u = k.u AND s.p = k.p
LEFT JOIN (
  SELECT DISTINCT e.u, e.p, coalesce(e.position, d.position) AS position FROM event e
  LEFT JOIN (SELECT DISTINCT u, p, document, position FROM event WHERE NOT click) d
  ON d.u = e.u AND d.p = e.p AND d.document = e.document WHERE e.click) c
ON c.u = s.u AND c.p = s.p AND c.position = s.position
WHERE k.query IS NOT NULL
"""


@dataclass(frozen=True)
class Shown:
    """Pages of up to K results; a place without a result has pair -1.

    A pair is a query with a document; `queries` and `documents` say which.
    """

    pairs: Int[np.ndarray, "P K"]
    clicks: Bool[np.ndarray, "P K"]
    propensity: Float[np.ndarray, "P K"]  # as logged; NaN where it is not
    users: np.ndarray  # [P] uint64
    query: Int[np.ndarray, " P"]  # place in `names`
    names: list[str]  # different queries
    queries: Int[np.ndarray, " N"]  # of each pair, place in `names`
    documents: list[str]  # of each pair

    @property
    def real(self) -> Bool[np.ndarray, "P K"]:
        """Where there is a result."""
        return self.pairs >= 0

    def take(self, rows: np.ndarray) -> "Shown":
        """Some of the pages; the pairs keep their numbers."""
        return Shown(
            self.pairs[rows],
            self.clicks[rows],
            self.propensity[rows],
            self.users[rows],
            self.query[rows],
            self.names,
            self.queries,
            self.documents,
        )


def load_pages(
    log: Log, rules: PageRules, found: Contradictions, *, depth: int
) -> Shown:
    """All pages of a log with their results up to `depth`.

    Raises:
      DataError: where the log does not hold the shown results.
    """
    needed = {"document_id", "position", "query"}
    if not needed <= log.has:
        raise DataError(
            f"{log.facts['files'][0]}: the columns "
            f"{', '.join(sorted(needed - log.has))} are missing or empty; every shown "
            "result must be logged, clicked or not: a page row each, with query, "
            "document_id and position"
        )
    connection = log.connection
    for bucket in pages.walk(
        log, rules, found, View(extra=("document_id", "propensity"))
    ):
        pages.make_kept(log, bucket)
        verb = "INSERT INTO results" if bucket.number else "CREATE TABLE results AS"
        connection.execute(f"{verb} {_ROWS.format(depth=depth)}")
    connection.execute(
        "CREATE TABLE pair AS SELECT query, document_id, "
        "(row_number() OVER (ORDER BY query, document_id) - 1)::INTEGER AS i "
        "FROM (SELECT DISTINCT query, document_id FROM results)"
    )
    rows: Any = connection.execute(
        "SELECT r.u, (dense_rank() OVER (ORDER BY r.u, r.p) - 1)::BIGINT AS page, "
        "r.position, r.propensity, r.clicked, pair.i AS pair FROM results r "
        "JOIN pair ON pair.query = r.query AND pair.document_id = r.document_id"
    ).fetchnumpy()
    if not len(rows["page"]):
        raise DataError(
            f"{log.facts['files'][0]}: no page has a result up to position {depth}; "
            "log the shown results as page rows with document_id and position"
        )
    names = connection.execute("SELECT query, document_id FROM pair ORDER BY i")
    pair: Any = names.fetchnumpy()
    return _arrays(rows, pair, depth)


def _arrays(
    rows: dict[str, np.ndarray], pair: dict[str, np.ndarray], depth: int
) -> Shown:
    page = np.asarray(rows["page"])
    at = page, np.asarray(rows["position"]) - 1
    shape = int(page.max()) + 1, depth
    pairs = np.full(shape, -1, np.int32)
    pairs[at] = np.asarray(rows["pair"])
    clicks = np.zeros(shape, bool)
    clicks[at] = np.asarray(rows["clicked"])
    propensity = np.full(shape, np.nan)
    propensity[at] = np.ma.filled(
        np.ma.asarray(rows["propensity"]).astype(np.float64), np.nan
    )
    users = np.zeros(shape[0], np.uint64)
    users[page] = np.asarray(rows["u"])
    names, queries = np.unique(
        np.asarray(pair["query"]).astype(str), return_inverse=True
    )
    of_page = np.zeros(shape[0], np.int64)
    of_page[page] = queries[np.asarray(rows["pair"])]
    return Shown(
        pairs,
        clicks,
        propensity,
        users,
        of_page,
        names.tolist(),
        queries,
        np.asarray(pair["document_id"]).astype(str).tolist(),
    )
