"""Lists of documents to segments and packed pairs, without a training pipeline.

Scoring reads every pair once, in order: nothing here shuffles or repeats.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np

from ranker import config
from ranker.batch import PackedBatch
from ranker.data import passages
from ranker.data.packing import (
    Choice,
    Example,
    Layout,
    choose_documents,
    choose_parts,
    choose_trees,
    common_prefix,
    join,
    pack,
)
from ranker.data.records import Document, RankedList
from ranker.data.text import Segment, Tokenizer, words_of

_CACHED_DOCUMENTS = _CACHED_QUERIES = 1 << 17
THREADS = 2  # that read and tokenise
_TEXTS = 256  # documents a call of the tokenizer, or more
_CALLS = 4  # of the tokenizer, ahead of what is packed
AHEAD = 64  # examples a shard that they work ahead of what is packed
WAITING = 8  # shards' worth of tokens that wait, for packing to choose from

Record = TypeVar("Record", covariant=True)


class Indexed(Protocol[Record]):
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
    """Turns the documents of a list into segments; each document is tokenised once.

    Their tokens are int32 arrays.
    """

    def __init__(
        self,
        corpus: Indexed[Document],
        tokenizer: Tokenizer,
        length: int,
        *,
        shared: bool = False,
        tokens: Indexed[np.ndarray] | Mapping[int, np.ndarray] | None = None,
        passages: config.Passages = config.ONE_PASSAGE,
    ):
        """Of documents by their row in the corpus.

        Args:
          corpus: the documents.
          tokenizer: of the model that reads them.
          length: tokens of a text, at most.
          shared: whether what a list's documents begin with is laid once a row, see
            `can_share`.
          tokens: ids of every document, see tokens.py; None: each is tokenised when it
            is first read.
          passages: how documents longer than a text are read, by `parts`.
        """
        self.passages = passages
        self._most = length * passages.most  # tokens of a document that are read
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self.shared, self.tokens = shared, tokens
        self._document = lru_cache(maxsize=_CACHED_DOCUMENTS)(self._hold)
        self._query = lru_cache(maxsize=_CACHED_QUERIES)(self._hold)
        self._tail = np.asarray(tokenizer.tail, np.int32)

    @staticmethod
    def _hold(name: int | str) -> list[np.ndarray]:
        """An empty place for the tokens of a document's row or a query."""
        del name
        return []

    def _documents(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self.tokens is not None:
            return [self.tokens[row][: self._most] for row in rows]
        places = [self._document(row) for row in rows]
        missing = {
            row: place for row, place in zip(rows, places, strict=True) if not place
        }
        if missing:
            found = self.tokenizer.documents([self.corpus[row] for row in missing])
            for place, tokens in zip(missing.values(), found, strict=True):
                # Tokens beyond the length are never seen, so they are not kept either.
                place[:] = [np.asarray(tokens[: self._most], np.int32)]
        return [place[0] for place in places]

    def _queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        places = [self._query(query) for query in queries]
        missing = {
            query: place
            for query, place in zip(queries, places, strict=True)
            if not place
        }
        if missing:
            found = self.tokenizer.queries(list(missing))
            for place, tokens in zip(missing.values(), found, strict=True):
                place[:] = [np.asarray(tokens, np.int32)]
        return [place[0] for place in places]

    def __call__(self, query: str, rows: Sequence[int] | np.ndarray) -> list[Segment]:
        """Segments of the documents in corpus rows `rows`, for one query."""
        return self.many([(query, rows)])[0]

    def many(
        self, lists: Sequence[tuple[str, Sequence[int] | np.ndarray]]
    ) -> list[list[Segment]]:
        """Segments of several queries' documents, which are tokenised in one call.

        The tokenizer works on all cores where a call has some hundred texts. Of a long
        document it is the first part.
        """
        return self._lay(self._read(lists))

    def parts(
        self, lists: Sequence[tuple[str, Sequence[int] | np.ndarray]]
    ) -> list[tuple[list[Segment], list[int]]]:
        """As `many`, all passages: of each list, and how many each document has."""
        read, counts = [], []
        for query, its in self._read(lists):
            room = max(self.length - len(query) - len(self._tail), 1)
            each = [passages.cut_passages(one, room, self.passages) for one in its]
            read.append((query, sum(each, [])))
            counts.append([len(one) for one in each])
        return list(zip(self._lay(read), counts, strict=True))

    def _read(
        self, lists: Sequence[tuple[str, Sequence[int] | np.ndarray]]
    ) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """Ids of each query, and of its documents."""
        rows = [np.asarray(its).tolist() for _, its in lists]
        documents = iter(self._documents([row for its in rows for row in its]))
        queries = self._queries([query for query, _ in lists])
        return [
            (query, [next(documents) for _ in its])
            for query, its in zip(queries, rows, strict=True)
        ]

    def _lay(
        self, lists: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]
    ) -> list[list[Segment]]:
        """As the tokenizer's `segment`, of arrays: all are parts of one array."""
        tokenizer, tail = self.tokenizer, self._tail
        pieces: list[np.ndarray] = []
        ends: list[int] = []
        at = 0
        for query, documents in lists:
            around = len(query) + len(tail)
            room = self.length - around
            if room < 1 and len(documents):  # it says so
                parts = (query.tolist(), documents[0].tolist())
                tokenizer.segment(*parts, self.length)
            for document in documents:
                cut = document[:room]
                pieces += (query, cut, tail)
                at += around + len(cut)
                ends.append(at)
        flat = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        begin, places = 0, iter(ends)
        laid = []
        for query, documents in lists:
            segments = []
            for _, end in zip(documents, places, strict=False):
                score = 0 if tokenizer.words is None else end - begin - 1
                tokens = flat[begin:end]
                segments.append(Segment(tokens, tokenizer.type_ids, len(query), score))
                begin = end
            laid.append(segments)
        return laid


