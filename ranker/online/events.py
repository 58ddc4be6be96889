"""The event log: one row an event, read by DuckDB into typed columns.

A row is a results page that was shown (`event` is "page"), a result on it (a page row
with `document_id` and `position`), or a click. TSV with a header, JSON lines and
Parquet are read, plain or gzip, one file or many. A cell that cannot be what its column
says stops the reader, which names the file, the line and the field. What contradicts
other rows is left to `pages`, which names and counts it.

Strings that only have to be told apart (users, pages, sessions, documents) are kept as
64-bit hashes: 100 million different ones have a chance of 1 in 3,700 that any two are
taken for one. Rows of one user lie in one *bucket*, so that a log of any length is
worked through bucket by bucket in little memory.
"""

import contextlib
import dataclasses
import gzip
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from ranker.errors import DataError, shown

ROWS_A_BUCKET = 2_000_000
MAX_LINE = 16 * 2**20  # bytes
_TEXT_ROW = 60  # bytes, to guess the rows of a text file from its size
_SUFFIXES = {
    ".tsv": "tsv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_LATEST = 1e11  # seconds; a larger number is in milliseconds


@dataclass(frozen=True)
class Field:
    """A column of the log."""

    kind: str  # of: time, text, hash, number, whole, truth, event
    expected: str  # for the message about a cell that does not fit
    bad: str = "false"  # SQL on the typed cell `x`: it is out of bounds
    required: bool = False  # in every row


FIELDS = {
    "time": Field(
        "time",
        "seconds since 1970 or an ISO time (milliseconds must be divided by 1,000)",
        f"NOT (x >= 0 AND x < {_LATEST:.0f})",
        True,
    ),
    "user": Field("hash", "the id of a user", required=True),
    "page": Field("hash", "the id of a results page", required=True),
    "event": Field("event", "page or click", required=True),
    "session": Field("hash", "the id of a session"),
    "query": Field("text", "a query"),
    "arm": Field("text", "the name of an arm"),
    "document_id": Field("text", "the id of a document"),
    "document": Field("hash", "the id of a document"),  # the same, to tell apart
    "position": Field("whole", "a whole number from 1", "x < 1 OR x > 100000"),
    "dwell": Field("number", "seconds", "NOT isfinite(x)"),
    "latency": Field("number", "milliseconds, at least 0", "NOT (x >= 0 AND x < 1e9)"),
    "team": Field("text", "the ranker that placed the result: a, b or both"),
    "propensity": Field(
        "number", "a probability above 0 and at most 1", "NOT (x > 0 AND x <= 1)"
    ),
    "score": Field("number", "a number", "NOT isfinite(x)"),
    "triggered": Field("truth", "true or false"),
}
# Other names that logs use, taken where the column itself is missing.
ALIASES = {
    "time": ("timestamp", "ts"),
    "user": ("user_id",),
    "page": ("page_id",),
    "session": ("session_id",),
    "document_id": ("document", "doc_id", "docid"),
    "document": ("document_id", "doc_id", "docid"),
    "position": ("rank",),
    "score": ("scores",),
}


@dataclass(frozen=True)
class Log:
    """A log that has been read; its rows are in `rows(bucket)`."""

    connection: duckdb.DuckDBPyConnection
    sources: tuple["_Source", ...]
    buckets: int
    folder: pathlib.Path | None  # of the buckets' files; None: one table in memory
    has: frozenset[str]  # fields that some row has a value of
    facts: Mapping[str, Any] = field(default_factory=dict)  # files, rows, users, ...
    threads: int = 1  # that may work on it at a time

    def rows(self, bucket: int) -> str:
        """SQL of the rows of one bucket, as a relation."""
        if self.folder is None:
            return "staged"
        return f"read_parquet({_quoted(f'{self.folder}/bucket={bucket}/*.parquet')})"

    def again(self) -> "Log":
        """The same log through a connection of its own, for another thread."""
        return dataclasses.replace(self, connection=self.connection.cursor())

    def name(self, column: str, number: int) -> str:
        """The string of `column` that has this hash, for a message."""
        for source in self.sources:
            if column not in source.cells:
                continue
            cell = f"CAST({source.cells[column]} AS VARCHAR)"
            found = self.connection.execute(
                f"SELECT {cell} FROM {source.relation} WHERE hash({cell}) = ? LIMIT 1",
                [number],
            ).fetchall()
            if found:
                return str(found[0][0])
        return str(number)


@dataclass(frozen=True)
class _Source:
    """Files of one kind with the same columns."""

    kind: str
    files: tuple[pathlib.Path, ...]
    relation: str  # SQL
    cells: Mapping[str, str]  # field -> SQL of its raw cell
    types: Mapping[str, str]  # field -> type of that cell, upper case
    clicked: bool  # a row is a result, and a click too where `clicked` is true
    columns: tuple[str, ...] = ()  # of a TSV, in order


def _quoted(text: Any) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def _named(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def find_files(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """The files that paths, folders and globs name.

    Raises:
      DataError: where one names nothing, or a kind of file that is not read.
    """
    found: list[pathlib.Path] = []
    for one in map(pathlib.Path, paths):
        if one.is_dir():
            files = sorted(path for path in one.rglob("*") if _kind(path))
            if not files:
                raise DataError(
                    f"{one}: the folder has no .tsv, .jsonl or .parquet file"
                )
        elif any(letter in str(one) for letter in "*?["):
            base = pathlib.Path(one.anchor or ".")
            pattern = str(one.relative_to(base) if one.anchor else one)
            files = sorted(path for path in base.glob(pattern) if path.is_file())
            if not files:
                raise DataError(f"{one}: no file has such a name")
        elif not one.is_file():
            raise DataError(f"{one}: no such file")
        else:
            files = [one]
        for path in files:
            if not _kind(path):
                raise DataError(
                    f"{path}: an event log is .tsv, .jsonl or .parquet (the first two "
                    "also .gz); convert it, or rename it to say what it is"
                )
        found += files
    return found


def _kind(path: pathlib.Path) -> str | None:
    name = path.name.removesuffix(".gz") if path.suffix == ".gz" else path.name
    if name.startswith((".", "_")):
        return None
    return _SUFFIXES.get(pathlib.Path(name).suffix)


# --- what the files have ---


def _header(path: pathlib.Path) -> tuple[str, ...]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.readline(MAX_LINE)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}:1: cannot be read ({error})") from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path}:1: the file is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
        )
    try:
        line = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: is not UTF-8; convert the file to UTF-8") from error
    if not line.strip():
        raise DataError(f"{path}:1: is empty; expected a header of column names")
    if "\t" not in line and "," in line:
        raise DataError(
            f"{path}:1: the header has commas and no tab; write the columns between "
            "tabs"
        )
    names = tuple(name.strip().strip('"') for name in line.split("\t"))
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}:1: the header has {sorted(twice)[0]!r} twice")
    return names


