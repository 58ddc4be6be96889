"""One schema for everything that is read, and one validator.

Every record checks itself when it is made, so what is past a reader is sound: ids fit a
TREC file, texts are not empty, numbers are finite.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np

from ranker.errors import FieldError

BAD_ID = re.compile(r"[\s\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_ID = 512  # characters
FLOAT32 = float(np.finfo(np.float32).max)


def check_id(field: str, value: object) -> str:
    """An id that a TREC file can hold: no white space, no control character.

    An id is never part of a path; what shows it to a reader must escape it.

    Raises:
      FieldError: for anything else.
    """
    # pandas turns whole numbers into floats where one of them is missing.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise FieldError(field, value, "an id of one character or more")
    if BAD_ID.search(value) or len(value) > MAX_ID:
        raise FieldError(
            field,
            value,
            f"an id without white space or control characters, at most {MAX_ID} long "
            "(TREC's files part their columns by spaces; write _ for each, in all "
            "files alike)",
        )
    if not value.isascii() and _SURROGATE.search(value):
        raise FieldError(field, value, "an id that UTF-8 can write (a lone surrogate)")
    return value


def check_text(field: str, value: object, *, empty: bool = False) -> str:
    """A text; with a word in it unless `empty`.

    Raises:
      FieldError: for anything else.
    """
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise FieldError(field, value, "a text")
    if "\0" in value:
        raise FieldError(field, value, "a text without null characters")
    if not value.isascii() and _SURROGATE.search(value):
        raise FieldError(field, value, "text that UTF-8 can write (a lone surrogate)")
    if not empty and not _has_word(value):
        raise FieldError(field, value, "a text with at least one visible character")
    return value


def _has_word(text: str) -> bool:
    first = text[:1]
    if "!" <= first <= "~":  # nearly always; the rest need not be looked at
        return True
    return any(unicodedata.category(c)[0] not in "ZC" for c in text)


def check_number(
    field: str, value: object, *, low: float = -FLOAT32, high: float = FLOAT32
) -> float:
    """A number that a float32 can hold, or a text that is one.

    Raises:
      FieldError: for anything else, and outside `low` to `high`.
    """
    try:
        # Python reads "1_0" as ten; nothing else does.
        if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise FieldError(field, value, "a number") from None
    except OverflowError:  # a whole number with hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise FieldError(field, value, "a finite number")
    if not low <= number <= high:
        bound = f"at least {low:g}" if number < low else f"at most {high:g}"
        raise FieldError(field, value, f"a number of {bound}")
    return number


def check_integer(field: str, value: object, *, low: float = -(2**31)) -> int:
    """A whole number that 32 bits can hold, or a text that is one; 2.0 counts.

    Raises:
      FieldError: for anything else, and below `low`.
    """
    number = check_number(field, value, low=low, high=2**31 - 1)
    if number != int(number):
        raise FieldError(field, value, "a whole number")
    return int(number)


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody asked."""

    id: str
    text: str

    def __post_init__(self):
        check_id("_id", self.id)
        check_text("text", self.text)


@dataclass(frozen=True, slots=True)
class Document:
    """What can be found: a title and a text (the summary); one may be empty."""

    id: str
    title: str
    text: str

    def __post_init__(self):
        check_text("title", self.title, empty=True)
        check_text("text", self.text, empty=True)
        if not _has_word(self.title) and not _has_word(self.text):
            raise FieldError("text", self.text, "a title or a text that is not empty")


@dataclass(frozen=True, slots=True)
class Judgement:
    """How relevant somebody found a document to a query; higher is better."""

    query_id: str
    document_id: str
    grade: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that a first stage found for a query."""

    query_id: str
    document_id: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Click:
    """One row of a click log."""

    query: str
    title: str
    summary: str
    document_id: str = ""
    position: int | None = None  # on the result page, from 1
    clicked: bool = True
    dwell: float | None = None  # seconds until the user came back
    count: int = 1  # times that this happened
    time: float | None = None  # seconds since 1970

    def __post_init__(self):
        check_text("query", self.query)
        check_text("title", self.title, empty=True)
        check_text("summary", self.summary, empty=True)


@dataclass(frozen=True, slots=True)
class ClickExample:
    """A continued pre-training example: query in, title and summary out."""

    query: str
    title: str
    summary: str
    count: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class RankedList:
    """A query, its candidates, and what is known of them."""

    query_id: str
    query: str
    documents: np.ndarray  # int64 [n], rows of the corpus
    labels: np.ndarray  # float32 [n], grades, 0 where nobody judged
    first_stage: np.ndarray  # float32 [n], scores of the first stage
    judged_ids: tuple[str, ...]  # every judged document, also those not among the n
    judged_grades: np.ndarray  # int32, of judged_ids
    # bool [n], whether somebody judged the document; its label is 0 where nobody did
    judged: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    # float32 [n], scores of a teacher that came with the data; or [0], none
    teacher: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    # int32 [n], places on the results page that was clicked, from 1; or [0], on none
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    # float32 [n], what each document counts in a loss; or [0], 1 each
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self):
        if len(self.judged) != len(self.documents):
            none = np.zeros(len(self.documents), bool)
            object.__setattr__(self, "judged", none)
