"""Language modelling, for continued pre-training."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.losses.reduction import WeightedSum, weighted_sum


def next_token(
    logits: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
) -> WeightedSum:
    """Cross-entropy of tokens given those before them. Unit of weight: token.

    Definition: l = sum over t > 0 with where[t] of
        logsumexp(logits[t - 1]) - logits[t - 1, tokens[t]]

    Args:
      logits: [*B, T, V], of the token after each position.
      tokens: [*B, T] int, the text, not shifted.
      where: [*B, T] bool, True for the tokens to predict. The first of a row has
        nothing before it and never counts.
    Returns: WeightedSum of float32 scalars: total over valid tokens, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to all logits of a position. The
        logits are neither sliced nor normalised, which would cost a copy of them each.
    Gradients: finite for every `where`, all False included.
    Reference: DisRanker (arXiv 2411.04539), continued pre-training, as reported:
        negative log-likelihood of title and summary given the query.
    Example: a uniform guess among two tokens costs ln 2.
        >>> import jax.numpy as jnp
        >>> tokens = jnp.array([0, 1])
        >>> loss = next_token(jnp.zeros((2, 2)), tokens, where=jnp.array([True, True]))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([tokens, where])
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    following = jnp.roll(tokens, -1, axis=-1)
    where = jnp.roll(where, -1, axis=-1).at[..., -1].set(False)
    chosen = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)  # [*B, T]
    return weighted_sum(log_z - chosen.astype(jnp.float32), where)
