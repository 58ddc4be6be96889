"""Pairs to score: listed once, cut into chunks, and read chunk by chunk.

How an input is cut depends on the input and the chunk size alone, never on how many
processes score it, and a chunk is read without what is before it. Inputs that are
files are in `pair_files`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ranker import config
from ranker.data.pairs import Indexed
from ranker.data.records import Document, RankedList
from ranker.data.world import SearchWorld

WORLD = "world"  # the input that is made


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive pairs of one source: what is scored and written as a whole."""

    source: str  # split or file
    begin: int  # first list, row, record or byte of the source
    count: int  # lists, rows, records or lines
    first: int  # number of its first pair, over the whole input
    pairs: int  # pairs
    line: int = 0  # lines of the source before it, for messages


@dataclass(frozen=True, slots=True)
class Bad:
    """A pair that cannot be scored."""

    pair: int  # number in the input
    query_id: str
    document_id: str
    reason: str


@dataclass(frozen=True)
class ChunkPairs:
    """The n pairs of a chunk that can be scored, in order, and those that cannot."""

    lists: list[RankedList]  # their documents are rows of `corpus`
    corpus: Sequence[Document]
    pairs: np.ndarray  # int64 [n], number in the input
    query_ids: list[str]
    document_ids: list[str]
    rows: np.ndarray | None = None  # int64 [n], rows of the prepared corpus
    bad: list[Bad] = field(default_factory=list)


class Input(Protocol):
    """Where pairs come from."""

    def settings(self) -> dict[str, Any]:
        """What the pairs are: settings, and fingerprints of the files."""
        ...

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Cuts the input into chunks of about `size` pairs."""
        ...

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """Query and document ids of every pair of a chunk, without the texts."""
        ...

    def read(self, chunk: Chunk) -> ChunkPairs:
        """The pairs of a chunk with their texts."""
        ...

    def close(self) -> None:
        """Closes files that are open; they are opened again where it is read on."""
        ...


# --- lists by index: prepared splits and the synthetic collection ---


@dataclass(frozen=True)
class ListPairs:
    """Lists by index, of one or several splits, over one corpus."""

    splits: Mapping[str, Indexed[RankedList]]
    corpus: Indexed[Document]

    def settings(self) -> dict[str, Any]:
        """Their names; what they hold is told by the stage that prepared them."""
        return {"splits": list(self.splits)}

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Whole lists, until a chunk has `size` pairs."""
        first = 0
        for name, lists in self.splits.items():
            sizes = (len(lists[i].documents) for i in range(len(lists)))
            for chunk in _cut(name, sizes, size, first):
                yield chunk
                first += chunk.pairs

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        content = self.read(chunk)
        return content.query_ids, content.document_ids

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        source = self.splits[chunk.source]
        lists = [source[i] for i in range(chunk.begin, chunk.begin + chunk.count)]
        return _of_lists(lists, lambda row: self.corpus[row], chunk.first)

    def close(self) -> None:
        """See `Input`."""


class WorldPairs:
    """The unlabelled queries of the synthetic collection with their candidates."""

    def __init__(self, settings: config.World):
        self._settings, self.world = settings, SearchWorld(settings)

    def settings(self) -> dict[str, Any]:
        """The world's settings."""
        return {"world": config.to_dict(self._settings)}

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Whole lists; each has the same number of candidates."""
        queries = self.world.splits()["unlabelled"]
        each = min(self._settings.candidates, self.world.num_documents)
        sizes = itertools.repeat(each, len(queries))
        yield from _cut(WORLD, sizes, size, 0)

    def _queries(self, chunk: Chunk) -> range:
        queries = self.world.splits()["unlabelled"]
        return queries[chunk.begin : chunk.begin + chunk.count]

    def ids(self, chunk: Chunk) -> tuple[list[str], list[str]]:
        """See `Input`."""
        candidates = self.world.candidates
        found = [(i, row) for i in self._queries(chunk) for row in candidates(i)]
        return [f"q{i}" for i, _ in found], [f"d{row}" for _, row in found]

    def read(self, chunk: Chunk) -> ChunkPairs:
        """See `Input`."""
        lists = [
            make_list(f"q{i}", self.world.query(i).text, self.world.candidates(i))
            for i in self._queries(chunk)
        ]
        return _of_lists(lists, self.world.document, chunk.first)

    def close(self) -> None:
        """See `Input`."""


def _cut(source: str, sizes: Iterable[int], size: int, first: int) -> Iterator[Chunk]:
    """Whole lists of `sizes` pairs, as many as bring a chunk to `size` pairs."""
    begin = count = pairs = 0
    for one in sizes:
        count += 1
        pairs += one
        if pairs >= size:
            yield Chunk(source, begin, count, first, pairs)
            begin, first, count, pairs = begin + count, first + pairs, 0, 0
    if pairs:
        yield Chunk(source, begin, count, first, pairs)


def make_list(
    query_id: str, query: str, rows: Sequence[int] | np.ndarray
) -> RankedList:
    """A list without judgements."""
    return RankedList(
        query_id=query_id,
        query=query,
        documents=np.asarray(rows, np.int64),
        labels=np.zeros(len(rows), np.float32),
        first_stage=np.zeros(len(rows), np.float32),
        judged_ids=(),
        judged_grades=np.zeros(0, np.int32),
    )


def _of_lists(
    lists: list[RankedList], document: Callable[[int], Document], first: int
) -> ChunkPairs:
    """Content of lists over a corpus of which a chunk needs a few documents only."""
    none = [np.zeros(0, np.int64)]
    rows = np.concatenate([one.documents for one in lists] or none)
    unique, places = np.unique(rows, return_inverse=True)
    corpus = [document(int(row)) for row in unique]
    local = iter(np.split(places, np.cumsum([len(one.documents) for one in lists])))
    return ChunkPairs(
        lists=[make_list(one.query_id, one.query, next(local)) for one in lists],
        corpus=corpus,
        pairs=np.arange(first, first + len(rows)),
        query_ids=[one.query_id for one in lists for _ in one.documents],
        document_ids=[corpus[place].id for place in places],
        rows=rows,
    )