_LONG_PROMPT = 128  # characters of a template's own that are worth longer rows


def can_share(
    model: config.Decoder | config.Encoder, template: config.Template, length: int
) -> tuple[bool, str]:
    """Whether a list's prompt is computed once, and what is to be said where not.

    In a causal model what precedes a document is the same for all documents of a list,
    and for every number that is computed of it. It is laid once a row where it is long.

    Args:
      model: that reads the texts.
      template: of query and document.
      length: tokens of a text, at most.

    Returns:
      Whether, and why not where a user may expect it; else "".
    """
    words = words_of(template)
    if not isinstance(model, config.Decoder) or words is None:
        return False, ""
    if len(words.begin + words.query + words.middle) < _LONG_PROMPT:
        return False, ""
    plain = "each document is computed with a prompt of its own, because "
    if model.rope.scaling == "dynamic":
        return False, f"{plain}rotary positions (dynamic) depend on a text's length"
    if model.local_layers and model.window < length:
        return False, f"{plain}the window, {model.window} tokens, is below {length}"
    return True, ""


_SHARED_ROW = 2048  # tokens of a row that holds trees, at most, beyond one text's


def share(layout: Layout) -> Layout:
    """Fewer, longer rows of as many tokens, so that most trees lie in one row."""
    fits = [
        times
        for times in range(1, layout.rows + 1)
        if not layout.rows % times and times * layout.length <= _SHARED_ROW
    ]
    times = max(fits, default=1)
    return replace(
        layout,
        rows=layout.rows // times,
        length=layout.length * times,
        slots=layout.lists,
        shared=True,
    )


