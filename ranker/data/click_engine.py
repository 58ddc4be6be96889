"""The rules of `clicks` as SQL: DuckDB, which spills to disk what memory cannot hold.

Every rule is one statement, so the numbers in the report are counts of a table. Texts
are folded by SQL where they are ASCII, which is nearly always, and by Python elsewhere:
both engines fold alike.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from ranker import config
from ranker.data import click_logs, clicks
from ranker.data.clicks import ClickCounts
from ranker.data.records import ClickExample
from ranker.data.words import fold

_FETCHED = 16384  # rows at a time
_LOOKED_UP = 8192  # documents at a time
MEMORY = "1GiB"  # of DuckDB; what is above it goes to disk

Documents = Iterable[tuple[str, str, str]]  # id, title and text


class ClickTable:
    """Click examples in a file of DuckDB, and what became of the rows of the log."""

    def __init__(self, connection: Any, counts: ClickCounts, shown: dict[str, Any]):
        """What `run_rules` has made: tables, counts, and figures for the report."""
        self._connection, self.counts, self.shown = connection, counts, shown

    def count(self, split: str) -> int:
        """Examples of a split."""
        return self.counts.examples.get(split, 0)

    def clicks_a_query(self) -> dict[str, int]:
        """How many queries have 1, 2, ... examples; those from 20 on are one."""
        found = self._connection.execute(
            "SELECT least(n, 20), count(*) FROM (SELECT count(*) AS n FROM examples "
            "GROUP BY split, fold(query)) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        return {str(size): count for size, count in found}

    def examples(self, split: str, *, every: int = 1) -> Iterator[ClickExample]:
        """Examples of a split, in order; with `every`, one of so many."""
        found = self._connection.cursor().sql(
            "SELECT query, title, summary, count FROM examples WHERE split = ? "
            "AND (number - 1) % ? = 0 ORDER BY number",
            params=[split, every],
        )
        for batch in found.to_arrow_reader(_FETCHED):
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield ClickExample(*row)


@contextlib.contextmanager
def open_engine(folder: pathlib.Path) -> Iterator[Any]:
    """A connection whose tables and spilled data lie in `folder`, until the end."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(str(folder / "clicks.duckdb"))
    try:
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET temp_directory = '{_quoted(folder / 'spilled')}'")
        connection.execute("SET preserve_insertion_order = false")
        how: Any = "arrow"  # its stubs know the enumeration alone
        connection.create_function(
            "fold_any", _fold_all, ["VARCHAR"], "VARCHAR", type=how
        )
        connection.execute(
            r"""CREATE MACRO fold(x) AS CASE WHEN regexp_full_match(x, '[ -~]*')
            THEN lower(regexp_replace(trim(x), ' +', ' ', 'g')) ELSE fold_any(x) END"""
        )
        yield connection
    finally:
        connection.close()


def _quoted(path: pathlib.Path) -> str:
    return str(path).replace("'", "''")


def _fold_all(column: Any) -> pa.Array:
    return pa.array(
        [None if text is None else fold(text) for text in column.to_pylist()],
        pa.string(),
    )


def run_rules(
    connection: Any,
    batches: Iterable[pa.RecordBatch],
    rules: config.ClickRules,
    *,
    held_out: frozenset[str] = frozenset(),
    documents: Callable[[], Documents] = lambda: (),
) -> ClickTable:
    """Applies the rules.

    Args:
      connection: of `open_engine`.
      batches: of `click_logs.SCHEMA`; read once.
      rules: numbers that the rules take.
      held_out: folded queries that nothing is trained on.
      documents: reads the corpus; called where a row has an id and no text.

    Returns:
      The table of examples, in the order that `clicks` says.
    """
    counts = ClickCounts()
    _load(connection, batches)
    shown = _figures(connection)
    _filter(connection, rules, held_out, counts)
    _join_texts(connection, documents, counts)
    _group(connection, rules, counts)
    return ClickTable(connection, counts, shown)


def _load(connection: Any, batches: Iterable[pa.RecordBatch]) -> None:
    with _registered(connection, "batches", click_logs.SCHEMA, batches):
        connection.execute("CREATE TABLE log AS SELECT * FROM batches")


