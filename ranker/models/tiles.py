"""Attention on a TPU, tile by tile: what packed rows leave empty is not computed.

A tile is a block of queries by a block of keys. Those in which some query sees some key
are listed, of all rows one behind the other, and the kernel's grid is as long as the
list: its cost follows the lengths of the texts, not of the rows. Where texts share a
prefix, the tiles of that prefix are on the list too.

The softmax is taken piece by piece (Dao et al., 2022, arXiv 2205.14135), and so are the
gradients; the backward pass computes the logits anew, once for the queries and once for
keys and values, as splash does.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from ranker import config
from ranker.models.masks import Rule, reach

LANES, _SUBLANES = 128, 8  # of the TPU's vectors
_BLOCK = 512  # tokens a side of a tile, at most
_MOST = 1 << 17  # tiles whose list the TPU's scalar memory holds
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))  # x y^T
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))  # x y
_KERNEL = "tiles"


@dataclass(frozen=True)
class _Shape:
    """What is static of a call."""

    rule: Rule
    rows: int
    length: int  # tokens a row
    heads: int
    keys: int  # heads of keys
    width: int  # of a head
    name: str  # of what is kept for the backward pass
    interpret: bool

    @property
    def block(self) -> int:
        """Tokens a side of a tile."""
        return block_of(self.length)

    @property
    def blocks(self) -> int:
        """Blocks a row."""
        return self.length // self.block

    @property
    def most(self) -> int:
        """Tiles that can be on the list: those of rows that are one text."""
        return self.rows * count_tiles(self.length, self.length, self.rule)


def block_of(length: int) -> int:
    """Tokens a side of the tiles of rows of `length` tokens, a multiple of 128."""
    return max(b for b in range(LANES, _BLOCK + 1, LANES) if length % b == 0)


def count_tiles(length: int, text: int, rule: Rule, begin: int = 0) -> int:
    """Tiles of a row of `length` tokens that holds texts of `text` tokens each.

    The first ends at `begin`, or where that is 0 at `text`.
    """
    block = block_of(length)
    far = rule.window - 1 if rule.causal else rule.window
    count = 0
    for i in range(length // block):
        start, stop = i * block - begin, (i + 1) * block - begin  # of the queries
        first = max(start // text * text + begin, 0) // block
        end = -(-(-(-stop // text) * text + begin) // block)
        last = i if rule.causal else min(end, length // block) - 1
        if rule.window:  # as far as a block's edge sees
            near = (far - 1) // block + 1 if far > 0 else 0
            first, last = max(first, i - near), min(last, i + near)
        count += last - first + 1
    return count


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    prefixes: Int[Array, "R T"] | None = None,
    name: str = "",
    interpret: bool = False,
) -> Float[Array, "R T N H"]:
    """Attention within segments on one TPU; padding sees some padding.

    Args:
      q: queries; T is a multiple of 128.
      k: keys.
      v: values.
      segments: 0: padding, at the end of a row; 1, 2, ...: contiguous and rising.
      rule: what is computed, its scale given.
      prefixes: see `make_mask`; 0: none.
      name: of what the backward pass reads of the forward pass, see `checkpoint_name`.
      interpret: runs the kernels' programs on any platform, slowly.

    Raises:
      ConfigError: for more tiles than can be listed.
    """
    R, T, N, H = q.shape
    shape = _Shape(rule, R, T, N, k.shape[2], H, name, interpret)
    if shape.most > _MOST:
        raise config.ConfigError(
            f"{R} rows of {T} tokens on a device: attention may take {shape.most:,} "
            f"tiles of {shape.block} by {shape.block} tokens, and the kernel lists "
            f"{_MOST:,} at most; put fewer rows on a device (batch.size, "
            "batch.accumulate, rows)"
        )
    ids = [segments]
    if prefixes is not None:
        ids.append(jnp.where(prefixes > 0, prefixes, -1))  # -1: no key has it
    seen = reach(segments, rule, shape.block, prefixes)
    # The kernels take heads in front, and do not scale.
    scaled = q * jnp.asarray(rule.scale, q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
    out: Any = _attend(shape, q, k, v, jnp.stack(ids), _lists(shape, seen))
    return jnp.swapaxes(out, 1, 2)


Lists = tuple[tuple[Array, Array], tuple[Array, Array]]  # by queries, and by keys


def _lists(shape: _Shape, seen: Bool[Array, "R I J"]) -> Lists:
    """The tiles, by their blocks of queries and by their blocks of keys.

    Each is (list, count). A tile is the number (r * I + i) * J + j; the list ends with
    -1. That by keys has j in front of i.
    """

    def listed(seen: Bool[Array, "R I J"]) -> tuple[Array, Array]:
        flat = seen.reshape(-1)
        places = jnp.nonzero(flat, size=shape.most + 1, fill_value=-1)[0]
        return places.astype(jnp.int32), jnp.sum(flat, dtype=jnp.int32)

    return listed(seen), listed(jnp.swapaxes(seen, 1, 2))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape: _Shape, q, k, v, ids, lists):
    return _forward(shape, q, k, v, ids, lists)[0]


def _forward(shape: _Shape, q, k, v, ids, lists):
    B, H = shape.block, shape.width
    places, count = lists[0]
    by_queries = _Specs(shape, lambda n, t, at: (n, t))
    out, totals = _call(
        shape,
        _forward_kernel,
        "forward",
        grid=(shape.heads, count),
        in_specs=[
            by_queries.query(),
            by_queries.key(),
            by_queries.key(),
            by_queries.ids_down(len(ids), own=True),
            by_queries.ids_along(own=False),
        ],
        out_specs=[by_queries.query(), by_queries.number()],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((*q.shape[:2], 1, shape.length), jnp.float32),
        ],
        scratch=[(B, LANES), (B, LANES), (B, H)],
    )(places, q, k, v, _down(ids), _along(ids[:1]))
    if shape.name:
        out, totals = (checkpoint_name(x, shape.name) for x in (out, totals))
    return out, (q, k, v, ids, lists, out, totals)


def _backward(shape: _Shape, saved, slope):
    q, k, v, ids, lists, out, totals = saved
    B, H, G = shape.block, shape.width, shape.heads // shape.keys
    # What a row of weights gives in all, as in `blockwise`.
    given = jnp.sum(out.astype(jnp.float32) * slope.astype(jnp.float32), axis=-1)
    given = given[:, :, None]  # [R, N, 1, T]
    slope = slope.astype(v.dtype)
    places, count = lists[0]
    specs = _Specs(shape, lambda n, t, at: (n, t))
    d_q = _call(
        shape,
        _query_kernel,
        "queries",
        grid=(shape.heads, count),
        in_specs=[
            specs.query(),
            specs.key(),
            specs.key(),
            specs.ids_down(len(ids), own=True),
            specs.ids_along(own=False),
            specs.number(),
            specs.query(),
            specs.number(),
        ],
        out_specs=specs.query(),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch=[(B, H)],
    )(places, q, k, v, _down(ids), _along(ids[:1]), totals, slope, given)
    places, count = lists[1]
    # Query heads of a key head are innermost: their sums stay where they are.
    specs = _Specs(shape, lambda n, t, g, at: (n * G + g, t), flipped=True)
    d_k, d_v = _call(
        shape,
        _key_kernel,
        "keys",
        grid=(shape.keys, count, G),
        in_specs=[
            specs.query(),
            specs.key(),
            specs.key(),
            specs.ids_along(len(ids), own=True),
            specs.ids_down(own=False),
            specs.number(),
            specs.query(),
            specs.number(),
        ],
        out_specs=[specs.key(), specs.key()],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        scratch=[(B, H), (B, H)],
    )(places, q, k, v, _along(ids), _down(ids[:1]), totals, slope, given)
    nothing = jax.tree.map(lambda _: None, lists)
    return d_q, d_k, d_v, None, nothing


_attend.defvjp(_forward, _backward)


def _down(ids: Int[Array, "P R T"]) -> Int[Array, "P R T 128"]:
    """Ids of tokens that are a tile's rows, repeated along the vectors' lanes."""
    return jnp.broadcast_to(ids[..., None], (*ids.shape, LANES))


def _along(ids: Int[Array, "P R T"]) -> Int[Array, "P R 8 T"]:
    """Ids of tokens that are a tile's columns, repeated down the vectors' sublanes."""
    P, R, T = ids.shape
    return jnp.broadcast_to(ids[:, :, None], (P, R, _SUBLANES, T))


class _Specs:
    """Which block of each array a step of the grid reads or writes.

    Args:
      shape: of the call.
      step: the head of queries and the place on the list, of a step's indices.
      flipped: whether the list is that by keys.
    """

    def __init__(self, shape: _Shape, step: Callable, *, flipped: bool = False):
        self.shape, self.step, self.flipped = shape, step, flipped

    def _spec(self, block: tuple[int | None, ...], index: Callable) -> pl.BlockSpec:
        def found(*indices: Any) -> tuple[Any, ...]:
            head, place = self.step(*indices)
            r, i, j = _tile(self.shape, indices[-1], place, self.flipped)
            return index(head, r, i, j)

        return pl.BlockSpec(block, found)

    def query(self) -> pl.BlockSpec:
        block = (None, None, self.shape.block, self.shape.width)
        return self._spec(block, lambda n, r, i, j: (r, n, i, 0))

    def key(self) -> pl.BlockSpec:
        block = (None, None, self.shape.block, self.shape.width)
        group = self.shape.heads // self.shape.keys
        return self._spec(block, lambda n, r, i, j: (r, _div(n, group), j, 0))

    def number(self) -> pl.BlockSpec:
        """One a query."""
        block = (None, None, 1, self.shape.block)
        return self._spec(block, lambda n, r, i, j: (r, n, 0, i))

    def ids_down(self, count: int = 1, *, own: bool) -> pl.BlockSpec:
        """Ids down a tile: the queries' `own`, or the keys'."""
        block = (count, None, self.shape.block, LANES)
        return self._spec(block, lambda n, r, i, j: (0, r, i if own else j, 0))

    def ids_along(self, count: int = 1, *, own: bool) -> pl.BlockSpec:
        """Ids along a tile: the queries' `own`, or the keys'."""
        block = (count, None, _SUBLANES, self.shape.block)
        return self._spec(block, lambda n, r, i, j: (0, r, 0, i if own else j))


def _div(x: Any, y: int) -> Any:
    return x if y == 1 else jax.lax.div(x, y)


def _tile(shape: _Shape, places: Any, place: Any, flipped: bool = False):
    """Row, block of queries and block of keys of an entry of the list."""
    number, blocks = places[place], shape.blocks
    outer = _div(number, blocks)
    inner = number - outer * blocks
    row = _div(outer, blocks)
    outer = outer - row * blocks
    return (row, inner, outer) if flipped else (row, outer, inner)


def _ends(shape: _Shape, places: Any, place: Any) -> tuple[Any, Any]:
    """Whether a tile is the first, and the last, of its sum."""
    here = _div(places[place], shape.blocks)
    before = _div(places[jnp.maximum(place - 1, 0)], shape.blocks)
    after, behind = places[place + 1], _div(places[place + 1], shape.blocks)
    return (place == 0) | (before != here), (after < 0) | (behind != here)


def _call(
    shape: _Shape,
    kernel: Callable,
    phase: str,
    *,
    grid: tuple[Any, ...],
    scratch: list[tuple[int, int]],
    in_specs: Any,
    out_specs: Any,
    out_shape: Any,
) -> Callable:
    semantics: Any = ("parallel", *("arbitrary" for _ in grid[1:]))
    facts = {**asdict(shape.rule), "rows": shape.rows, "length": shape.length}
    return pl.pallas_call(
        partial(kernel, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(one, jnp.float32) for one in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=shape.interpret,
        name=f"{_KERNEL}_{phase}",
        metadata={_KERNEL: json.dumps(facts)},
    )


def steps(metadata: Mapping[str, str] | None, text: int = 0) -> float | None:
    """How many tiles a call's list has, on average, where texts are of `text` tokens.

    Args:
      metadata: of a call of Pallas.
      text: tokens a text; 0: as many as a row.

    Returns:
      The mean number; None for a kernel that is not of this module.
    """
    if not metadata or _KERNEL not in metadata:
        return None
    facts = json.loads(metadata[_KERNEL])
    rows, length = facts.pop("rows"), facts.pop("length")
    rule = Rule(**facts)
    if not 0 < text < length:
        return rows * count_tiles(length, length, rule)
    # Texts end anywhere.
    begins = range(0, text, -(-text // 16))
    counts = [count_tiles(length, text, rule, begin) for begin in begins]
    return rows * statistics.mean(counts)


def _logits(shape: _Shape, x: Any, y: Any, tile: Any, ids: tuple, queries: int):
    """Capped and masked logits of a tile, and as they were before; float32.

    Args:
      shape: of the call.
      x: down the tile, [B, H].
      y: along the tile, [B, H].
      tile: its row, block of queries and block of keys.
      ids: references to those down and along the tile.
      queries: 0 where the queries are down the tile, 1 where they are along.
    """
    B, rule = shape.block, shape.rule
    raw = jax.lax.dot_general(x, y, _ROWS_BY_ROWS, preferred_element_type=jnp.float32)
    logits = rule.cap * jnp.tanh(raw / rule.cap) if rule.cap else raw
    down, along = ids

    def same(own: int) -> Any:
        """Whether keys are of the queries' text, or of its prefix."""
        rows = jnp.tile(down[own if queries == 0 else 0], (1, B // LANES))
        return rows == along[own if queries == 1 else 0, :1]

    mask = same(0)
    if max(down.shape[0], along.shape[0]) > 1:
        mask = mask | same(1)
    if rule.causal or rule.window:
        i, j = tile[1:]
        place = jax.lax.broadcasted_iota(jnp.int32, (B, B), queries)
        back = place - jax.lax.broadcasted_iota(jnp.int32, (B, B), 1 - queries)
        back = back + (i - j) * B
        if rule.causal:
            mask = mask & (back >= 0)
        if rule.window and rule.causal:
            mask = mask & (back < rule.window)
        elif rule.window:
            mask = mask & (jnp.abs(back) <= rule.window)
    return jnp.where(mask, logits, _LOWEST), raw


def _forward_kernel(
    shape, places, q, k, v, down, along, out, totals, highest, sums, done
):
    place = pl.program_id(1)
    first, last = _ends(shape, places, place)
    B, H = shape.block, shape.width

    @pl.when(first)
    def begin():
        highest[...] = jnp.full_like(highest, _LOWEST)
        sums[...] = jnp.zeros_like(sums)
        done[...] = jnp.zeros_like(done)

    tile = _tile(shape, places, place)
    logits, _raw = _logits(shape, q[...], k[...], tile, (down, along), 0)
    before = highest[...]
    top = jnp.maximum(before, jnp.max(logits, axis=1)[:, None])  # [B, 128]
    weights = jnp.exp(logits - jnp.tile(top, (1, B // LANES)))
    old = jnp.exp(before - top)
    part = jax.lax.broadcast_in_dim(jnp.sum(weights, axis=1), top.shape, (0,))
    sums[...] = old * sums[...] + part
    highest[...] = top
    y = jax.lax.dot_general(
        weights.astype(v.dtype),
        v[...],
        _ROWS_BY_COLUMNS,
        preferred_element_type=jnp.float32,
    )
    done[...] = _wide(old, H) * done[...] + y

    @pl.when(last)
    def end():
        out[...] = (done[...] * _wide(1.0 / sums[...], H)).astype(out.dtype)
        total = highest[...] + jnp.log(sums[...])
        totals[...] = jnp.transpose(total)[:1]


def _wide(x: Float[Array, "B 128"], width: int) -> Float[Array, "B H"]:
    """A number a row, repeated for each of a head's features."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def _weights(shape, logits, raw, total, grad, given):
    """Weights of a tile and the gradient of its logits, from that of the weights."""
    weights = jnp.exp(logits - total)
    slope = (grad - given) * weights
    if shape.rule.cap:
        slope = slope * (1 - jnp.square(jnp.tanh(raw / shape.rule.cap)))
    return weights, slope


def _query_kernel(shape, places, q, k, v, down, along, totals, slope, given, d_q, done):
    place = pl.program_id(1)
    first, last = _ends(shape, places, place)

    @pl.when(first)
    def begin():
        done[...] = jnp.zeros_like(done)

    tile = _tile(shape, places, place)
    logits, raw = _logits(shape, q[...], k[...], tile, (down, along), 0)
    product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    grad = product(slope[...], v[...], _ROWS_BY_ROWS)
    total, sums = (jnp.expand_dims(x[0], -1) for x in (totals, given))  # [B, 1]
    _weight, d_logits = _weights(shape, logits, raw, total, grad, sums)
    done[...] += product(d_logits.astype(k.dtype), k[...], _ROWS_BY_COLUMNS)

    @pl.when(last)
    def end():
        d_q[...] = done[...].astype(d_q.dtype)


def _key_kernel(
    shape, places, q, k, v, along, down, totals, slope, given, d_k, d_v, keys, values
):
    place, head = pl.program_id(1), pl.program_id(2)
    first, last = _ends(shape, places, place)

    @pl.when(first & (head == 0))
    def begin():
        keys[...] = jnp.zeros_like(keys)
        values[...] = jnp.zeros_like(values)

    tile = _tile(shape, places, place, flipped=True)
    # Keys are down these tiles.
    logits, raw = _logits(shape, k[...], q[...], tile, (down, along), 1)
    product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    grad = product(v[...], slope[...], _ROWS_BY_ROWS)
    weights, d_logits = _weights(
        shape, logits, raw, totals[...], grad, given[...]
    )  # [B, B]
    values[...] += product(weights.astype(v.dtype), slope[...], _ROWS_BY_COLUMNS)
    keys[...] += product(d_logits.astype(q.dtype), q[...], _ROWS_BY_COLUMNS)

    @pl.when(last & (head == shape.heads // shape.keys - 1))
    def end():
        d_k[...] = keys[...].astype(d_k.dtype)
        d_v[...] = values[...].astype(d_v.dtype)