def _tsv(files: Sequence[pathlib.Path], columns: Sequence[str]) -> str:
    listed = ", ".join(map(_quoted, files))
    types = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in columns)
    return (
        f"read_csv([{listed}], delim='\t', quote='', escape='', header=true, "
        f"auto_detect=false, max_line_size={MAX_LINE}, columns={{{types}}})"
    )


def _lines(files: Sequence[pathlib.Path]) -> str:
    # A control character that neither JSON nor a TSV of text contains.
    listed = ", ".join(map(_quoted, files))
    return (
        f"read_csv([{listed}], delim='\x01', quote='', escape='', header=false, "
        f"auto_detect=false, max_line_size={MAX_LINE}, columns={{'line': 'VARCHAR'}})"
    )


def _choose(
    columns: Sequence[str], mapping: Mapping[str, str], fields: Sequence[str]
) -> dict[str, str]:
    """Which column each field is read from."""
    chosen = {}
    if "document_id" in mapping:
        mapping = {**mapping, "document": mapping["document_id"]}
    for name in fields:
        wanted = [mapping[name]] if name in mapping else [name, *ALIASES.get(name, ())]
        here = [one for one in wanted if one in columns]
        if here:
            chosen[name] = here[0]
        elif name in mapping:
            raise DataError(
                f"the log has no column {mapping[name]!r}, which should be {name!r}; "
                f"it has {', '.join(columns)}"
            )
    return chosen