@contextlib.contextmanager
def _registered(
    connection: Any, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> Iterator[None]:
    """Batches as a table that can be read once.

    DuckDB would wrap what is raised while it reads; here it is raised as it was.
    """
    raised: list[Exception] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:  # is raised again below
            raised.append(error)

    reader = pa.RecordBatchReader.from_batches(schema, watched())
    connection.register(name, reader)
    try:
        yield
    finally:
        connection.unregister(name)
    if raised:
        raise raised[0]


def _figures(connection: Any) -> dict[str, Any]:
    """Rows and clicks by position, for the report."""
    found = connection.execute(
        "SELECT position, count(*), sum(clicked::INT) FROM log "
        "WHERE position IS NOT NULL GROUP BY 1 ORDER BY 1 LIMIT 50"
    ).fetchall()
    return {
        "positions": {
            str(position): {"rows": rows, "clicked": int(clicked)}
            for position, rows, clicked in found
        }
    }


def _filter(
    connection: Any,
    rules: config.ClickRules,
    held_out: frozenset[str],
    counts: ClickCounts,
) -> None:
    connection.register("held", pa.table({"folded": pa.array(held_out, pa.string())}))
    connection.execute(
        """CREATE TABLE held_out AS SELECT folded FROM held;
        CREATE TABLE kept AS SELECT fold(query) AS folded, query, title, summary,
        document_id, count FROM log WHERE clicked AND (dwell IS NULL OR dwell >= $low)
        """,
        {"low": rules.min_dwell},
    )
    counts.rows, unclicked, short = connection.execute(
        """SELECT count(*), count(*) FILTER (NOT clicked),
        count(*) FILTER (clicked AND dwell < $low) FROM log""",
        {"low": rules.min_dwell},
    ).fetchone()
    counts.dropped[clicks.NOT_CLICKED] = unclicked
    counts.dropped[clicks.SHORT] = short
    connection.execute("DROP TABLE log")
    counts.held_out, counts.held_out_queries = connection.execute(
        "SELECT count(*), count(DISTINCT folded) FROM kept SEMI JOIN held_out "
        "USING (folded)"
    ).fetchone()
    if counts.held_out:
        connection.execute(
            "DELETE FROM kept WHERE folded IN (SELECT folded FROM held_out)"
        )


_BARE = "title = '' AND summary = '' AND document_id <> ''"


def _join_texts(
    connection: Any, documents: Callable[[], Documents], counts: ClickCounts
) -> None:
    """Gives rows that name a document its title and text."""
    (bare,) = connection.execute(f"SELECT count(*) FROM kept WHERE {_BARE}").fetchone()
    if bare:
        connection.execute(
            "CREATE TABLE wanted AS SELECT DISTINCT document_id FROM kept "
            f"WHERE {_BARE}"
        )
        with _registered(connection, "corpus", _TEXTS, _tables(documents())):
            connection.execute(
                "CREATE TABLE texts AS SELECT * FROM corpus SEMI JOIN wanted "
                "USING (document_id)"
            )
        connection.execute(
            f"""CREATE TABLE completed AS SELECT folded, query,
            CASE WHEN {_prefixed()} THEN texts.title ELSE kept.title END AS title,
            CASE WHEN {_prefixed()} THEN texts.text ELSE kept.summary END AS summary,
            kept.document_id AS document_id, count,
            {_prefixed()} AND texts.document_id IS NULL AS lost
            FROM kept LEFT JOIN texts USING (document_id);
            DROP TABLE kept; DROP TABLE texts; DROP TABLE wanted;
            CREATE VIEW joined AS SELECT * FROM completed"""
        )
    else:
        connection.execute("CREATE VIEW joined AS SELECT *, false AS lost FROM kept")
    counts.dropped[clicks.UNKNOWN], counts.dropped[clicks.EMPTY] = connection.execute(
        """SELECT count(*) FILTER (lost),
        count(*) FILTER (NOT lost AND title = '' AND summary = '') FROM joined"""
    ).fetchone()


def _prefixed() -> str:
    return "(kept.title = '' AND kept.summary = '' AND kept.document_id <> '')"


_TEXTS = pa.schema(
    [("document_id", pa.string()), ("title", pa.string()), ("text", pa.string())]
)


def _tables(documents: Documents) -> Iterator[pa.RecordBatch]:
    waiting: list[tuple[str, str, str]] = []
    for one in documents:
        waiting.append(one)
        if len(waiting) == _LOOKED_UP:
            yield _table(waiting)
            waiting = []
    if waiting:
        yield _table(waiting)


def _table(rows: Sequence[tuple[str, str, str]]) -> pa.RecordBatch:
    columns = [
        pa.array(list(column), pa.string()) for column in zip(*rows, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_TEXTS)


def _group(connection: Any, rules: config.ClickRules, counts: ClickCounts) -> None:
    """One example of a query and document, the most clicked of each query."""
    connection.execute(
        """CREATE TABLE pairs AS SELECT folded,
        CASE WHEN document_id <> '' THEN 'd' || document_id
        ELSE 't' || fold(title) || chr(0) || fold(summary) END AS key,
        min(query) AS query,
        min(title || chr(0) || summary || chr(0) || query) AS spelt,
        sum(count)::BIGINT AS count, count(*) AS merged
        FROM joined WHERE NOT lost AND (title <> '' OR summary <> '') GROUP BY 1, 2"""
    )
    rows, pairs = connection.execute(
        "SELECT coalesce(sum(merged), 0)::BIGINT, count(*) FROM pairs"
    ).fetchone()
    counts.merged = rows - pairs
    connection.execute(
        "DROP VIEW joined; DROP TABLE IF EXISTS completed; DROP TABLE IF EXISTS kept"
    )
    connection.execute(
        """CREATE TABLE examples AS SELECT split, query,
        split_part(spelt, chr(0), 1) AS title, split_part(spelt, chr(0), 2) AS summary,
        count, row_number() OVER (PARTITION BY split ORDER BY place, count DESC, key)
        AS number FROM (
            SELECT *, CASE WHEN place[1:16] < $bound THEN 'dev' ELSE 'train' END
            AS split FROM (SELECT *, sha256(folded) AS place,
                row_number() OVER (PARTITION BY folded ORDER BY count DESC, key) AS rank
                FROM pairs)
            WHERE rank <= $most)""",
        {"bound": clicks.dev_bound(rules.dev_fraction), "most": rules.max_per_query},
    )
    found = dict(
        connection.execute("SELECT split, count(*) FROM examples GROUP BY 1").fetchall()
    )
    counts.examples = {split: found.get(split, 0) for split in ("train", "dev")}
    counts.dropped[clicks.CAPPED] = pairs - sum(counts.examples.values())
