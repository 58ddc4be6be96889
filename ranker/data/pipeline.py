"""Prepared records to packed batches, by grain: seeded shuffle, split, resumable.

Records are shuffled and dealt to the data shards by index arithmetic, and the documents
drawn from a list depend on the record's place in the order. Each shard packs what it is
dealt. So batch k is a function of (seed, k, number of shards), whichever process makes
it, and an iterator's state is which records of each shard wait to be packed.
"""

import collections
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grain
import jax
import numpy as np

from ranker import config
from ranker.batch import PackedBatch
from ranker.data.packing import (
    Choice,
    Example,
    Layout,
    common_prefix,
    empty_batch,
    join,
    pack,
    text_example,
)
from ranker.data.pairs import (
    AHEAD,
    THREADS,
    WAITING,
    Indexed,
    ListEncoder,
    Shards,
    choose_any,
    draw_documents,
    share,
)
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.text import Tokenizer
from ranker.data.triples import Triple

_READY = 2  # batches that are packed while the devices compute
_GROUP = 16  # records that a thread reads and encodes together


class Endless:
    """Endless records, shuffled anew each epoch, of each what was drawn at random.

    In the order, and with the random numbers, of grain's
    `MapDataset.source(source).seed(seed).shuffle().repeat().random_map(draw)`, which
    takes longer to hand a list over than it takes to encode it.
    """

    def __init__(
        self,
        source: Indexed[Any],
        seed: int,
        draw: Callable[[Any, np.random.Generator], Any] | None = None,
    ):
        if len(source) == 0:
            raise config.ConfigError("there is no example to train on in this split")
        self._source, self._size, self._draw = source, len(source), draw
        # grain seeds each node by how far it is behind `seed`.
        self._seed, drawn = (
            np.random.SeedSequence([seed, depth]).generate_state(1).item()
            for depth in (1, 3)
        )
        self._generators = grain.experimental.RngPool(drawn)

    def __len__(self) -> int:
        return sys.maxsize

    def row(self, index: int) -> int:
        """Of the source's record at a place of the order."""
        epoch, within = divmod(index, self._size)
        return grain.experimental.index_shuffle(
            within,
            max_index=self._size - 1,
            seed=(self._seed + epoch) % 2**32,
            rounds=4,
        )

    def __getitem__(self, index: int) -> Any:
        record = self._source[self.row(index)]
        if self._draw is None:
            return record
        generator = self._generators.acquire_rng(index)
        drawn = self._draw(record, generator)
        self._generators.release_rng(generator)
        return drawn


@dataclass(frozen=True)
class _Examples:
    """Records that become examples some at a time: tokenizers like many texts."""

    source: Indexed[Any]
    encode: Callable[[list[Any]], list[Example]]

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> list[Example]:
        return self.encode([self.source[index] for index in indices])


def shuffled_rows(size: int, seed: int) -> Callable[[int], int]:
    """The row of a source of `size` records at each index of `list_batches`' order."""
    return Endless(range(size), seed).row


def rows_between(
    before: dict[str, Any], after: dict[str, Any], *, row: Callable[[int], int]
) -> list[int]:
    """Rows in the batches between two states; `row` gives that of each index."""
    taken = []
    for shard, (first, *waiting) in before["dealt"].items():
        last, *still = after["dealt"][shard]
        read = range(first, last, before["shards"])
        taken += [row(at) for at in (*waiting, *read) if at not in set(still)]
    return taken


