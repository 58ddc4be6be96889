"""Segments into rows: lists of texts become one `PackedBatch` of static shape.

A row of T tokens holds several texts, each a segment of its own, so that almost no
token is padding. What one data shard holds of a micro-batch is filled on its own: it
takes whole lists, and all of a list's documents, so that no score crosses devices
before the loss. How many lists it takes follows from how long they are.

    rows of 12 tokens, lists a (a0 a1 a2) and b (b0 b1):

        a0 a0 a0 a0 a0 a0 a0 b1 b1 b1 b1  .
        a2 a2 a2 a2 a2 a2 b0 b0 b0 a1 a1 a1

A causal model computes what all documents of a list begin with once a row: a list is a
tree then, its prefix p laid before those of its documents that are in the row.

        pa pa a0 a0 a0 a1 a1 a2 pb b0 b0  .
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ranker.batch import Impressions, PackedBatch, Rows
from ranker.data.passages import numbers
from ranker.data.text import Segment

# Documents shorter than this, on average, leave rows unfilled. It bounds how many lists
# a batch has room for; one that is empty costs a few numbers, not a row.
_SHORTEST = 8


@dataclass(frozen=True)
class Layout:
    """What one data shard holds of a micro-batch, the same throughout a run."""

    rows: int  # rows
    length: int  # tokens a row
    size: int  # documents a list, at most; 0: texts of which none is scored
    shared: bool = False  # what a list's documents begin with is laid once a row
    slots: int = 0  # lists, at most; 0: as many as the rows have tokens for
    impressions: bool = False  # some lists are of clicks: positions and weights
    passages: int = 1  # segments of a document, at most

    @property
    def lists(self) -> int:
        """Lists, at most."""
        if self.slots:
            return self.slots
        return max(self.rows, self.tokens // _SHORTEST) // max(self.size, 1)

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return self.rows * self.length


@dataclass(frozen=True)
class Example:
    """What is never split: a list of documents to rank, or a text."""

    segments: Sequence[Segment]
    labels: np.ndarray  # float32, of each segment; empty for a text
    targets: np.ndarray  # float32, of each segment; empty for a text
    shared: int = 0  # tokens that all segments begin with, to be laid once a row
    positions: np.ndarray | None = None  # int32, of each document; None: 0
    weights: np.ndarray | None = None  # float32, of each document; None: 1
    # Segments of each document, one after the other; None: one each.
    counts: Sequence[int] | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each segment."""
        return [len(segment.tokens) for segment in self.segments]

    @cached_property
    def total(self) -> int:
        """Tokens in a row that holds them all."""
        return sum(self.lengths) - self.shared * (len(self.lengths) - 1)


def text_example(segment: Segment) -> Example:
    """A text of which no document is scored."""
    nothing = np.zeros(0, np.float32)
    return Example([segment], nothing, nothing)


@dataclass(frozen=True)
class Choice:
    """Which of the waiting examples fill a shard's rows."""

    places: list[int]  # in the waiting ones, rising
    rows: list[list[int]]  # of each segment of each chosen example


_Free = list[tuple[int, int]]  # (tokens left, row), sorted


def _best_fit(free: _Free, lengths: Sequence[int]) -> tuple[_Free, list[int]] | None:
    """Each length into the row that it leaves least of, the longest first.

    Returns:
      What is left, and the row of each length; None when one does not fit.
    """
    left = free.copy()
    rows = [0] * len(lengths)
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        found = bisect.bisect_left(left, (lengths[place],))
        if found == len(left):
            return None
        size, rows[place] = left.pop(found)
        bisect.insort(left, (size - lengths[place], rows[place]))
    return left, rows


def choose_documents(waiting: Sequence[Sequence[int]], layout: Layout) -> Choice:
    """Fills a shard's rows: as many of the first as fit together, then what fits still.

    The first always goes, so none waits for ever.

    Args:
      waiting: the lengths of each example's segments, in the order they came in.
      layout: of the shard; has a row for each document of a list.
    """
    totals = [sum(lengths) for lengths in waiting]
    empty = [(layout.length, row) for row in range(layout.rows)]
    count = int(np.searchsorted(np.cumsum(totals), layout.tokens, side="right"))
    count = min(count, layout.lists, len(waiting))
    while True:
        # All their segments at once, the longest first: that fills best.
        flat = [length for lengths in waiting[:count] for length in lengths]
        found = _best_fit(empty, flat)
        if found is not None:
            break
        count -= 1
    free, flat_rows = found
    places, rows, at = list(range(count)), [], 0
    for lengths in waiting[:count]:
        rows.append(flat_rows[at : at + len(lengths)])
        at += len(lengths)
    room = sum(size for size, _ in free)
    further = range(count, len(waiting))
    for place in sorted(further, key=totals.__getitem__, reverse=True):
        if len(places) == layout.lists:
            break
        if totals[place] > room:
            continue
        found = _best_fit(free, waiting[place])
        if found is not None:
            free = found[0]
            places.append(place)
            rows.append(found[1])
            room -= totals[place]
    order = sorted(range(len(places)), key=places.__getitem__)
    return Choice([places[i] for i in order], [rows[i] for i in order])


