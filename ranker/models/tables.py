"""Tables: which source tensor holds which parameter of ours, in both directions.

An entry is a source tensor, a path of ours, and the transform between them. `{i}` in a
source is the layer, which we stack in front.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ranker import config

Transformer = config.Decoder | config.Encoder
Index = tuple[slice, ...]  # part of an array, every start and stop given
ReadPart = Callable[[Index], np.ndarray]  # part of a source tensor


# --- tensors ---


@dataclass(frozen=True)
class Transform:
    """Our array of one layer to the source's, and a part of the source's to ours."""

    to_source: Callable[[np.ndarray], np.ndarray]
    from_source: Callable[[ReadPart, Index, tuple[int, ...]], np.ndarray]  # our shape


def _scaled(part: slice, by: int) -> slice:
    return slice(part.start * by, part.stop * by)


def _size(part: slice) -> int:
    return part.stop - part.start


def _read_heads_out(read: ReadPart, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    d, n, h = index
    found = read((_scaled(n, shape[2]), d))  # [n * H, d]
    return found.T.reshape(_size(d), _size(n), shape[2])[:, :, h]


def _read_heads_in(read: ReadPart, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    n, h, d = index
    found = read((d, _scaled(n, shape[1])))  # [d, n * H]
    return found.T.reshape(_size(n), shape[1], _size(d))[:, h]


def _read_flat(read: ReadPart, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    n, h = index
    return read((_scaled(n, shape[1]),)).reshape(_size(n), shape[1])[:, h]


SAME = Transform(lambda x: x, lambda read, index, shape: read(index))
# [in, out] to torch's [out, in].
DENSE = Transform(lambda x: x.T, lambda read, index, shape: read(index[::-1]).T)
# [D, N, H] to [N * H, D].
HEADS_OUT = Transform(lambda x: x.reshape(x.shape[0], -1).T, _read_heads_out)
# [N, H, D] to [D, N * H].
HEADS_IN = Transform(lambda x: x.reshape(-1, x.shape[-1]).T, _read_heads_in)
# [N, H] to [N * H].
FLAT = Transform(lambda x: x.reshape(-1), _read_flat)
# A vector or a scalar with one output in front: [D] to [1, D], [] to [1].
ROW = Transform(
    lambda x: x.reshape((1, *x.shape)),
    lambda read, index, shape: read((slice(0, 1), *index))[0],
)
# Gemma stores the scales of its norms less 1.
LESS_ONE = Transform(lambda x: x - 1, lambda read, index, shape: read(index) + 1)


def skip_rows(count: int) -> Transform:
    """RoBERTa's positions begin after its padding token; the rows before are unused.

    They are written as zeros.
    """
    return Transform(
        lambda x: np.concatenate([np.zeros((count, x.shape[1]), x.dtype), x]),
        lambda read, index, shape: read(
            (slice(index[0].start + count, index[0].stop + count), *index[1:])
        ),
    )


@dataclass(frozen=True)
class Entry:
    """One parameter of ours, and the source tensor that holds it."""

    source: str  # Hugging Face name, `{i}` for the layer
    ours: str  # dotted path in our parameters
    transform: Transform
    shape: tuple[int, ...]  # ours, of one layer
    first: int = 0  # row of the source that this begins at
    rows: int = 0  # rows of the source; 0: this one's alone

    @property
    def stacked(self) -> bool:
        """Whether the source has one tensor for each layer."""
        return "{i}" in self.source

    @functools.cached_property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the source tensor."""
        empty = np.broadcast_to(np.float32(0), self.shape)  # takes no memory
        shape = self.transform.to_source(empty).shape
        return (self.rows, *shape[1:]) if self.rows else shape

    def read(self, read: ReadPart, index: Index) -> np.ndarray:
        """The part `index` of ours, from a source tensor."""

        def shifted(where: Index) -> np.ndarray:
            rows = slice(where[0].start + self.first, where[0].stop + self.first)
            return read((rows, *where[1:]))

        chosen = shifted if self.first else read
        return self.transform.from_source(chosen, index, self.shape)


Table = list[Entry]


class Builder:
    """Makes a table, entry by entry."""

    def __init__(self) -> None:
        self.table: Table = []

    def add(
        self,
        source: str,
        ours: str,
        shape: tuple[int, ...],
        transform: Transform = SAME,
    ) -> None:
        """One tensor."""
        self.table.append(Entry(source, ours, transform, shape))

    def dense(
        self,
        source: str,
        ours: str,
        shape: tuple[int, ...],
        *,
        transform: Transform = DENSE,
        bias: tuple[int, ...] | None = None,
    ) -> None:
        """A weight, and a bias where it has a shape."""
        self.add(f"{source}.weight", ours, shape, transform)
        if bias is not None:
            flat = FLAT if len(bias) == 2 else SAME
            self.add(f"{source}.bias", f"{ours}_bias", bias, flat)

    def fused(
        self,
        source: str,
        parts: list[tuple[str, tuple[int, ...]]],
        transform: Transform = DENSE,
    ) -> None:
        """One source tensor with the rows of several of ours, (path, shape) each."""
        entries = [Entry(source, ours, transform, shape) for ours, shape in parts]
        sizes = [entry.source_shape[0] for entry in entries]
        for place, entry in enumerate(entries):
            first = sum(sizes[:place])
            self.table.append(replace(entry, first=first, rows=sum(sizes)))


class HeadNames(NamedTuple):
    """Source names of a score's dense layers and norm, without .weight or .bias."""

    pooler: str = ""
    norm: str = ""
    dense: str = "score"


def head_table(c: Transformer, names: HeadNames) -> Table:
    """The table of a score: a dense layer, mostly after a pooler."""
    D, made = c.embed_dim, Builder()
    encoder = isinstance(c, config.Encoder)
    if c.head_activation != "none":
        biased = not encoder or (c.bias and c.pooler_bias)
        bias = (D,) if biased else None
        made.dense(names.pooler, "head.pooler", (D, D), bias=bias)
    if isinstance(c, config.Encoder) and c.head_norm:
        made.add(f"{names.norm}.weight", "head.norm", (D,))
    if isinstance(c, config.Decoder) and c.grades:
        made.add(f"{names.dense}.weight", "head.dense", (c.grades, D))
        return made.table
    made.add(f"{names.dense}.weight", "head.dense", (D,), ROW)
    if c.head_bias:
        made.add(f"{names.dense}.bias", "head.bias", (), ROW)
    return made.table
