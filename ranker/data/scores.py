"""Teacher scores as records: one Parquet file a split, one raw float32 score a pair."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ranker.data.pipeline import Source
from ranker.data.records import DataError, Document, RankedList

_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("document_id", pa.string()),
        ("document", pa.int64()),  # row of the prepared corpus
        ("score", pa.float32()),  # raw, higher is better
    ]
)
_LISTS_A_GROUP = 4096


def path_of(folder: pathlib.Path, split: str) -> pathlib.Path:
    """File of a split's scores."""
    return folder / f"{split}.parquet"


def save_scores(
    folder: pathlib.Path,
    split: str,
    lists: Source[RankedList],
    corpus: Source[Document],
    scores: np.ndarray,
) -> None:
    """Writes the scores of all candidates of `lists`, in their order.

    Args:
      folder: of the score stage.
      split: name of the split.
      lists: records of `RankedList`.
      corpus: documents by row.
      scores: float32 [pairs].
    """
    target = path_of(folder, split)
    temporary = target.with_suffix(".partial")
    names: dict[int, str] = {}
    at = 0
    with pq.ParquetWriter(temporary, _SCHEMA) as writer:
        for first in range(0, len(lists), _LISTS_A_GROUP):
            group: list[RankedList] = [
                lists[i] for i in range(first, min(first + _LISTS_A_GROUP, len(lists)))
            ]
            queries = [one.query_id for one in group for _ in one.documents]
            rows = [int(row) for one in group for row in one.documents]
            for row in rows:
                if row not in names:
                    names[row] = corpus[row].id
            columns = [
                queries,
                [names[row] for row in rows],
                rows,
                scores[at : at + len(rows)],
            ]
            at += len(rows)
            writer.write_table(pa.table(columns, schema=_SCHEMA))
    if at != len(scores):
        raise AssertionError(f"{len(scores)} scores for {at} pairs")
    temporary.replace(target)


def load_scores(
    folder: pathlib.Path, split: str, lists: Source[RankedList]
) -> list[np.ndarray]:
    """Scores of each list's documents, in the order of `lists`.

    Raises:
      DataError: when the file is missing or broken, or holds other queries or documents
        than `lists`, or a score that is not finite.
    """
    path = path_of(folder, split)
    try:
        table = pq.read_table(path, columns=["query_id", "document", "score"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); run ranker.score again"
        ) from error
    scores = table["score"].to_numpy()
    rows = table["document"].to_numpy()
    queries = table["query_id"].to_pylist()
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(
            f"{path}: row {bad}: field 'score': found {scores[bad]} for query "
            f"{queries[bad]!r}; run ranker.score again"
        )
    result: list[np.ndarray] = []
    at = 0
    for number in range(len(lists)):
        record: RankedList = lists[number]
        end = at + len(record.documents)
        same = end <= len(scores) and np.array_equal(rows[at:end], record.documents)
        if not same or (end > at and queries[at] != record.query_id):
            raise DataError(
                f"{path}: row {at}: expected the {len(record.documents)} candidates of "
                f"query {record.query_id!r}, found others; the scores belong to other "
                "data: run ranker.score again"
            )
        result.append(scores[at:end])
        at = end
    if at != len(scores):
        raise DataError(
            f"{path}: {len(scores) - at} scores are left over after the last list; the "
            "scores belong to other data: run ranker.score again"
        )
    return result


class Joined:
    """Several sources behind each other, as one."""

    def __init__(self, sources: Sequence[Source[RankedList]]):
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int):
        which = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return self.sources[which][index - before]
