"""The rules of `clicks` as SQL: DuckDB, which spills to disk what memory cannot hold.

Every rule is one statement, so the numbers in the report are counts of a table. Texts
are folded by SQL where they are ASCII, which is nearly always, and by Python elsewhere:
both engines fold alike.
"""

import contextlib
import itertools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ranker import config
from ranker.data import click_logs, clicks
from ranker.data.clicks import ClickCounts
from ranker.data.records import ClickExample
from ranker.data.words import fold

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_FIGURES = 50  # positions in the report
_FETCHED = 16384  # rows at a time
_LOOKED_UP = 8192  # documents at a time
MEMORY = "896MiB"  # of DuckDB; what is above it goes to disk

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
        for batch in self.batches(split, every=every):
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield ClickExample(*row)

    def batches(self, split: str, *, every: int = 1) -> Iterator[pa.RecordBatch]:
        """The same as columns: query, title, summary and count."""
        found = self._connection.cursor().sql(
            "SELECT query, title, summary, count FROM examples WHERE split = ? "
            "AND (number - 1) % ? = 0 ORDER BY number",
            params=[split, every],
        )
        yield from found.to_arrow_reader(_FETCHED)


@contextlib.contextmanager
def open_engine(folder: pathlib.Path) -> Iterator[Any]:
    """A connection whose tables and spilled data lie in `folder`, until the end."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(str(folder / "clicks.duckdb"))
    try:
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET temp_directory = '{_quoted(folder / 'spilled')}'")
        connection.execute("SET preserve_insertion_order = false")
        # Nobody opens the file again: closing it need not write what is in memory.
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
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
    counts, positions = ClickCounts(by=rules.count_by), Positions()
    _load(connection, _watch(batches, rules, counts, positions), rules)
    _hold_out(connection, held_out, counts)
    _join_texts(connection, documents, counts)
    _group(connection, rules, counts)
    return ClickTable(connection, counts, {"positions": positions.report()})


class Positions:
    """Rows and clicks by position on the result page."""

    def __init__(self) -> None:
        """Of no row."""
        self._rows: Counter[int] = Counter()
        self._clicked: Counter[int] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes in the rows of a batch."""
        for counts, column in (
            (self._rows, batch["position"]),
            (self._clicked, batch["position"].filter(batch["clicked"])),
        ):
            found = _compute.value_counts(column.drop_null())
            values, numbers = found.field("values"), found.field("counts")
            counts.update(
                dict(zip(values.to_pylist(), numbers.to_pylist(), strict=True))
            )

    def report(self) -> dict[str, dict[str, int]]:
        """The first fifty, for report.json."""
        return {
            str(place): {"rows": self._rows[place], "clicked": self._clicked[place]}
            for place in sorted(self._rows)[:_FIGURES]
        }


def _watch(
    batches: Iterable[pa.RecordBatch],
    rules: config.ClickRules,
    counts: ClickCounts,
    positions: Positions,
) -> Iterator[pa.RecordBatch]:
    """The same batches; their rows are counted, and why some are dropped."""
    for batch in batches:
        counts.rows += len(batch)
        clicked = batch["clicked"]
        number = _compute.sum(clicked).as_py() or 0
        counts.dropped[clicks.NOT_CLICKED] += len(batch) - number
        if batch["dwell"].null_count < len(batch):
            short = _compute.and_(
                clicked, _compute.less(batch["dwell"], rules.min_dwell)
            )
            counts.dropped[clicks.SHORT] += _compute.sum(short).as_py() or 0
        _count(batch, rules, counts)
        if batch["position"].null_count < len(batch):
            positions.add(batch)
        yield batch


def _count(
    batch: pa.RecordBatch, rules: config.ClickRules, counts: ClickCounts
) -> None:
    """What the rows count that rules 1 and 2 leave (5); for the report."""
    known = np.asarray(batch["dwell"].is_valid())
    dwell = np.asarray(batch["dwell"].fill_null(0.0))
    kept = np.asarray(batch["clicked"]) & (~known | (dwell >= rules.min_dwell))
    clicked = np.asarray(batch["count"])[kept]
    timed = known[kept] & (rules.count_by == "dwell")
    # By clicks, min_dwell may be 0, and nothing is divided.
    times = np.ones(len(clicked), np.int64)
    times[timed] = np.clip(dwell[kept][timed] // rules.min_dwell, 1, clicks.MOST)
    counts.clicked += int(clicked.sum())
    counts.counted += int((clicked * times).sum())
    counts.timed += int(timed.sum())


def _load(
    connection: Any, batches: Iterable[pa.RecordBatch], rules: config.ClickRules
) -> None:
    """The rows that rules 1 and 2 leave, and what each counts (5)."""
    with _registered(connection, "batches", click_logs.SCHEMA, batches):
        connection.execute(
            """CREATE TABLE kept AS SELECT fold(query) AS folded, query, title, summary,
            document_id, count * CASE WHEN $by_dwell AND dwell IS NOT NULL
            THEN greatest(1, least($most, floor(dwell / $low)))::BIGINT ELSE 1 END
            AS count FROM batches
            WHERE clicked AND (dwell IS NULL OR dwell >= $low)""",
            {
                "low": rules.min_dwell,
                "by_dwell": rules.count_by == "dwell",
                "most": clicks.MOST,
            },
        )


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


def _hold_out(connection: Any, held_out: frozenset[str], counts: ClickCounts) -> None:
    connection.register("held", pa.table({"folded": pa.array(held_out, pa.string())}))
    connection.execute("CREATE TABLE held_out AS SELECT folded FROM held")
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
    rows = iter(documents)
    while some := list(itertools.islice(rows, _LOOKED_UP)):
        yield _table(some)


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