def _sources(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[pathlib.Path],
    mapping: Mapping[str, str],
    fields: Sequence[str],
) -> list[_Source]:
    grouped: dict[tuple[Any, ...], list[pathlib.Path]] = {}
    for path in files:
        kind = _kind(path)
        key = (kind, _header(path)) if kind == "tsv" else (kind,)
        grouped.setdefault(key, []).append(path)
    sources = []
    for (kind, *rest), group in grouped.items():
        if kind == "tsv":
            columns, relation = rest[0], _tsv(group, rest[0])
            types = dict.fromkeys(columns, "VARCHAR")
            cells = {name: _named(name) for name in columns}
        elif kind == "json":
            columns = tuple(
                {
                    *fields,
                    *(mapping.values()),
                    *(a for f in fields for a in ALIASES.get(f, ())),
                    "clicked",
                }
            )
            relation = f"(SELECT line FROM {_lines(group)} WHERE line IS NOT NULL)"
            columns = _json_columns(connection, relation, columns)
            bare = _Source(kind, tuple(group), relation, {}, {}, False)
            for path in group if not columns else ():
                broken = _broken_json(connection, bare, path)
                if broken is not None:
                    raise broken
            types = dict.fromkeys(columns, "VARCHAR")
            # JSON's null is not text.
            cells = {
                name: f"json_extract_string(line, {_quoted(_json_path(name))})"
                for name in columns
            }
        else:
            relation = f"read_parquet([{', '.join(map(_quoted, group))}])"
            types = _parquet_types(connection, relation, group)
            columns = tuple(types)
            cells = {name: _named(name) for name in columns}
        chosen = _choose(columns, mapping, fields)
        clicked = "event" not in chosen and "clicked" in columns
        if clicked:
            chosen["clicked"] = "clicked"
        _check_columns(group[0], columns, chosen, clicked)
        sources.append(
            _Source(
                kind,
                tuple(group),
                relation,
                {name: cells[column] for name, column in chosen.items()},
                {name: types[column] for name, column in chosen.items()},
                clicked,
                tuple(columns),
            )
        )
    return sources


def _json_path(name: str) -> str:
    return '$."' + name.replace('"', '\\"') + '"'


def _json_columns(
    connection: duckdb.DuckDBPyConnection, relation: str, names: Sequence[str]
) -> tuple[str, ...]:
    """Those of `names` that are keys of some of the first lines."""
    rows = connection.execute(
        "SELECT DISTINCT unnest(json_keys(line)) FROM (SELECT line FROM "
        f"{relation} LIMIT 20000) WHERE json_valid(line) AND json_type(line) = 'OBJECT'"
    ).fetchall()
    found = {key for (key,) in rows}
    return tuple(sorted(found & set(names)))


def _parquet_types(
    connection: duckdb.DuckDBPyConnection, relation: str, group: Sequence[pathlib.Path]
) -> dict[str, str]:
    try:
        rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    except duckdb.Error as error:
        raise DataError(
            f"{group[0]}: is not a Parquet file that can be read ({_first(error)})"
        ) from error
    return {name: str(kind).upper() for name, kind, *_ in rows}


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _check_columns(
    path: pathlib.Path,
    columns: Sequence[str],
    chosen: Mapping[str, str],
    clicked: bool,
) -> None:
    for name, one in FIELDS.items():
        if one.required and name not in chosen and not (name == "event" and clicked):
            more = " (or a column clicked, true or false)" if name == "event" else ""
            raise DataError(
                f"{path}: has no column {name!r}{more}: {one.expected}; it has "
                f"{', '.join(columns) or 'no column that is known'}. Name another "
                f"column by --columns {name}=COLUMN"
            )


# --- typed rows ---

_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "REAL")
_TRUTH = {"true": ("true", "1", "yes"), "false": ("false", "0", "no")}


