"""Listwise."""

import chex
import jax.numpy as jnp

from ranker.losses.reduction import WeightedSum, reduce


def softmax(scores, labels, *, where) -> WeightedSum:
    """Softmax."""
    chex.assert_equal_shape([scores, labels, where])
    s = jnp.where(where, scores.astype(jnp.float32), -1e30)
    y = jnp.where(where, labels.astype(jnp.float32), 0.0)
    m = jnp.max(s, -1, keepdims=True)
    lse = m + jnp.log(jnp.sum(jnp.exp(s - m), -1, keepdims=True))
    total = jnp.sum(y, -1, keepdims=True)
    valid = total[..., 0] > 0
    p = y / jnp.where(total > 0, total, 1.0)
    return reduce(jnp.sum(p * jnp.where(where, lse - s, 0.0), -1), valid)
