"""Prepared records to batches, by grain: seeded shuffle, split by process, resumable.

Batch k is a function of (seed, k), whatever the number of processes: records are
shuffled and dealt by index arithmetic, and the documents drawn from a list depend on
the record's place in the order. So an iterator's whole state is how many batches it has
given, and a run can go on with another number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import grain
import jax
import numpy as np

from ranker import config
from ranker.batch import Batch
from ranker.data.packing import pack_lists, pack_texts
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.text import Segment, Tokenizer

_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
_CACHED_DOCUMENTS = 1 << 17


Record = TypeVar("Record", covariant=True)


class Source(Protocol[Record]):
    """Records by index, as the data sets give them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this process makes."""

    index: int
    count: int

    @classmethod
    def of_this_process(cls) -> "Share":
        """The share that goes with jax's process index."""
        return cls(jax.process_index(), jax.process_count())

    def of(self, size: int, name: str) -> int:
        """This process's part of `size` things; raises `ConfigError` when uneven."""
        if size % self.count:
            raise config.ConfigError(
                f"{name} {size} is not divisible by the {self.count} processes; set it "
                f"to a multiple of {self.count}"
            )
        return size // self.count


class ListEncoder:
    """Turns the documents of a list into segments; each document is tokenised once."""

    def __init__(self, corpus: Source[Document], tokenizer: Tokenizer, length: int):
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self._document = lru_cache(maxsize=_CACHED_DOCUMENTS)(self._read)

    def _read(self, row: int) -> list[int]:
        # Tokens beyond the length are never seen, so they are not kept either.
        return self.tokenizer.documents([self.corpus[row]])[0][: self.length]

    def __call__(self, query: str, rows: Sequence[int] | np.ndarray) -> list[Segment]:
        """Segments of the documents in corpus rows `rows`, for one query."""
        [prefix] = self.tokenizer.queries([query])
        return [
            self.tokenizer.segment(prefix, self._document(int(row)), self.length)
            for row in rows
        ]


