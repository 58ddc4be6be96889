"""Requests and answers in the forms that clients send and read.

Text Embeddings Inference, Cohere v1 and v2, Jina, infinity and vLLM differ in names,
not in meaning. Fields that are not known, and those that are null, are ignored: clients
of one form send fields of another.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ranker.errors import shown
from ranker.serving.frame import PairTexts
from ranker.serving.texts import Cut

Form = Literal["tei", "documents", "score", "pairs", "predict"]


class Refused(Exception):
    """A request that cannot be answered: the client's mistake.

    Attributes:
      status: HTTP status.
      kind: as Text Embeddings Inference names it: Validation, Empty, ...
    """

    def __init__(self, status: int, kind: str, message: str):
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored, and how it is to be answered."""

    form: Form
    groups: tuple[
        tuple[str, tuple[PairTexts, ...]], ...
    ]  # a query and its documents, each
    raw: bool = False  # raw scores; else probabilities
    top: int = 0  # best documents that are answered; 0: all
    texts: bool = False  # the texts are answered too
    cut: Cut = field(default_factory=Cut)
    truncate: bool = True  # else a text that is too long is refused
    model: str = "ranker"
    nested: bool = True  # predict: the answer is a list of lists

    @property
    def count(self) -> int:
        """Pairs."""
        return sum(len(documents) for _, documents in self.groups)


@dataclass(frozen=True)
class Scored:
    """A request's scores."""

    raw: np.ndarray  # float32, of all pairs in their order
    scores: list[float]  # as they are answered, float64
    kind: str  # raw, sigmoid or calibrated
    tokens: int
    truncated: int


def clean(text: str) -> str:
    """The text with halves of characters (lone surrogates) replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --- requests -------------------------------------------------------------------------


def parse_rerank(body: Any, *, tei: bool = False, limit: int) -> Request:
    """A request for a ranking: `texts` or `documents`.

    Args:
      body: the parsed JSON.
      tei: answer in Text Embeddings Inference's form, whatever the request's is.
      limit: documents, at most.

    Raises:
      Refused: naming the field.
    """
    fields = _object(body)
    query = _text(fields, "query")
    name = "texts" if "texts" in fields else "documents"
    given = fields.get(name)
    if given is None:
        raise _wrong("texts or documents", given, "a list of texts")
    documents = _documents(given, name, fields, limit)
    direction = _word(fields, "truncation_direction") or _word(
        fields, "truncation_side"
    )
    if direction not in ("", "left", "right"):
        raise _wrong("truncation_direction", direction, "left or right")
    activation = _flag(fields, "use_activation", _flag(fields, "activation", True))
    return Request(
        form="tei" if tei or name == "texts" else "documents",
        groups=((query, documents),),
        raw=_flag(fields, "raw_scores", not activation),
        top=_number(fields, "top_n") or _number(fields, "top_k"),
        texts=_flag(fields, "return_text", _flag(fields, "return_documents", False)),
        cut=Cut(
            document_tokens=_number(fields, "max_tokens_per_doc"),
            total_tokens=_number(fields, "truncate_prompt_tokens", least=-1),
            left=direction == "left",
        ),
        truncate=_flag(fields, "truncate", True),
        model=_word(fields, "model", lower=False) or "ranker",
    )


def parse_score(body: Any, *, limit: int) -> Request:
    """A request of vLLM's form, `text_1` and `text_2`, or SageMaker's `text_pairs`.

    Raises:
      Refused: naming the field.
    """
    fields = _object(body)
    if fields.get("text_pairs") is not None:
        return _parse_pairs(fields["text_pairs"], limit)
    first, second = (
        _texts(fields.get(name), name, limit) for name in ("text_1", "text_2")
    )
    if len(first) == 1:
        groups = ((first[0], tuple(("", text) for text in second)),)
    elif len(first) == len(second):
        groups = tuple((a, (("", b),)) for a, b in zip(first, second, strict=True))
    else:
        raise Refused(
            422,
            "Validation",
            f"text_1 has {len(first)} texts and text_2 has {len(second)}; give one "
            "text_1, or as many as text_2 has",
        )
    activation = _flag(fields, "use_activation", _flag(fields, "activation", True))
    return Request(
        form="score",
        groups=groups,
        raw=_flag(fields, "raw_scores", not activation),
        cut=Cut(total_tokens=_number(fields, "truncate_prompt_tokens", least=-1)),
        model=_word(fields, "model", lower=False) or "ranker",
    )


def _parse_pairs(given: Any, limit: int) -> Request:
    if not isinstance(given, list) or not given:
        raise _wrong("text_pairs", given, "a list of pairs of texts")
    _bounded(given, "text_pairs", limit)
    groups = tuple(
        (query, (("", text),))
        for query, text in (_pair(one, "text_pairs") for one in given)
    )
    return Request(form="pairs", groups=groups)


def parse_predict(body: Any, *, limit: int) -> Request:
    """A request of Text Embeddings Inference's /predict: `inputs`, a pair or a batch.

    Raises:
      Refused: naming the field.
    """
    fields = _object(body)
    given = fields.get("inputs")
    if not isinstance(given, list) or not given:
        raise _wrong(
            "inputs",
            given,
            "[query, document], or a list of such pairs: one text alone has no score",
        )
    nested = not all(isinstance(one, str) for one in given)
    _bounded(given, "inputs", limit)
    pairs = [_pair(one, "inputs") for one in (given if nested else [given])]
    return Request(
        form="predict",
        groups=tuple((query, (("", text),)) for query, text in pairs),
        raw=_flag(fields, "raw_scores", False),
        truncate=_flag(fields, "truncate", True),
        nested=nested,
    )


def _wrong(name: str, found: Any, expected: str) -> Refused:
    return Refused(
        422, "Validation", f"{name}: found {shown(found)}, expected {expected}"
    )


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise _wrong("the body", body, "a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return clean(value)


def _texts(value: Any, name: str, limit: int) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise _wrong(name, value, "a text, or a list of texts")
    _bounded(values, name, limit)
    for one in values:
        if not isinstance(one, str):
            raise _wrong(name, one, "a text")
    return [clean(one) for one in values]


def _pair(value: Any, name: str) -> tuple[str, str]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(one, str) for one in value)
    ):
        raise _wrong(name, value, "[query, document]")
    return clean(value[0]), clean(value[1])


def _bounded(values: Sequence[Any], name: str, limit: int) -> None:
    if len(values) > limit:
        raise Refused(
            422,
            "Validation",
            f"{name} has {len(values)} texts, and this server takes {limit}; ask "
            "twice, or start it with a larger --max-documents",
        )


def _flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _number(fields: dict[str, Any], name: str, least: int = 0) -> int:
    value = fields.get(name, 0)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(name, value, f"a whole number, {least} or more")
    return max(value, 0)


def _word(fields: dict[str, Any], name: str, *, lower: bool = True) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise _wrong(name, value, "a word")
    return clean(value.lower() if lower else value)[:200]


def _documents(
    given: Any, name: str, fields: dict[str, Any], limit: int
) -> tuple[PairTexts, ...]:
    if not isinstance(given, list):
        raise _wrong(name, given, "a list of texts")
    if not given:
        raise Refused(400, "Empty", f"{name} is empty; give at least one text")
    _bounded(given, name, limit)
    wanted = fields.get("rank_fields", [])
    if not isinstance(wanted, list) or not all(isinstance(w, str) for w in wanted):
        raise _wrong("rank_fields", wanted, "a list of names")
    return tuple(_document(one, name, wanted) for one in given)


def _document(value: Any, name: str, wanted: list[str]) -> PairTexts:
    if isinstance(value, str):
        return "", clean(value)
    if not isinstance(value, dict):
        raise _wrong(name, value, "a text, or an object with text")
    names = wanted or ["title", "text"]
    parts = [value[one] for one in names if value.get(one) is not None]
    if not parts or not all(isinstance(one, str) for one in parts):
        raise _wrong(name, value, f"texts in its fields {', '.join(names)}")
    if not wanted and "title" in value and "text" in value:
        return clean(parts[0]), clean(parts[1])
    return "", clean(" ".join(parts))


# --- answers --------------------------------------------------------------------------


def order(raw: np.ndarray) -> np.ndarray:
    """Places by score, best first; equal ones as given.

    By raw scores: a sigmoid in float makes scores equal that are not.
    """
    return np.argsort(-raw.astype(np.float64), kind="stable")


def answer(request: Request, scored: Scored) -> Any:
    """The body of the answer, in the request's form."""
    return _ANSWERS[request.form](request, scored)


