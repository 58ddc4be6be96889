"""Long documents by passages: windows of their tokens, each scored with the query.

MaxP of Dai and Callan, 2019 (arXiv 1905.09217), on tokens: what a row cannot hold is
read in further rows, and the document's score is the largest, or the mean, of theirs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ranker import config


def cut_passages(document: Any, room: int, passages: config.Passages) -> list[Any]:
    """The passages of a document, in order; at least one, at most `passages.most`.

    Each begins `room` tokens after the one before, less the overlap; at least half of a
    passage is new. What lies behind the last is not read.

    Args:
      document: token ids, a list or an array.
      room: tokens that a passage may have, 1 or more.
      passages: how many, and what they share.
    """
    step = max(room - passages.overlap, (room + 1) // 2)
    begins = [0]
    while len(begins) < passages.most and begins[-1] + room < len(document):
        begins.append(begins[-1] + step)
    return [document[begin : begin + room] for begin in begins]


def pool_scores(
    scores: Float[np.ndarray, " n"], documents: Int[np.ndarray, " n"], how: str
) -> Float[np.ndarray, " d"]:
    """Scores of documents 0, 1, ... from those of their passages, float32.

    Args:
      scores: of passages; NaN makes the document's NaN.
      documents: which document each passage is of; each has one or more.
      how: "max", "mean", or "first", where each document has one.
    """
    count = int(documents.max()) + 1 if len(documents) else 0
    if how == "mean":
        total = np.zeros(count, np.float64)
        np.add.at(total, documents, scores)
        parts = np.bincount(documents, minlength=count)
        return (total / np.maximum(parts, 1)).astype(np.float32)
    found = np.full(count, -np.inf, np.float32)
    np.maximum.at(found, documents, scores.astype(np.float32))
    return found


def numbers(counts: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Which document each passage is of, from how many each document has."""
    return np.repeat(np.arange(len(counts)), counts)
