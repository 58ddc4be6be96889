"""Prepared records to packed batches, by grain: seeded shuffle, split, resumable.

Records are shuffled and dealt to the data shards by index arithmetic, and the documents
drawn from a list depend on the record's place in the order. Each shard packs what it is
dealt. So batch k is a function of (seed, k, number of shards), whichever process makes
it, and an iterator's state is which records of each shard wait to be packed.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import grain
import jax
import numpy as np

from ranker import config
from ranker.batch import Batch
from ranker.data.packing import (
    Choice,
    Example,
    Layout,
    choose,
    empty_batch,
    join,
    pack,
    text_example,
)
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.text import Segment, Tokenizer

_CACHED_DOCUMENTS = 1 << 17
_THREADS = 2  # that read and tokenise
_AHEAD = 64  # examples a shard that they work ahead of what is packed
_BATCHES_AHEAD = 2  # batches that are packed while the devices compute
_WAITING = 8  # shards' worth of tokens that wait, for packing to choose from

Record = TypeVar("Record", covariant=True)


class Source(Protocol[Record]):
    """Records by index, as the data sets give them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class Shards:
    """The data shards of a batch, and which of them this process makes."""

    count: int
    local: tuple[int, ...]


ALL_IN_ONE = Shards(1, (0,))


class ListEncoder:
    """Turns the documents of a list into segments; each document is tokenised once."""

    def __init__(self, corpus: Source[Document], tokenizer: Tokenizer, length: int):
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self._document = lru_cache(maxsize=_CACHED_DOCUMENTS)(self._hold)

    @staticmethod
    def _hold(row: int) -> list[list[int]]:
        """An empty place for a document's tokens; `__call__` fills it."""
        del row
        return []

    def _documents(self, rows: Sequence[int]) -> list[list[int]]:
        places = [self._document(row) for row in rows]
        missing = {
            row: place for row, place in zip(rows, places, strict=True) if not place
        }
        if missing:
            found = self.tokenizer.documents([self.corpus[row] for row in missing])
            for place, tokens in zip(missing.values(), found, strict=True):
                # Tokens beyond the length are never seen, so they are not kept either.
                place[:] = [tokens[: self.length]]
        return [place[0] for place in places]

    def __call__(self, query: str, rows: Sequence[int] | np.ndarray) -> list[Segment]:
        """Segments of the documents in corpus rows `rows`, for one query."""
        [prefix] = self.tokenizer.queries([query])
        return [
            self.tokenizer.segment(prefix, document, self.length)
            for document in self._documents([int(row) for row in rows])
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


def _ordered(
    source: Source[Any],
    encode: Callable[[Any, np.random.Generator], Example],
    seed: int,
) -> Source[Example]:
    """Endless examples: shuffled anew each epoch, a function of (seed, index)."""
    if len(source) == 0:
        raise config.ConfigError("there is no example to train on in this split")
    return cast(Any, _shuffled(source, seed).random_map(encode))


def _shuffled(source: Source[Any], seed: int) -> grain.MapDataset:
    # grain's own protocol of a source is wider than ours.
    return grain.MapDataset.source(cast(Any, source)).seed(seed).shuffle().repeat()


def rows_between(
    before: dict[str, Any], after: dict[str, Any], *, size: int, seed: int
) -> list[int]:
    """Rows of a source of `size` records in the batches between two states."""
    rows: Any = _shuffled(range(size), seed)  # repeats, so every index has a row
    taken = []
    for shard, (first, *waiting) in before["dealt"].items():
        last, *still = after["dealt"][shard]
        read = range(first, last, before["shards"])
        taken += [int(rows[at]) for at in (*waiting, *read) if at not in set(still)]
    return taken


class _Dealt:
    """What one data shard is dealt, read ahead by threads, until it is packed."""

    def __init__(
        self,
        source: Source[Example],
        layout: Layout,
        shard: int,
        count: int,
        pool: ThreadPoolExecutor,
        state: Sequence[int] = (),
    ):
        self._source, self._layout, self._pool = source, layout, pool
        self._next, *waiting = state or [shard]
        self._step = count
        self._reading: collections.deque[tuple[int, Future[Example]]]
        self._reading = collections.deque()
        again = [(index, self._read(index)) for index in waiting]
        self._waiting = [(index, future.result()) for index, future in again]

    def _read(self, index: int) -> Future[Example]:
        return self._pool.submit(self._source.__getitem__, index)

    def _read_ahead(self) -> None:
        while len(self._reading) < _AHEAD and self._next < len(self._source):
            self._reading.append((self._next, self._read(self._next)))
            self._next += self._step

    def _wait(self) -> None:
        """Lets examples wait until there are enough to choose from."""
        tokens = sum(sum(example.lengths) for _, example in self._waiting)
        while (
            tokens < _WAITING * self._layout.tokens
            and len(self._waiting) < _WAITING * self._layout.lists
        ):
            self._read_ahead()
            if not self._reading:
                break
            index, future = self._reading.popleft()
            self._waiting.append((index, future.result()))
            tokens += sum(self._waiting[-1][1].lengths)

    def take(self) -> tuple[list[Example], Choice]:
        """Examples that fill the shard's rows; none when all have been taken."""
        self._wait()
        choice = choose([one.lengths for _, one in self._waiting], self._layout)
        taken = [self._waiting[place][1] for place in choice.places]
        gone = set(choice.places)
        self._waiting = [
            one for place, one in enumerate(self._waiting) if place not in gone
        ]
        return taken, choice

    @property
    def state(self) -> list[int]:
        """Index of the next record to be read, and of those that wait."""
        first = self._reading[0][0] if self._reading else self._next
        return [first, *(index for index, _ in self._waiting)]


class _Packed(grain.IterDataset):
    """Packed micro-batches `[R, T]`, as long as there are examples."""

    def __init__(
        self,
        source: Source[Example],
        layout: Layout,
        *,
        shards: Shards,
        pad: int,
    ):
        super().__init__()
        self.source, self.layout = source, layout
        self.shards, self.pad = shards, pad

    def __iter__(self) -> grain.DatasetIterator:
        return _PackedIterator(self)


class _PackedIterator(grain.DatasetIterator):
    def __init__(self, dataset: _Packed):
        super().__init__()
        self._data = dataset
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="encode")
        self._deal({})

    def _deal(self, states: dict[int, list[int]]) -> None:
        data = self._data
        self._dealt = {
            shard: _Dealt(
                data.source,
                data.layout,
                shard,
                data.shards.count,
                self._pool,
                states.get(shard, ()),
            )
            for shard in data.shards.local
        }

    def __next__(self) -> Batch:
        layout, parts, empty = self._data.layout, [], True
        for shard, dealt in self._dealt.items():
            taken, choice = dealt.take()
            empty = empty and not taken
            first = shard * layout.rows
            parts.append(
                pack(taken, choice.rows, layout, pad=self._data.pad, first_row=first)
            )
        if empty:
            raise StopIteration
        return join(parts)

    def get_state(self) -> dict[str, Any]:
        states = {str(shard): dealt.state for shard, dealt in self._dealt.items()}
        return {"shards": self._data.shards.count, "dealt": states}

    def set_state(self, state: dict[str, Any]) -> None:
        states = {int(shard): one for shard, one in state["dealt"].items()}
        if state["shards"] != self._data.shards.count:
            states = _deal_anew(states, self._data.shards.count)
        self._deal(states)


