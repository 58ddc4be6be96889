"""Attention on a CPU, block by block: what packed rows leave empty is not computed.

A block of queries sees the blocks of keys that its segments reach, and nothing else is
multiplied, so the cost follows the lengths of the texts, not of the rows. Where texts
share a prefix, its blocks are a second range of keys. Logits of a block stay in the
cache; the backward pass makes them anew. XLA compiles a branch for each number of key
blocks up to `_AT_ONCE`, and loops pick one at each step, with static shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.models.masks import Rule, reach, reach_prefixes

BLOCK = 64  # tokens
_AT_ONCE = 8  # key blocks that are multiplied at a time, at most
_LOWEST = float(jnp.finfo(jnp.float32).min)


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    prefixes: Int[Array, "R T"] | None = None,
) -> Float[Array, "R T N H"]:
    """Attention within segments; T is a multiple of `BLOCK`.

    Args:
      q: queries.
      k: keys.
      v: values.
      segments: 0: padding, at the end of a row; 1, 2, ...: contiguous and rising.
      rule: what is computed, its scale given; its `cap` must be 0.
      prefixes: see `make_mask`; 0: none.
    """
    assert not rule.cap, rule
    ranges = [_range(reach(segments, rule, BLOCK))]
    ids = [segments]
    if prefixes is not None:
        ranges.append(_range(reach_prefixes(segments, prefixes, BLOCK)))
        ids.append(jnp.where(prefixes > 0, prefixes, -1))
    first, count = (jnp.stack(x) for x in zip(*ranges, strict=True))
    return _attend(rule, q, k, v, segments, jnp.stack(ids), first, count)


Ranges = tuple[Int[Array, "R I"], Int[Array, "R I"]]  # first key block, and how many


def _range(meet: Bool[Array, "R I J"]) -> Ranges:
    """From the first to the last of the blocks that are seen; 0 blocks: none is."""
    first = jnp.argmax(meet, axis=-1)
    last = meet.shape[-1] - jnp.argmax(meet[:, :, ::-1], axis=-1)
    return first, jnp.where(jnp.any(meet, axis=-1), last - first, 0)


def _heads(x: Float[Array, "T N H"], K: int) -> Float[Array, "K G T H"]:
    T, N, H = x.shape
    return jnp.transpose(x.reshape(T, K, N // K, H), (1, 2, 0, 3))


def _tokens(blocks: Float[Array, "I K Q H"]) -> Float[Array, "T N H"]:
    """Blocks of queries, each [K, G * BLOCK, H], back into a row."""
    num_blocks, K, Q, H = blocks.shape
    x = blocks.reshape(num_blocks, K, Q // BLOCK, BLOCK, H)
    x = jnp.transpose(x, (0, 3, 1, 2, 4))
    return x.reshape(num_blocks * BLOCK, K * (Q // BLOCK), H)


def _cut_queries(x: Float[Array, "K G T H"], i: Array) -> Float[Array, "K Q H"]:
    K, G, _, H = x.shape
    cut = jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=2)
    return cut.reshape(K, G * BLOCK, H)


def _cut_keys(x: Float[Array, "K T H"], first: Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, first * BLOCK, count * BLOCK, axis=1)


def _mask(
    rule: Rule,
    mine: Int[Array, " Q"],
    segments: Int[Array, " T"],
    place: Array,
    first: Array,
    count: int,
) -> Bool[Array, "Q S"]:
    """Which keys of `count` blocks from `first` the block of queries `place` sees."""
    queries, keys = place * BLOCK + jnp.arange(BLOCK), first * BLOCK
    keys = keys + jnp.arange(count * BLOCK)
    theirs = jax.lax.dynamic_slice(segments, (first * BLOCK,), (count * BLOCK,))
    mask = (mine[:, None] == theirs[None]) & (mine[:, None] > 0)
    back = queries[:, None] - keys[None]
    if rule.causal:
        mask = mask & (back >= 0)
    if rule.window:
        near = back < rule.window if rule.causal else jnp.abs(back) <= rule.window
        mask = mask & near
    return mask


def _masked(
    x: Float[Array, "K GQ S"], mask: Bool[Array, "Q S"], value: float
) -> Float[Array, "K GQ S"]:
    K, Q, S = x.shape
    x = x.reshape(K, Q // BLOCK, BLOCK, S)
    return jnp.where(mask[None, None], x, value).reshape(K, Q, S)


def _at(x: Array, *places: Array) -> Array:
    """What `x` holds there: as `x[places]`, without a check of its bounds."""
    for place in places:
        x = jax.lax.dynamic_index_in_dim(x, place, keepdims=False)
    return x


_put = partial(jax.lax.dynamic_update_index_in_dim, axis=0)  # array, entry, place
_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _pieces(ids, first, count, r, i):
    """How many products a block of queries takes, and what the n-th one reads.

    That is: the ids that its keys must have, the first key block, and how many.
    """
    sizes = count.shape[:1]
    starts = jax.lax.dynamic_slice(count, (0, r, i), (*sizes, 1, 1)).reshape(sizes)
    ends = jnp.cumsum(-(-starts // _AT_ONCE))

    def piece(n):
        which = jnp.sum(n >= ends)
        done = jnp.where(which > 0, n - ends[which - 1], n) * _AT_ONCE
        mine = jax.lax.dynamic_slice(_at(ids, which, r), (i * BLOCK,), (BLOCK,))
        left = jnp.minimum(_at(count, which, r, i) - done, _AT_ONCE)
        return mine, _at(first, which, r, i) + done, left

    return ends[-1], piece


def _is_one_piece(count: Int[Array, "P R I"]) -> bool:
    """Whether every block of queries takes one product, as in rows that are short."""
    ranges, _, num_blocks = count.shape
    return ranges == 1 and num_blocks <= _AT_ONCE


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q, k, v, segments, ids, first, count):
    return _forward(rule, q, k, v, segments, ids, first, count)[0]


def _forward(rule: Rule, q, k, v, segments, ids, first, count):
    # Else a scan over layers would take all masks out of it, for all branches at once.
    q, k, v, segments, ids, first, count = jax.lax.optimization_barrier(
        (q, k, v, segments, ids, first, count)
    )
    (_, R, num_blocks), K = count.shape, k.shape[2]
    rows = q.shape[2] // K * BLOCK

    def row(r, done):
        out, log_totals = done
        queries = _heads(_at(out, r), K)
        keys, values = (jnp.swapaxes(_at(x, r), 0, 1) for x in (k, v))
        texts = _at(segments, r)

        def one(i):
            query = _cut_queries(queries, i)
            pieces, piece = _pieces(ids, first, count, r, i)

            def compute(n: int, mine, begin):
                mask = _mask(rule, mine, texts, i, begin, n)
                key, value = (_cut_keys(x, begin, n) for x in (keys, values))
                logits = _product("KQH,KSH->KQS", query, key) * rule.scale
                logits = _masked(logits, mask, _LOWEST)
                highest = jnp.max(logits, axis=-1, keepdims=True)
                weights = jnp.exp(logits - highest)
                total = jnp.sum(weights, axis=-1, keepdims=True)
                y = _product("KQS,KSH->KQH", weights.astype(v.dtype), value)
                return y, highest, total

            def add(n, sums):
                """Adds a piece to what those before give, on a common scale."""
                y, highest, total = sums
                mine, begin, size = piece(n)
                more, high, part = _branch(compute, num_blocks, size, mine, begin)
                top = jnp.maximum(highest, high)
                old, new = jnp.exp(highest - top), jnp.exp(high - top)
                return y * old + more * new, top, total * old + part * new

            if _is_one_piece(count):
                mine, begin, size = piece(0)
                sums = _branch(compute, num_blocks, size, mine, begin)
            else:
                zero = jnp.zeros((K, rows, 1), jnp.float32)
                start = (jnp.zeros(query.shape, jnp.float32), zero + _LOWEST, zero)
                sums = jax.lax.fori_loop(0, pieces, add, start)
            y, highest, total = sums
            return (y / total).astype(v.dtype), highest + jnp.log(total)

        blocks, totals = jax.lax.map(one, jnp.arange(num_blocks))
        return _put(out, _tokens(blocks), r), _put(log_totals, totals, r)

    # Each row of queries gives way to its output: no array is filled with zeros first.
    log_totals = jnp.zeros((R, num_blocks, K, rows, 1), jnp.float32)
    out, log_totals = jax.lax.fori_loop(0, R, row, (q, log_totals))
    return out, (q, k, v, segments, ids, first, count, out, log_totals)


def _branch(compute, num_blocks: int, size, *arguments):
    """`compute` of a static number of key blocks, picked by `size`."""
    sizes = range(1, min(num_blocks, _AT_ONCE) + 1)
    branches = [partial(compute, n) for n in sizes]
    return jax.lax.switch(size - 1, branches, *arguments)


def _backward(rule: Rule, saved, gradient):
    q, k, v, segments, ids, first, count, out, log_totals = saved
    _, T, _, H = q.shape
    (_, R, num_blocks), K = count.shape, k.shape[2]
    width = min(num_blocks, _AT_ONCE) * BLOCK

    def row(r, done):
        queries = _heads(_at(done[0], r), K)
        keys, values = (jnp.swapaxes(_at(x, r), 0, 1) for x in done[1:])
        texts, upper = _at(segments, r), _at(gradient, r)
        gradients = _heads(upper.astype(q.dtype), K)
        # What a row of weights gives in all (Dao et al., 2022, arXiv 2205.14135, eq. 4)
        given = upper.astype(jnp.float32) * _at(out, r).astype(jnp.float32)
        given = _heads(jnp.sum(given, axis=-1, keepdims=True), K)  # [K, G, T, 1]

        def one(carry, i):
            query, grad = _cut_queries(queries, i), _cut_queries(gradients, i)
            sums, log_total = _cut_queries(given, i), _at(log_totals, r, i)
            pieces, piece = _pieces(ids, first, count, r, i)

            def compute(n: int, mine, begin):
                key, value = (_cut_keys(x, begin, n) for x in (keys, values))
                mask = _mask(rule, mine, texts, i, begin, n)
                logits = _product("KQH,KSH->KQS", query, key) * rule.scale
                weights = _masked(jnp.exp(logits - log_total), mask, 0.0)
                d_weights = _product("KQH,KSH->KQS", grad, value)
                d_logits = (weights * (d_weights - sums) * rule.scale).astype(q.dtype)
                # Keys last: the order that is multiplied fastest.
                d_key = _product("KQS,KQH->KHS", d_logits, query)
                d_value = _product("KQS,KQH->KHS", weights.astype(q.dtype), grad)
                pad = ((0, 0), (0, 0), (0, width - n * BLOCK))
                d_query = _product("KQS,KSH->KQH", d_logits, key)
                return d_query, jnp.pad(d_key, pad), jnp.pad(d_value, pad)

            def add(n, carry):
                d_query, *sums = carry
                mine, begin, size = piece(n)
                more, *parts = _branch(compute, num_blocks, size, mine, begin)
                sums = [
                    _add(x, part, begin) for x, part in zip(sums, parts, strict=True)
                ]
                return (d_query + more, *sums)

            start = (jnp.zeros(query.shape, jnp.float32), *carry)
            once = _is_one_piece(count)
            d_query, *carry = (
                add(0, start) if once else jax.lax.fori_loop(0, pieces, add, start)
            )
            return tuple(carry), d_query.astype(q.dtype)

        # Sums end where the widest piece could that begins at the last block.
        zeros = jnp.zeros((K, H, T + width - BLOCK), jnp.float32)
        sums, blocks = jax.lax.scan(one, (zeros, zeros), jnp.arange(num_blocks))
        d_keys, d_values = (
            jnp.transpose(x[:, :, :T], (2, 0, 1)).astype(k.dtype) for x in sums
        )
        new = (_tokens(blocks).astype(q.dtype), d_keys, d_values)
        return tuple(_put(x, y, r) for x, y in zip(done, new, strict=True))

    # Each row gives way to its gradient.
    return (*jax.lax.fori_loop(0, R, row, (q, k, v)), None, None, None, None)


def _add(sums: Float[Array, "K H T"], part: Float[Array, "K H S"], first: Array):
    """Adds a part to sums over keys, from key block `first` on; in place, in a loop."""
    at, size = first * BLOCK, part.shape[2]
    part = part + jax.lax.dynamic_slice_in_dim(sums, at, size, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(sums, part, at, axis=2)


_attend.defvjp(_forward, _backward)
