"""Click logs as they are exported: any columns, many files, several spellings.

A log is JSON lines, TSV, CSV or Parquet; a file, a folder of parts or a pattern. Its
rows come one by one (`read_clicks`), or as Arrow batches (`read_log_batches`), which
for clean Parquet costs no work a row.
"""

import datetime
import email.utils
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ranker.data import cells, files, lines, parquet
from ranker.data.formats import OnError, Skipped, parse_json, records
from ranker.data.records import (
    BAD_ID,
    MAX_ID,
    Click,
    check_id,
    check_integer,
    check_number,
    check_text,
)
from ranker.errors import ConfigError, DataError, FieldError, shown

_compute: Any = pyarrow.compute  # makes its functions while it is imported
COLUMNS = tuple(one.name for one in fields(Click))
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("title", pa.string()),
        ("summary", pa.string()),
        ("document_id", pa.string()),
        ("position", pa.int32()),
        ("clicked", pa.bool_()),
        ("dwell", pa.float64()),
        ("count", pa.int64()),
    ]
)
_AT_ONCE = 8192  # rows of a batch that is made of records
_TRUE = {"1", "1.0", "true", "t", "yes", "y"}
_FALSE = {"0", "0.0", "false", "f", "no", "n"}
# What pandas, Spark, Hive and R write where nothing is known.
_MISSING = {"", "nan", "none", "null", "<na>", "na", "nat", "\\n"}
_NAME = "a click log"


@dataclass
class ClickLog:
    """A click log's files, and what its columns are called.

    Attributes:
      paths: its files.
      names: our name -> theirs, where they differ.
      ignored: columns that nothing is read from, in the order they were met.
    """

    paths: Sequence[Any]
    names: Mapping[str, str]
    ignored: list[str] = field(default_factory=list)


def open_log(path: Any, columns: Sequence[str] = ()) -> ClickLog:
    """A click log by its path.

    Args:
      path: file, folder or pattern, local or of a bucket.
      columns: OURS=THEIRS, such as "document_id=did".

    Raises:
      ConfigError: for a column that no click has.
      DataError: when no file of a log is there.
    """
    names = {}
    for one in columns:
        ours, mark, theirs = one.partition("=")
        if not mark or ours not in COLUMNS or not theirs:
            raise ConfigError(
                f"data.click_columns has {one!r}; it takes OURS=THEIRS, with OURS one "
                f"of {', '.join(COLUMNS)}, such as document_id=did"
            )
        names[ours] = theirs
    return ClickLog(files.expand(path, _NAME), names)


def read_clicks(
    log: ClickLog, *, on_error: OnError = "stop", skipped: Skipped | None = None
) -> Iterator[Click]:
    """The rows of a log, in order.

    Raises:
      DataError: naming file, row and field that cannot be used.
    """
    for path in log.paths:
        yield from records(path, _rows(path, log), _to_click, on_error, skipped)


