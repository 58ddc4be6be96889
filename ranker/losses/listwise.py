"""Listwise losses: over the whole list of a query at once."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses.reduction import WeightedSum, masked, weighted_sum

# Finite, so that a list without a real document has finite gradients.
_LOWEST = float(jnp.finfo(jnp.float32).min) / 4


def log_softmax(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Log-softmax over the real documents of each list, float32; 0 for the others."""
    s = jnp.where(where, scores.astype(jnp.float32), _LOWEST)
    return masked(jax.nn.log_softmax(s, axis=-1), where)


def softmax(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Cross-entropy of the labels' shares and the scores' softmax. Unit of weight: list.

    Definition: l(s, y) = -sum over i of y_i / sum(y) * log_softmax(s)_i

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements, 0 or more; a document's share is its label's.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over lists that have a label above 0,
        weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; least when the
        softmax equals the shares.
    Gradients: finite for every `where`, all False included.
    Reference: Cao et al., 2007 (ListNet, top one), with labels' shares in place of their
        softmax, as in Bruch et al., 2019 (arXiv 1911.09798), eq. 2.
    Example: two equal scores, one relevant document: -ln 0.5.
        >>> import jax.numpy as jnp
        >>> loss = softmax(jnp.zeros(2), jnp.array([2.0, 0.0]), where=jnp.ones(2, bool))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    y = masked(labels, where)
    total = jnp.sum(y, axis=-1, keepdims=True)
    shares = y / jnp.where(total > 0, total, 1.0)
    losses = -jnp.sum(shares * log_softmax(scores, where), axis=-1)  # [*B]
    return weighted_sum(losses, total[..., 0] > 0)