def draw_documents(
    labels: np.ndarray, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Places of at most `size` documents of a list, in random order.

    A list that is longer is sampled uniformly, but keeps one of its best-labelled
    documents: a list without a relevant document teaches a rank loss nothing.
    """
    order = generator.permutation(len(labels))
    chosen = order[:size]
    if len(labels) > size and (top := labels.max()) > labels[chosen].max():
        best = np.flatnonzero(labels == top)
        one = best[generator.integers(len(best))]  # as `choice` does, sooner
        chosen[generator.integers(size)] = one
    return chosen


def choose_any(waiting: Sequence[Example], layout: Layout) -> Choice:
    """Fills a shard's rows, with trees where prompts are shared."""
    if layout.shared:
        return choose_trees(waiting, layout)
    return choose_documents([one.lengths for one in waiting], layout)


def pair_batches(
    lists: Iterable[RankedList], encoder: ListEncoder, *, rows: int, shards: Shards
) -> Iterator[tuple[PackedBatch, np.ndarray]]:
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
      pairs are numbered in the order of `lists`, -1 is padding. Where documents are
      read by passages, each passage is a list, with the number of its pair.
    """
    layout = _pair_layout(encoder, rows=rows, shards=shards)
    pad = encoder.tokenizer.pad
    waiting: _Pairs = {shard: [] for shard in shards.local}
    tokens = dict.fromkeys(shards.local, 0)
    for shard, own, segments in _read_lists(lists, encoder, shards):
        for example in _cut(segments, layout):
            size = len(example.segments)
            waiting[shard].append((own[:size], example))
            own = own[size:]
            tokens[shard] += example.total
        if min(tokens.values()) >= WAITING * layout.tokens:
            yield _pack_pairs(waiting, layout, pad)
            tokens = {
                shard: sum(one.total for _, one in pairs)
                for shard, pairs in waiting.items()
            }
    while any(waiting.values()):
        yield _pack_pairs(waiting, layout, pad)


def _pair_layout(encoder: ListEncoder, *, rows: int, shards: Shards) -> Layout:
    layout = Layout(rows=rows // shards.count, length=encoder.length, size=1)
    return share(layout) if encoder.shared else layout


def _alone(segments: Sequence[Segment], shared: int = 0) -> Example:
    nothing = np.zeros(len(segments), np.float32)
    return Example(segments, nothing, nothing, shared)


def _cut(segments: Sequence[Segment], layout: Layout) -> Iterator[Example]:
    """Pairs of a list: each alone, or together where they share a prefix."""
    size = common_prefix(segments) if layout.shared else 0
    if size:
        yield _alone(segments, size)
    else:
        yield from (_alone([one]) for one in segments)


Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int = 2) -> Iterator[Item]:
    """The same items, of which a thread makes so many while others are used.

    The first are begun at once, not when they are asked for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    made = collections.deque(pool.submit(next, items, None) for _ in range(count))

    def given() -> Iterator[Item]:
        with pool:
            while (found := made.popleft().result()) is not None:
                made.append(pool.submit(next, items, None))
                yield found

    return given()


def no_pairs(
    encoder: ListEncoder, *, rows: int, shards: Shards
) -> tuple[PackedBatch, np.ndarray]:
    """What `pair_batches` yields, of padding alone."""
    layout = _pair_layout(encoder, rows=rows, shards=shards)
    nothing: _Pairs = {shard: [] for shard in shards.local}
    return _pack_pairs(nothing, layout, encoder.tokenizer.pad)


# Of each shard, its pairs, and the number of each of their segments.
_Pairs = dict[int, list[tuple[np.ndarray, Example]]]


def _pack_pairs(
    waiting: _Pairs, layout: Layout, pad: int
) -> tuple[PackedBatch, np.ndarray]:
    """Takes out of `waiting` what fills a batch."""
    parts, numbers = [], np.full((len(waiting), layout.lists), -1, np.int32)
    for place, (shard, pairs) in enumerate(waiting.items()):
        taken, rows, waiting[shard] = _take(pairs, layout)
        found = [number for its, _ in taken for number in its]
        numbers[place, : len(found)] = found
        examples = [one for _, one in taken]
        first = shard * layout.rows
        parts.append(pack(examples, rows, layout, pad=pad, first_row=first))
    return join(parts), numbers.reshape(-1)


_Taken = list[tuple[np.ndarray, Example]]


def _take(pairs: _Taken, layout: Layout) -> tuple[_Taken, list[list[int]], _Taken]:
    """What fills a shard's rows, its rows, and what waits on."""
    examples = [one for _, one in pairs]
    if not layout.shared:
        choice = choose_documents([one.lengths for one in examples], layout)
        gone = set(choice.places)
        taken = [pairs[i] for i in choice.places]
        return taken, choice.rows, [x for i, x in enumerate(pairs) if i not in gone]
    parts = choose_parts(examples, layout)
    taken = [_some(*pairs[one.place], one.members) for one in parts]
    members = {one.place: set(one.members) for one in parts}
    left = []
    for place, (numbers, example) in enumerate(pairs):
        gone = members.get(place, set())
        rest = [i for i in range(len(example.segments)) if i not in gone]
        if rest:
            left.append(_some(numbers, example, rest))
    return taken, [one.rows for one in parts], left


def _some(
    numbers: np.ndarray, example: Example, members: Sequence[int]
) -> tuple[np.ndarray, Example]:
    segments = [example.segments[i] for i in members]
    return numbers[list(members)], _alone(segments, example.shared)


def _encoded(
    encoder: ListEncoder, lists: Sequence[tuple[str, np.ndarray]]
) -> list[tuple[list[Segment], np.ndarray]]:
    """Segments of each list, and which of its documents each is of."""
    if encoder.passages.most > 1:
        return [(one, passages.numbers(n)) for one, n in encoder.parts(lists)]
    return [(one, np.arange(len(one))) for one in encoder.many(lists)]


def _read_lists(
    lists: Iterable[RankedList], encoder: ListEncoder, shards: Shards
) -> Iterator[tuple[int, np.ndarray, list[Segment]]]:
    """(shard, number of each segment's pair, segments) of this process's lists."""
    reading: collections.deque[tuple[list[tuple[int, int]], Future]]
    reading = collections.deque()
    group: list[tuple[int, int, RankedList]] = []  # shard, first pair, list

    def submit() -> None:
        texts = [(x.query, x.documents) for *_, x in group]
        found = pool.submit(_encoded, encoder, texts)
        reading.append(([(shard, number) for shard, number, _ in group], found))
        group.clear()

    def done() -> Iterator[tuple[int, np.ndarray, list[Segment]]]:
        places, found = reading.popleft()
        for (shard, number), (segments, of) in zip(places, found.result(), strict=True):
            yield shard, number + of, segments

    first = texts = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="encode") as pool:
        for index, record in enumerate(lists):
            shard = index % shards.count
            if shard in shards.local:
                group.append((shard, first, record))
                texts += len(record.documents)
            first += len(record.documents)
            if texts >= _TEXTS:
                submit()
                texts = 0
            if len(reading) > _CALLS:
                yield from done()
        if group:
            submit()
        while reading:
            yield from done()