def _typed(kind: str, raw: str, of: str) -> str:
    """SQL of a raw cell as its kind; NULL where it is empty or cannot be."""
    numeric = any(word in of for word in _NUMBERS) and "[" not in of
    text = raw if of == "VARCHAR" else f"CAST({raw} AS VARCHAR)"
    if kind == "time":
        if numeric:
            return f"CAST({raw} AS DOUBLE)"
        if of.startswith(("TIMESTAMP", "DATE")):
            return f"epoch({raw})"
        return (
            f"coalesce(TRY_CAST({text} AS DOUBLE), "
            f"epoch(TRY_CAST({text} AS TIMESTAMPTZ)))"
        )
    if kind in ("number", "whole"):
        number = f"CAST({raw} AS DOUBLE)" if numeric else f"TRY_CAST({text} AS DOUBLE)"
        if kind == "number":
            return number
        return f"CASE WHEN {number} = floor({number}) THEN {number} END"
    if kind == "hash":
        return f"hash(nullif({text}, ''))"
    if kind == "truth":
        yes, no = (", ".join(map(_quoted, _TRUTH[word])) for word in ("true", "false"))
        return (
            f"CASE WHEN lower({text}) IN ({yes}) THEN true "
            f"WHEN lower({text}) IN ({no}) THEN false END"
        )
    if kind == "event":
        return f"CASE lower({text}) WHEN 'page' THEN false WHEN 'click' THEN true END"
    return f"nullif({text}, '')"


def _field(name: str) -> Field:
    if name == "clicked":
        return Field("truth", "true, false, 1 or 0")
    return FIELDS.get(name, Field("text", "a text"))


def _faults(source: _Source) -> list[tuple[str, str]]:
    """Field and SQL condition of every fault that a cell can have, in order."""
    found = []
    for name, cell in source.cells.items():
        one = _field(name)
        typed = _typed(one.kind, cell, source.types[name])
        given = f"{cell} IS NOT NULL"
        if source.types[name] == "VARCHAR":
            given += f" AND {cell} <> ''"
        wrong = []
        if one.required:
            wrong.append(f"NOT ({given})")
        if one.kind not in ("text", "hash"):
            wrong.append(f"({given} AND ({typed}) IS NULL)")
        if one.bad != "false":
            bounds = re.sub(r"\bx\b", lambda _, t=typed: f"({t})", one.bad)
            wrong.append(f"({given} AND ({bounds}))")
        if wrong:
            found.append((name, " OR ".join(wrong)))
    return found


_SMALL = {"position": "INTEGER", "dwell": "FLOAT", "latency": "FLOAT"}


def _select(source: _Source, fields: Sequence[str], buckets: int) -> str:
    """SQL of the source's rows, typed, with the number of the first fault in `bad`."""
    columns = []
    for name in fields:
        one = _field(name)
        if name in source.cells:
            typed = _typed(one.kind, source.cells[name], source.types[name])
            if name in _SMALL:
                typed = f"TRY_CAST({typed} AS {_SMALL[name]})"
        elif name == "event":
            typed = "false"
        else:
            typed = "CAST(NULL AS " + _sql_type(name) + ")"
        columns.append(f"{typed} AS {_column(name)}")
    faults = [
        f"WHEN {condition} THEN {at}"
        for at, (_, condition) in enumerate(_faults(source), 1)
    ]
    broken = ""
    if source.kind == "json":
        broken = "WHEN NOT json_valid(line) OR json_type(line) <> 'OBJECT' THEN 255 "
    columns.append(f"CASE {broken}{' '.join(faults)} ELSE 0 END::UTINYINT AS bad")
    user = _typed("hash", source.cells["user"], source.types["user"])
    if buckets > 1:
        # The hash's high bits: its low ones order the hash tables made later.
        columns.append(f"coalesce(({user} >> 40) % {buckets}, 0)::INTEGER AS bucket")
    select = f"SELECT {', '.join(columns)} FROM {source.relation}"
    if not source.clicked:
        return select
    truth = _typed("truth", source.cells["clicked"], source.types["clicked"])
    again = select.replace("false AS click", "true AS click", 1)
    return f"{select} UNION ALL ({again} WHERE {truth})"


def _column(name: str) -> str:
    return {"event": "click", "user": "u", "page": "p", "session": "s"}.get(
        name, _named(name)
    )


def _sql_type(name: str) -> str:
    kinds = {"hash": "UBIGINT", "text": "VARCHAR", "truth": "BOOLEAN"}
    return _SMALL.get(name) or kinds.get(_field(name).kind, "DOUBLE")


# --- reading ---


