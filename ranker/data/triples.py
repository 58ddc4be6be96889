"""(query, document, teacher score) rows of Parquet files, streamed in a shuffled order.

Nothing about the number of rows is held in memory: of each file the sizes of its row
groups, of the rows those of a few groups. The order is arithmetic: row groups are
shuffled anew each epoch, and rows within a window of them, so that a place in it is one
number and a run resumes anywhere.
"""

import functools
import glob
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ranker.data.records import check_number, check_text
from ranker.errors import DataError, FieldError

# Our names and those that public sets of triples have.
COLUMNS = {
    "query": ("query", "anchor", "question", "sentence1"),
    "document": ("document", "passage", "text", "positive", "sentence2"),
    "score": ("score", "teacher_score", "label", "scores"),
}
_GROUPS = 8  # row groups that are shuffled together, and twice as many are held
_ENDLESS = 2**62


@dataclass(frozen=True)
class Triple:
    """One row: a pair, and what the teacher gave it."""

    query: str
    document: str
    score: float


class Triples:
    """Rows of Parquet files by number; thread-safe.

    Files in the order of their names, rows in the order of the files.
    """

    def __init__(self, pattern: str):
        """Reads the footers of the files that the pattern (or name) matches.

        Raises:
          DataError: when there is none, or one is not a Parquet file with a query, a
            document and a score.
        """
        self.files = sorted(glob.glob(pattern))
        if not self.files:
            raise DataError(f"{pattern}: no such file; name Parquet files of triples")
        self._groups: list[tuple[str, int]] = []
        self.names: dict[str, dict[str, str]] = {}
        sizes: list[int] = []
        for path in self.files:
            try:
                metadata = pq.read_metadata(path)
                schema = pq.read_schema(path)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path}: not a Parquet file ({error})") from error
            self.names[path] = _columns(path, schema.names)
            for number in range(metadata.num_row_groups):
                self._groups.append((path, number))
                sizes.append(metadata.row_group(number).num_rows)
        self.sizes = np.array(sizes, np.int64)  # rows of each row group
        self.begins = np.cumsum(self.sizes) - self.sizes
        if not len(self):
            raise DataError(f"{pattern}: the files hold no row")
        self._held: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getitem__(self, row: int) -> Triple:
        """One row.

        Raises:
          DataError: naming file, row and column of what is neither text nor number.
        """
        group = int(np.searchsorted(self.begins, row, side="right")) - 1
        place = int(row - self.begins[group])
        found = {
            name: column[place].as_py() for name, column in self._read(group).items()
        }
        try:
            return Triple(
                check_text("query", found["query"]),
                check_text("document", found["document"]),
                check_number("score", found["score"]),
            )
        except FieldError as error:
            path, number = self._groups[group]
            first = self.begins[group] - self.begins[self._groups.index((path, 0))]
            raise DataError(f"{path}: row {first + place + 1}: {error}") from error

    def _read(self, group: int) -> dict[str, Any]:
        with self._lock:
            if group in self._held:
                self._held.move_to_end(group)
                return self._held[group]
            path, number = self._groups[group]
            names = self.names[path]
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(number, columns=list(names.values()))
            columns = {
                ours: table.column(theirs).combine_chunks()
                for ours, theirs in names.items()
            }
            self._held[group] = columns
            while len(self._held) > 2 * _GROUPS:
                self._held.popitem(last=False)
            return columns


def _columns(path: str, found: list[str]) -> dict[str, str]:
    """Our name of each column that is needed, and the file's."""
    names = {
        ours: next((one for one in known if one in found), "")
        for ours, known in COLUMNS.items()
    }
    missing = [ours for ours, theirs in names.items() if not theirs]
    if missing:
        wanted = "; ".join(f"{one}: {', '.join(COLUMNS[one])}" for one in missing)
        raise DataError(
            f"{path}: no column for {' and '.join(missing)} among {', '.join(found)}; "
            f"rename one to any of these ({wanted})"
        )
    return names


class Shuffled:
    """Endless rows of triples in the order of a seed; a source for packed batches.

    Index i is row i of the first epoch, and so on: a function of (seed, i) alone.
    """

    def __init__(self, triples: Triples, seed: int):
        self.triples, self.seed = triples, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._order)
        self._window = functools.lru_cache(maxsize=4)(self._rows)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Triple:
        return self.triples[self.row(index)]

    def row(self, index: int) -> int:
        """Number of the row at a place of the order."""
        epoch, place = divmod(index, len(self.triples))
        _, begins = self._epoch(epoch)
        window = int(np.searchsorted(begins, place, side="right")) - 1
        return int(self._window(epoch, window)[place - begins[window]])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups in the order of an epoch, and where each window of them begins."""
        generator = np.random.default_rng((self.seed, epoch))
        groups = generator.permutation(len(self.triples.sizes))
        ends = np.cumsum(self.triples.sizes[groups])
        first = np.arange(0, len(groups), _GROUPS)
        return groups, (ends - self.triples.sizes[groups])[first]

    def _rows(self, epoch: int, window: int) -> np.ndarray:
        groups, _ = self._epoch(epoch)
        chosen = groups[window * _GROUPS : (window + 1) * _GROUPS]
        begins, sizes = self.triples.begins[chosen], self.triples.sizes[chosen]
        rows = np.concatenate(
            [np.arange(b, b + n) for b, n in zip(begins, sizes, strict=True)]
        )
        generator = np.random.default_rng((self.seed, epoch, window, 1))
        return generator.permutation(rows)
