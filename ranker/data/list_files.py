"""Files of "a query with its documents", as trainers of rerankers keep them.

One reader for all of them: a record has a query, and documents that are positive,
negative, labelled or only listed, as texts or as records of their own. `FORMATS` has
the names of fields that tell which is which.

    tevatron, MIRACL       query_id, query, positive_passages, negative_passages
    FlagEmbedding          query, pos, neg, pos_scores, neg_scores
    sentence-transformers  anchor, positive, negative (negative_1, ...), or score_diff;
                           query, docs, labels; sentence1, sentence2, label
    MTEB reranking         query, positive, negative (lists)
    RankLLM                query {qid, text}, candidates [{docid, score, doc}]
    DPR                    question, positive_ctxs, negative_ctxs, hard_negative_ctxs
    ms-swift               messages, positive_messages, negative_messages; or query,
                           response, rejected_response

Scores of positives and negatives, and score differences, are a teacher's.
"""

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ranker.data import files, lines, parquet
from ranker.data.formats import (
    DOCUMENT_IDS,
    TEXTS,
    TITLES,
    OnError,
    Skipped,
    headed,
    parse_json,
    records,
)
from ranker.data.records import (
    Document,
    check_id,
    check_integer,
    check_number,
    check_text,
)
from ranker.errors import DataError, FieldError, shown
from ranker.storage import read_json

QUERIES = ("query", "question", "anchor", "sentence1", "query_text", "messages")
QUERY_IDS = ("query_id", "qid", "query-id", "_id", "id")
POSITIVES = (
    "positive_passages",
    "positives",
    "positive",
    "pos",
    "positive_ctxs",
    "positive_messages",
    "relevant_passages",
    "answer",
)
NEGATIVES = (
    "negative_passages",
    "negatives",
    "negative",
    "neg",
    "negative_ctxs",
    "negative_messages",
    "hard_negative_ctxs",
    "hard_negative",
    "hard_negatives",
    "rejected_response",
)
LISTED = ("candidates", "documents", "docs", "passages", "texts")
SINGLE = ("document", "passage", "text", "doc", "response", "sentence2")
LABELS = ("labels", "label", "relevance", "grade", "grades")
SCORES = ("scores", "score", "similarity")
MARGIN = ("score_diff", "margin")
# Of tables in text, which have one document a cell.
_COLUMNS = (*QUERIES, *QUERY_IDS, *POSITIVES, *NEGATIVES, *SINGLE, *LABELS, *SCORES)
_NUMBERED = re.compile(r"negatives?_\d+")

# The nearest is named where a record is none of them.
FORMATS = {
    "tevatron": ("query_id", "query", "positive_passages", "negative_passages"),
    "FlagEmbedding": ("query", "pos", "neg", "pos_scores", "neg_scores"),
    "sentence-transformers": ("anchor", "positive", "negative"),
    "sentence-transformers' labelled lists": ("query", "docs", "labels"),
    "MTEB reranking": ("query", "positive", "negative"),
    "RankLLM": ("query", "candidates"),
    "DPR": ("question", "positive_ctxs", "negative_ctxs"),
    "ms-swift": ("messages", "positive_messages", "negative_messages"),
}


@dataclass
class QueryList:
    """A query with documents by id."""

    id: str
    text: str
    documents: dict[str, Document] = field(default_factory=dict)
    grades: dict[str, int] = field(default_factory=dict)
    first_stage: dict[str, float] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    margins: dict[str, tuple[str, float]] = field(default_factory=dict)


def is_list_file(path: Any) -> bool:
    """Whether a file's first record has a query and its documents."""
    try:
        row = next((row for _, row in _raw_rows(path)), None)
        if row is None:
            return False
        to_list(row)
        return True
    except (DataError, FieldError):
        return False


def read_lists(
    path: Any, *, on_error: OnError = "stop", skipped: Skipped | None = None
) -> Iterator[QueryList]:
    """Records of a file, one by one; a query may come again.

    Raises:
      DataError: naming file, line and field, and the nearest format that is known.
    """
    yield from records(path, _raw_rows(path), to_list, on_error, skipped)


def _raw_rows(path: Any) -> Iterator[tuple[int, Any]]:
    kind = files.kind_of(path)
    if kind == "parquet":
        yield from parquet.read_rows(path, ())
    elif kind in ("tsv", "csv"):
        yield from _table_rows(path, kind)
    elif _is_array(path):
        yield from enumerate(_array(path), 1)
    else:
        yield from lines.read_lines(path)


def _table_rows(path: Any, kind: str) -> Iterator[tuple[int, Any]]:
    """Rows of a table with a header, or of triples of texts."""
    found = lines.read_lines(path)
    first = next(found, None)
    if first is None:
        return
    named = headed(first[1], kind, _COLUMNS, found)
    if named is not None:
        yield from named
        return
    for number, line in itertools.chain([first], found):
        yield number, _triple(line)


