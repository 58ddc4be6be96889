"""Segments into rows: lists of tokens become one `Batch` of static shape.

Today every segment has a row to itself. A document's row is its list's first row plus
its place in the list, so the rows of a list lie together and never leave their data
shard.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ranker.batch import Batch
from ranker.data.text import Segment


def empty_batch(*, rows: int, length: int, lists: int, size: int) -> Batch:
    """A batch of padding: [rows, length] tokens, [lists, size] documents."""
    leaves: dict[str, Any] = dict(  # numpy's, until they are moved to the devices
        tokens=np.zeros((rows, length), np.int32),
        segments=np.zeros((rows, length), np.int32),
        positions=np.zeros((rows, length), np.int32),
        types=np.zeros((rows, length), np.int32),
        loss_mask=np.zeros((rows, length), bool),
        score_index=np.zeros((lists, size), np.int32),
        labels=np.zeros((lists, size), np.float32),
        targets=np.zeros((lists, size), np.float32),
        where=np.zeros((lists, size), bool),
    )
    return Batch(**leaves)


def _place(batch: Batch, row: int, segment: Segment, pad: int) -> None:
    n = len(segment.tokens)
    batch.tokens[row, :n] = segment.tokens
    batch.tokens[row, n:] = pad
    batch.segments[row, :n] = 1
    batch.positions[row, :n] = np.arange(n)
    batch.types[row, :n] = segment.types
    batch.loss_mask[row, segment.document : n] = True


def pack_texts(segments: Sequence[Segment], *, length: int, pad: int) -> Batch:
    """R texts for language modelling: one a row; no document is scored."""
    batch = empty_batch(rows=len(segments), length=length, lists=len(segments), size=0)
    for row, segment in enumerate(segments):
        _place(batch, row, segment, pad)
    return batch


def pack_lists(
    lists: Sequence[Sequence[Segment]],
    labels: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    size: int,
    length: int,
    pad: int,
    first_row: int = 0,
) -> Batch:
    """B lists of up to `size` documents for ranking: R = B * size rows.

    Args:
      lists: the segments of each list's documents, at most `size`.
      labels: judgements of the same documents, float32.
      targets: teacher scores of the same documents, float32; zeros where there are
      none.
      size: documents a list, padding included.
      length: tokens a row.
      pad: token id of padding.
      first_row: row of the global batch that this process's rows begin at.
    """
    batch = empty_batch(
        rows=len(lists) * size, length=length, lists=len(lists), size=size
    )
    rows = np.arange(len(lists) * size).reshape(len(lists), size)
    # Documents that are padding point at the first token of their own, empty row.
    batch.score_index[...] = (first_row + rows) * length
    for b, segments in enumerate(lists):
        n = len(segments)
        for i, segment in enumerate(segments):
            _place(batch, rows[b, i], segment, pad)
            batch.score_index[b, i] += segment.score
        batch.labels[b, :n] = labels[b]
        batch.targets[b, :n] = targets[b]
        batch.where[b, :n] = True
    return batch
