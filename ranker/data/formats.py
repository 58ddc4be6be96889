"""Readers of documents, queries, judgements and runs, record by record.

A reader yields records one by one. A malformed one stops it with a `DataError` that
names file, line and field, or, with `on_error="skip"`, is counted in a `Skipped` and
left out. A file that cannot be read on, such as broken gzip, stops it in either case.

Input files are untrusted: nothing in them is executed or used as a path, and what they
can make a reader hold in memory is bounded; see `lines`.
"""

import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ranker.data import cells, files, lines, parquet
from ranker.data.records import (
    Candidate,
    Document,
    Judgement,
    Query,
    check_id,
    check_integer,
    check_number,
    check_text,
)
from ranker.errors import DataError, FieldError, shown
from ranker.storage import open_path, writing

_REMEDY = "correct it, or skip such records with --config.data.on_error=skip"
OnError = Literal["stop", "skip"]
T = TypeVar("T")


@dataclass
class Skipped:
    """Records that were left out, by file, each with its first reason."""

    most: float = 1.0  # share of a file's records that may be malformed
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)  # said again, the same
    rows: dict[str, int] = field(default_factory=dict)  # records read

    def add(self, path: Any, reason: str) -> None:
        """Counts one more that is malformed."""
        self.counts[path.name] = self.counts.get(path.name, 0) + 1
        self.first.setdefault(path.name, reason)

    def read(self, path: Any, rows: int) -> None:
        """Counts records that were read, malformed ones among them."""
        self.rows[path.name] = self.rows.get(path.name, 0) + rows

    def check(self, path: Any) -> None:
        """Raises `DataError` when too many records of a file were malformed."""
        bad, rows = self.counts.get(path.name, 0), self.rows.get(path.name, 0)
        if bad > self.most * rows:
            raise DataError(
                f"{path}: {bad} of {rows} records are malformed, over the share "
                f"data.max_skipped {self.most:g}; the first: {self.first[path.name]}; "
                "is this the right file? If it is, raise --config.data.max_skipped"
            )

    def report(self) -> dict[str, Any]:
        """File -> how many records were malformed, and the first reason."""
        return {
            name: {"records": count, "of": self.rows.get(name, 0), "first": first}
            for (name, count), first in zip(
                self.counts.items(), self.first.values(), strict=True
            )
        }


# --- records ---


def records(
    path: Any,
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[Any], T | None],
    on_error: OnError,
    skipped: Skipped | None,
    *,
    remedy: str = _REMEDY,
) -> Iterator[T]:
    """Parses each row, and stops at or counts the malformed ones; None is nothing.

    Raises:
      DataError: at a malformed row, or where more are skipped than `skipped` allows.
    """
    count = 0
    for number, row in rows:
        count += 1
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
    if skipped is not None:
        skipped.read(path, count)
        skipped.check(path)