def _deal_anew(states: dict[int, list[int]], count: int) -> dict[int, list[int]]:
    """What is left to be read, dealt to another number of shards.

    Args:
      states: of every shard that there was, as `_Dealt.state` gives them.
      count: shards that there are.
    """
    last = max(first for first, *_ in states.values())
    left = sorted(
        index
        for first, *waiting in states.values()
        for index in [*waiting, *range(first, last, len(states))]
    )
    return {
        shard: [
            last + (shard - last) % count,
            *(index for index in left if index % count == shard),
        ]
        for shard in range(count)
    }


def _steps(
    source: Source[Example],
    layout: Layout,
    *,
    shards: Shards,
    micro: int,
    pad: int,
) -> grain.DatasetIterator:
    """Steps of `micro` micro-batches, `[A, R, T]`, made while the devices compute."""
    packed = _Packed(source, layout, shards=shards, pad=pad)
    steps = packed.batch(
        micro, batch_fn=lambda parts: jax.tree.map(lambda *x: np.stack(x), *parts)
    )
    ahead = grain.experimental.ThreadPrefetchIterDataset
    return iter(ahead(steps, prefetch_buffer_size=_BATCHES_AHEAD))


def make_layout(batch: config.Batch, *, size: int, length: int, shards: int) -> Layout:
    """What a data shard holds of a micro-batch of `batch.size` lists or texts.

    The rows are those that `batch.size` texts, or lists of `size` documents, need when
    all are of full length; more fit where they are shorter.

    Args:
      batch: sizes, over all data shards.
      size: documents a list, at most; 0: texts.
      length: tokens a row.
      shards: data shards of the mesh.

    Raises:
      ConfigError: when a micro-batch does not divide over the shards.
    """
    micro = batch.size // batch.accumulate
    if micro % shards:
        raise config.ConfigError(
            f"a micro-batch of {micro} (batch.size {batch.size} / batch.accumulate "
            f"{batch.accumulate}) is not divisible by the {shards} data shards of the "
            f"mesh; set batch.size to a multiple of {shards * batch.accumulate}"
        )
    return Layout(rows=micro // shards * max(size, 1), length=length, size=size)


def _text_encoder(
    tokenizer: Tokenizer, length: int
) -> Callable[[ClickExample], Example]:
    def encode(click: ClickExample) -> Example:
        document = Document("", click.title, click.summary)
        [prefix] = tokenizer.queries([click.query])
        [tokens] = tokenizer.documents([document])
        return text_example(tokenizer.segment(prefix, tokens, length))

    return encode


def text_batches(
    clicks: Source[ClickExample],
    tokenizer: Tokenizer,
    *,
    batch: config.Batch,
    length: int,
    seed: int,
    shards: Shards,
) -> grain.DatasetIterator:
    """Endless batches for language modelling: query in, title and summary out.

    Leaves are numpy arrays with a leading dimension of micro-batches, `[A, R, T]`; of a
    global batch they hold this process's rows.
    """
    encode = _text_encoder(tokenizer, length)
    return _steps(
        _ordered(clicks, lambda click, _: encode(click), seed),
        make_layout(batch, size=0, length=length, shards=shards.count),
        shards=shards,
        micro=batch.accumulate,
        pad=tokenizer.pad,
    )


def every_text(
    clicks: Source[ClickExample],
    tokenizer: Tokenizer,
    *,
    batch: config.Batch,
    length: int,
    shards: Shards,
) -> tuple[grain.DatasetIterator, Batch]:
    """Batches `[R, T]` of each text once, and one of padding alone.

    A process may end one batch before another.
    """
    encode = _text_encoder(tokenizer, length)
    layout = make_layout(batch, size=0, length=length, shards=shards.count)
    dataset = grain.MapDataset.source(cast(Any, clicks)).map(encode)
    packed = _Packed(cast(Any, dataset), layout, shards=shards, pad=tokenizer.pad)
    return iter(packed), join([empty_batch(layout, tokenizer.pad)] * len(shards.local))


def list_batches(
    lists: Source[RankedList],
    encoder: ListEncoder,
    *,
    batch: config.Batch,
    seed: int,
    shards: Shards,
    targets: Sequence[np.ndarray] | None = None,
) -> grain.DatasetIterator:
    """Endless batches for ranking, as `text_batches` makes them.

    Args:
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      batch: sizes, over all data shards.
      seed: of the order and of the documents drawn from each list.
      shards: which part of the batches this process makes.
      targets: teacher scores of every document of every list, in the order of `lists`.
    """
    source: Source[Any] = lists if targets is None else _Scored(lists, targets)

    def encode(
        item: RankedList | tuple[RankedList, np.ndarray], generator: np.random.Generator
    ) -> Example:
        record, scores = item if isinstance(item, tuple) else (item, None)
        places = draw_documents(record.labels, batch.list_size, generator)
        segments = encoder(record.query, record.documents[places])
        labels = record.labels[places]
        return Example(
            segments, labels, labels * 0 if scores is None else scores[places]
        )

    return _steps(
        _ordered(source, encode, seed),
        make_layout(
            batch, size=batch.list_size, length=encoder.length, shards=shards.count
        ),
        shards=shards,
        micro=batch.accumulate,
        pad=encoder.tokenizer.pad,
    )


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
    lists: Iterable[RankedList], encoder: ListEncoder, *, rows: int, shards: Shards
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every (query, document) pair once, for scoring: each is a list of one document.

    Lists are dealt to the data shards in turn, and only those of this process are
    tokenised. A process may end one batch before another.

    Args:
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      rows: rows a batch, over all data shards, which divide it.
      shards: which part of the batches this process makes.

    Yields:
      This process's part of a batch, and which pair each of its lists is, int32 `[B]`:
      pairs are numbered in the order of `lists`, -1 is padding.
    """
    layout = Layout(rows=rows // shards.count, length=encoder.length, size=1)
    pad, zero = encoder.tokenizer.pad, np.zeros(1, np.float32)
    waiting: _Pairs = {shard: [] for shard in shards.local}
    tokens = dict.fromkeys(shards.local, 0)
    for shard, first, segments in _read_lists(lists, encoder, shards):
        for i, segment in enumerate(segments):
            waiting[shard].append((first + i, Example([segment], zero, zero)))
            tokens[shard] += len(segment.tokens)
        if min(tokens.values()) >= _WAITING * layout.tokens:
            yield _pack_pairs(waiting, layout, pad)
            tokens = {
                shard: sum(sum(one.lengths) for _, one in pairs)
                for shard, pairs in waiting.items()
            }
    while any(waiting.values()):
        yield _pack_pairs(waiting, layout, pad)


def no_pairs(
    encoder: ListEncoder, *, rows: int, shards: Shards
) -> tuple[Batch, np.ndarray]:
    """What `pair_batches` yields, of padding alone."""
    layout = Layout(rows=rows // shards.count, length=encoder.length, size=1)
    nothing: _Pairs = {shard: [] for shard in shards.local}
    return _pack_pairs(nothing, layout, encoder.tokenizer.pad)


_Pairs = dict[int, list[tuple[int, Example]]]  # shard -> its pairs and their numbers


def _pack_pairs(waiting: _Pairs, layout: Layout, pad: int) -> tuple[Batch, np.ndarray]:
    """Takes out of `waiting` what fills a batch."""
    parts, numbers = [], np.full((len(waiting), layout.lists), -1, np.int32)
    for place, (shard, pairs) in enumerate(waiting.items()):
        choice = choose([one.lengths for _, one in pairs], layout)
        taken = [pairs[i] for i in choice.places]
        gone = set(choice.places)
        waiting[shard] = [one for i, one in enumerate(pairs) if i not in gone]
        numbers[place, : len(taken)] = [number for number, _ in taken]
        examples = [one for _, one in taken]
        first = shard * layout.rows
        parts.append(pack(examples, choice.rows, layout, pad=pad, first_row=first))
    return join(parts), numbers.reshape(-1)


def _read_lists(
    lists: Iterable[RankedList], encoder: ListEncoder, shards: Shards
) -> Iterator[tuple[int, int, list[Segment]]]:
    """(shard, number of the first pair, segments) of each of this process's lists."""
    reading: collections.deque[tuple[int, int, Future[list[Segment]]]]
    reading = collections.deque()
    first = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="encode") as pool:
        for index, record in enumerate(lists):
            shard = index % shards.count
            if shard in shards.local:
                found = pool.submit(encoder, record.query, record.documents)
                reading.append((shard, first, found))
            first += len(record.documents)
            if len(reading) > _AHEAD:
                shard, number, found = reading.popleft()
                yield shard, number, found.result()
        for shard, number, found in reading:
            yield shard, number, found.result()