def read_log_batches(
    log: ClickLog, *, on_error: OnError = "stop", skipped: Skipped | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a log as batches of `SCHEMA`, in order.

    Raises:
      DataError: as `read_clicks`.
    """
    for path in log.paths:
        if files.kind_of(path) == "parquet":
            yield from _parquet_batches(path, log, on_error, skipped)
        else:
            rows = _rows(path, log)
            yield from batches(records(path, rows, _to_click, on_error, skipped))


def batches(clicks: Iterable[Click]) -> Iterator[pa.RecordBatch]:
    """Clicks as batches of `SCHEMA`."""
    waiting: list[Click] = []
    for click in clicks:
        waiting.append(click)
        if len(waiting) == _AT_ONCE:
            yield to_batch(waiting)
            waiting = []
    if waiting:
        yield to_batch(waiting)


def to_batch(clicks: Sequence[Click]) -> pa.RecordBatch:
    """Clicks as a batch of `SCHEMA`."""
    columns = [
        pa.array([getattr(one, column.name) for one in clicks], column.type)
        for column in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


# --- columns ---


def _theirs(
    path: Any, log: ClickLog, there: Sequence[str], what: str
) -> dict[str, str]:
    """Our name -> theirs, for the columns of one file.

    Raises:
      DataError: when there is no query, or nothing to tell a document by.
    """
    lower = {name.strip().lower(): name for name in reversed(there)}
    found = {}
    for ours in COLUMNS:
        theirs = log.names.get(ours, ours)
        if theirs in there:
            found[ours] = theirs
        elif ours in log.names:
            raise DataError(
                f"{path}: data.click_columns calls {ours!r} {theirs!r}, and {what} "
                f"{shown(list(there))}"
            )
        elif ours in lower:
            found[ours] = lower[ours]
    lacking = "" if "query" in found else "query"
    if not {"title", "summary", "document_id"} & found.keys():
        lacking += " and one of " * bool(lacking) + "title, summary, document_id"
    if lacking:
        raise DataError(
            f"{path}: {what} {shown(list(there))}, expected {lacking}; say which they "
            "are with --config.data.click_columns, such as 'query=q document_id=did'"
        )
    if {"event", "user", "page"} <= lower.keys() and "clicked" not in found:
        raise DataError(
            f"{path}: is an event log (it has event, user and page), whose pages would "
            "be taken for clicks; write its clicks with python -m ranker.online clicks "
            "--log LOG --out clicks.parquet, and name that file"
        )
    used = set(found.values())
    log.ignored += [
        one for one in there if one not in used and one not in log.ignored and one
    ]
    return found


# --- rows ---


def _rows(path: Any, log: ClickLog) -> Iterator[tuple[int, Any]]:
    """Rows of a file: fields by our names, or what is wrong with a row."""
    kind = files.kind_of(path)
    if kind == "parquet":
        theirs = _parquet_columns(path, log)
        found = {name: ours for ours, name in theirs.items()}
        for number, row in parquet.read_rows(path, list(found)):
            yield number, {found[name]: value for name, value in row.items()}
    elif kind == "jsonl":
        theirs = {}
        for number, line in lines.read_lines(path):
            try:
                row = parse_json(line)
            except FieldError as error:
                yield number, error
                continue
            if not theirs:
                theirs = _theirs(
                    path, log, list(row), "the first record has the fields"
                )
                theirs |= {ours: log.names.get(ours, ours) for ours in COLUMNS} | theirs
            yield number, {o: row[name] for o, name in theirs.items() if name in row}
    else:
        yield from _table_rows(path, log, kind)


def _table_rows(path: Any, log: ClickLog, kind: str) -> Iterator[tuple[int, Any]]:
    """Rows of TSV or CSV, as texts."""
    found = lines.read_lines(path)
    number, header = next(found, (1, ""))
    mark = "\t" if kind == "tsv" else max(",;\t", key=header.count)
    names, _ = cells.split_cells(header, mark, always=True)
    if len(set(names)) < len(names):
        raise DataError(f"{path}:{number}: a column is there twice: {shown(names)}")
    if len(names) == 1 and kind == "tsv" and re.search("[,;]", header):
        raise DataError(
            f"{path}:{number}: found the columns {shown(names)}; the cells are not "
            "separated by tabs; rename the file to .csv if commas separate them"
        )
    what = "found the columns"
    theirs = _theirs(f"{path}:{number}", log, names, what)
    rows = cells.rows(found, names, mark, always=kind == "csv" or header[:1] == '"')
    for number, row in rows:
        if isinstance(row, Mapping):
            row = {ours: row[name] for ours, name in theirs.items()}
        yield number, row


def _to_click(row: Any) -> Click:
    """A click from named cells, typed (JSON, Parquet) or as text (TSV).

    Raises:
      FieldError: naming the field that is wrong.
    """
    if isinstance(row, FieldError):
        raise row

    def optional(name: str, check: Callable[..., Any], **bounds) -> Any:
        value = row.get(name)
        return None if _is_missing(value) else check(name, value, **bounds)

    if "query" not in row:
        raise FieldError("query", None, f"one of the fields; it has {shown(list(row))}")
    count = optional("count", check_integer, low=1)
    clicked = optional("clicked", _check_flag)
    return Click(
        query=check_text("query", row["query"]).strip(),
        title=check_text("title", row.get("title"), empty=True).strip(),
        summary=check_text("summary", row.get("summary"), empty=True).strip(),
        document_id=optional("document_id", check_id) or "",
        position=optional("position", check_integer, low=0),
        clicked=clicked is None or clicked,
        dwell=optional("dwell", check_number, low=0),
        count=1 if count is None else count,
        time=optional("time", _check_time),
    )


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (
        isinstance(value, str) and value.strip().lower() in _MISSING
    )


def _check_flag(name: str, value: Any) -> bool:
    word = (
        str(value).strip().lower()
        if isinstance(value, str | bool | int | float)
        else "?"
    )
    if word not in _TRUE | _FALSE:
        raise FieldError(name, value, "true, false, 1 or 0")
    return word in _TRUE


def _check_time(name: str, value: Any) -> float:
    """Seconds since 1970 of a number, an ISO 8601 text or a time; UTC if unsaid."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if isinstance(value, str):
        try:
            return check_number(name, value)
        except FieldError:
            pass
        moment = _parse_time(value.strip())
        if moment is None:
            raise FieldError(
                name, value, "seconds since 1970, or a time such as 2031-05-04T10:20:30"
            )
        value = moment
    if isinstance(value, datetime.datetime):
        zone = value.tzinfo or datetime.UTC
        return value.replace(tzinfo=zone).timestamp()
    return check_number(name, value)


def _parse_time(text: str) -> datetime.datetime | None:
    """ISO 8601, with slashes or a trailing UTC too, or the form of e-mails and HTTP."""
    iso = text.removesuffix("UTC").rstrip().replace("/", "-")
    for parse, form in (
        (datetime.datetime.fromisoformat, iso),
        (email.utils.parsedate_to_datetime, text),
    ):
        try:
            return parse(form)
        except ValueError:
            continue
    return None


# --- Parquet ---

_PARQUET_TYPES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_null,
)


