"""Distillation losses: a student's scores against a teacher's.

The hybrid of DisRanker, alpha * point-wise MSE + beta * margin MSE, is put together in
training/objectives.py.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses.reduction import (
    WeightedSum,
    differences,
    masked,
    pairs,
    weighted_sum,
)


def point_mse(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Squared distance of each score from the teacher's. Unit of weight: document.

    Definition: l(s, t) = sum over i of (s_i - t_i) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores on the scale that the student is to take over.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: 0 when scores equal targets; a constant added to a list counts.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: DisRanker (arXiv 2411.04539), the point-wise term of the hybrid loss.
    Example:
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = point_mse(s, t, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 2.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    errors = masked(scores, where) - masked(jax.lax.stop_gradient(targets), where)
    return weighted_sum(errors**2, where)


def margin_mse(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Squared distance of score differences from the teacher's. Unit of weight: pair.

    Definition: l(s, t) = sum over i < j of ((s_i - s_j) - (t_i - t_j)) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over pairs of different documents, each
        once, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a list;
        0 when the differences are equal; a list of one document weighs 0.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hofstaetter et al., 2020 (arXiv 2010.02666), eq. 4, there for one positive
        and one negative document; here over all pairs of a list, as they have no labels.
    Example: differences 1 and 3.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = margin_mse(s, t, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 1.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    errors = masked(scores, where) - masked(jax.lax.stop_gradient(targets), where)
    return weighted_sum(differences(errors) ** 2, pairs(where))


def standardise(
    targets: Float[Array, "*B L"], *, where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Teacher scores of each list with mean 0 and variance 1, float32.

    A list whose scores are all equal, or that has one document, becomes zeros.

    Args:
      targets: [*B, L], teacher scores.
      where: [*B, L] bool, True for real documents; the others become 0.

    >>> import jax.numpy as jnp
    >>> standardise(jnp.array([4.0, 8.0]), where=jnp.ones(2, bool)).tolist()
    [-1.0, 1.0]
    """
    chex.assert_equal_shape([targets, where])
    t = masked(targets, where)
    count = jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32)
    count = jnp.maximum(count, 1.0)
    centred = masked(t - jnp.sum(t, axis=-1, keepdims=True) / count, where)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / count
    return centred / jnp.where(variance > 1e-12, jnp.sqrt(variance + 1e-30), 1.0)
