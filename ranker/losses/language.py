"""Language modelling."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.losses.reduction import WeightedSum, reduce


def next_token(
    logits: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
) -> WeightedSum:
    """Cross-entropy of each token given those before it. Unit of weight: token."""
    chex.assert_equal_shape([tokens, where, logits[..., 0]])
    logits = logits[..., :-1, :].astype(jnp.float32)
    targets = tokens[..., 1:]
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return reduce(jax.nn.logsumexp(logits, axis=-1) - chosen, where[..., 1:])
