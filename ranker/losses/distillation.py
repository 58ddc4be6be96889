"""Distillation."""

import chex
import jax.numpy as jnp

from ranker.losses.reduction import WeightedSum, reduce


def point_mse(scores, targets, *, where) -> WeightedSum:
    """Point."""
    chex.assert_equal_shape([scores, targets, where])
    d = scores.astype(jnp.float32) - targets.astype(jnp.float32)
    return reduce(jnp.where(where, d, 0.0) ** 2, where)


def margin_mse(scores, targets, *, where) -> WeightedSum:
    """Margin."""
    chex.assert_equal_shape([scores, targets, where])
    e = jnp.where(where, scores - targets, 0.0).astype(jnp.float32)
    n = scores.shape[-1]
    pairs = where[..., :, None] & where[..., None, :]
    pairs = pairs & jnp.triu(jnp.ones((n, n), bool), 1).reshape((1,) * (where.ndim - 1) + (n, n))
    d = e[..., :, None] - e[..., None, :]
    return reduce(jnp.where(pairs, d, 0.0) ** 2, pairs)