def _triple(line: str) -> Any:
    """MS MARCO's triples of texts: query, positive, negative, between tabs."""
    cells = line.split("\t")
    if len(cells) != 3:
        return FieldError("line", line, "query, positive and negative between tabs")
    return dict(zip(("query", "positive", "negative"), cells, strict=True))


def _is_array(path: Any) -> bool:
    """Whether a file is one JSON array, as RankLLM's are."""
    if not path.name.endswith(".json"):
        return False
    first = next((line for _, line in lines.read_lines(path)), "")
    return first.lstrip()[:1] == "["


def _array(path: Any) -> list[Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise DataError(
            f"{path}: is a JSON array that cannot be read ({error}); write one JSON "
            "object a line"
        ) from error


# --- one record ---


def to_list(row: Any) -> QueryList:
    """A record as a query with its documents.

    Raises:
      FieldError: naming the fields that there are, and the nearest format.
    """
    if isinstance(row, FieldError):
        raise row
    row = parse_json(row) if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise FieldError("record", row, "an object with a query and its documents")
    row = {name: value for name, value in row.items() if value is not None}
    query = _query(row)
    if query is None:
        raise _unknown(row)
    found = _graded(row, query) or _listed(row, query)
    if not found:
        raise _unknown(row)
    if not query.documents:
        raise FieldError("record", list(row), "at least one document of the query")
    return query


def _unknown(row: Mapping[str, Any]) -> FieldError:
    def fit(name: str) -> float:
        names = FORMATS[name]
        near = [difflib.get_close_matches(one, list(row), 1, 0.8) for one in names]
        return sum(map(bool, near)) / len(names)

    near = max(FORMATS, key=fit)
    return FieldError(
        "record",
        list(row),
        "the fields of a query with its documents; the nearest known format is "
        f"{near}'s: {', '.join(FORMATS[near])}",
    )


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _query(row: Mapping[str, Any]) -> QueryList | None:
    value = _first(row, QUERIES)
    if value is None:
        return None
    name = _first(row, QUERY_IDS)
    value = _last_message(value)
    if isinstance(value, Mapping):  # RankLLM's, or a message
        name = _first(value, QUERY_IDS) if name is None else name
        value = _first(value, ("text", "content", *QUERIES))
    text = check_text("query", value).strip()
    return QueryList(check_id("query_id", name or named(text)), text)


def _last_message(value: Any) -> Any:
    """The last message of a conversation; any other value unchanged."""
    talk = isinstance(value, list | tuple) and value
    if talk and all(isinstance(one, Mapping) for one in value):
        return value[-1]
    return value


def named(text: str) -> str:
    """An id of a text that has none: equal texts are one."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _all(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The documents of all named fields, and of negative_1, negative_2, ..."""
    found = []
    for name, value in row.items():
        numbered = names is NEGATIVES and _NUMBERED.fullmatch(name)
        if name in names or numbered:
            found += value if isinstance(value, list | tuple) else [value]
    return found


def _graded(row: Mapping[str, Any], query: QueryList) -> bool:
    """Takes positives and negatives, with their scores; False where there are none."""
    positives, negatives = _all(row, POSITIVES), _all(row, NEGATIVES)
    if not positives and not negatives:
        return False
    if not positives and (single := _first(row, SINGLE)) is not None:
        positives = [single]  # beside negatives, the one document is the answer
    ids: list[str] = []
    for grade, documents in ((1, positives), (0, negatives)):
        for value in documents:
            document, _ = _document(value)
            ids.append(document.id)
            query.documents[document.id] = document
            known = query.grades.get(document.id, 0)
            query.grades[document.id] = max(known, grade)
    scores = _numbers(row, "pos_scores") + _numbers(row, "neg_scores")
    if scores:
        if len(scores) != len(ids):
            raise FieldError(
                "pos_scores, neg_scores",
                scores,
                f"{len(positives)} and {len(negatives)} scores, one a document",
            )
        query.teacher = dict(zip(ids, scores, strict=True))
    _take_margins(row, query, ids, len(positives))
    return True


def _take_margins(
    row: Mapping[str, Any], query: QueryList, ids: list[str], positives: int
) -> None:
    """What the positive is above each negative, by a teacher (margin MSE)."""
    value = _first(row, MARGIN)
    if value is None and len(ids) > 1:
        value = _first(row, ("score", "label"))
        value = None if isinstance(value, bool | str) else value
    if value is None or positives != 1 or len(ids) < 2:
        return
    margins = value if isinstance(value, list | tuple) else [value]
    if len(margins) == len(ids):  # scores of all, in place of differences
        scores = [check_number("score", one) for one in margins]
        query.teacher = dict(zip(ids, scores, strict=True))
    elif len(margins) == len(ids) - 1:
        for name, one in zip(ids[1:], margins, strict=True):
            query.margins[name] = (ids[0], check_number("score_diff", one))


def _numbers(row: Mapping[str, Any], name: str) -> list[float]:
    values = row.get(name)
    values = [] if values is None else values
    if not isinstance(values, list | tuple):
        values = [values]
    return [check_number(name, value) for value in values]


def _listed(row: Mapping[str, Any], query: QueryList) -> bool:
    """Takes documents that are listed, with labels or scores, or single ones."""
    documents = _first(row, LISTED)
    if not isinstance(documents, list | tuple):
        single = _first(row, SINGLE)
        documents = [documents if single is None else single]
        if documents == [None]:
            return False
    labels, scores = (_beside(row, names, documents) for names in (LABELS, SCORES))
    for rank, value in enumerate(documents):
        document, score = _document(value)
        query.documents[document.id] = document
        query.first_stage[document.id] = -float(rank) if score is None else score
        if labels is not None:
            number = check_number("label", labels[rank])
            if number == int(number):
                query.grades[document.id] = check_integer("label", number)
            else:
                query.teacher[document.id] = number
        if scores is not None:
            query.teacher[document.id] = check_number("score", scores[rank])
    return True


def _beside(
    row: Mapping[str, Any], names: Sequence[str], documents: Sequence[Any]
) -> list[Any] | None:
    """Labels or scores, one a document."""
    values = _first(row, names)
    if values is None:
        return None
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) != len(documents):
        raise FieldError(
            names[0], values, f"{len(documents)} numbers, one for each document"
        )
    return values