def _whole_text(document: PairTexts) -> str:
    return " ".join(part for part in document if part)


def _ranked(request: Request, scored: Scored) -> list[int]:
    places = order(scored.raw).tolist()
    return places[: request.top] if request.top else places


def _tei(request: Request, scored: Scored) -> list[dict[str, Any]]:
    [(_, documents)] = request.groups
    found = []
    for i in _ranked(request, scored):
        one: dict[str, Any] = {"index": i, "score": scored.scores[i]}
        if request.texts:
            one["text"] = _whole_text(documents[i])
        found.append(one)
    return found


def _common(request: Request, scored: Scored) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "created": int(time.time()),
        "model": request.model,
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        "score_kind": scored.kind,
        "truncated": scored.truncated,
    }


def _documents_form(request: Request, scored: Scored) -> dict[str, Any]:
    [(_, documents)] = request.groups
    results = []
    for i in _ranked(request, scored):
        one: dict[str, Any] = {"index": i, "relevance_score": scored.scores[i]}
        if request.texts:
            one["document"] = {"text": _whole_text(documents[i])}
        results.append(one)
    units = -(-request.count // 100)  # as Cohere counts: a search is 100 documents
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
    return {
        "object": "rerank",
        "results": results,
        "meta": {**meta, "warnings": _warnings(scored)},
        **_common(request, scored),
    }


def _warnings(scored: Scored) -> list[str]:
    if not scored.truncated:
        return []
    return [f"{scored.truncated} documents were cut to fit"]


def _score_form(request: Request, scored: Scored) -> dict[str, Any]:
    data = [
        {"index": i, "object": "score", "score": score}
        for i, score in enumerate(scored.scores)
    ]
    return {"object": "list", "data": data, **_common(request, scored)}


def _pairs_form(request: Request, scored: Scored) -> dict[str, Any]:
    del request
    return {"scores": scored.scores, "score_kind": scored.kind}


def _predict_form(request: Request, scored: Scored) -> list[Any]:
    found = [{"score": score, "label": "score"} for score in scored.scores]
    return [[one] for one in found] if request.nested else found


_ANSWERS: dict[str, Callable[[Request, Scored], Any]] = {
    "tei": _tei,
    "documents": _documents_form,
    "score": _score_form,
    "pairs": _pairs_form,
    "predict": _predict_form,
}