class _Dealt:
    """What one data shard is dealt, read ahead by threads, until it is packed."""

    def __init__(
        self,
        source: _Examples,
        layout: Layout,
        *,
        shard: int,
        count: int,
        pool: ThreadPoolExecutor,
        state: Sequence[int] = (),
    ):
        self._source, self._layout, self._pool = source, layout, pool
        self._next, *waiting = state or [shard]
        self._step = count
        # Index of a record, and a group of which it is the n-th.
        self._reading: collections.deque[tuple[int, Future[list[Example]], int]]
        self._reading = collections.deque()
        again = source.read(waiting) if waiting else []
        self._waiting = list(zip(waiting, again, strict=True))

    def _read_ahead(self) -> None:
        while len(self._reading) < AHEAD and self._next < len(self._source):
            end = min(self._next + _GROUP * self._step, len(self._source))
            indices = range(self._next, end, self._step)
            group = self._pool.submit(self._source.read, indices)
            self._reading += [(index, group, n) for n, index in enumerate(indices)]
            self._next = indices[-1] + self._step

    def _wait(self) -> None:
        """Lets examples wait until there are enough to choose from."""
        tokens = sum(example.total for _, example in self._waiting)
        while (
            tokens < WAITING * self._layout.tokens
            and len(self._waiting) < WAITING * self._layout.lists
        ):
            self._read_ahead()
            if not self._reading:
                break
            index, group, place = self._reading.popleft()
            self._waiting.append((index, group.result()[place]))
            tokens += self._waiting[-1][1].total

    def take(self) -> tuple[list[Example], Choice]:
        """Examples that fill the shard's rows; none when all have been taken."""
        self._wait()
        choice = choose_any([one for _, one in self._waiting], self._layout)
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
        source: _Examples,
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
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="encode")
        self._deal({})

    def _deal(self, states: dict[int, list[int]]) -> None:
        data = self._data
        self._dealt = {
            shard: _Dealt(
                data.source,
                data.layout,
                shard=shard,
                count=data.shards.count,
                pool=self._pool,
                state=states.get(shard, ()),
            )
            for shard in data.shards.local
        }

    def __next__(self) -> PackedBatch:
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
            size = len(self._data.source)
            states = _deal_anew(states, self._data.shards.count, size)
        self._deal(states)


def _deal_anew(
    states: dict[int, list[int]], count: int, size: int
) -> dict[int, list[int]]:
    """What is left to be read, dealt to another number of shards.

    Args:
      states: of every shard that there was, as `_Dealt.state` gives them.
      count: shards that there are.
      size: records of the source; those of a shard may have ended before others'.
    """
    last = min(size, max(first for first, *_ in states.values()))
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
    source: _Examples,
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
    return iter(ahead(steps, prefetch_buffer_size=_READY))