def _parquet_columns(path: Any, log: ClickLog) -> dict[str, str]:
    """Our name -> theirs, of columns with types that a click can be made of."""
    schema = parquet.columns(path)
    theirs = _theirs(path, log, schema.names, "found the columns")
    for ours, name in theirs.items():
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        right = any(is_one(kind) for is_one in _PARQUET_TYPES)
        times = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if not right and not (ours == "time" and times):
            raise DataError(
                f"{path}: column {name!r} is {shown(str(kind))}, expected a text, a "
                "number or true and false; cast it (bytes to string)"
            )
    return theirs


def _parquet_batches(
    path: Any, log: ClickLog, on_error: OnError, skipped: Skipped | None
) -> Iterator[pa.RecordBatch]:
    theirs = _parquet_columns(path, log)
    names = list(theirs.values())
    number = 0
    for batch in parquet.read_batches(path, lambda _: names):
        batch = batch.rename_columns(list(theirs))
        fast = _clean(batch)
        if fast is not None:
            if skipped is not None:
                skipped.read(path, len(batch))
            yield fast
        else:  # something is odd: look at every row of this batch
            rows = enumerate(batch.to_pylist(), number + 1)
            yield from batches(records(path, rows, _to_click, on_error, skipped))
        number += len(batch)


_VISIBLE = r"[^\p{Z}\p{C}]"  # in Arrow's dialect, what `check_text` wants
_BAD_ID = (
    rf"[\x00-\x20\x7f\x{{85}}\p{{Z}}]|.{{{MAX_ID + 1}}}"  # what `check_id` refuses
)
assert BAD_ID.pattern == r"[\s\x00-\x1f\x7f]"  # the same, in Python's