def common_prefix(segments: Sequence[Segment]) -> int:
    """Tokens before the document, where they are the same for two segments or more.

    0 where a template puts the document first, or a query was cut for a document.
    """
    if len(segments) < 2:
        return 0
    size = segments[0].document
    begin = segments[0].tokens[:size]
    same = all(
        one.document == size and np.array_equal(one.tokens[:size], begin)
        for one in segments
    )
    return size if same else 0


def choose_trees(waiting: Sequence[Example], layout: Layout) -> Choice:
    """As `choose_documents`, for lists whose documents share a prefix.

    The first lists are laid one after the other; one that does not fit into what is
    left of a row continues in the next, after its prefix again. Then what is left of
    the rows takes lists that fit as a whole.
    """
    free = [layout.length] * layout.rows
    places, rows, slots = [], [], layout.lists
    row, behind = 0, []
    for place, example in enumerate(waiting):
        found = _unroll(example, free, row)
        wanted = _slots(example, layout)
        if found is None or wanted > slots:
            behind.append(place)
            if not places:
                raise AssertionError("a list does not fit into an empty shard")
            break
        free, row, its_rows = found
        places.append(place)
        rows.append(its_rows)
        slots -= wanted
    behind += range(len(places) + len(behind), len(waiting))
    room = sorted((size, row) for row, size in enumerate(free))
    for place in sorted(behind, key=lambda i: waiting[i].total, reverse=True):
        example = waiting[place]
        found = bisect.bisect_left(room, (example.total,))
        wanted = _slots(example, layout)
        if found < len(room) and wanted <= slots:
            size, row = room.pop(found)
            bisect.insort(room, (size - example.total, row))
            places.append(place)
            rows.append([row] * len(example.segments))
            slots -= wanted
    order = sorted(range(len(places)), key=places.__getitem__)
    return Choice([places[i] for i in order], [rows[i] for i in order])


@dataclass(frozen=True)
class Part:
    """Some documents of an example, and their rows."""

    place: int  # of the example among those that wait
    members: list[int]  # its segments, in any order
    rows: list[int]  # of each


def choose_parts(waiting: Sequence[Example], layout: Layout) -> list[Part]:
    """As `choose_trees`, for pairs to be scored, which need not stay together.

    Each list is laid into what the ones before leave of the rows, its longest documents
    first, behind its prefix in each row that it comes to; what does not fit waits. So
    rows are full, and a prefix is repeated about once a row.
    """
    free, slots = [layout.length] * layout.rows, layout.lists
    parts: list[Part] = []
    for place, example in enumerate(waiting):
        if not slots or max(free) <= example.shared:
            break
        lengths = example.lengths
        left = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        part = Part(place, [], [])
        for row in range(layout.rows):
            room, behind = free[row] - example.shared, []
            for i in left:
                size = lengths[i] - example.shared
                if size <= room and slots:
                    room, slots = room - size, slots - 1
                    part.members.append(i)
                    part.rows.append(row)
                else:
                    behind.append(i)
            if len(behind) < len(left):
                free[row], left = room, behind
        if part.members:
            parts.append(part)
    return parts


def _slots(example: Example, layout: Layout) -> int:
    """How many of `layout.lists` an example takes: pairs are lists of one document."""
    alone = layout.size == 1 and example.counts is None
    return len(example.segments) if alone else 1


def _unroll(
    example: Example, free: Sequence[int], row: int
) -> tuple[list[int], int, list[int]] | None:
    """Lays a list into rows from `row` on: the longest documents that fit, first.

    Returns:
      What is left of the rows, the row that it ends in, and the row of each document;
      None when the rows are not enough.
    """
    left, lengths = list(free), example.lengths
    rows = [0] * len(lengths)
    waiting = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    while True:
        room, behind = left[row] - example.shared, []
        for i in waiting:
            size = lengths[i] - example.shared
            if size <= room:
                room -= size
                rows[i] = row
            else:
                behind.append(i)
        if len(behind) < len(waiting):
            left[row] = room
        if not behind:
            return left, row, rows
        waiting, row = behind, row + 1
        if row == len(left):
            return None


def empty_batch(layout: Layout, pad: int) -> PackedBatch:
    """A shard of padding: no text, no list; numpy leaves."""
    tokens = (layout.rows, layout.length)
    scores = (layout.lists, layout.size)
    many = layout.passages > 1
    leaves: dict[str, Any] = dict(  # numpy's, until they are moved to the devices
        rows=Rows(
            np.full(tokens, pad, np.int32),  # type: ignore[arg-type]
            *(np.zeros(tokens, np.int32) for _ in range(3)),  # type: ignore[arg-type]
            prefixes=np.zeros(tokens, np.int32) if layout.shared else None,  # type: ignore[arg-type]
        ),
        loss_mask=np.zeros(tokens, bool),
        score_index=np.zeros((layout.lists, layout.size * layout.passages), np.int32),
        labels=np.zeros(scores, np.float32),
        targets=np.zeros(scores, np.float32),
        where=np.zeros(scores, bool),
        passages=np.zeros((*scores, layout.passages), bool) if many else None,
    )
    if layout.impressions:
        leaves["impressions"] = Impressions(
            np.zeros(scores, np.int32),  # type: ignore[arg-type]
            np.ones(scores, np.float32),  # type: ignore[arg-type]
        )
    return PackedBatch(**leaves)