def parse_json(line: str) -> dict[str, Any]:
    """A line as a JSON object; raises `FieldError` where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        kind = "one JSON object a line" if line.lstrip()[:1] == "[" else "a JSON object"
        raise FieldError("line", line, f"{kind} ({error})") from error
    if not isinstance(value, dict):
        kind = "one JSON object a line" if isinstance(value, list) else "a JSON object"
        raise FieldError("line", line, kind)
    return value


# Names that collections give to one field; the first is ours. A passage with a `pid`
# has the `docid` of its document beside it.
DOCUMENT_IDS = ("_id", "id", "pid", "docid", "doc_id", "document_id", "docno")
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


# --- documents and queries ---


def _once(parse: Callable[[Any], T], seen: dict[str, int]) -> Callable[[Any], T]:
    """The same parser, refusing an id that it has seen, and numbering the others."""

    def parse_once(row: Any) -> T:
        record = parse(row)
        name = record.id  # type: ignore[attr-defined]
        if name in seen:
            raise FieldError("_id", name, "an id that no earlier line has")
        seen[name] = len(seen)
        return record

    return parse_once


def _fields(row: Any, positional: Sequence[str] = ()) -> Mapping[str, Any]:
    """A row as named fields: of Parquet, JSON, or TSV with columns by place."""
    if isinstance(row, FieldError):
        raise row
    if isinstance(row, Mapping):
        return row
    if not positional:
        return parse_json(row)
    found = row.split("\t", len(positional) - 1)
    if len(found) < len(positional):
        wanted = f"{', '.join(positional)} between tabs"
        raise FieldError("line", row, wanted)
    return dict(zip(positional, found, strict=True))


# Columns of MS MARCO's tables, which have no header.
_DOCUMENT_COLUMNS = {"msmarco-docs": ("docid", "url", "title", "body")}


def _table(
    path: Any, names: Sequence[str], columns: Sequence[str]
) -> tuple[Iterator[tuple[int, Any]], Sequence[str]]:
    """Rows of a table, and what its columns are called where it is TSV.

    Args:
      path: Parquet, JSON lines or TSV.
      names: fields that can be used; a TSV whose first line has two is headed by them.
      columns: of a TSV without a header.
    """
    kind = files.kind_of(path)
    if kind == "parquet":
        return parquet.read_rows(path, names), ()
    rows = lines.read_lines(path)
    if kind not in ("tsv", "csv"):
        return rows, ()
    first = next(rows, None)
    if first is None:
        return iter(()), columns
    named = headed(first[1], kind, names, rows)
    return (named, ()) if named else (itertools.chain([first], rows), columns)


def headed(
    header: str, kind: str, names: Sequence[str], rows: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, Any]] | None:
    """Rows by the names of a header, or None where the line has not two of `names`.

    Args:
      header: the first line.
      kind: tsv or csv.
      names: that a header may hold, in lower case.
      rows: the lines below it.
    """
    mark = "\t" if kind == "tsv" else max(",;\t", key=header.count)
    found = [
        one.strip() for one in cells.split_cells(header.lower(), mark, always=True)[0]
    ]
    if len(set(found) & set(names)) < 2 or len(set(found)) < len(found):
        return None
    return cells.rows(rows, found, mark, always=kind == "csv" or header[:1] == '"')


def read_documents(
    paths: Iterable[Any],
    *,
    seen: dict[str, int] | None = None,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """Documents of Parquet, JSON lines or MS MARCO's TSV, one file after another.

    Args:
      paths: files.
      seen: ids of documents so far, with their numbers; those that are read are added.
        An id that comes again is malformed. None: none is remembered.
      on_error: what to do about a malformed record.
      skipped: counts them.
    """
    for path in paths:
        stem = path.name.split(".")[0]
        columns = _DOCUMENT_COLUMNS.get(stem, ("pid", "passage"))
        names = (*DOCUMENT_IDS, *TITLES, *TEXTS)
        rows, columns = _table(path, names, columns)

        def parse(row: Any, columns: Sequence[str] = columns) -> Document:
            return to_document(_fields(row, columns))

        once = parse if seen is None else _once(parse, seen)
        yield from records(path, rows, once, on_error, skipped)


def read_all_queries(
    paths: Iterable[Any],
    *,
    seen: dict[str, int] | None = None,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
) -> Iterator[Query]:
    """Queries of Parquet, JSON lines or TSV of id and text; as `read_documents`."""
    for path in paths:
        rows, columns = _table(path, (*QUERY_IDS, *QUERY_TEXTS), ("qid", "query"))

        def parse(row: Any, columns: Sequence[str] = columns) -> Query:
            return to_query(_fields(row, columns))

        once = parse if seen is None else _once(parse, seen)
        yield from records(path, rows, once, on_error, skipped)


def read_corpus(
    path: Any,
    *,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    unique: bool = True,
) -> Iterator[Document]:
    """Documents of one file; see `read_documents`.

    With `unique`, an id that comes twice is malformed; it takes memory for every id.
    """
    seen = {} if unique else None
    yield from read_documents([path], seen=seen, on_error=on_error, skipped=skipped)


def read_queries(
    path: Any,
    *,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    unique: bool = True,
) -> Iterator[Query]:
    """Queries of one file; see `read_all_queries`.

    With `unique`, an id that comes twice is malformed; it takes memory for every id.
    """
    seen = {} if unique else None
    yield from read_all_queries([path], seen=seen, on_error=on_error, skipped=skipped)


# --- TREC ---


def _known(field: str, name: str, known: Container[str] | None, file: str) -> str:
    check_id(field, name)
    if known is not None and name not in known:
        raise FieldError(field, name, f"an id that {file} have")
    return name


_GRADES = {"score", "rel", "relevance", "grade", "label", "judgement", "judgment"}


def _is_header(line: str) -> bool:
    """Whether the first line of judgements names columns."""
    names = _words(line.lower())
    known = names[0] in ("query-id", "query_id")
    return known or (len(names) > 2 and names[-1] in _GRADES)


def _words(line: str) -> list[str]:
    """What stands between spaces and tabs, without the quotes of a csv writer."""
    found = line.split()
    if line[:1] == '"':
        found = [one[1:-1] if one[0] == one[-1] == '"' else one for one in found]
    return found


def read_qrels(path: Any, **how: Any) -> Iterator[Judgement]:
    """Judgements: BEIR (query, document, grade, with a header) or TREC (4 columns).

    A judgement that comes again with the same grade is left out, and counted in
    `skipped`; one with another grade is malformed.

    Args:
      path: of the file.
      how: `queries` and `documents`, which ids must be among; `on_error`, `skipped`;
        `remedy`, which ends the error of a malformed line; `check_grade`, which reads
        a grade.
    """

    def parts(line: str) -> tuple[str, str, Any]:
        found = _words(line)
        if len(found) == 4:
            found = [found[0], *found[2:]]
        if len(found) != 3:
            raise FieldError(
                "line",
                line,
                "query, document and grade, or TREC's query, 0, document and grade, "
                "between tabs or spaces"
                + (" (this one has commas)" if line.count(",") > 1 else ""),
            )
        return found[0], found[1], found[2]

    rows = (
        (number, line)
        for number, line in lines.read_lines(path)
        if not (number == 1 and _is_header(line))
    )
    yield from _judgements(path, rows, parts, **how)


def _judgements(
    path: Any,
    rows: Iterable[tuple[int, Any]],
    parts: Callable[[Any], tuple[str, str, Any]],
    *,
    queries: Container[str] | None = None,
    documents: Container[str] | None = None,
    on_error: OnError = "stop",
    skipped: Skipped | None = None,
    remedy: str = _REMEDY,
    check_grade: Callable[[str, object], Any] = check_integer,
) -> Iterator[Judgement]:
    seen: dict[tuple[str, str], int] = {}

    def parse(row: Any) -> Judgement | None:
        query, document, found = parts(row)
        pair = (
            _known("query-id", query, queries, "the queries"),
            _known("corpus-id", document, documents, "the documents"),
        )
        grade = check_grade("score", found)
        if pair not in seen:
            seen[pair] = grade
            return Judgement(*pair, grade)
        if seen[pair] != grade:
            raise FieldError(
                "score",
                found,
                f"{seen[pair]}, the grade that an earlier line gives query {query!r} "
                f"and document {document!r}; keep one of the two lines",
            )
        if skipped is not None:
            skipped.repeated[path.name] = skipped.repeated.get(path.name, 0) + 1
        return None

    yield from records(path, rows, parse, on_error, skipped, remedy=remedy)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_JUDGED_QUERIES = ("query-id", "query_id", "qid")
_JUDGED_DOCUMENTS = ("corpus-id", "corpus_id", "document_id", "doc_id", "docid", "pid")


def read_judgements(path: Any, **how: Any) -> Iterator[Judgement]:
    """Judgements of a text file (`read_qrels`), or of Parquet or JSON lines.

    Args:
      path: of the file.
      how: as for `read_qrels`.
    """
    if files.kind_of(path) not in ("parquet", "jsonl"):
        yield from read_qrels(path, **how)
        return
    grades = ("score", *sorted(_GRADES - {"score"}))
    names = (*_JUDGED_QUERIES, *_JUDGED_DOCUMENTS, *grades)

    def parts(row: Any) -> tuple[str, str, Any]:
        fields = _fields(row)
        return (
            check_id("query-id", _want(fields, *_JUDGED_QUERIES)),
            check_id("corpus-id", _want(fields, *_JUDGED_DOCUMENTS)),
            _want(fields, *grades),
        )

    rows, _ = _table(path, names, ())
    yield from _judgements(path, rows, parts, **how)


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
            _known("query", query, queries, "the queries"),
            _known("document", document, documents, "the documents"),
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

    yield from records(
        path, lines.read_lines(path), parse, on_error, skipped, remedy=remedy
    )


def read_candidates(path: Any, **how: Any) -> Iterator[Candidate]:
    """Candidates of a TREC run, of MS MARCO's files, or of MTEB's top_ranked.

    MS MARCO's have three columns, or four with texts (top1000); MTEB's are Parquet or
    JSON lines with all documents of a query in a row.

    Args:
      path: of the file.
      how: as for `read_run`.
    """
    if files.kind_of(path) in ("parquet", "jsonl"):
        yield from _read_top_ranked(path, **how)
        return
    first = next((line for _, line in lines.read_lines(path)), "")
    cells = first.split("\t")
    texts = len(cells) == 4 and " " in cells[3]  # query, document, and their texts
    if texts or (len(cells) == 3 and len(first.split()) == 3):
        yield from _read_msmarco_run(path, texts, **how)
    else:
        yield from read_run(path, **how)


def _read_msmarco_run(
    path: Any,
    texts: bool,
    *,
    queries: Container[str],
    documents: Container[str],
    on_error: OnError,
    skipped: Skipped | None,
) -> Iterator[Candidate]:
    """Ids with a rank, or with texts in the order of the first stage."""
    ranks: dict[str, int] = {}

    def parse(line: str) -> Candidate:
        cells = line.split("\t")
        if len(cells) != (4 if texts else 3):
            raise FieldError("line", line, "query, document and rank between tabs")
        query = _known("query", cells[0], queries, "the queries")
        document = _known("document", cells[1], documents, "the documents")
        ranks[query] = ranks.get(query, 0) + 1
        rank = ranks[query] if texts else check_integer("rank", cells[2], low=0)
        return Candidate(query, document, rank, -float(rank))

    yield from records(path, lines.read_lines(path), parse, on_error, skipped)


_RANKED_DOCUMENTS = ("corpus-ids", "corpus_ids", "document_ids", "docids")


def _read_top_ranked(
    path: Any,
    *,
    queries: Container[str],
    documents: Container[str],
    on_error: OnError,
    skipped: Skipped | None,
) -> Iterator[Candidate]:
    """A query and the ids of its documents in a row, best first."""

    def parse(row: Any) -> list[Candidate]:
        fields = _fields(row)
        query = check_id("query-id", _want(fields, *_JUDGED_QUERIES))
        found = _want(fields, *_RANKED_DOCUMENTS)
        if not isinstance(found, list | tuple):
            raise FieldError("corpus-ids", found, "a list of ids, best first")
        _known("query-id", query, queries, "the queries")
        names = dict.fromkeys(check_id("corpus-ids", one) for one in found)
        return [
            Candidate(
                query,
                _known("corpus-ids", one, documents, "the documents"),
                rank,
                -float(rank),
            )
            for rank, one in enumerate(names, 1)
        ]

    rows, _ = _table(path, (*_JUDGED_QUERIES, *_RANKED_DOCUMENTS), ())
    for found in records(path, rows, parse, on_error, skipped):
        yield from found


# --- a teacher's scores ---

_SCORED = ("query_id", "document_id", "score")


def read_given_scores(
    place: str, *, on_error: OnError = "stop"
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Scores by query and document: of TREC runs, JSON lines, TSV or Parquet.

    Args:
      place: a file, folder or pattern, local or of a bucket.
      on_error: what to do about a score that is not finite.

    Returns:
      The scores, and counts of those that are not finite or malformed, with the first.

    Raises:
      DataError: naming the pairs whose score is not finite, or the malformed line.
    """
    path = open_path(place)
    pattern = any(c in path.name for c in "*?[")
    if pattern or path.is_dir():
        hits = path.parent.glob(path.name) if pattern else path.iterdir()
        paths = sorted((one for one in hits if not one.is_dir()), key=str)
        paths = [one for one in paths if one.name[:1] not in "_."]
    else:
        paths = [path]
    scores: dict[str, dict[str, float]] = {}
    bad: list[str] = []
    for file in paths:
        for query, document, score in _scored_pairs(file):
            if not math.isfinite(score):
                bad.append(f"query {query!r}, document {document!r}: {score}")
                continue
            known = scores.setdefault(query, {})
            if known.setdefault(document, score) != score:
                raise DataError(
                    f"{file}: query {query!r}, document {document!r} has two scores, "
                    f"{known[document]} and {score}; keep one"
                )
    if bad and on_error == "stop":
        raise DataError(
            f"{place}: {len(bad)} scores are not finite: {'; '.join(bad[:5])}; score "
            "these pairs again, or leave them out with --config.data.on_error=skip"
        )
    return scores, {"not_finite": {"count": len(bad), "first": bad[:20]}}