def _clean(batch: pa.RecordBatch) -> pa.RecordBatch | None:
    """The batch as one of `SCHEMA`; None where a row must be looked at."""
    size = len(batch)
    columns: dict[str, Any] = {}
    try:
        for name in ("query", "title", "summary", "document_id"):
            columns[name] = _clean_texts(batch, name, size)
        for name, low in (("position", 0), ("count", 1)):
            columns[name] = _clean_integers(batch, name, low, size)
        columns["clicked"] = _clean_flags(batch, size)
        columns["dwell"] = _clean_numbers(batch, size)
    except (pa.ArrowException, _Odd):
        return None
    return pa.RecordBatch.from_arrays(
        [columns[column.name] for column in SCHEMA], schema=SCHEMA
    )


class _Odd(Exception):
    """A batch holds what only the reader of rows can judge."""


def _require(condition: Any) -> None:
    if not condition:
        raise _Odd


def _clean_texts(batch: pa.RecordBatch, name: str, size: int) -> Any:
    if name not in batch.schema.names:
        return pa.array([""] * size, pa.string())
    column = batch[name]
    if name == "document_id" and pa.types.is_integer(column.type):
        column = _compute.cast(column, pa.string())
    _require(parquet.is_text(column.type))
    column.validate(full=True)  # that it is UTF-8
    _require(name == "document_id" or not _any(column, "match_substring", "\0"))
    if name == "query":
        _require(column.null_count == 0)
        _require(_all(column, "match_substring_regex", _VISIBLE))
    column = _compute.fill_null(_compute.cast(column, pa.string()), "")
    if name == "document_id":
        _require(not _any(column, "match_substring_regex", _BAD_ID))
        lower = _compute.utf8_lower(column)
        _require(
            not _compute.any(_compute.is_in(lower, pa.array(_MISSING - {""}))).as_py()
        )
        return column
    return _compute.utf8_trim_whitespace(column)


def _any(column: Any, function: str, pattern: str) -> bool:
    return bool(_compute.any(getattr(_compute, function)(column, pattern)).as_py())


def _all(column: Any, function: str, pattern: str) -> bool:
    found = _compute.all(getattr(_compute, function)(column, pattern)).as_py()
    return found is None or bool(found)


def _is_number(kind: pa.DataType) -> bool:
    # Warehouses export their NUMERIC as decimals.
    return any(
        is_one(kind)
        for is_one in (
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_decimal,
        )
    )


def _clean_integers(batch: pa.RecordBatch, name: str, low: int, size: int) -> Any:
    kind = SCHEMA.field(name).type
    empty = 1 if name == "count" else None
    if name not in batch.schema.names:
        return pa.array([empty] * size, kind)
    column = batch[name]
    _require(_is_number(column.type))
    if pa.types.is_floating(column.type):
        column = _compute.if_else(_compute.is_nan(column), None, column)
    column = _compute.cast(column, pa.int32())  # raises where it is not a whole number
    least = _compute.min(column).as_py()
    _require(least is None or least >= low)
    column = _compute.cast(column, kind)
    return column if empty is None else _compute.fill_null(column, empty)


def _clean_flags(batch: pa.RecordBatch, size: int) -> Any:
    if "clicked" not in batch.schema.names:
        return pa.array([True] * size, pa.bool_())
    column = batch["clicked"]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        lowest, highest = _compute.min(column).as_py(), _compute.max(column).as_py()
        found = set(_compute.unique(column).to_pylist()) if lowest != highest else set()
        _require({lowest, highest, *found} <= {0, 1, None})
        column = _compute.cast(column, pa.bool_())
    _require(pa.types.is_boolean(column.type))
    return _compute.fill_null(column, True)


def _clean_numbers(batch: pa.RecordBatch, size: int) -> Any:
    if "dwell" not in batch.schema.names:
        return pa.nulls(size, pa.float64())
    column = batch["dwell"]
    _require(_is_number(column.type))
    column = _compute.cast(column, pa.float64())
    column = _compute.if_else(_compute.is_nan(column), None, column)
    bounds = [_compute.min(column).as_py(), _compute.max(column).as_py()]
    _require(all(one is None or 0 <= one < 3e38 for one in bounds))
    return column
