"""The OpenAPI description of the server's routes."""

from typing import Any

import ranker

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_DOCUMENTS = {
    "type": "array",
    "items": {"oneOf": [_TEXT, {"type": "object"}]},
    "description": "Texts, or objects with text and, if there is one, title.",
}
_FLAG = {"type": "boolean", "nullable": True}
_COUNT = {"type": "integer", "minimum": 0, "nullable": True}
_RERANK = {
    "query": _TEXT,
    "texts": {**_TEXTS, "description": "Answered by a bare list (TEI's form)."},
    "documents": _DOCUMENTS,
    "top_n": {**_COUNT, "description": "Best documents answered; 0: all."},
    "return_documents": _FLAG,
    "return_text": _FLAG,
    "raw_scores": {**_FLAG, "description": "Raw scores in place of probabilities."},
    "truncate": {**_FLAG, "description": "false: texts that are too long are refused."},
    "truncation_direction": {
        "type": "string",
        "enum": ["left", "right", "Left", "Right"],
    },
    "max_tokens_per_doc": _COUNT,
    "truncate_prompt_tokens": _COUNT,
    "model": {"type": "string", "nullable": True},
}
_SCORE = {
    "text_1": {"oneOf": [_TEXT, _TEXTS]},
    "text_2": {"oneOf": [_TEXT, _TEXTS]},
    "use_activation": _FLAG,
}
_PREDICT = {"inputs": {"type": "array"}, "raw_scores": _FLAG, "truncate": _FLAG}
_ANY = {**_RERANK, **_SCORE, **_PREDICT, "text_pairs": {"type": "array"}}


def _post(summary: str, fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": fields}
    if required:  # an empty list is not valid
        schema["required"] = required
    answers = {
        "200": "the scores; the header x-score-kind says raw, sigmoid or calibrated",
        "400": "the body is not JSON, or has no texts",
        "401": "the API key is missing or wrong",
        "413": "the body is too large",
        "415": "the body is compressed",
        "422": "a field is wrong; the message names it",
        "424": "the model gave no score",
        "429": "the queue is full; Retry-After says how many seconds to wait",
        "503": "not ready",
    }
    return {
        "post": {
            "summary": summary,
            "requestBody": {"content": {"application/json": {"schema": schema}}},
            "responses": {
                status: {"description": what} for status, what in answers.items()
            },
        }
    }


def _get(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": "ok"}}}}


def document() -> dict[str, Any]:
    """The description, as JSON."""
    ranking = "Ranks documents by their relevance to a query"
    return {
        "openapi": "3.0.3",
        "info": {"title": "ranker", "version": ranker.__version__},
        "paths": {
            "/rerank": _post(ranking, _RERANK, ["query"]),
            "/v1/rerank": _post(ranking, _RERANK, ["query", "documents"]),
            "/v2/rerank": _post(ranking, _RERANK, ["query", "documents"]),
            "/tei/rerank": _post(f"{ranking}; always a bare list", _RERANK, ["query"]),
            "/score": _post("Scores of pairs", _SCORE, ["text_1", "text_2"]),
            "/v1/score": _post("Scores of pairs", _SCORE, ["text_1", "text_2"]),
            "/predict": _post("Scores of pairs, TEI's form", _PREDICT, ["inputs"]),
            "/invocations": _post("Any of these forms, for SageMaker", _ANY, []),
            "/openapi.json": _get("This description"),
            "/info": _get("The model and the limits"),
            "/health": _get("The process runs"),
            "/ready": _get("The model is compiled and scores as its contract says"),
            "/metrics": _get("Counters, for Prometheus"),
        },
    }
