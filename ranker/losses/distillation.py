"""Distillation losses: a student's scores against a teacher's.

The hybrid of DisRanker, alpha * point-wise MSE + beta * margin MSE, is put together in
training/objectives.py. No gradient flows into a teacher.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.losses import lists, pairwise, pointwise
from ranker.losses.reduction import WeightedSum, weighted_sum

_HIGHEST = float(jnp.finfo(jnp.float32).max)


def _errors(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
) -> Float[Array, "*B L"]:
    """Score - target; of i less that of j, it is what margin (i, j) is off by."""
    targets = jax.lax.stop_gradient(targets)
    return lists.masked(scores, where) - lists.masked(targets, where)


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
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: 0 when scores equal targets; a constant added to a list counts.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: DisRanker (arXiv 2411.04539), the point-wise term of the hybrid loss.
    Example: errors 2 and 0.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = point_mse(s, t, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 2.0)
    """
    return pointwise.mse(scores, jax.lax.stop_gradient(targets), where=where)


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
    Returns: WeightedSum of float32 scalars: total over pairs of different documents,
        each once, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a
        list; 0 when the differences are equal; a list of one document weighs 0.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hofstaetter et al., 2020 (arXiv 2010.02666), Margin-MSE, there for a
        positive and a negative document; here over all pairs of a list, without labels.
    Example: differences 1 and 3.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = margin_mse(s, t, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 1.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    errors = _errors(scores, targets, where)
    return weighted_sum(lists.differences(errors) ** 2, lists.pairs(where))


def margin_mse_positive_negative(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    labels: Float[Array, "*B L"],
) -> WeightedSum:
    """`margin_mse` over the pairs that judgements tell apart. Unit of weight: pair.

    Definition: l(s, t) = sum over i, j with labels_i > labels_j of
        ((s_i - s_j) - (t_i - t_j)) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      labels: [*B, L], judgements; only their order counts, the teacher's may differ.
    Returns: WeightedSum of float32 scalars: total over pairs of documents of different
        labels, each once, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a
        list; 0 when the differences are equal; a list of equal labels weighs 0.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hofstaetter et al., 2020 (arXiv 2010.02666), Margin-MSE.
    Example: of three documents the first is the positive; both margins are off by 2.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0, 0.0]), jnp.array([3.0, 0.0, 0.0])
        >>> y, where = jnp.array([1.0, 0.0, 0.0]), jnp.ones(3, bool)
        >>> loss = margin_mse_positive_negative(s, t, where=where, labels=y)
        >>> float(loss.total), float(loss.weight)
        (8.0, 2.0)
    """
    chex.assert_equal_shape([scores, targets, where, labels])
    errors = _errors(scores, targets, where)
    chosen = lists.preferences(labels, where)
    return weighted_sum(lists.differences(errors) ** 2, chosen)


def margin_mse_reference(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    reference: Int[Array, "*B"],
) -> WeightedSum:
    """`margin_mse` of each document to one of its list. Unit of weight: pair.

    Definition: l(s, t) = sum over i != r of ((s_i - s_r) - (t_i - t_r)) ** 2,
        r = reference

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      reference: [*B] int, index in its list, drawn at random. A list whose
        reference is not a real document weighs 0.
    Returns: WeightedSum of float32 scalars: total over the other documents of each
        list, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a
        list; its mean over uniformly drawn references is `margin_mse`'s of a full list.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hofstaetter et al., 2020 (arXiv 2010.02666), Margin-MSE, with one
        document in place of all others: L - 1 margins of a list, not L (L - 1) / 2.
    Example: margins 1 and 1 to the last document, where the teacher has 3 and 1.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 1.0, 0.0]), jnp.array([3.0, 1.0, 0.0])
        >>> r, where = jnp.array(2), jnp.ones(3, bool)
        >>> loss = margin_mse_reference(s, t, where=where, reference=r)
        >>> float(loss.total), float(loss.weight)
        (4.0, 2.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    chex.assert_shape(reference, where.shape[:-1])
    errors = _errors(scores, targets, where)
    chosen = where & jax.nn.one_hot(reference, where.shape[-1], dtype=bool)
    base = jnp.sum(lists.masked(errors, chosen), axis=-1, keepdims=True)
    others = where & ~chosen & jnp.any(chosen, axis=-1, keepdims=True)
    return weighted_sum((errors - base) ** 2, others)


def listwise_kl(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
) -> WeightedSum:
    """Divergence of the student's softmax from the teacher's. Unit of weight: list.

    Definition: l(s, t) = temperature ** 2 * sum over i of p_i (ln p_i - ln q_i),
        p = softmax(t / temperature), q = softmax(s / temperature)

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      temperature: score units, above 0; the higher, the more the tail of a list counts.
    Returns: WeightedSum of float32 scalars: total over lists of two or more documents,
        weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a
        list; 0 when the differences are equal. The square keeps the gradient's size as
        the temperature grows.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hinton, Vinyals and Dean, 2015 (arXiv 1503.02531), section 2, over the
        documents of a list in place of classes.
    Example: even odds against 3 to 1 of the teacher: 0.75 ln 1.5 + 0.25 ln 0.5.
        >>> import jax.numpy as jnp
        >>> t = jnp.log(jnp.array([3.0, 1.0]))
        >>> loss = listwise_kl(jnp.zeros(2), t, where=jnp.ones(2, bool))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.1308, 1.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    s = lists.masked(scores, where) / temperature
    t = lists.masked(jax.lax.stop_gradient(targets), where) / temperature
    log_p, log_q = lists.log_softmax(t, where), lists.log_softmax(s, where)
    p = lists.masked(jnp.exp(log_p), where)
    losses = temperature**2 * jnp.sum(p * (log_p - log_q), axis=-1)  # [*B]
    return weighted_sum(losses, jnp.sum(where, axis=-1) > 1)


def ranknet_on_teacher_order(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Logistic loss on the pairs that the teacher orders. Unit of weight: pair.

    Definition: l(s, t) = sum over i, j with t_i > t_j of ln(1 + exp(-(s_i - s_j)))

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores, or minus ranks; only their order counts.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over pairs of different targets,
        weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list, and by any
        rising function of the targets.
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Burges et al., 2005, eq. 3, on a teacher's order as in Sun et al., 2023
        (arXiv 2304.09542), section 4.
    Example: equal scores cost ln 2 a pair.
        >>> import jax.numpy as jnp
        >>> t, where = jnp.array([3.0, 2.0, 2.0]), jnp.ones(3, bool)
        >>> loss = ranknet_on_teacher_order(jnp.zeros(3), t, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (1.3863, 2.0)
    """
    return pairwise.ranknet(scores, jax.lax.stop_gradient(targets), where=where)


def adr_mse(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
) -> WeightedSum:
    """Squared error of ranks, the teacher's top first. Unit of weight: document.

    Definition: l(s, t) = sum over i of (r_i - q_i) ** 2 / log2(1 + r_i),
        r_i = rank of i by targets, equal ones at their mean rank,
        q_i = 1 + sum over j != i of sigmoid((s_j - s_i) / temperature)

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores, or minus ranks; only their order counts.
      where: [*B, L] bool, True for real documents.
      temperature: score units, above 0; towards 0, q becomes the student's true ranks.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list, and by any
        rising function of the targets; 0 where all targets and all scores are equal.
    Gradients: finite for every `where`, all False included; none flows into `targets`;
        0 where scores lie many temperatures apart.
    Reference: Schlatt et al., 2025, Rank-DistiLLM (arXiv 2405.07920), ADR-MSE; ties,
        which a teacher's permutation has not, are ours.
    Example: equal scores share rank 1.5: 0.25 / log2(2) + 0.25 / log2(3).
        >>> import jax.numpy as jnp
        >>> t, where = jnp.array([9.0, 5.0]), jnp.ones(2, bool)
        >>> loss = adr_mse(jnp.zeros(2), t, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.4077, 2.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    true = lists.average_ranks(jax.lax.stop_gradient(targets), where)
    approximate = lists.approximate_ranks(scores, where, temperature)
    # A masked document ranks at 0.5, whose discount is finite.
    return weighted_sum(lists.discounts(true) * (true - approximate) ** 2, where)


def standardise(
    targets: Float[Array, "*B L"], *, where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Teacher scores of each list with mean 0 and variance 1, float32.

    A list whose scores are all equal, or that has one document, becomes zeros. Squares
    neither overflow nor underflow, however large or close together the scores.

    Args:
      targets: [*B, L], teacher scores.
      where: [*B, L] bool, True for real documents; the others become 0.

    >>> import jax.numpy as jnp
    >>> standardise(jnp.array([4.0, 8.0]), where=jnp.ones(2, bool)).tolist()
    [-1.0, 1.0]
    """
    chex.assert_equal_shape([targets, where])
    t = targets.astype(jnp.float32)
    lowest = jnp.min(t, axis=-1, keepdims=True, where=where, initial=_HIGHEST)
    # From the lowest on, equal scores are exact zeros: no rounding error to blow up.
    above = lists.masked(t - lowest, where)
    span = jnp.max(above, axis=-1, keepdims=True)
    unit = above / jnp.where(span > 0, span, 1.0)
    count = jnp.maximum(jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
    centred = lists.masked(unit - jnp.sum(unit, axis=-1, keepdims=True) / count, where)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / count
    return centred / jnp.sqrt(jnp.where(span > 0, variance, 1.0))
