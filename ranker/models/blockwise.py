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

BLOCK = 64  # tokens
_LOWEST = float(jnp.finfo(jnp.float32).min)

# What the functions below compute with, beside arrays: (causal, window, scale).
_Rule = tuple[bool, int, float]


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    *,
    causal: bool,
    window: int,
    scale: float,
    cap: float,
) -> Float[Array, "R T N H"]:
    """Attention within segments; T is a multiple of `BLOCK`.

    Args:
      q: queries.
      k: keys.
      v: values.
      segments: 0: padding, at the end of a row; 1, 2, ...: contiguous and rising.
      causal: only tokens up to the query's own.
      window: see `attention.make_mask`; 0: all.
      scale: factor on the logits.
      cap: must be 0.
    """
    assert not cap, cap
    first, count = _reach(segments, causal)
    return _attend((causal, window, scale), q, k, v, segments, first, count)


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


def _heads(x: Float[Array, "R T N H"], K: int) -> Float[Array, "R K G T H"]:
    R, T, N, H = x.shape
    return jnp.transpose(x.reshape(R, T, K, N // K, H), (0, 2, 3, 1, 4))


def _rows(blocks: Float[Array, "RI K Q H"], R: int) -> Float[Array, "R T N H"]:
    """Blocks of queries, each [K, G * BLOCK, H], back into rows."""
    RI, K, Q, H = blocks.shape
    x = blocks.reshape(R, RI // R, K, Q // BLOCK, BLOCK, H)
    x = jnp.transpose(x, (0, 1, 4, 2, 3, 5))
    return x.reshape(R, RI // R * BLOCK, K * (Q // BLOCK), H)


def _cut_queries(x: Float[Array, "R K G T H"], r: Array, i: Array) -> Array:
    _, K, G, _, H = x.shape
    at, size = (r, 0, 0, i * BLOCK, 0), (1, K, G, BLOCK, H)
    return jax.lax.dynamic_slice(x, at, size).reshape(K, G * BLOCK, H)


def _cut_keys(x: Float[Array, "R K T H"], r: Array, first: Array, count: int) -> Array:
    _, K, _, H = x.shape
    size = (1, K, count * BLOCK, H)
    return jax.lax.dynamic_slice(x, (r, 0, first * BLOCK, 0), size)[0]


def _mask(
    rule: _Rule, segments: Int[Array, " T"], i: Array, first: Array, count: int
) -> Bool[Array, "Q S"]:
    causal, window, _ = rule
    queries, keys = i * BLOCK + jnp.arange(BLOCK), first * BLOCK
    keys = keys + jnp.arange(count * BLOCK)
    mine = jax.lax.dynamic_slice(segments, (i * BLOCK,), (BLOCK,))
    theirs = jax.lax.dynamic_slice(segments, (first * BLOCK,), (count * BLOCK,))
    mask = (mine[:, None] == theirs[None]) & (mine[:, None] > 0)
    back = queries[:, None] - keys[None]
    if causal:
        mask = mask & (back >= 0)
    if window:
        mask = mask & (back < window if causal else jnp.abs(back) <= window)
    return mask


def _weights(
    rule: _Rule, q: Float[Array, "K GQ H"], k: Float[Array, "K S H"], mask: Array
) -> Float[Array, "K GQ S"]:
    """Softmax over the keys, float32."""
    logits = jnp.einsum("KQH,KSH->KQS", q, k, preferred_element_type=jnp.float32)
    K, Q, S = logits.shape
    logits = (logits * rule[2]).reshape(K, Q // BLOCK, BLOCK, S)
    logits = jnp.where(mask[None, None], logits, _LOWEST)
    return jax.nn.softmax(logits, axis=-1).reshape(K, Q, S)


def _every_block(R: int, T: int) -> tuple[Array, Array]:
    count = T // BLOCK
    return jnp.repeat(jnp.arange(R), count), jnp.tile(jnp.arange(count), R)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: _Rule, q, k, v, segments, first, count):
    return _forward(rule, q, k, v, segments, first, count)[0]


def _forward(rule: _Rule, q, k, v, segments, first, count):
    R, T, _, _ = q.shape
    K = k.shape[2]
    queries, keys, values = _heads(q, K), _heads(k, K)[:, :, 0], _heads(v, K)[:, :, 0]

    def one(item):
        r, i = item
        query, begin = _cut_queries(queries, r, i), first[r, i]

        def compute(n: int):
            mask = _mask(rule, segments[r], i, begin, n)
            weights = _weights(rule, query, _cut_keys(keys, r, begin, n), mask)
            value = _cut_keys(values, r, begin, n)
            return jnp.einsum("KQS,KSH->KQH", weights.astype(v.dtype), value)

        branches = [partial(compute, n) for n in range(1, T // BLOCK + 1)]
        return jax.lax.switch(count[r, i] - 1, branches)

    out = _rows(jax.lax.map(one, _every_block(R, T)), R)
    return out, (q, k, v, segments, first, count, out)


def _backward(rule: _Rule, saved, gradient):
    q, k, v, segments, first, count, out = saved
    R, T, _, H = q.shape
    K = k.shape[2]
    queries, keys, values = _heads(q, K), _heads(k, K)[:, :, 0], _heads(v, K)[:, :, 0]
    gradients = _heads(gradient.astype(q.dtype), K)
    # What a row of weights gives in all (Dao et al., 2022, arXiv 2205.14135, eq. 4).
    given = gradient.astype(jnp.float32) * out.astype(jnp.float32)
    given = _heads(jnp.sum(given, axis=-1, keepdims=True), K)  # [R, K, G, T, 1]

    def one(carry, item):
        r, i = item
        query, grad = _cut_queries(queries, r, i), _cut_queries(gradients, r, i)
        total, begin = _cut_queries(given, r, i), first[r, i]

        def compute(n: int, d_keys, d_values):
            key, value = (_cut_keys(x, r, begin, n) for x in (keys, values))
            mask = _mask(rule, segments[r], i, begin, n)
            weights = _weights(rule, query, key, mask)
            d_weights = jnp.einsum(
                "KQH,KSH->KQS", grad, value, preferred_element_type=jnp.float32
            )
            d_logits = (weights * (d_weights - total) * rule[2]).astype(q.dtype)

            def add(sum_: Array, x: Array) -> Array:
                x = x.astype(jnp.float32) + _cut_keys(sum_, r, begin, n)
                at = (r, 0, begin * BLOCK, 0)
                return jax.lax.dynamic_update_slice(sum_, x[None], at)

            d_key = jnp.einsum("KQS,KQH->KSH", d_logits, query)
            d_value = jnp.einsum("KQS,KQH->KSH", weights.astype(q.dtype), grad)
            d_query = jnp.einsum("KQS,KSH->KQH", d_logits, key)
            return (add(d_keys, d_key), add(d_values, d_value)), d_query

        branches = [partial(compute, n) for n in range(1, T // BLOCK + 1)]
        return jax.lax.switch(count[r, i] - 1, branches, *carry)

    zeros = jnp.zeros((R, K, T, H), jnp.float32)
    (d_keys, d_values), blocks = jax.lax.scan(one, (zeros, zeros), _every_block(R, T))
    d_k, d_v = (jnp.swapaxes(x, 1, 2).astype(k.dtype) for x in (d_keys, d_values))
    return _rows(blocks, R).astype(q.dtype), d_k, d_v, None, None, None


_attend.defvjp(_forward, _backward)
