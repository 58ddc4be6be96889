"""Proves that every pair of a scoring job has exactly one finite score."""

import contextlib
import math
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ranker.errors import DataError
from ranker.scoring.job import Job, read_chunk
from ranker.scoring.pairs import Bad, Input

_HASHES = 4 << 20  # pairs whose ids are compared in memory at a time


@dataclass
class Proof:
    """What `verify` has seen: figures of the scores, and the pairs set aside."""

    pairs: int = 0
    mean: float = 0.0
    std: float = 0.0
    min: float = math.inf
    max: float = -math.inf
    quarantined: list[Bad] = field(default_factory=list)

    def add(self, scores: np.ndarray) -> None:
        """Takes in the scores of one more chunk."""
        if not len(scores):
            return
        values = scores.astype(np.float64)
        # Means and squares are joined as by Chan, Golub and LeVeque (1979).
        total = self.pairs + len(values)
        shift = values.mean() - self.mean
        squares = (
            self.std**2 * self.pairs
            + values.var() * len(values)
            + shift**2 * self.pairs * len(values) / total
        )
        self.mean += float(shift * len(values) / total)
        self.std = math.sqrt(squares / total)
        self.pairs = total
        self.min = min(self.min, float(values.min()))
        self.max = max(self.max, float(values.max()))


def verify(
    job: Job,
    *,
    source: Input | None = None,
    progress: Callable[[int], None] | None = None,
    cache: str = "",
) -> Proof:
    """Proves that every pair of a job has exactly one finite score.

    Every chunk is there, its file has the digest of its receipt, and it holds each of
    its pairs once, or lists it as set aside; no two pairs have the same ids.

    Args:
      job: to prove.
      source: its input; then every pair's ids are compared with it too.
      progress: called with the number of chunks that are proved.
      cache: local folder for 8 bytes a pair, while it works; empty: the system's.

    Raises:
      DataError: naming the first chunk, or the pair, that is not so.
    """
    if missing := job.missing():
        names = ", ".join(job.name(number) for number in missing[:5])
        raise DataError(
            f"{job.folder}: {len(missing)} of {len(job.chunks)} chunks are missing: "
            f"{names}{', ...' if len(missing) > 5 else ''}; run the scoring command "
            "again: it resumes with these"
        )
    proof = Proof()
    with contextlib.closing(_Ids(job.pairs, cache)) as ids:
        for number in range(len(job.chunks)):
            table, receipt = read_chunk(job, number)
            bad = [Bad(**one) for one in receipt["quarantined"]]
            if source is not None:
                _compare(job, number, source, table, bad)
            ids.add(*_ids_of(table))
            proof.add(table["score"].to_numpy())
            proof.quarantined += bad
            if progress:
                progress(number + 1)
        twice = ids.repeated()
    places = _places(job, twice) if twice else []
    if places:
        (*pair, first), (_, _, second) = places
        raise DataError(
            f"{job.folder}: the pair {tuple(pair)} is scored twice, as number {first} "
            f"and {second}: the input lists it twice; take it out, and score again"
        )
    return proof


def _ids_of(table: pa.Table) -> tuple[list[Any], list[Any]]:
    return table["query_id"].to_pylist(), table["document_id"].to_pylist()


def _compare(
    job: Job, number: int, source: Input, table: pa.Table, bad: list[Bad]
) -> None:
    chunk = job.chunks[number]
    aside = {one.pair for one in bad}
    wanted = [
        pair
        for place, pair in enumerate(zip(*source.ids(chunk), strict=True), chunk.first)
        if place not in aside
    ]
    found = list(zip(*_ids_of(table), strict=True))
    if wanted != found:
        at = next(
            (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
            min(len(wanted), len(found)),
        )
        raise DataError(
            f"chunk {job.name(number)}: row {at}: the input has the pair "
            f"{(*wanted, None)[at]}, and {(*found, None)[at]} was scored; the input "
            "has changed since"
        )


class _Ids:
    """Finds ids that come twice among any number of pairs, in bounded memory."""

    def __init__(self, total: int, cache: str):
        count = max(1, -(-total // _HASHES))
        if cache:
            pathlib.Path(cache).mkdir(parents=True, exist_ok=True)
        self.parts = [tempfile.TemporaryFile(dir=cache or None) for _ in range(count)]

    def add(self, queries: list[str], documents: list[str]) -> None:
        """Takes in the ids of some pairs."""
        pairs = zip(queries, documents, strict=True)
        hashes = np.fromiter(map(hash, pairs), np.int64, len(queries))
        part = hashes.view(np.uint64) % np.uint64(len(self.parts))
        for number, file in enumerate(self.parts):
            file.write(hashes[part == number].tobytes())

    def repeated(self) -> set[int]:
        """Hashes of ids that came more than once."""
        result: set[int] = set()
        for file in self.parts:
            file.seek(0)
            hashes, counts = np.unique(
                np.frombuffer(file.read(), np.int64), return_counts=True
            )
            result |= set(hashes[counts > 1].tolist())
        return result

    def close(self) -> None:
        """Gives the files back."""
        for file in self.parts:
            file.close()


def _places(job: Job, hashes: set[int]) -> list[tuple[str, str, int]]:
    """Ids and number of two pairs with the same ids; hashes alone may be equal."""
    seen: dict[tuple[str, str], int] = {}
    for number in range(len(job.chunks)):
        table, _ = read_chunk(job, number)
        pairs = zip(*_ids_of(table), strict=True)
        for pair, place in zip(pairs, table["pair"].to_pylist(), strict=True):
            if hash(pair) in hashes:
                if pair in seen:
                    return [(*pair, seen[pair]), (*pair, place)]
                seen[pair] = place
    return []