def draw_documents(
    labels: np.ndarray, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Places of at most `size` documents of a list, in random order.

    A list that is longer is sampled uniformly, but keeps one of its best-labelled
    documents: a list without a relevant document teaches a rank loss nothing.
    """
    order = generator.permutation(len(labels))
    chosen = order[:size]
    if len(labels) > size and labels.max() > labels[chosen].max():
        best = np.flatnonzero(labels == labels.max())
        chosen[generator.integers(size)] = generator.choice(best)
    return chosen


def _dataset(source: Source[Any]) -> grain.MapDataset:
    return grain.MapDataset.source(cast(Any, source))  # grain's own protocol is wider


def _stream(
    source: Source[Any],
    encode: Callable,
    collate: Callable[[Sequence], Batch],
    *,
    batch: config.Batch,
    seed: int,
    share: Share,
) -> grain.DatasetIterator:
    if len(source) == 0:
        raise config.ConfigError("there is no example to train on in this split")
    local = share.of(batch.size, "batch.size")
    if local % batch.accumulate:
        raise config.ConfigError(
            f"the {local} examples a process of batch.size {batch.size} are not "
            f"divisible by batch.accumulate {batch.accumulate}"
        )
    micro = local // batch.accumulate

    def stack(items: Sequence) -> Batch:
        parts = [collate(items[i : i + micro]) for i in range(0, local, micro)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

    # Encoded before they are dealt, so that a record's random numbers follow from its
    # place in the global order; only the records of this process are ever encoded.
    records = _dataset(source).seed(seed).shuffle().repeat().random_map(encode)
    dealt = records if share.count == 1 else _Dealt(records, micro, share)
    batches = dealt.batch(local, batch_fn=stack)
    return iter(batches.to_iter_dataset(_PREFETCH))


class _Dealt(grain.MapDataset):
    """This process's records: its rows of each micro-batch, as a mesh lays them out.

    Joined over the processes, a batch is the same for any number of them.
    """

    def __init__(self, records: grain.MapDataset, micro: int, share: Share):
        """Deals `records`; `micro` is the rows of a micro-batch on this process."""
        super().__init__(records)
        self._micro, self._share = micro, share

    def __len__(self) -> int:
        return len(self._parent) // self._share.count

    def __getitem__(self, index):
        number, row = divmod(index, self._micro)
        before = number * self._share.count + self._share.index
        return self._parent[before * self._micro + row]


def skip(batches: grain.DatasetIterator, count: int) -> None:
    """Lets `batches` go on behind the first `count` batches of the run."""
    batches.set_state({"next_index": count})


def text_batches(
    clicks: Source[ClickExample],
    tokenizer: Tokenizer,
    *,
    batch: config.Batch,
    length: int,
    seed: int,
    share: Share,
) -> grain.DatasetIterator:
    """Endless batches for language modelling: query in, title and summary out.

    Leaves are numpy arrays with a leading dimension of micro-batches, `[A, R, T]`; of a
    global batch they hold this process's rows.
    """

    def encode(click: ClickExample, _: np.random.Generator) -> Segment:
        document = Document("", click.title, click.summary)
        [prefix] = tokenizer.queries([click.query])
        return tokenizer.segment(prefix, tokenizer.documents([document])[0], length)

    def collate(segments: Sequence[Segment]) -> Batch:
        return pack_texts(segments, length=length, pad=tokenizer.pad)

    return _stream(clicks, encode, collate, batch=batch, seed=seed, share=share)


def list_batches(
    lists: Source[RankedList],
    encoder: ListEncoder,
    *,
    batch: config.Batch,
    seed: int,
    share: Share,
    targets: Sequence[np.ndarray] | None = None,
) -> grain.DatasetIterator:
    """Endless batches for ranking: `batch.size` lists of `batch.list_size` documents.

    Args:
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      batch: sizes, over all processes.
      seed: of the order and of the documents drawn from each list.
      share: this process's part.
      targets: teacher scores of every document of every list, in the order of `lists`.
    """
    source: Source[Any] = lists if targets is None else _Scored(lists, targets)
    micro = share.of(batch.size, "batch.size") // batch.accumulate
    first_row = share.index * micro * batch.list_size

    def encode(item: RankedList | tuple, generator: np.random.Generator) -> tuple:
        record, scores = item if isinstance(item, tuple) else (item, None)
        places = draw_documents(record.labels, batch.list_size, generator)
        segments = encoder(record.query, record.documents[places])
        labels = record.labels[places]
        return segments, labels, labels * 0 if scores is None else scores[places]

    def collate(items: Sequence[tuple]) -> Batch:
        segments, labels, scores = zip(*items, strict=True)
        return pack_lists(
            segments,
            labels,
            scores,
            size=batch.list_size,
            length=encoder.length,
            pad=encoder.tokenizer.pad,
            first_row=first_row,
        )

    return _stream(source, encode, collate, batch=batch, seed=seed, share=share)


@dataclass(frozen=True)
class _Scored:
    """Lists beside the teacher's scores of their documents."""

    lists: Source[RankedList]
    scores: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> tuple[RankedList, np.ndarray]:
        return self.lists[index], self.scores[index]


def pair_batches(
    lists: Source[RankedList], encoder: ListEncoder, *, rows: int, share: Share
) -> Iterator[tuple[Batch, int]]:
    """Every (query, document) pair once, in order, for scoring: `rows` a batch.

    Yields:
      This process's rows of a batch, each a list of one document, and the number of
      real pairs in the whole batch; the last batch is filled up with padding.
    """
    local = share.of(rows, "rows")
    first = share.index * local

    def encode(record: RankedList) -> list[Segment]:
        return encoder(record.query, record.documents)

    encoded = _dataset(lists).map(encode).to_iter_dataset(_PREFETCH)
    none = [np.zeros(0, np.float32)] * local
    pending: list[Segment] = []

    def pack(segments: list[Segment]) -> Batch:
        mine = [[segment] for segment in segments[first : first + local]]
        mine += [[]] * (local - len(mine))
        zeros = [np.zeros(len(one), np.float32) for one in mine] or none
        return pack_lists(
            mine,
            zeros,
            zeros,
            size=1,
            length=encoder.length,
            pad=encoder.tokenizer.pad,
            first_row=first,
        )

    for segments in encoded:
        pending += segments
        while len(pending) >= rows:
            yield pack(pending[:rows]), rows
            pending = pending[rows:]
    if pending:
        yield pack(pending), len(pending)
