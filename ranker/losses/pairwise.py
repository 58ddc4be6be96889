"""Pairwise losses: over the pairs of a list of which one document has a higher label."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses.reduction import (
    WeightedSum,
    differences,
    masked,
    preferences,
    weighted_sum,
)


def ranknet(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Logistic loss on score differences of ordered pairs. Unit of weight: pair.

    Definition: l(s, y) = sum over i, j with y_i > y_j of ln(1 + exp(-(s_i - s_j)))

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; only their order counts.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over ordered pairs, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list.
    Gradients: finite for every `where`, all False included; bounded by 1 a pair.
    Reference: Burges et al., 2005, "Learning to rank using gradient descent", eq. 3.
    Example: equal scores cost ln 2 a pair.
        >>> import jax.numpy as jnp
        >>> loss = ranknet(jnp.zeros(2), jnp.array([1.0, 0.0]), where=jnp.ones(2, bool))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    margins = differences(masked(scores, where))
    return weighted_sum(jax.nn.softplus(-margins), preferences(labels, where))


def hinge(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    margin: float = 1.0,
) -> WeightedSum:
    """How far ordered pairs fall short of a margin. Unit of weight: pair.

    Definition: l(s, y) = sum over i, j with y_i > y_j of max(0, margin - (s_i - s_j))

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; only their order counts.
      where: [*B, L] bool, True for real documents.
      margin: score units that the better document is to lead by.
    Returns: WeightedSum of float32 scalars: total over ordered pairs, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; 0 when every
        better document leads by the margin.
    Gradients: finite for every `where`, all False included; 0 beyond the margin.
    Reference: Herbrich et al., 2000; DisRanker as reported (max-margin).
    Example: a lead of 0.25 lacks 0.75.
        >>> import jax.numpy as jnp
        >>> s, y = jnp.array([0.25, 0.0]), jnp.array([1.0, 0.0])
        >>> loss = hinge(s, y, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (0.75, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    margins = differences(masked(scores, where))
    return weighted_sum(jax.nn.relu(margin - margins), preferences(labels, where))