def _document(value: Any) -> tuple[Document, float | None]:
    """A document of a text or a record, and the score that the record has."""
    value = _last_message(value)
    if isinstance(value, str):
        text = check_text("document", value).strip()
        return Document(named(text), "", text), None
    if isinstance(value, list | tuple) and len(value) == 2:  # [title, text]
        value = {"title": value[0], "text": value[1]}
    if not isinstance(value, Mapping):
        raise FieldError("document", value, "a text, or an object with a text")
    inner = value.get("doc", value)
    if isinstance(inner, str) and inner.lstrip()[:1] == "{":
        inner = parse_json(inner)
    if isinstance(inner, str):
        inner = {"text": inner}
    if not isinstance(inner, Mapping):
        raise FieldError("doc", inner, "a text, or an object with a text")
    title = check_text("title", _first(inner, TITLES), empty=True).strip()
    text = check_text("text", _first(inner, TEXTS), empty=True).strip()
    names = (*DOCUMENT_IDS, "passage_id", "psg_id")
    name = _first(value, names)
    name = _first(inner, names) if name is None else name
    if name is None:
        name = named(json.dumps([title, text]) if title else text)
    score = value.get("score")
    score = None if score is None else check_number("score", score)
    return Document(check_id("docid", name), title, text), score


# --- many records ---


def merge_lists(found: Iterator[QueryList]) -> dict[str, QueryList]:
    """Lists by query; one that comes again is one list of the documents of both.

    Raises:
      DataError: where a query has two texts.
    """
    merged: dict[str, QueryList] = {}
    for one in found:
        known = merged.setdefault(one.id, QueryList(one.id, one.text))
        if known.text != one.text:
            raise DataError(
                f"the query {one.id!r} has two texts, {shown(known.text)} and "
                f"{shown(one.text)}; give each query an id of its own"
            )
        known.documents |= one.documents
        known.first_stage |= one.first_stage
        known.teacher |= one.teacher
        known.margins |= one.margins
        for name, grade in one.grades.items():
            known.grades[name] = max(grade, known.grades.get(name, grade))
    for one in merged.values():
        _scores_of_margins(one)
    return merged


def _scores_of_margins(one: QueryList) -> None:
    """Margins below one positive are scores below 0; below several they are not."""
    positives = {name for name, _ in one.margins.values()}
    if len(positives) == 1 and not one.teacher:
        [positive] = positives
        one.teacher[positive] = 0.0
        one.teacher |= {name: -margin for name, (_, margin) in one.margins.items()}


def split_of(name: str) -> str:
    """The split that a file's name says it is of; "" where it says none."""
    words = re.split(r"[^a-z]+", name.lower())
    for split, known in (
        ("test", {"test", "eval"}),
        ("dev", {"dev", "valid", "validation", "val"}),
        ("train", {"train", "training"}),
    ):
        if known & set(words):
            return split
    return ""


def deal(names: Sequence[str], share: float) -> dict[str, str]:
    """Splits of queries by a hash of their ids: `share` to test and to dev each.

    Each of the two gets one at least, where there are three or more.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(round(share * len(order)), int(len(order) > 2)) if share else 0
    parts = {"test": order[:count], "dev": order[count : 2 * count]}
    dealt = dict.fromkeys(names, "train")
    for split, members in parts.items():
        dealt |= dict.fromkeys(members, split)
    return dealt


def chain(paths: Sequence[Any], **how: Any) -> Iterator[QueryList]:
    """The records of several files."""
    return itertools.chain.from_iterable(read_lists(path, **how) for path in paths)
