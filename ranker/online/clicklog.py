"""`clicks`: the clicks of an event log as a click log, which cpt learns from."""

import pathlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ranker.errors import DataError
from ranker.online import pages
from ranker.online.events import Log
from ranker.online.pages import Contradictions, PageRules, View

FIELDS = (*pages.FIELDS, "document_id")
_SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("document_id", pa.string()),
        ("position", pa.int32()),
        ("dwell", pa.float64()),
    ]
)
_FETCHED = 65536  # rows at a time
_CLICKS = """
SELECT k.query, coalesce(e.document_id, d.document_id) AS document_id, e.position,
  CASE WHEN e.dwell >= 0 THEN e.dwell::DOUBLE END AS dwell
FROM kept k JOIN event e ON e.u = k.u AND e.p = k.p LEFT JOIN (
  SELECT u, p, position, any_value(document_id) AS document_id FROM event
  WHERE NOT click AND document_id IS NOT NULL AND position IS NOT NULL GROUP BY ALL) d
ON d.u = e.u AND d.p = e.p AND d.position = e.position
WHERE e.click
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `clicks` is asked for."""

    rules: PageRules = field(default_factory=PageRules)


def write_click_log(log: Log, settings: Settings, path: pathlib.Path) -> dict[str, Any]:
    """Writes a Parquet file, a row a click, and returns the report.

    Its columns are query, document_id, position and dwell (seconds), as
    `data.click_log` reads them. A click has the query of its page, and where it names
    no document that of its position. Clicks that still lack either are left out.

    Raises:
      DataError: where no click is left.
    """
    found = Contradictions()
    counts = dict.fromkeys(("clicks", "written", "without_query", "with_dwell"), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, _SCHEMA) as file:
        for bucket in pages.walk(
            log, settings.rules, found, View(extra=("document_id",))
        ):
            pages.make_kept(log, bucket)
            log.connection.execute(f"CREATE OR REPLACE TEMP TABLE clicked AS {_CLICKS}")
            [row] = log.connection.execute(
                "SELECT count(*), count(*) FILTER (query IS NOT NULL AND document_id "
                "IS NOT NULL), count(*) FILTER (query IS NULL), count(dwell) "
                "FROM clicked"
            ).fetchall()
            for name, count in zip(counts, row, strict=True):
                counts[name] += count
            rows = log.connection.sql(
                "SELECT * FROM clicked WHERE query IS NOT NULL AND document_id IS NOT "
                "NULL"
            )
            for batch in rows.to_arrow_reader(_FETCHED):
                file.write_table(pa.Table.from_batches([batch]).cast(_SCHEMA))
    if not counts["written"]:
        path.unlink()
        raise DataError(
            f"{log.facts['files'][0]}: none of its {counts['clicks']:,} clicks has a "
            "query and a document; log the query with the page, and document_id with "
            "the click or with the shown results"
        )
    return {
        "command": "clicks",
        "log": dict(log.facts),
        "contradictions": found.summary(),
        **counts,
        "without_document": counts["clicks"]
        - counts["written"]
        - counts["without_query"],
        "notes": [],
    }