def _scored_pairs(path: Any) -> Iterator[tuple[str, str, float]]:
    kind = files.kind_of(path)
    first = ""
    if kind != "parquet":
        first = next((line for _, line in lines.read_lines(path)), "")
    if kind == "parquet" or first.lstrip()[:1] == "{":
        rows, _ = _table(path, _SCORED, ())
        parse = _scored
    elif set(_SCORED) <= set(re.split(r"[\t,]", first)):
        mark = "\t" if "\t" in first else ","
        names = first.split(mark)
        found = lines.read_lines(path)
        next(found)
        rows = (
            (n, dict(zip(names, line.split(mark), strict=False))) for n, line in found
        )
        parse = _scored
    else:
        rows, parse = lines.read_lines(path), _scored_run
    yield from records(path, rows, parse, "stop", None, remedy="correct it")


def _scored(row: Any) -> tuple[str, str, float]:
    fields = _fields(row)
    query, document, score = (_want(fields, name) for name in _SCORED)
    return check_id("query_id", query), check_id("document_id", document), _any(score)


def _scored_run(line: str) -> tuple[str, str, float]:
    cells = line.split()
    if len(cells) < 6:
        raise FieldError(
            "line",
            line,
            "a TREC run's 6 columns, or JSON lines or Parquet of query_id, "
            "document_id and score",
        )
    return check_id("query", cells[0]), check_id("document", cells[2]), _any(cells[4])


def _any(score: Any) -> float:
    """A number, which need not be finite; None is none."""
    try:
        return math.nan if score is None else float(score)
    except (TypeError, ValueError):
        raise FieldError("score", score, "a number") from None


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