def pack(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    layout: Layout,
    *,
    pad: int,
    first_row: int = 0,
) -> PackedBatch:
    """The examples in their rows, as one shard of a batch.

    Args:
      examples: at most `layout.lists`.
      rows: of each segment of each example, within the shard.
      layout: of the shard.
      pad: token id of padding.
      first_row: row of the global batch that the shard begins at.
    """
    batch = empty_batch(layout, pad)
    # Documents that are padding point at the shard's first token; nobody reads them.
    batch.score_index[...] = first_row * layout.length
    pieces = _Pieces(layout)
    slot = 0
    for example, its_rows in zip(examples, rows, strict=True):
        shared = example.shared if layout.shared else 0
        prefixes: dict[int, int] = {}  # of each row, the number of the list's prefix
        places = []
        for segment, row in zip(example.segments, its_rows, strict=True):
            if shared and row not in prefixes:
                pieces.add(segment, row, 0, shared)
                prefixes[row] = pieces.count[row]
            start = pieces.add(segment, row, shared, None, prefixes.get(row, 0))
            places.append(start + segment.score - shared)
        if layout.size:
            n = len(example.labels)
            # Pairs are lists of one document each.
            alone = layout.size == 1 and example.counts is None
            at = np.s_[slot : slot + n, 0] if alone else np.s_[slot, :n]
            if example.counts is None:
                batch.score_index[at] += np.asarray(places, np.int32)
            else:
                _lay_passages(batch, slot, example.counts, places)
            slot += _slots(example, layout)
            batch.labels[at], batch.targets[at] = example.labels, example.targets
            batch.where[at] = True
            if batch.impressions is not None and example.positions is not None:
                batch.impressions.positions[at] = example.positions
            if batch.impressions is not None and example.weights is not None:
                batch.impressions.weights[at] = example.weights
    pieces.lay(batch)
    return batch


def _lay_passages(
    batch: PackedBatch, slot: int, counts: Sequence[int], places: Sequence[int]
) -> None:
    """Writes where a list is scored whose documents have several segments each."""
    assert batch.passages is not None
    documents = numbers(counts)
    within = np.concatenate([np.arange(one) for one in counts])
    at = slot, documents * batch.passages.shape[-1] + within
    batch.score_index[at] += np.asarray(places, np.int32)  # type: ignore[index]
    batch.passages[slot, documents, within] = True  # type: ignore[index]


class _Pieces:
    """Parts of segments and their places in the rows of a shard, in the order added."""

    def __init__(self, layout: Layout):
        self.length = layout.length
        self.used = [0] * layout.rows  # tokens
        self.count = [0] * layout.rows  # segments
        self.tokens: list[Sequence[int] | np.ndarray] = []
        # Of each piece: length, place of its first token, number of its segment and of
        # its prefix, position of its first token, and of the document's; token types.
        self.facts: list[tuple[int, ...]] = []

    def add(
        self, segment: Segment, row: int, begin: int, end: int | None, prefix: int = 0
    ) -> int:
        """Puts a segment's tokens from `begin` to `end` after others of the row."""
        tokens = segment.tokens[begin:end] if begin or end else segment.tokens
        start = row * self.length + self.used[row]
        self.used[row] += len(tokens)
        self.count[row] += 1
        self.tokens.append(tokens)
        self.facts.append(
            (
                len(tokens),
                start,
                self.count[row],
                prefix,
                begin,
                segment.document,
                *segment.type_ids,
            )
        )
        return start

    def lay(self, batch: PackedBatch) -> None:
        """Writes all tokens at once, each piece from its place on."""
        if not self.tokens:
            return
        facts = np.array(self.facts, np.int32)
        lengths = facts[:, 0]
        within = np.arange(lengths.sum(), dtype=np.int32) - np.repeat(
            np.cumsum(lengths) - lengths, lengths
        )
        start, number, prefix, begin, document, first, second = (
            np.repeat(column, lengths) for column in facts.T[1:]
        )
        at, positions = start + within, begin + within
        rows = batch.rows
        leaves = [
            (rows.tokens, np.concatenate([np.asarray(x) for x in self.tokens])),
            (rows.segments, number),
            (rows.positions, positions),
            (rows.types, np.where(positions < document, first, second)),
            # A segment's first token has nothing before it to be predicted from.
            (batch.loss_mask, positions >= np.maximum(document, 1)),
        ]
        if rows.prefixes is not None:
            leaves.append((rows.prefixes, prefix))
        for leaf, values in leaves:
            leaf.reshape(-1)[at] = values  # type: ignore[index]


def join(shards: Sequence[PackedBatch]) -> PackedBatch:
    """Shards one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *shards)
