"""Whole TREC files as dicts, for evaluation: judgements, runs, fields of queries.

Runs are long (a thousand documents for each of thousands of queries), so a regular file
is parsed by Arrow, several times as fast as line by line. Whatever Arrow stumbles over
or does not check is left to the reader of lines, which accepts it or names the line.
"""

import io
import itertools
import json
import math
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyarrow import csv

from ranker.data import formats, lines
from ranker.data.records import (
    MAX_ID,
    Candidate,
    check_id,
    check_integer,
    check_number,
)
from ranker.errors import DataError, FieldError

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_REMEDY = "correct that line"
_QRELS = "judgements are lines of query, 0, document and grade, or of BEIR's 3 columns"
_RUN = (
    "a run is lines of 6 columns: query, Q0, document, rank, score and tag; or of MS "
    "MARCO's 3: query, document, rank"
)
_RUN_COLUMNS = ("query", "q0", "document", "rank", "score", "tag")
_RANKED_COLUMNS = ("query", "document", "rank")
_BAD_ID = r"[\x00-\x20\x7f\x{85}\p{Z}]"  # in Arrow's dialect, what `check_id` refuses
_NOTED = 0.01  # share of documents whose rank contradicts their score
STANDARD_INPUT = "-"


class Piped:
    """What came through a pipe, held in memory; reads like a path to a file."""

    def __init__(self, name: str, data: bytes):
        self._shown, self._data = name, data
        self.name = name

    def __str__(self) -> str:
        return self._shown

    def is_dir(self) -> bool:
        """False."""
        return False

    def exists(self) -> bool:
        """True."""
        return True

    def is_file(self) -> bool:
        """True."""
        return True

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Its bytes from the beginning."""
        assert mode == "rb"
        return io.BytesIO(self._data)


FileOrPipe = pathlib.Path | Piped


def open_file_or_pipe(path: pathlib.Path) -> FileOrPipe:
    """A file, or what standard input ("-"), a pipe or a device holds, read once.

    Raises:
      DataError: for a pipe that cannot be read.
    """
    try:
        if str(path) == STANDARD_INPUT:
            return Piped("standard input", sys.stdin.buffer.read())
        if path.exists() and not path.is_file() and not path.is_dir():
            return Piped(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return path


@dataclass(frozen=True)
class LoadedQrels:
    """Judgements, and what is odd about their file."""

    path: FileOrPipe
    grades: dict[str, dict[str, float]]  # query -> document -> grade, whole ones as int
    notes: list[str] = field(default_factory=list)  # sentences for the user


@dataclass(frozen=True)
class LoadedRun:
    """A run, and what is odd about its file."""

    path: FileOrPipe
    scores: dict[str, dict[str, float]]  # query -> document -> score
    notes: list[str] = field(default_factory=list)  # sentences for the user


def load_qrels(path: FileOrPipe) -> LoadedQrels:
    """Grades by query and document, from TREC's 4 columns or BEIR's 3 with a header.

    Grades may be fractions. The same line twice is taken once, with a note.

    Raises:
      DataError: for a file that is missing, empty or no judgements, or for two grades
        of one pair, naming the line.
    """
    qrels: dict[str, dict[str, float]] = {}
    skipped = formats.Skipped()
    try:
        rows = formats.read_qrels(
            path,  # type: ignore[arg-type]
            remedy=_REMEDY,
            skipped=skipped,
            check_grade=_check_grade,
        )
        for one in rows:
            qrels.setdefault(one.query_id, {})[one.document_id] = one.grade
    except DataError as error:
        raise DataError(f"{error}; {_QRELS}{_mistaken(path, 6)}") from error
    if not qrels:
        raise DataError(f"{path}: holds no judgement; {_QRELS}")
    notes = [
        f"{path}: {count} {'judgement comes' if count == 1 else 'judgements come'} "
        "again with the same grade, and count once"
        for count in skipped.repeated.values()
    ]
    return LoadedQrels(path, qrels, notes)


def _check_grade(name: str, value: object) -> float:
    number = check_number(name, value)
    return int(number) if number == int(number) else number


def _check_score(name: str, value: object) -> float:
    """A finite number of 64 bits."""
    return check_number(name, value, low=-math.inf, high=math.inf)


def load_run(path: FileOrPipe) -> LoadedRun:
    """Scores by query and document, from a TREC run file or MS MARCO's 3 columns.

    Of three columns (query, document, rank) the score is the rank, negated.

    Raises:
      DataError: for a file that is missing, empty or no run, for a score that is no
        finite number or a document twice for one query, naming the line.
    """
    columns = _regular_run(path)
    scores = _as_run(columns) if columns else None
    if columns is None or scores is None:
        read = _read_ranked if _width(path) == len(_RANKED_COLUMNS) else _read_run
        try:
            columns = _columns(read(path))
        except DataError as error:
            raise DataError(f"{error}; {_RUN}{_mistaken(path, 4)}") from error
        scores = _as_run(columns)
        assert scores is not None
    if not scores:
        raise DataError(f"{path}: is empty; {_RUN}")
    return LoadedRun(path, scores, _oddities(path, columns))


def _read_run(path: FileOrPipe) -> Iterator[Candidate]:
    return formats.read_run(
        path,  # type: ignore[arg-type]
        remedy=_REMEDY,
        check_score=_check_score,
    )


def _read_ranked(path: FileOrPipe) -> Iterator[Candidate]:
    """Lines of query, document and rank."""
    seen: set[tuple[str, str]] = set()
    for number, line in lines.read_lines(path):
        cells = line.split()
        try:
            if len(cells) != len(_RANKED_COLUMNS):
                raise FieldError("line", line, "3 columns as in line 1")
            query, document = check_id("query", cells[0]), check_id("pid", cells[1])
            rank = check_integer("rank", cells[2], low=0)
            if (query, document) in seen:
                raise FieldError("pid", document, f"a document once a query ({query})")
        except FieldError as error:
            raise DataError(f"{path}:{number}: {error}; {_REMEDY}") from error
        seen.add((query, document))
        yield Candidate(query, document, rank, float(-rank))


def _width(path: FileOrPipe) -> int:
    """Columns of the first line; 0 without one."""
    for _, line in lines.read_lines(path):
        return len(line.split())
    return 0


@dataclass(frozen=True)
class _Columns:
    """A run by line."""

    names: list[str]  # different queries
    queries: np.ndarray  # [lines], places in `names`
    documents: list[str]
    ranks: np.ndarray
    scores: np.ndarray


def _regular_run(path: FileOrPipe) -> _Columns | None:
    """Queries, documents, ranks and scores by line; None for a file to look into."""
    with lines.open_file(path) as file:
        try:
            data = file.read()
        except (OSError, EOFError, zlib.error):
            return None
    first = data[: lines.MAX_LINE].split(b"\n", 1)[0]
    delimiter = b"\t" if b"\t" in first else b" "
    # Arrow would take nothing between two delimiters for a column of its own.
    empty = (delimiter * 2, delimiter + b"\n", delimiter + b"\r")
    if data.endswith(delimiter) or any(place in data for place in empty):
        return None
    ranked = len(first.split(delimiter)) == len(_RANKED_COLUMNS)
    names = _RANKED_COLUMNS if ranked else _RUN_COLUMNS
    wanted = [name for name in names if name not in ("q0", "tag")]
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            csv.ReadOptions(column_names=names, block_size=2**24),
            csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
            csv.ConvertOptions(
                column_types={
                    **dict.fromkeys(names, pa.string()),
                    "query": pa.dictionary(pa.int32(), pa.string()),
                    "rank": pa.int64(),
                    "score": pa.float64(),
                },
                include_columns=wanted,
                strings_can_be_null=False,
                null_values=[],
            ),
        ).unify_dictionaries()
    except (pa.ArrowException, ValueError):
        return None
    if not len(table):
        return None
    queries, documents = (
        table[name].combine_chunks() for name in table.schema.names[:2]
    )
    ranks = table["rank"].to_numpy()
    scores = -ranks.astype(np.float64) if ranked else table["score"].to_numpy()
    if not np.isfinite(scores).all() or ranks.min() < 0:
        return None
    for ids in (queries.dictionary, documents):
        lengths = _compute.utf8_length(ids)
        if _compute.min(lengths).as_py() == 0 or _compute.max(lengths).as_py() > MAX_ID:
            return None
        if _compute.any(_compute.match_substring_regex(ids, _BAD_ID)).as_py():
            return None
    return _Columns(
        queries.dictionary.to_pylist(),
        queries.indices.to_numpy(),
        documents.to_pylist(),
        ranks,
        scores,
    )


def _columns(candidates: Iterable[Candidate]) -> _Columns:
    rows = list(candidates)
    names = list(dict.fromkeys(one.query_id for one in rows))
    places = {name: place for place, name in enumerate(names)}
    return _Columns(
        names,
        np.array([places[one.query_id] for one in rows], np.int64),
        [one.document_id for one in rows],
        np.array([one.rank for one in rows], np.int64),
        np.array([one.score for one in rows], np.float64),
    )


def _as_run(columns: _Columns) -> dict[str, dict[str, float]] | None:
    """The dicts; None when a document is listed twice for a query."""
    run: dict[str, dict[str, float]] = {}
    scores = columns.scores.tolist()
    # Where another query begins; its lines need not lie together.
    begins = np.flatnonzero(np.diff(columns.queries, prepend=-1)).tolist()
    for start, end in itertools.pairwise([*begins, len(scores)]):
        listed = run.setdefault(columns.names[columns.queries[start]], {})
        expected = len(listed) + end - start
        listed.update(zip(columns.documents[start:end], scores[start:end], strict=True))
        if len(listed) != expected:
            return None
    return run


def _oddities(path: FileOrPipe, columns: _Columns) -> list[str]:
    """Suspicious but legal input, reported as notes."""
    same = np.diff(columns.queries) == 0
    down = (np.diff(columns.ranks) > 0) & same
    rising = int(np.sum(np.diff(columns.scores)[down] > 0))
    steps = max(int(down.sum()), 1)
    if rising > 0.9 * steps and rising > 1:
        return [
            f"{path}: scores rise from rank to rank; the order is by score alone and "
            "higher is better: are these distances, or are rank and score mixed up?"
        ]
    if rising > _NOTED * steps:
        return [
            f"{path}: {rising / steps:.0%} of the documents have a higher score than "
            "the one ranked before them; the order is by score alone, and the rank "
            "column is not used"
        ]
    return []


def _mistaken(path: FileOrPipe, *widths: int) -> str:
    """A guess, where the file looks like one of the other kind."""
    for _, line in lines.read_lines(path):
        if line.lstrip()[:1] in ("{", "[", "#"):
            return ""
        if len(line.split()) in widths:
            other = "--qrels" if 6 not in widths else "--run"
            return f" (this one looks as if it were meant for {other})"
        break
    return ""


def line_of(path: FileOrPipe, query: str) -> int:
    """Number of the first line whose first column is `query`; 0 without one."""
    for number, line in lines.read_lines(path):
        if line.split(None, 1)[0] == query:
            return number
    return 0


# --- fields of queries ---


def load_fields(path: FileOrPipe) -> dict[str, dict[str, str | float]]:
    """Values by field and query, from a TSV with a header or from JSON lines.

    In a TSV the first column is the query's id; in JSON it is called query_id, _id or
    id. What is neither text nor number is left out.

    Raises:
      DataError: for a file that is missing, or a line that does not fit, naming it.
    """
    read = _json_fields if _kind(path) == ".jsonl" else _tsv_fields
    fields: dict[str, dict[str, str | float]] = {}
    seen: set[str] = set()
    for number, query, values in read(path):
        if query in seen:
            raise DataError(f"{path}:{number}: the query {query!r} has an earlier line")
        seen.add(query)
        for name, value in values.items():
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                fields.setdefault(name, {})[query] = value
    if not fields:
        raise DataError(
            f"{path}: holds no field; expected a header such as query_id<tab>frequency "
            "and a line a query, or JSON lines"
        )
    return fields


def _kind(path: FileOrPipe) -> str:
    return pathlib.Path(path.name.removesuffix(".gz")).suffix


def _json_rows(path: FileOrPipe) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, line in lines.read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        found = []
        if isinstance(row, dict):
            found = [name for name in ("query_id", "_id", "id") if name in row]
        if not isinstance(row, dict) or not found:
            raise DataError(
                f"{path}:{number}: expected a JSON object with a query_id, found "
                f"{line[:80]!r}"
            )
        yield number, str(row.pop(found[0])), row


def _json_fields(path: FileOrPipe) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, query, row in _json_rows(path):
        row.pop("text", None)  # the query itself, in a BEIR file
        nested = row.pop("metadata", None)
        yield number, query, {**row, **(nested if isinstance(nested, dict) else {})}


def _tsv_fields(path: FileOrPipe) -> Iterator[tuple[int, str, dict[str, Any]]]:
    names: list[str] = []
    for number, line in lines.read_lines(path):
        cells = line.split("\t")
        if not names:
            names = cells
            if len(names) < 2:
                raise DataError(
                    f"{path}:{number}: found one column, expected a header such as "
                    "query_id<tab>frequency"
                )
        elif len(cells) != len(names):
            raise DataError(
                f"{path}:{number}: found {len(cells)} cells between tabs, expected "
                f"{len(names)}: {', '.join(names)}"
            )
        else:
            yield number, cells[0], dict(zip(names[1:], cells[1:], strict=True))


def load_queries(path: FileOrPipe) -> dict[str, str]:
    """Texts by query, from BEIR's queries.jsonl or lines of id, tab and text.

    Raises:
      DataError: for a file that is missing, or a line that does not fit, naming it.
    """
    if _kind(path) == ".jsonl":
        return {query: str(row.get("text", "")) for _, query, row in _json_rows(path)}
    texts = {}
    for number, line in lines.read_lines(path):
        query, tab, text = line.partition("\t")
        if not tab:
            raise DataError(
                f"{path}:{number}: found no tab, expected a query's id, a tab and its "
                "text"
            )
        texts[query.strip()] = text.strip()
    return texts


def query_lengths(texts: Mapping[str, str]) -> dict[str, dict[str, str | float]]:
    """The length of each query, as a field: words, or characters where none has two."""
    words = {query: float(len(text.split())) for query, text in texts.items()}
    if max(words.values(), default=0) > 1:
        return {"query length (words)": dict(words)}
    return {
        "query length (characters)": {q: float(len(text)) for q, text in texts.items()}
    }
