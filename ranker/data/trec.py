"""Whole TREC files as dicts, for evaluation: judgements, runs, fields of queries.

Runs are long (a thousand documents for each of thousands of queries), so a regular file
is parsed by Arrow, several times as fast as line by line. Whatever Arrow stumbles over
or does not check is left to the reader of lines, which accepts it or names the line.
"""

import io
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyarrow import csv

from ranker.data import formats, lines
from ranker.data.records import MAX_ID, Candidate
from ranker.errors import DataError

_compute: Any = pyarrow.compute  # makes its functions while it is imported
_REMEDY = "correct that line"
_QRELS = "judgements are lines of query, 0, document and grade, or of BEIR's 3 columns"
_RUN = "a run is lines of 6 columns: query, Q0, document, rank, score and tag"
_RUN_COLUMNS = ("query", "q0", "document", "rank", "score", "tag")
_BAD_ID = r"[\x00-\x20\x7f\x{85}\p{Z}]"  # in Arrow's dialect, what `check_id` refuses


@dataclass(frozen=True)
class LoadedRun:
    """A run, and what is odd about its file."""

    path: pathlib.Path
    scores: dict[str, dict[str, float]]  # query -> document -> score
    notes: list[str] = field(default_factory=list)  # sentences for the user


def load_qrels(path: pathlib.Path) -> dict[str, dict[str, int]]:
    """Grades by query and document, from TREC's 4 columns or BEIR's 3 with a header.

    Raises:
      DataError: for a file that is missing, empty or no judgements, naming the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    try:
        for one in formats.read_qrels(path, remedy=_REMEDY):
            qrels.setdefault(one.query_id, {})[one.document_id] = one.grade
    except DataError as error:
        raise DataError(f"{error}; {_QRELS}{_mistaken(path, 6)}") from error
    if not qrels:
        raise DataError(f"{path}: holds no judgement; {_QRELS}")
    return qrels


def load_run(path: pathlib.Path) -> LoadedRun:
    """Scores by query and document, from a TREC run file.

    Raises:
      DataError: for a file that is missing, empty or no run, for a score that is no
        finite number or a document twice for one query, naming the line.
    """
    columns = _regular_run(path)
    scores = _as_run(columns) if columns else None
    if columns is None or scores is None:
        try:
            columns = _columns(formats.read_run(path, remedy=_REMEDY))
        except DataError as error:
            raise DataError(f"{error}; {_RUN}{_mistaken(path, 3, 4)}") from error
        scores = _as_run(columns)
        assert scores is not None
    if not scores:
        raise DataError(f"{path}: holds no line; {_RUN}")
    return LoadedRun(path, scores, _oddities(path, columns))


@dataclass(frozen=True)
class _Columns:
    """A run by line."""

    names: list[str]  # different queries
    queries: np.ndarray  # [lines], places in `names`
    documents: list[str]
    ranks: np.ndarray
    scores: np.ndarray


def _regular_run(path: pathlib.Path) -> _Columns | None:
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
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            csv.ReadOptions(column_names=_RUN_COLUMNS, block_size=2**24),
            csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
            csv.ConvertOptions(
                column_types={
                    **dict.fromkeys(_RUN_COLUMNS, pa.string()),
                    "query": pa.dictionary(pa.int32(), pa.string()),
                    "rank": pa.int64(),
                    "score": pa.float64(),
                },
                include_columns=["query", "document", "rank", "score"],
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
    ranks, scores = (table[name].to_numpy() for name in ("rank", "score"))
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


def _oddities(path: pathlib.Path, columns: _Columns) -> list[str]:
    """What no rule forbids and nobody means."""
    same = np.diff(columns.queries) == 0
    down = (np.diff(columns.ranks) > 0) & same
    rising = int(np.sum(np.diff(columns.scores)[down] > 0))
    if rising > 0.9 * max(int(down.sum()), 1) and rising > 1:
        return [
            f"{path}: scores rise from rank to rank; the order is by score alone and "
            "higher is better: are these distances, or are rank and score mixed up?"
        ]
    return []


def _mistaken(path: pathlib.Path, *widths: int) -> str:
    """A guess, where the file looks like one of the other kind."""
    for _, line in lines.read_lines(path):
        if len(line.split()) in widths:
            other = "--qrels" if 6 not in widths else "--run"
            return f" (this one looks as if it were meant for {other})"
        break
    return ""


def line_of(path: pathlib.Path, query: str) -> int:
    """Number of the first line whose first column is `query`; 0 without one."""
    for number, line in lines.read_lines(path):
        if line.split(None, 1)[0] == query:
            return number
    return 0


# --- fields of queries ---


def load_fields(path: pathlib.Path) -> dict[str, dict[str, str | float]]:
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


def _kind(path: pathlib.Path) -> str:
    return pathlib.Path(path.name.removesuffix(".gz")).suffix


def _json_rows(path: pathlib.Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
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


def _json_fields(path: pathlib.Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, query, row in _json_rows(path):
        row.pop("text", None)  # the query itself, in a BEIR file
        nested = row.pop("metadata", None)
        yield number, query, {**row, **(nested if isinstance(nested, dict) else {})}


def _tsv_fields(path: pathlib.Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
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


def load_queries(path: pathlib.Path) -> dict[str, str]:
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
