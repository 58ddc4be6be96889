"""Distillation losses: a student's scores against a teacher's.

The hybrid of DisRanker, alpha * point-wise MSE + beta * margin MSE, is put together in
training/objectives.py. No gradient flows into a teacher.

With the errors e = s - t of a list of n documents, the point-wise MSE is Var(e) +
mean(e) ** 2, and the margin MSE over all pairs is 2 n / (n - 1) Var(e): point-wise,
margin and hybrid then differ in nothing but how much a list's mean error counts. Other
choices of pairs, of losses/margins.py, differ in more (docs/losses.md).

`unit`, `document_weights` and `list_weights` are explained in losses/reduction.py.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.losses import lists, margins, pairwise, pointwise
from ranker.losses.reduction import (
    DocumentUnit,
    PairUnit,
    WeightedSum,
    over_documents,
    over_lists,
    over_pairs,
)

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
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Squared distance of each score from the teacher's. Unit of weight: document.

    Definition: l(s, t) = sum over i of (s_i - t_i) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores on the scale that the student is to take over.
      where: [*B, L] bool, True for real documents.
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    return pointwise.mse(
        scores,
        jax.lax.stop_gradient(targets),
        where=where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def margin_mse(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    pairs: Float[Array, "*B L L"] | Bool[Array, "*B L L"] | None = None,
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Squared distance of score differences from the teacher's. Unit of weight: pair.

    Definition: l(s, t) = sum over i, j of pairs_ij ((s_i - s_j) - (t_i - t_j)) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      pairs: [*B, L, L], how much each pair counts, 0 or more, as the functions of
        losses/margins.py make it; None: all pairs of different documents, each once.
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over the pairs, weight = their
        number, or the sum of what they count.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the targets of a
        list; 0 when the differences are equal; a list of one document weighs 0. Over
        all pairs it is the variance of s - t in a list, times 2 n / (n - 1).
    Gradients: finite for every `where`, all False included; none flows into `targets`.
    Reference: Hofstaetter et al., 2020 (arXiv 2010.02666), Margin-MSE, there for a
        positive and a negative document; here over all pairs unless `pairs` says more.
    Example: differences 1 and 3.
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> loss = margin_mse(s, t, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (4.0, 1.0)
    """
    chex.assert_equal_shape([scores, targets, where])
    if pairs is None:
        pairs = margins.every(where)
    chex.assert_shape(pairs, (*where.shape, where.shape[-1]))
    errors = _errors(scores, targets, where)
    return over_pairs(
        lists.differences(errors) ** 2,
        jnp.where(lists.both(where), pairs.astype(jnp.float32), 0.0),
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def margin_mse_positive_negative(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    labels: Float[Array, "*B L"],
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """`margin_mse` over the pairs that judgements tell apart. Unit of weight: pair.

    Definition: l(s, t) = sum over i, j with labels_i > labels_j of
        ((s_i - s_j) - (t_i - t_j)) ** 2

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      labels: [*B, L], judgements; only their order counts, the teacher's may differ.
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    return margin_mse(
        scores,
        targets,
        where=where,
        pairs=margins.by_label(labels, where),
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def margin_mse_reference(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    reference: Int[Array, "*B"],
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
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
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    if document_weights is not None:
        own = lists.masked(document_weights, chosen)
        document_weights = document_weights * jnp.sum(own, axis=-1, keepdims=True)
    return over_documents(
        (errors - base) ** 2,
        others,
        unit="document" if unit == "pair" else unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def listwise_kl(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Divergence of the student's softmax from the teacher's. Unit of weight: list.

    Definition: l(s, t) = temperature ** 2 * sum over i of p_i (ln p_i - ln q_i),
        p = softmax(t / temperature), q = softmax(s / temperature)

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores; only their differences count.
      where: [*B, L] bool, True for real documents.
      temperature: score units, above 0; the higher, the more the tail of a list counts.
      list_weights: [*B], 0 or more; None: 1 each.
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
    return over_lists(losses, jnp.sum(where, axis=-1) > 1, None, list_weights)


def soft_cross_entropy(
    scores: Float[Array, "*B L"],
    probabilities: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Cross-entropy of sigmoid(score) and the teacher's. Unit of weight: document.

    Definition: l(s, p) = -sum over i of
        p_i ln sigmoid(s_i) + (1 - p_i) ln(1 - sigmoid(s_i))

    Args:
      scores: [*B, L], the student's log odds of relevance, unbounded.
      probabilities: [*B, L], the teacher's of relevance, in [0, 1]; of a teacher that
        scores by log odds t, sigmoid(t / temperature).
      where: [*B, L] bool, True for real documents.
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over documents, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: least, per document, at s_i = ln(p_i / (1 - p_i)), where it is the
        entropy of p_i, not 0; a confident teacher's score need not be met, only passed.
    Gradients: finite for every `where`, all False included; sigmoid(s_i) - p_i each;
        none flows into `probabilities`.
    Reference: Hinton, Vinyals and Dean, 2015 (arXiv 1503.02531), section 2, for two
        classes, relevant and not.
    Example: even odds against certainty: ln 2.
        >>> import jax.numpy as jnp
        >>> s, p, where = jnp.zeros(1), jnp.ones(1), jnp.ones(1, bool)
        >>> loss = soft_cross_entropy(s, p, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    return pointwise.sigmoid_cross_entropy(
        scores,
        jax.lax.stop_gradient(probabilities),
        where=where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def ranknet_on_teacher_order(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Logistic loss on the pairs that the teacher orders. Unit of weight: pair.

    Definition: l(s, t) = sum over i, j with t_i > t_j of ln(1 + exp(-(s_i - s_j)))

    Args:
      scores: [*B, L], student scores, unbounded.
      targets: [*B, L], teacher scores, or minus ranks; only their order counts.
      where: [*B, L] bool, True for real documents.
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    return pairwise.ranknet(
        scores,
        jax.lax.stop_gradient(targets),
        where=where,
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def adr_mse(
    scores: Float[Array, "*B L"],
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
    unit: DocumentUnit = "document",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
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
      unit: what counts alike, each "document" or each "list".
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over documents that have another in
        their list, weight = their number.
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
    return over_documents(
        lists.discounts(true) * (true - approximate) ** 2,
        where & (jnp.sum(where, axis=-1, keepdims=True) > 1),
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def standardise(
    targets: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    data_std: float | Float[Array, ""] = 0.0,
    floor: float = 0.1,
) -> Float[Array, "*B L"]:
    """Teacher scores of each list with mean 0 and variance 1, float32.

    A list to which the teacher is indifferent is not blown up: one whose deviation is
    below `floor * data_std` is divided by that, and comes out narrower than variance 1.
    A list whose scores are all equal, or that has one document, becomes zeros. Squares
    neither overflow nor underflow, however large or close together the scores.

    Args:
      targets: [*B, L], teacher scores.
      where: [*B, L] bool, True for real documents; the others become 0.
      data_std: standard deviation of all the teacher's scores; 0: every list gets
        variance 1, however close together its scores.
      floor: share of `data_std` that a list's deviation counts as at least.

    >>> import jax.numpy as jnp
    >>> t, where = jnp.array([4.0, 8.0]), jnp.ones(2, bool)
    >>> standardise(t, where=where).tolist()
    [-1.0, 1.0]
    >>> standardise(t, where=where, data_std=80.0).tolist()  # at least 8 counts
    [-0.25, 0.25]
    """
    chex.assert_equal_shape([targets, where])
    t = targets.astype(jnp.float32)
    lowest = jnp.min(t, axis=-1, keepdims=True, where=where, initial=_HIGHEST)
    # From the lowest on, equal scores are exact zeros: no rounding error to blow up.
    above = lists.masked(t - lowest, where)
    span = jnp.max(above, axis=-1, keepdims=True)
    span = jnp.where(span > 0, span, 1.0)
    unit = above / span
    count = jnp.maximum(jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
    centred = lists.masked(unit - jnp.sum(unit, axis=-1, keepdims=True) / count, where)
    std = jnp.sqrt(jnp.sum(centred**2, axis=-1, keepdims=True) / count)
    least = jnp.asarray(data_std, jnp.float32) * jnp.float32(floor) / span
    std = jnp.maximum(std, least)
    return centred / jnp.where(std > 0, std, 1.0)