def make_layout(
    batch: config.Batch, *, size: int, length: int, shards: int, passages: int = 1
) -> Layout:
    """What a data shard holds of a micro-batch of `batch.size` lists or texts.

    The rows are those that `batch.size` texts, or lists of `size` documents, need when
    all are of full length; more fit where they are shorter.

    Args:
      batch: sizes, over all data shards.
      size: documents a list, at most; 0: texts.
      length: tokens a row.
      shards: data shards of the mesh.
      passages: rows that a document of full length has, at most.

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
    rows = micro // shards * max(size, 1) * passages
    return Layout(rows=rows, length=length, size=size, passages=passages)


def _text_encoder(
    tokenizer: Tokenizer, length: int
) -> Callable[[list[ClickExample]], list[Example]]:
    def encode(clicks: list[ClickExample]) -> list[Example]:
        documents = [Document("", one.title, one.summary) for one in clicks]
        read = zip(
            tokenizer.queries([one.query for one in clicks]),
            tokenizer.documents(documents),
            strict=True,
        )
        return [text_example(tokenizer.segment(*one, length)) for one in read]

    return encode


def text_batches(
    clicks: Indexed[ClickExample],
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
    return _steps(
        _Examples(Endless(clicks, seed), _text_encoder(tokenizer, length)),
        make_layout(batch, size=0, length=length, shards=shards.count),
        shards=shards,
        micro=batch.accumulate,
        pad=tokenizer.pad,
    )


def every_text(
    clicks: Indexed[ClickExample],
    tokenizer: Tokenizer,
    *,
    batch: config.Batch,
    length: int,
    shards: Shards,
) -> tuple[grain.DatasetIterator, PackedBatch]:
    """Batches `[R, T]` of each text once, and one of padding alone.

    A process may end one batch before another.
    """
    examples = _Examples(clicks, _text_encoder(tokenizer, length))
    layout = make_layout(batch, size=0, length=length, shards=shards.count)
    packed = _Packed(examples, layout, shards=shards, pad=tokenizer.pad)
    return iter(packed), join([empty_batch(layout, tokenizer.pad)] * len(shards.local))


# A list, its teacher scores if it has some, and which of its documents are read.
_Drawn = tuple[RankedList, np.ndarray | None, np.ndarray]


def _encode_lists(encoder: ListEncoder, lists: list[_Drawn]) -> list[Example]:
    texts = [(record.query, record.documents[places]) for record, _, places in lists]
    parts: list[tuple[Any, Any]]
    if encoder.passages.most > 1:
        parts = [*encoder.parts(texts)]
    else:
        parts = [(segments, None) for segments in encoder.many(texts)]
    examples = []
    for (record, scores, places), (segments, counts) in zip(lists, parts, strict=True):
        labels = record.labels[places]
        example = Example(
            segments,
            labels,
            labels * 0 if scores is None else scores[places],
            common_prefix(segments) if encoder.shared else 0,
            record.positions[places] if len(record.positions) else None,
            record.weights[places] if len(record.weights) else None,
            counts,
        )
        examples.append(example)
    return examples


def list_batches(
    lists: Indexed[RankedList],
    encoder: ListEncoder,
    *,
    batch: config.Batch,
    seed: int,
    shards: Shards,
    targets: Sequence[np.ndarray] | None = None,
    impressions: bool = False,
) -> grain.DatasetIterator:
    """Endless batches for ranking, as `text_batches` makes them.

    Args:
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      batch: sizes, over all data shards.
      seed: of the order and of the documents drawn from each list.
      shards: which part of the batches this process makes.
      targets: teacher scores of every document of every list, in the order of `lists`.
      impressions: whether the batches have positions and weights: of lists of clicks.
    """
    source: Indexed[Any] = lists if targets is None else _Scored(lists, targets)

    def draw(
        item: RankedList | tuple[RankedList, np.ndarray], generator: np.random.Generator
    ) -> _Drawn:
        record, scores = item if isinstance(item, tuple) else (item, None)
        return record, scores, draw_documents(record.labels, batch.list_size, generator)

    layout = make_layout(
        batch,
        size=batch.list_size,
        length=encoder.length,
        shards=shards.count,
        passages=encoder.passages.most,
    )
    layout = replace(layout, impressions=impressions)
    return _steps(
        _Examples(Endless(source, seed, draw), partial(_encode_lists, encoder)),
        share(layout) if encoder.shared else layout,
        shards=shards,
        micro=batch.accumulate,
        pad=encoder.tokenizer.pad,
    )


def triple_batches(
    triples: Indexed[Triple],
    tokenizer: Tokenizer,
    *,
    batch: config.Batch,
    length: int,
    shards: Shards,
) -> grain.DatasetIterator:
    """Endless batches of streamed pairs, each a list of one, as `list_batches` has.

    Args:
      triples: endless and in order, as `triples.Shuffled`.
      tokenizer: of the student.
      batch: sizes, over all data shards; its `list_size` is 1.
      length: tokens a row.
      shards: which part of the batches this process makes.
    """

    def encode(some: list[Triple]) -> list[Example]:
        queries = tokenizer.queries([one.query for one in some])
        texts = [Document("1", "", one.document) for one in some]
        examples = []
        read = zip(some, queries, tokenizer.documents(texts), strict=True)
        for triple, query, text in read:
            score = np.array([triple.score], np.float32)
            segments = [tokenizer.segment(query, text, length)]
            examples.append(Example(segments, score * 0, score))
        return examples

    return _steps(
        _Examples(triples, encode),
        make_layout(batch, size=1, length=length, shards=shards.count),
        shards=shards,
        micro=batch.accumulate,
        pad=tokenizer.pad,
    )


@dataclass(frozen=True)
class _Scored:
    """Lists beside the teacher's scores of their documents."""

    lists: Indexed[RankedList]
    scores: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> tuple[RankedList, np.ndarray]:
        return self.lists[index], self.scores[index]
