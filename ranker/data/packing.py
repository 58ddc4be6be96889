"""Segments into rows: lists of texts become one `Batch` of static shape.

A row of T tokens holds several texts, each a segment of its own, so that hardly a token
is padding. What one data shard holds of a micro-batch is filled on its own: it takes
whole lists, and all of a list's documents, so that no score crosses devices before the
loss. How many lists it takes follows from how long they are.

    rows of 12 tokens, lists a (a0 a1 a2) and b (b0 b1):

        a0 a0 a0 a0 a0 a0 a0 b1 b1 b1 b1  .
        a2 a2 a2 a2 a2 a2 b0 b0 b0 a1 a1 a1
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ranker.batch import Batch, Rows
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

    @property
    def lists(self) -> int:
        """Lists, at most."""
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

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each segment."""
        return [len(segment.tokens) for segment in self.segments]


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
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect.bisect_left(left, (lengths[place], -1))
        if found == len(left):
            return None
        size, rows[place] = left.pop(found)
        bisect.insort(left, (size - lengths[place], rows[place]))
    return left, rows


def choose(waiting: Sequence[Sequence[int]], layout: Layout) -> Choice:
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
    for place in sorted(range(count, len(waiting)), key=lambda i: -totals[i]):
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


def empty_batch(layout: Layout, pad: int) -> Batch:
    """A shard of padding: no text, no list; numpy leaves."""
    tokens = (layout.rows, layout.length)
    scores = (layout.lists, layout.size)
    zeros = (np.zeros(tokens, np.int32) for _ in range(3))
    leaves: dict[str, Any] = dict(  # numpy's, until they are moved to the devices
        rows=Rows(np.full(tokens, pad, np.int32), *zeros),  # type: ignore[arg-type]
        loss_mask=np.zeros(tokens, bool),
        score_index=np.zeros(scores, np.int32),
        labels=np.zeros(scores, np.float32),
        targets=np.zeros(scores, np.float32),
        where=np.zeros(scores, bool),
    )
    return Batch(**leaves)


def pack(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    layout: Layout,
    *,
    pad: int,
    first_row: int = 0,
) -> Batch:
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
    used = [0] * layout.rows  # tokens
    count = [0] * layout.rows  # segments
    segments: list[Segment] = []
    starts, numbers = [], []  # of each segment: place of its first token, and its id
    for b, (example, its_rows) in enumerate(zip(examples, rows, strict=True)):
        for i, (segment, row) in enumerate(
            zip(example.segments, its_rows, strict=True)
        ):
            start = row * layout.length + used[row]
            used[row] += len(segment.tokens)
            count[row] += 1
            segments.append(segment)
            starts.append(start)
            numbers.append(count[row])
            if layout.size:
                batch.score_index[b, i] += start + segment.score
        n = len(example.labels)
        batch.labels[b, :n] = example.labels
        batch.targets[b, :n] = example.targets
        batch.where[b, :n] = True
    _lay(batch, segments, starts, numbers)
    return batch


def _lay(
    batch: Batch,
    segments: Sequence[Segment],
    starts: Sequence[int],
    numbers: Sequence[int],
) -> None:
    """Writes all tokens of `segments` at once, each from its place on."""
    if not segments:
        return
    lengths = np.array([len(segment.tokens) for segment in segments])
    total = int(lengths.sum())

    def spread(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """A number a segment, to each of its tokens."""
        return np.repeat(np.asarray(numbers), lengths)

    tokens = itertools.chain.from_iterable(segment.tokens for segment in segments)
    positions = np.arange(total) - spread(np.cumsum(lengths) - lengths)
    document = np.array([segment.document for segment in segments])
    types = np.array([segment.type_ids for segment in segments])
    at = spread(starts) + positions
    for leaf, values in (
        (batch.rows.tokens, np.fromiter(tokens, np.int32, total)),
        (batch.rows.segments, spread(numbers)),
        (batch.rows.positions, positions),
        (
            batch.rows.types,
            np.where(
                positions < spread(document), spread(types[:, 0]), spread(types[:, 1])
            ),
        ),
        # A segment's first token has nothing before it to be predicted from.
        (batch.loss_mask, positions >= spread(np.maximum(document, 1))),
    ):
        leaf.reshape(-1)[at] = values


def join(shards: Sequence[Batch]) -> Batch:
    """Shards behind each other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *shards)
