"""Attention on a CPU, block by block: what packed rows leave empty is not computed.

A block of queries sees the blocks of keys that its segments reach, and nothing else is
multiplied, so the cost follows the lengths of the texts, not of the rows. Logits of a
block stay in the cache; the backward pass makes them anew. XLA compiles a branch for
each number of key blocks, and a loop picks one at each step, with static shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.models.masks import Rule

BLOCK = 64  # tokens
_LOWEST = float(jnp.finfo(jnp.float32).min)


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
) -> Float[Array, "R T N H"]:
    """Attention within segments; T is a multiple of `BLOCK`.

    Args:
      q: queries.
      k: keys.
      v: values.
      segments: 0: padding, at the end of a row; 1, 2, ...: contiguous and rising.
      rule: what is computed, its scale given; its `cap` must be 0.
    """
    assert not rule.cap, rule
    first, count = _reach(segments, rule.causal)
    return _attend(rule, q, k, v, segments, first, count)


def _reach(
    segments: Int[Array, "R T"], causal: bool
) -> tuple[Int[Array, "R I"], Int[Array, "R I"]]:
    """The first key block that each query block sees, and how many it sees, 1 or more.

    Two blocks see each other where their ranges of segments meet.
    """
    R, T = segments.shape
    blocks = segments.reshape(R, T // BLOCK, BLOCK)
    low, high = blocks[:, :, 0], jnp.max(blocks, axis=-1)
    real = high > 0  # a block of padding has no range
    meet = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    meet = meet & real[:, :, None] & real[:, None]
    place = jnp.arange(T // BLOCK)
    if causal:
        meet = meet & (place[None, :, None] >= place[None, None])
    own = place[:, None] == place[None]
    meet = meet | own[None]
    first = jnp.argmax(meet, axis=-1)
    last = T // BLOCK - jnp.argmax(meet[:, :, ::-1], axis=-1)
    return first, last - first


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
    rule: Rule, segments: Int[Array, " T"], i: Array, first: Array, count: int
) -> Bool[Array, "Q S"]:
    queries, keys = i * BLOCK + jnp.arange(BLOCK), first * BLOCK
    keys = keys + jnp.arange(count * BLOCK)
    mine = jax.lax.dynamic_slice(segments, (i * BLOCK,), (BLOCK,))
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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q, k, v, segments, first, count):
    return _forward(rule, q, k, v, segments, first, count)[0]


def _forward(rule: Rule, q, k, v, segments, first, count):
    # Else a scan over layers would take all masks out of it, for all branches at once.
    q, k, v, segments, first, count = jax.lax.optimization_barrier(
        (q, k, v, segments, first, count)
    )
    (R, num_blocks), K = count.shape, k.shape[2]

    def row(r, done):
        out, log_totals = done
        queries = _heads(_at(out, r), K)
        keys, values = (jnp.swapaxes(_at(x, r), 0, 1) for x in (k, v))
        texts = _at(segments, r)

        def one(i):
            query, begin = _cut_queries(queries, i), _at(first, r, i)

            def compute(n: int):
                mask = _mask(rule, texts, i, begin, n)
                key, value = (_cut_keys(x, begin, n) for x in (keys, values))
                logits = _product("KQH,KSH->KQS", query, key) * rule.scale
                logits = _masked(logits, mask, _LOWEST)
                highest = jnp.max(logits, axis=-1, keepdims=True)
                weights = jnp.exp(logits - highest)
                total = jnp.sum(weights, axis=-1, keepdims=True)
                y = _product("KQS,KSH->KQH", weights.astype(v.dtype), value) / total
                return y.astype(v.dtype), highest + jnp.log(total)

            branches = [partial(compute, n) for n in range(1, num_blocks + 1)]
            return jax.lax.switch(_at(count, r, i) - 1, branches)

        blocks, totals = jax.lax.map(one, jnp.arange(num_blocks))
        return _put(out, _tokens(blocks), r), _put(log_totals, totals, r)

    # Each row of queries gives way to its output: no array is filled with zeros first.
    heads = q.shape[2] // K
    log_totals = jnp.zeros((R, num_blocks, K, heads * BLOCK, 1), jnp.float32)
    out, log_totals = jax.lax.fori_loop(0, R, row, (q, log_totals))
    return out, (q, k, v, segments, first, count, out, log_totals)


def _backward(rule: Rule, saved, gradient):
    q, k, v, segments, first, count, out, log_totals = saved
    _, T, _, H = q.shape
    (R, num_blocks), K = count.shape, k.shape[2]

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
            total, begin = _cut_queries(given, i), _at(first, r, i)

            def compute(n: int, d_keys, d_values):
                key, value = (_cut_keys(x, begin, n) for x in (keys, values))
                mask = _mask(rule, texts, i, begin, n)
                logits = _product("KQH,KSH->KQS", query, key) * rule.scale
                weights = _masked(jnp.exp(logits - _at(log_totals, r, i)), mask, 0.0)
                d_weights = _product("KQH,KSH->KQS", grad, value)
                d_logits = (weights * (d_weights - total) * rule.scale).astype(q.dtype)

                def add(sum_: Float[Array, "K H T"], x: Array) -> Array:
                    at = begin * BLOCK
                    x = x + jax.lax.dynamic_slice_in_dim(sum_, at, n * BLOCK, axis=2)
                    return jax.lax.dynamic_update_slice_in_dim(sum_, x, at, axis=2)

                # Keys last: the order that is multiplied fastest.
                d_key = _product("KQS,KQH->KHS", d_logits, query)
                d_value = _product("KQS,KQH->KHS", weights.astype(q.dtype), grad)
                d_query = jnp.einsum("KQS,KSH->KQH", d_logits, key)
                return (add(d_keys, d_key), add(d_values, d_value)), d_query

            branches = [partial(compute, n) for n in range(1, num_blocks + 1)]
            return jax.lax.switch(_at(count, r, i) - 1, branches, *carry)

        zeros = jnp.zeros((K, H, T), jnp.float32)
        sums, blocks = jax.lax.scan(one, (zeros, zeros), jnp.arange(num_blocks))
        d_keys, d_values = (jnp.transpose(x, (2, 0, 1)).astype(k.dtype) for x in sums)
        new = (_tokens(blocks).astype(q.dtype), d_keys, d_values)
        return tuple(_put(x, y, r) for x, y in zip(done, new, strict=True))

    # Each row gives way to its gradient.
    return (*jax.lax.fori_loop(0, R, row, (q, k, v)), None, None, None)


_attend.defvjp(_forward, _backward)
