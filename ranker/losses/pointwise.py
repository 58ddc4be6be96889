"""Point-wise losses: each document on its own, against its label.

`unit`, `document_weights` and `list_weights` are explained in losses/reduction.py.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses.lists import masked
from ranker.losses.reduction import DocumentUnit, WeightedSum, over_documents


def mse(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Squared distance of each score from its label. Unit of weight: document.

    Definition: l(s, y) = sum over i of (s_i - y_i) ** 2

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], values that the scores are to take.
      where: [*B, L] bool, True for real documents.
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: 0 when scores equal labels; a constant added to a list counts.
    Gradients: finite for every `where`, all False included.
    Reference: Cossock and Zhang, 2006, "Subset ranking using regression".
    Example: errors 2 and 0.
        >>> import jax.numpy as jnp
        >>> s, y = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = mse(s, y, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 2.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    return over_documents(
        (masked(scores, where) - masked(labels, where)) ** 2,
        where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def sigmoid_cross_entropy(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    highest: float = 1.0,
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Cross-entropy of sigmoid(score) and relevance. Unit of weight: document.

    Definition: l(s, y) = -sum over i of
        p_i ln sigmoid(s_i) + (1 - p_i) ln(1 - sigmoid(s_i)),
        p_i = min(max(y_i / highest, 0), 1)

    Args:
      scores: [*B, L], log odds of relevance, unbounded.
      labels: [*B, L], judgements.
      where: [*B, L] bool, True for real documents.
      highest: label from which on a document is relevant for certain. At 1, grades are
        binary, relevant or not; at the highest grade, they are graded probabilities.
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: least, per document, at s_i = ln(p_i / (1 - p_i)).
    Gradients: finite for every `where`, all False included; at most 1 a document.
    Reference: Cox, 1958 (logistic regression); the loss of monoBERT (arXiv 1901.04085)
        with one logit.
    Example: grade 2 of 4 is even odds, which a score of 0 says: ln 2.
        >>> import jax.numpy as jnp
        >>> s, y = jnp.array([0.0]), jnp.array([2.0])
        >>> loss = sigmoid_cross_entropy(s, y, where=jnp.ones(1, bool), highest=4.0)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    s = masked(scores, where)
    p = jnp.clip(masked(labels, where) / highest, 0.0, 1.0)
    return over_documents(
        p * jax.nn.softplus(-s) + (1 - p) * jax.nn.softplus(s),
        where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def ordinal(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    thresholds: Sequence[float] = (0.5, 1.5, 2.5, 3.5),
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Logistic loss of each score at each threshold of grade. Unit of weight: document.

    Definition: l(s, y) = sum over i, and over k = 1 to the number of thresholds, of
        ln(1 + exp(-(s_i - thresholds_k)))  where y_i >= k: the score is to be above
        ln(1 + exp(s_i - thresholds_k))     elsewhere: the score is to be below

    Args:
      scores: [*B, L], unbounded; P(grade of i >= k) = sigmoid(s_i - thresholds_k).
      labels: [*B, L], grades 0, 1, 2, ...
      where: [*B, L] bool, True for real documents.
      thresholds: rising score units; the k-th parts grade k - 1 from grade k. The
        default is for grades 0 to 4, on the scale where a score rounds to its grade.
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: a grade that is missed by more costs more, as MSE and unlike a softmax
        over grades; with one threshold of 0 it is `sigmoid_cross_entropy`.
    Gradients: finite for every `where`, all False included; at most 1 a threshold.
    Reference: Rennie and Srebro, 2005, "Loss functions for preference levels", the
        all-threshold construction with the logistic loss; thresholds are given here,
        learned there.
    Example: on both of two thresholds, each costs ln 2.
        >>> import jax.numpy as jnp
        >>> s, y = jnp.array([0.0]), jnp.array([1.0])
        >>> loss = ordinal(s, y, where=jnp.ones(1, bool), thresholds=(0.0, 0.0))
        >>> round(float(loss.total), 4), float(loss.weight)
        (1.3863, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    s, y = masked(scores, where), masked(labels, where)
    losses = jnp.zeros_like(s)
    for grade, threshold in enumerate(thresholds, start=1):
        above = s - threshold
        losses += jax.nn.softplus(jnp.where(y >= grade, -above, above))
    return over_documents(
        losses,
        where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )
