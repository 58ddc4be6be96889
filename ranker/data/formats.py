"""Readers and writers of files: BEIR folders, TREC runs and qrels, click logs.

A reader yields records one by one. A malformed one stops it with a `DataError` that
names file, line and field, or, with `on_error="skip"`, is counted in a `Skipped` and
left out. A file that cannot be read on, such as broken gzip, stops it in either case.

Files may come from strangers. Nothing in them names a path or is run, and what they can
make a reader hold in memory is bounded; see `lines`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ranker.data import lines
from ranker.data.records import (
    Candidate,
    Click,
    Document,
    Judgement,
    Query,
    check_id,
    check_integer,
    check_number,
    check_text,
)
from ranker.errors import DataError, FieldError, shown
from ranker.storage import writing

_REMEDY = "correct it, or skip such records with --config.data.on_error=skip"
OnError = Literal["stop", "skip"]
T = TypeVar("T")
_compute: Any = pyarrow.compute  # makes its functions while it is imported


@dataclass
class Skipped:
    """Records that were left out, by file, each with its first reason."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)  # said again, the same

    def add(self, path: pathlib.Path, reason: str) -> None:
        """Counts one more."""
        name = path.name
        self.counts[name] = self.counts.get(name, 0) + 1
        self.first.setdefault(name, reason)

    def report(self) -> dict[str, str]:
        """One line a file."""
        return {
            f"skipped, {name}": f"{count} malformed; the first: {self.first[name]}"
            for name, count in self.counts.items()
        } | {
            f"repeated, {name}": f"{count} judgements came again with the same grade"
            for name, count in self.repeated.items()
        }


# --- records ---


def _records(
    path: pathlib.Path,
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[Any], T | None],
    on_error: OnError,
    skipped: Skipped | None,
    remedy: str = _REMEDY,
) -> Iterator[T]:
    """Parses each row, and stops at or counts the malformed ones; None is nothing."""
    for number, row in rows:
        try:
            record = parse(row)
        except FieldError as error:
            reason = f"{path}:{number}: {error}"
            if on_error == "stop" or skipped is None:
                raise DataError(f"{reason}; {remedy}") from error
            skipped.add(path, reason)
        else:
            if record is not None:
                yield record


def _json(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        kind = "one JSON object a line" if line.lstrip()[:1] == "[" else "a JSON object"
        raise FieldError("line", line, f"{kind} ({error})") from error
    if not isinstance(value, dict):
        kind = "one JSON object a line" if isinstance(value, list) else "a JSON object"
        raise FieldError("line", line, kind)
    return value


# Names that collections give to one field; the first is ours.
DOCUMENT_IDS = ("_id", "id", "docid", "doc_id", "document_id", "pid", "docno")
QUERY_IDS = ("_id", "id", "qid", "query_id")
TITLES = ("title", "headline")
TEXTS = ("text", "contents", "body", "passage", "content", "segment", "abstract")
QUERY_TEXTS = ("text", "query", "question", "title")


def _want(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise FieldError(
        names[0],
        None,
        f"one of the fields {', '.join(names)}; this record has {shown(list(row))}",
    )


def to_document(row: Mapping[str, Any]) -> Document:
    """A document from named fields; see `DOCUMENT_IDS`, `TITLES` and `TEXTS`.

    Raises:
      FieldError: naming the field, and those that there are where none fits.
    """
    name = check_id("_id", _want(row, *DOCUMENT_IDS))
    title = next((row[one] for one in TITLES if one in row), None)
    text = next((row[one] for one in TEXTS if one in row), None)
    if title is None and text is None:
        _want(row, *TEXTS, *TITLES)
    return Document(
        name,
        check_text("title", title, empty=True).strip(),
        check_text("text", text, empty=True).strip(),
    )


def to_query(row: Mapping[str, Any]) -> Query:
    """A query from named fields; see `QUERY_IDS` and `QUERY_TEXTS`.

    Raises:
      FieldError: naming the field, and those that there are where none fits.
    """
    return Query(
        check_id("_id", _want(row, *QUERY_IDS)),
        check_text("text", _want(row, *QUERY_TEXTS)).strip(),
    )


# --- BEIR ---


def _once(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The same parser, refusing an id that it has seen."""
    seen: set[str] = set()

    def parse_once(line: str) -> T:
        record = parse(line)
        name = record.id  # type: ignore[attr-defined]
        if name in seen:
            raise FieldError("_id", name, "an id that no earlier line has")
        seen.add(name)
        return record

    return parse_once


def read_corpus(
    path: pathlib.Path,
    *,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    unique: bool = True,
) -> Iterator[Document]:
    """Documents of a `corpus.jsonl[.gz]`: `_id`, `title`, `text`, or as others say.

    With `unique`, an id that comes twice is malformed; it takes memory for every id.
    """

    def parse(line: str) -> Document:
        return to_document(_json(line))

    yield from _records(
        path,
        lines.read_lines(path),
        _once(parse) if unique else parse,
        on_error,
        skipped,
    )


def read_queries(
    path: pathlib.Path,
    *,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    unique: bool = True,
) -> Iterator[Query]:
    """Queries of a `queries.jsonl[.gz]`: `_id`, `text`, or as others say.

    With `unique`, an id that comes twice is malformed; it takes memory for every id.
    """

    def parse(line: str) -> Query:
        return to_query(_json(line))

    yield from _records(
        path,
        lines.read_lines(path),
        _once(parse) if unique else parse,
        on_error,
        skipped,
    )


# --- TREC ---


def _known(field: str, name: str, known: Container[str] | None, file: str) -> str:
    check_id(field, name)
    if known is not None and name not in known:
        raise FieldError(field, name, f"an id that {file} has")
    return name


_GRADES = {"score", "rel", "relevance", "grade", "label", "judgement", "judgment"}


def _is_header(line: str) -> bool:
    """Whether the first line of judgements names columns."""
    cells = line.lower().split()
    known = cells[0] in ("query-id", "query_id")
    return known or (len(cells) > 2 and cells[-1] in _GRADES)


def read_qrels(
    path: pathlib.Path,
    *,
    queries: Container[str] | None = None,
    documents: Container[str] | None = None,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    remedy: str = _REMEDY,
    check_grade: Callable[[str, object], Any] = check_integer,
) -> Iterator[Judgement]:
    """Judgements: BEIR (query, document, grade, with a header) or TREC (4 columns).

    Ids must be among `queries` and `documents` where these are given; `remedy` ends
    the error of a malformed line; `check_grade` reads a grade. A judgement that comes
    again with the same grade is left out, and counted in `skipped`; one with another
    grade is malformed.
    """
    seen: dict[tuple[str, str], int] = {}

    def parse(line: str) -> Judgement | None:
        cells = line.split()
        if len(cells) == 4:
            cells = [cells[0], *cells[2:]]
        if len(cells) != 3:
            raise FieldError(
                "line",
                line,
                "query, document and grade, or TREC's query, 0, document and grade, "
                "between tabs or spaces"
                + (" (this one has commas)" if line.count(",") > 1 else ""),
            )
        pair = (
            _known("query-id", cells[0], queries, "queries.jsonl"),
            _known("corpus-id", cells[1], documents, "corpus.jsonl"),
        )
        grade = check_grade("score", cells[2])
        if pair not in seen:
            seen[pair] = grade
            return Judgement(*pair, grade)
        if seen[pair] != grade:
            raise FieldError(
                "score",
                cells[2],
                f"{seen[pair]}, the grade that an earlier line gives query {pair[0]!r} "
                f"and document {pair[1]!r}",
            )
        if skipped is not None:
            skipped.repeated[path.name] = skipped.repeated.get(path.name, 0) + 1
        return None

    rows = (
        (number, line)
        for number, line in lines.read_lines(path)
        if not (number == 1 and _is_header(line))
    )
    yield from _records(path, rows, parse, on_error, skipped, remedy)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_run(
    path: pathlib.Path,
    *,
    queries: Container[str] | None = None,
    documents: Container[str] | None = None,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    remedy: str = _REMEDY,
    check_score: Callable[[str, object], float] = check_number,
) -> Iterator[Candidate]:
    """Candidates of a TREC run file: query, Q0, document, rank, score, tag.

    Ids must be among `queries` and `documents` where these are given; `remedy` ends
    the error of a malformed line; `check_score` reads a score.
    """
    seen: set[tuple[str, str]] = set()

    def parse(line: str) -> Candidate:
        cells = line.split()
        # A tag of several words does no harm; an id with a space moves the columns.
        if len(cells) < 6 or (
            len(cells) > 6 and not (_is_number(cells[4]) and not _is_number(cells[5]))
        ):
            raise FieldError(
                "line",
                line,
                "6 columns: query, Q0, document, rank, score, tag"
                + (" (has an id a space in it?)" if len(cells) > 6 else ""),
            )
        query, _, document, rank, score = cells[:5]
        pair = (
            _known("query", query, queries, "queries.jsonl"),
            _known("document", document, documents, "corpus.jsonl"),
        )
        if pair in seen:
            raise FieldError(
                "document", document, f"a document once a query (query {query!r})"
            )
        candidate = Candidate(
            *pair, check_integer("rank", rank, low=0), check_score("score", score)
        )
        seen.add(pair)
        return candidate

    yield from _records(path, lines.read_lines(path), parse, on_error, skipped, remedy)


def write_run(
    path: pathlib.Path, run: Mapping[str, Mapping[str, float]], *, tag: str
) -> None:
    """Writes a TREC run file, all or nothing.

    Documents are in trec_eval's order: by score, ties by id from the last to the first.
    Scores are written so that reading them gives the same numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, "w") as file:
        for query, documents in run.items():
            order = sorted(
                documents, key=lambda name: (documents[name], name), reverse=True
            )
            for rank, document in enumerate(order, 1):
                score = float(documents[document])
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")


# --- click logs ---

_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no", ""}


def _click(row: Mapping[str, Any]) -> Click:
    """A click from named cells, typed (JSON, Parquet) or as text (TSV)."""

    def optional(name: str, check: Callable[..., Any], **bounds) -> Any:
        value = row.get(name)
        return None if value is None or value == "" else check(name, value, **bounds)

    clicked = row.get("clicked", True)
    word = str(clicked).lower() if isinstance(clicked, (str, bool, int)) else "?"
    if clicked is not None and word not in _TRUE | _FALSE:
        raise FieldError("clicked", clicked, "true, false, 1 or 0")
    count = optional("count", check_integer, low=1)
    return Click(
        query=check_text("query", _want(row, "query")).strip(),
        title=check_text("title", row.get("title"), empty=True).strip(),
        summary=check_text("summary", row.get("summary"), empty=True).strip(),
        document_id=optional("document_id", check_id) or "",
        position=optional("position", check_integer, low=1),
        clicked=clicked is None or word in _TRUE,
        dwell=optional("dwell", check_number, low=0),
        count=1 if count is None else count,
        time=optional("time", check_number),
    )


def read_clicks(
    path: pathlib.Path, *, on_error: OnError = "stop", skipped: Skipped | None = None
) -> Iterator[Click]:
    """Rows of a click log: `.jsonl[.gz]`, `.tsv[.gz]` with a header, or `.parquet`.

    Columns: query, title, summary; and where there are any: document_id, position (from
    1), clicked, dwell (seconds), count, time (seconds since 1970).
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        rows, parse = _parquet_rows(path), _click
    elif name.endswith(".tsv"):
        rows, parse = _tsv_rows(path), _tsv_click
    elif name.endswith((".jsonl", ".json")):
        rows, parse = lines.read_lines(path), lambda line: _click(_json(line))
    else:
        raise DataError(
            f"{path}: a click log is .jsonl, .tsv or .parquet (.gz for the first two); "
            "save a spreadsheet as text with tabs, in UTF-8"
        )
    yield from _records(path, rows, parse, on_error, skipped)


def _tsv_rows(path: pathlib.Path) -> Iterator[tuple[int, tuple[list[str], list[str]]]]:
    found = lines.read_lines(path)
    number, header = next(found, (1, ""))
    names = header.split("\t")
    if "query" not in names:
        hint = ""
        if len(names) == 1 and "query" in header:
            hint = "; the cells are not separated by tabs"
        elif '"query"' in names:
            hint = "; cells are taken as they are, without quotes around them"
        raise DataError(
            f"{path}:{number}: found the columns {shown(names)}, expected a header "
            f"with query, title and summary, separated by tabs{hint}"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{path}:{number}: a column is there twice: {shown(names)}")
    for number, line in found:
        yield number, (names, line.split("\t"))


def _tsv_click(row: tuple[list[str], list[str]]) -> Click:
    names, cells = row
    if len(cells) != len(names):
        raise FieldError("line", "\t".join(cells), f"{len(names)} cells between tabs")
    return _click(dict(zip(names, cells, strict=True)))


_COLUMNS = tuple(one.name for one in dataclasses.fields(Click))
_PARQUET_TYPES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_null,
)


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with lines.open_file(path):
        pass  # for its errors
    try:
        with pq.ParquetFile(path) as file:
            names = _parquet_columns(path, file.schema_arrow)
            # As a dictionary, a text that comes a million times is held once.
            texts = [
                name for name in names if _is_text(file.schema_arrow.field(name).type)
            ]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            number = 0
            left = lines.FREE_EXPANSION + lines.MAX_EXPANSION * path.stat().st_size
            for batch in file.iter_batches(batch_size=4096, columns=names):
                cells = []
                for name in names:
                    values, size = _cells(path, name, batch[name])
                    cells.append(values)
                    left -= size
                if left < 0:
                    raise DataError(
                        f"{path}: row {number}: its texts are over "
                        f"{lines.MAX_EXPANSION} times the file's size, as no click "
                        "log's are"
                    )
                for row in zip(*cells, strict=True):
                    number += 1
                    yield number, dict(zip(names, row, strict=True))
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: is not a Parquet file that can be read: {error}"
        ) from error


def _parquet_columns(path: pathlib.Path, schema: pa.Schema) -> list[str]:
    """The columns that a click has, with types that a click can be made of."""
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path}: a column is there twice: {shown(schema.names)}")
    names = [name for name in schema.names if name in _COLUMNS]
    if "query" not in names:
        raise DataError(
            f"{path}: found the columns {shown(schema.names)}, expected query, title "
            "and summary"
        )
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not any(is_one(kind) for is_one in _PARQUET_TYPES):
            raise DataError(
                f"{path}: column {name!r} is {shown(str(kind))}, expected a text, a "
                "number or true and false; cast it (bytes to string, times to seconds)"
            )
    return names


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _cells(path: pathlib.Path, name: str, column: pa.Array) -> tuple[list[Any], int]:
    """A column's values, equal texts as one object, and the bytes of its texts."""
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist(), 0
    known, places = column.dictionary, column.indices
    size = 0
    if _is_text(known.type):
        lengths = _compute.binary_length(known)
        longest = _compute.max(lengths).as_py() or 0
        if longest >= lines.MAX_LINE:
            raise DataError(
                f"{path}: column {name!r} holds a text of {longest} bytes, over "
                f"{lines.MAX_LINE // 2**20} MiB; this is no click log"
            )
        lengths = _compute.cast(lengths.take(places), pa.int64())
        size = _compute.sum(lengths).as_py() or 0
    values = known.to_pylist()
    return [None if at is None else values[at] for at in places.to_pylist()], size
