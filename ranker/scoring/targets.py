"""What a distillation learns from: the scores of a job, list by list."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ranker.data.pairs import Indexed
from ranker.data.records import RankedList
from ranker.errors import DataError
from ranker.scoring.job import Job, load_job, read_chunk
from ranker.storage import is_local


class Targets(Sequence[np.ndarray]):
    """Targets of lists, by list; they lie in a file, not in memory."""

    def __init__(self, values: np.ndarray, ends: np.ndarray, line=(1.0, 0.0)):
        self.values, self.ends, self.line = values, ends, line

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        begin = self.ends[index - 1] if index else 0
        scale, shift = self.line
        return (self.values[begin : self.ends[index]] * scale + shift).astype(
            np.float32
        )

    def scaled(self, scale: float, shift: float) -> "Targets":
        """The same scores, each times `scale` plus `shift`."""
        return Targets(self.values, self.ends, (scale, shift))


def load_targets(folder: Any, lists: Mapping[str, Indexed[RankedList]]) -> Targets:
    """Targets of each list's documents, in the order of the splits and their lists.

    The chunks are read one by one, and proved as they are read.

    Args:
      folder: of the score stage's chunks, local or remote.
      lists: records of each split, in the order they were scored.

    Raises:
      DataError: when a chunk is missing or damaged, or holds other queries or documents
        than `lists`, or no score for one of them.
    """
    job = load_job(folder)
    where = job.folder if is_local(job.folder) else None
    with tempfile.TemporaryFile(dir=where) as file:  # gone when nobody reads it
        ends = _collect(job, lists, file)
        count = int(ends[-1]) if len(ends) else 0
        values = np.memmap(file, np.float32, "r", shape=(count,)) if count else None
    return Targets(np.zeros(0, np.float32) if values is None else values, ends)


def _collect(job: Job, lists: Mapping[str, Indexed[RankedList]], file: Any):
    """Writes the scores of all lists to a file; int64 [lists], where each ends."""
    chunks = iter(range(len(job.chunks)))
    ends: list[int] = []
    at = 0
    for name, source in lists.items():
        rest = len(source)
        begin = 0
        while rest:
            number = next(chunks, None)
            if number is None or job.chunks[number].source != name:
                raise DataError(
                    f"{job.folder}: the scores end before the split {name!r} does; "
                    "they belong to other data: run ranker.score again"
                )
            chunk = job.chunks[number]
            table, receipt = read_chunk(job, number)
            if receipt["quarantined"]:
                raise DataError(
                    f"{job.path(number)}: {len(receipt['quarantined'])} pairs have no "
                    "score: they were set aside (--config.quarantine); distillation "
                    "needs the score of every candidate of a query"
                )
            records = [source[begin + i] for i in range(min(chunk.count, rest))]
            at += _same(job, number, table, records, ends, at)
            file.write(table["score"].to_numpy().astype(np.float32).tobytes())
            begin, rest = begin + chunk.count, rest - chunk.count
    if next(chunks, None) is not None:
        raise DataError(
            f"{job.folder}: scores are left over after the last list; they belong to "
            "other data: run ranker.score again"
        )
    file.flush()
    return np.array(ends, np.int64)


def _same(
    job: Job,
    number: int,
    table: pa.Table,
    records: Sequence[RankedList],
    ends: list[int],
    at: int,
) -> int:
    """Compares a chunk with its lists, notes where each ends, and counts its pairs."""
    rows = table["document"].to_numpy()
    queries = table["query_id"].to_pylist()
    here = 0
    for record in records:
        end = here + len(record.documents)
        same = end <= len(rows) and np.array_equal(rows[here:end], record.documents)
        if not same or (end > here and queries[here] != record.query_id):
            raise DataError(
                f"{job.path(number)}: row {here}: expected the "
                f"{len(record.documents)} candidates of query {record.query_id!r}, "
                "found others; the scores belong to other data: run ranker.score again"
            )
        here = end
        ends.append(at + here)
    if here != len(rows):
        raise DataError(
            f"{job.path(number)}: {len(rows) - here} scores are left over after its "
            "last list; the scores belong to other data: run ranker.score again"
        )
    return here


class Joined:
    """Several sources, one after the other, as one."""

    def __init__(self, sources: Sequence[Indexed[RankedList]]):
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int):
        which = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return self.sources[which][index - before]