def connect(
    folder: pathlib.Path, *, memory: str = "1500MB", threads: int = 2, on_disk: bool
) -> duckdb.DuckDBPyConnection:
    """A database that never fetches anything and spills to `folder`."""
    connection = duckdb.connect(
        str(folder / "work.duckdb") if on_disk else ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "memory_limit": memory,
            "threads": str(threads),
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": "true",
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    return connection


@contextlib.contextmanager
def read_log(
    paths: Sequence[str | pathlib.Path],
    *,
    fields: Sequence[str],
    more: Sequence[str] = (),
    mapping: Mapping[str, str] | None = None,
    memory: str = "1500MB",
    threads: int = 2,
) -> Iterator[Log]:
    """Reads a log; what it holds outside memory goes when the context ends.

    Args:
      paths: files, folders or globs.
      fields: of `FIELDS`, those that the caller uses; the required ones come along.
      more: columns of the log's own, kept as text (segments).
      mapping: field -> name of the column that it is read from.
      memory: that DuckDB may hold; what does not fit goes to the disk.
      threads: of DuckDB.

    Raises:
      DataError: for a missing file or column, and for a cell that does not fit, naming
        file, line and field.
    """
    mapping = dict(mapping or {})
    for name in mapping:
        if name not in FIELDS:
            raise DataError(
                f"--columns {name}={mapping[name]}: no such field; the fields are "
                f"{', '.join(FIELDS)}"
            )
    files = find_files(paths)
    required = [name for name, one in FIELDS.items() if one.required]
    wanted = list(dict.fromkeys([*required, *fields, *more]))
    with tempfile.TemporaryDirectory(prefix="ranker-online-") as temporary:
        folder = pathlib.Path(temporary)
        buckets = max(1, -(-_guess_rows(files) // ROWS_A_BUCKET))
        connection = connect(
            folder, memory=memory, threads=threads, on_disk=buckets > 1
        )
        try:
            sources = _sources(connection, files, mapping, wanted)
            for name in more:
                if not any(name in one.cells for one in sources):
                    columns = sorted({c for one in sources for c in one.columns})
                    raise DataError(
                        f"{files[0]}: has no column {name!r}, asked for as a segment; "
                        f"it has {', '.join(columns)}"
                    )
            log = _stage(connection, sources, wanted, buckets, folder)
            yield dataclasses.replace(log, threads=threads)
        finally:
            connection.close()


def _guess_rows(files: Sequence[pathlib.Path]) -> int:
    import pyarrow.parquet as pq

    rows = 0
    for path in files:
        size = path.stat().st_size
        if path.suffix == ".parquet":
            try:
                rows += pq.read_metadata(path).num_rows
            except Exception:  # noqa: BLE001  the reader itself says what is wrong
                rows += 1
        else:
            rows += size // _TEXT_ROW * (8 if path.suffix == ".gz" else 1)
    return rows


def _stage(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[_Source],
    fields: Sequence[str],
    buckets: int,
    folder: pathlib.Path,
) -> Log:
    select = " UNION ALL ".join(_select(one, fields, buckets) for one in sources)
    where = None
    try:
        if buckets == 1:
            connection.execute(f"CREATE TABLE staged AS {select}")
            everything = "staged"
        else:
            where = folder / "rows"
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(
                f"COPY ({select}) TO {_quoted(where)} (FORMAT parquet, "
                "PARTITION_BY (bucket), COMPRESSION snappy)"
            )
            connection.execute("SET preserve_insertion_order = true")
            everything = f"read_parquet({_quoted(f'{where}/*/*.parquet')})"
    except duckdb.Error as error:
        raise _explain(connection, sources, error) from error
    optional = [name for name in fields if not FIELDS.get(name, Field("", "")).required]
    counts = ", ".join(f"count({_column(name)})" for name in optional)
    results = "count(position) FILTER (NOT click)" if "position" in fields else "0"
    (found,) = connection.execute(
        "SELECT count(*), max(bad), min(time), max(time), count(*) FILTER (click), "
        f"{results}{', ' + counts if counts else ''} FROM {everything}"
    ).fetchall()
    rows, bad, first, last, clicks, shown_results, *given = found
    if rows == 0:
        raise DataError(f"{sources[0].files[0]}: holds no row below its header")
    if bad:
        raise _locate(connection, sources)
    facts = {
        "files": [str(path) for one in sources for path in one.files],
        "rows": rows,
        "clicks": clicks,
        "results": shown_results,  # page rows that are a result at a position
        "first": first,
        "last": last,
    }
    has = {name for name, count in zip(optional, given, strict=True) if count}
    return Log(connection, tuple(sources), buckets, where, frozenset(has), facts)


# --- what is wrong, and where ---


def _explain(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[_Source],
    error: duckdb.Error,
) -> DataError:
    """What DuckDB stumbled over, as file, line and what was expected."""
    for source in sources:
        for path in source.files:
            if source.kind == "json":
                with contextlib.suppress(duckdb.Error):
                    broken = _broken_json(connection, source, path)
                    if broken is not None:
                        return broken
            if source.kind != "tsv":
                continue
            try:
                relation = _tsv([path], source.columns)
                connection.execute(f"SELECT count(COLUMNS(*)) FROM {relation}")
            except duckdb.Error as found:
                text = str(found)
                at = re.search(r"on Line: (\d+)", text)
                line = at.group(1) if at else "?"
                count = re.search(
                    r"Expected Number of Columns: (\d+) Found: (\d+)", text
                )
                if count:
                    return DataError(
                        f"{path}:{line}: found {count.group(2)} cells between tabs, "
                        f"expected {count.group(1)}: {', '.join(source.columns)}"
                    )
                if "not utf-8" in text:
                    return DataError(
                        f"{path}:{line}: is not UTF-8; convert the file to UTF-8"
                    )
                return DataError(f"{path}:{line}: {_first(found)}")
    names = ", ".join(str(path) for one in sources for path in one.files)
    return DataError(f"{names[:500]}: cannot be read ({_first(error)})")


def _locate(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[_Source]
) -> DataError:
    """The first cell that does not fit."""
    for source in sources:
        for path in source.files:
            found = _locate_in(connection, source, path)
            if found is not None:
                return found
    raise AssertionError("a fault that was counted is not found again")


def _numbered(source: _Source, path: pathlib.Path) -> str:
    """SQL of a file's rows with `line_`, the number of each."""
    if source.kind == "parquet":
        rows = f"read_parquet({_quoted(path)})"
        return f"(SELECT *, row_number() OVER () AS line_ FROM {rows})"
    lines = (
        f"(SELECT line, row_number() OVER () AS line_ FROM {_lines([path])}) "
        "WHERE line IS NOT NULL"
    )
    if source.kind == "json":
        return f"(SELECT line, line_ FROM {lines})"
    places = ", ".join(
        f"string_split(line, '\t')[{at}] AS {_named(name)}"
        for at, name in enumerate(source.columns, 1)
    )
    return f"(SELECT {places}, line_ FROM {lines} AND line_ > 1)"


def _broken_json(
    connection: duckdb.DuckDBPyConnection, source: _Source, path: pathlib.Path
) -> DataError | None:
    """The first line that is not JSON object."""
    row = connection.execute(
        f"SELECT line_, line FROM {_numbered(source, path)} WHERE "
        "CASE WHEN json_valid(line) THEN json_type(line) <> 'OBJECT' ELSE true END "
        "ORDER BY line_ LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    return DataError(f"{path}:{row[0]}: found {shown(row[1])}, expected a JSON object")


def _locate_in(
    connection: duckdb.DuckDBPyConnection, source: _Source, path: pathlib.Path
) -> DataError | None:
    if source.kind == "json":
        broken = _broken_json(connection, source, path)
        if broken is not None:
            return broken
    first: tuple[int, DataError] | None = None
    for name, condition in _faults(source):
        row = connection.execute(
            f"SELECT line_, CAST({source.cells[name]} AS VARCHAR) "
            f"FROM {_numbered(source, path)} WHERE {condition} "
            "ORDER BY line_ LIMIT 1"
        ).fetchone()
        if row and (first is None or row[0] < first[0]):
            found = "nothing" if row[1] in (None, "") else shown(row[1])
            where = "row " if source.kind == "parquet" else ""
            first = (
                row[0],
                DataError(
                    f"{path}:{where}{row[0]}: field {name!r}: found {found}, expected "
                    f"{_field(name).expected}; correct it"
                ),
            )
    return first[1] if first else None
