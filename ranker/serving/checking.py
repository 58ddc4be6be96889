"""Whether a folder still scores as its contract says, and what is wrong if not.

The golden pairs are scored again by readers (see readers.py). Where a reader finds
other scores, the cause is looked for (see causes.py).
"""

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ranker.serving.causes import Cause, FaultTrial, find_cause
from ranker.serving.contract import Contract
from ranker.serving.readers import (
    GoldenScores,
    ModelInput,
    Reader,
    Stock,
    is_raw,
    pads_left,
    readers,
)

_PRECISION = 1e-5  # of the largest score


@dataclass(frozen=True)
class ReaderResult:
    """What one reader found."""

    reader: str
    largest: float  # difference of a score
    equal: int  # pairs
    first: int | None  # the first pair that differs
    found: GoldenScores
    cause: Cause | None


def check(
    folder: pathlib.Path,
    promise: Contract,
    *,
    tolerance: float,
) -> Iterator[ReaderResult]:
    """Scores the golden pairs of `promise` by the model in `folder`, by each reader.

    Args:
      folder: with the model; its own, or another that should score equally.
      promise: what it should do.
      tolerance: difference that is allowed, in standard deviations of the scores.

    Yields:
      What each reader found.

    Raises:
      ContractError, ModelError: when the folder cannot be loaded.
    """
    for reader in readers(folder, promise):
        rows = reader.rows()
        if isinstance(reader, Stock):
            found = reader.scores(rows, left=pads_left(folder))
            if not is_raw(folder):  # as CrossEncoder does then
                found = 1 / (1 + np.exp(-found))
        else:
            found = reader.scores(rows)
        yield judge_scores(reader, promise, rows, found, tolerance=tolerance)


def judge_scores(
    reader: Reader,
    promise: Contract,
    rows: Sequence[ModelInput] | None,
    found: GoldenScores,
    *,
    tolerance: float,
) -> ReaderResult:
    """Compares found scores with the golden ones, and finds the cause of a difference.

    Args:
      reader: of the folder; it tries what could be the cause.
      promise: the contract.
      rows: what was read; None: not known.
      found: scores, of this reader or from elsewhere.
      tolerance: as in `check`.
    """
    golden = np.array([one.score for one in promise.golden], np.float32)
    # No less than float32 can tell apart after some layers.
    allowed = max(
        tolerance * promise.scores["std"],
        _PRECISION * float(np.abs(golden).max()),
        reader.allowed,
    )
    differences = np.abs(golden - found)
    wrong = np.flatnonzero(~(differences <= allowed))
    cause = None
    if len(wrong):
        trial = FaultTrial(reader, promise)
        cause = find_cause(trial, rows, found, golden, allowed)
    return ReaderResult(
        reader=reader.name,
        largest=float(differences.max()),
        equal=len(golden) - len(wrong),
        first=int(wrong[0]) if len(wrong) else None,
        found=found,
        cause=cause,
    )
