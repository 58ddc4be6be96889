"""Pairwise losses: over the pairs of documents of which one has the higher label.

Each takes `pair_weights`, a function (scores, labels, where) -> [*B, L, L] factors of
the pairs. The unit of weight stays the pair, whatever its factor: a factor may depend
on the scores, and a denominator must not.

`unit`, `document_weights` and `list_weights` are explained in losses/reduction.py.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses import lists
from ranker.losses.reduction import PairUnit, WeightedSum, over_pairs

PairWeights = Callable[
    [Float[Array, "*B L"], Float[Array, "*B L"], Bool[Array, "*B L"]],
    Float[Array, "*B L L"],
]


def equal_weights(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
) -> Float[Array, "*B L L"]:
    """1 for every pair."""
    del scores, labels
    return jnp.ones_like(lists.both(where), jnp.float32)


def grade_difference(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
) -> Float[Array, "*B L L"]:
    """|y_i - y_j|: the further apart two judgements, the more their order counts."""
    del scores
    return jnp.abs(lists.differences(lists.masked(labels, where)))


def delta_ndcg(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
) -> Float[Array, "*B L L"]:
    """How much NDCG changes when i and j swap ranks: with `ranknet`, LambdaRank.

    |g_i - g_j| * |1 / log2(1 + r_i) - 1 / log2(1 + r_j)|, with g the gains 2 ** y - 1
    over the ideal DCG of the list and r the ranks by the current scores, of equal ones
    in the order of the list. No cutoff, and no gradient flows through the ranks.

    Reference: Burges, Ragno and Le, 2006, "Learning to rank with nonsmooth cost
        functions"; Burges, 2010, MSR-TR-2010-82, section 4.
    """
    gain = lists.gains(labels, where)
    discount = lists.discounts(lists.ranks(jax.lax.stop_gradient(scores), where))
    return jnp.abs(lists.differences(gain)) * jnp.abs(lists.differences(discount))


def ranknet(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    pair_weights: PairWeights = equal_weights,
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Logistic loss on score differences of ordered pairs. Unit of weight: pair.

    Definition: l(s, y) = sum over i, j with y_i > y_j of
        w_ij ln(1 + exp(-(s_i - s_j))), w = pair_weights(s, y)

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; only their order counts, but for `pair_weights`.
      where: [*B, L] bool, True for real documents.
      pair_weights: factors of the pairs; `delta_ndcg` makes this LambdaRank.
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over ordered pairs, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list.
    Gradients: finite for every `where`, all False included; at most w_ij a pair; none
        flows through `pair_weights` of this module.
    Reference: Burges et al., 2005, "Learning to rank using gradient descent", eq. 3.
    Example: equal scores cost ln 2 a pair.
        >>> import jax.numpy as jnp
        >>> s, y, where = jnp.zeros(2), jnp.array([3.0, 0.0]), jnp.ones(2, bool)
        >>> loss = ranknet(s, y, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
        >>> loss = ranknet(s, y, where=where, pair_weights=grade_difference)
        >>> round(float(loss.total), 4), float(loss.weight)
        (2.0794, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    margins = lists.differences(lists.masked(scores, where))
    factors = pair_weights(scores, labels, where)
    losses = factors * jax.nn.softplus(-margins)  # [*B, L, L]
    return over_pairs(
        losses,
        lists.preferences(labels, where),
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )


def hinge(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    margin: float = 1.0,
    pair_weights: PairWeights = equal_weights,
    unit: PairUnit = "pair",
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """How far ordered pairs fall short of a margin. Unit of weight: pair.

    Definition: l(s, y) = sum over i, j with y_i > y_j of
        w_ij max(0, margin - (s_i - s_j)), w = pair_weights(s, y)

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; only their order counts, but for `pair_weights`.
      where: [*B, L] bool, True for real documents.
      margin: score units that the better document is to lead by.
      pair_weights: factors of the pairs.
      unit: what counts alike, each "pair" or each "list".
      document_weights: [*B, L], 0 or more, a pair's product counts; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over ordered pairs, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; 0 when every
        better document leads by the margin.
    Gradients: finite for every `where`, all False included; 0 beyond the margin.
    Reference: Herbrich, Graepel and Obermayer, 2000, "Large margin rank boundaries for
        ordinal regression"; DisRanker as reported (max-margin).
    Example: a lead of 0.25 lacks 0.75.
        >>> import jax.numpy as jnp
        >>> s, y = jnp.array([0.25, 0.0]), jnp.array([1.0, 0.0])
        >>> loss = hinge(s, y, where=jnp.ones(2, bool))
        >>> float(loss.total), float(loss.weight)
        (0.75, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    margins = lists.differences(lists.masked(scores, where))
    factors = pair_weights(scores, labels, where)
    losses = factors * jax.nn.relu(margin - margins)  # [*B, L, L]
    return over_pairs(
        losses,
        lists.preferences(labels, where),
        unit=unit,
        document_weights=document_weights,
        list_weights=list_weights,
    )
