"""Listwise losses: over the whole list of a query at once."""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses import lists
from ranker.losses.reduction import WeightedSum, weighted_sum


def softmax(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Cross-entropy of labels' shares and the scores' softmax. Unit of weight: list.

    Definition: l(s, y) = -sum over i of y_i / sum(y) * log_softmax(s)_i

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; a document's share is its label's, a negative one
        counts as 0.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over lists that have a label above 0,
        weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; least when
        the softmax equals the shares.
    Gradients: finite for every `where`, all False included.
    Reference: Bruch et al., 2019 (arXiv 1911.09798), eq. 2. `list_net` has the labels'
        softmax in place of their shares.
    Example: two equal scores, one relevant document: -ln 0.5.
        >>> import jax.numpy as jnp
        >>> loss = softmax(jnp.zeros(2), jnp.array([2.0, 0.0]), where=jnp.ones(2, bool))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    y = jnp.maximum(lists.masked(labels, where), 0.0)
    total = jnp.sum(y, axis=-1, keepdims=True)
    shares = y / jnp.where(total > 0, total, 1.0)
    losses = -jnp.sum(shares * lists.log_softmax(scores, where), axis=-1)  # [*B]
    return weighted_sum(losses, total[..., 0] > 0)


def list_net(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Cross-entropy of the labels' softmax and the scores'. Unit of weight: list.

    Definition: l(s, y) = -sum over i of softmax(y)_i * log_softmax(s)_i

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements on the scale of scores; their differences count, so
        that one grade is worth a factor of e.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over lists in which some label is
        higher than another, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores or the labels of a
        list; least when their differences are equal, so that scores stay bounded.
    Gradients: finite for every `where`, all False included.
    Reference: Cao et al., 2007, "Learning to rank: from pairwise approach to listwise
        approach", top one.
    Example: two equal scores: ln 2 whatever the labels.
        >>> import jax.numpy as jnp
        >>> labels, where = jnp.array([2.0, 0.0]), jnp.ones(2, bool)
        >>> loss = list_net(jnp.zeros(2), labels, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    target = lists.masked(jnp.exp(lists.log_softmax(labels, where)), where)
    losses = -jnp.sum(target * lists.log_softmax(scores, where), axis=-1)  # [*B]
    return weighted_sum(losses, _ordered(labels, where))


def _surprise(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
) -> Float[Array, "*B L"]:
    """-ln of the chance to draw each document first, of those not above its label."""
    s = lists.masked(scores, where)
    rest = lists.both(where) & (lists.differences(lists.masked(labels, where)) >= 0)
    return lists.masked(lists.masked_logsumexp(s, rest) - s, where)


def _ordered(
    labels: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Bool[Array, "*B"]:
    """True for the lists in which some label is higher than another."""
    return jnp.any(lists.preferences(labels, where), axis=(-2, -1))


def list_mle(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """Surprise at drawing the documents in the order of labels. Unit of weight: list.

    Definition: l(s, y) = sum over i of ln(sum over j with y_j <= y_i of exp(s_j)) - s_i

    Args:
      scores: [*B, L], logarithms of Plackett-Luce strengths, unbounded.
      labels: [*B, L], judgements; only their order counts.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over lists in which some label is
        higher than another, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; convex;
        pulls the scores of equal labels together.
    Gradients: finite for every `where`, all False included.
    Reference: Xia et al., 2008, "Listwise approach to learning to rank", the
        likelihood loss, which has one true permutation. Here a document whose label
        ties is drawn against its whole tie (Breslow, 1974, for the same likelihood in
        survival analysis): the order in which equal labels are stored teaches nothing.
    Example: the first of two equal scores, then the only one left: ln 2 + 0.
        >>> import jax.numpy as jnp
        >>> s, y, where = jnp.zeros(2), jnp.array([2.0, 1.0]), jnp.ones(2, bool)
        >>> loss = list_mle(s, y, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    losses = jnp.sum(_surprise(scores, labels, where), axis=-1)  # [*B]
    return weighted_sum(losses, _ordered(labels, where))


def position_aware_list_mle(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
) -> WeightedSum:
    """`list_mle` with most weight on the first draws. Unit of weight: list.

    Definition: l(s, y) = sum over i of
        a_i (ln(sum over j with y_j <= y_i of exp(s_j)) - s_i),
        a_i = (2 ** (n - r_i) - 1) / sum over k = 1 to n of (2 ** (n - k) - 1),
        n documents, r_i the rank of i by labels; a tie shares the mean of its ranks' a

    Args:
      scores: [*B, L], logarithms of Plackett-Luce strengths, unbounded.
      labels: [*B, L], judgements; only their order counts.
      where: [*B, L] bool, True for real documents.
    Returns: WeightedSum of float32 scalars: total over lists in which some label is
        higher than another, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list. Every rank
        counts half of the one above, so the first ten are all that counts.
    Gradients: finite for every `where`, all False included, and for any length of list.
    Reference: Lan et al., 2014, "Position-aware ListMLE", with the decay of its
        experiments, there not divided by its sum. Ties as in `list_mle`.
    Example: of two documents the second draw is certain and weighs nothing: 1 * ln 2.
        >>> import jax.numpy as jnp
        >>> s, y, where = jnp.zeros(2), jnp.array([2.0, 1.0]), jnp.ones(2, bool)
        >>> loss = position_aware_list_mle(s, y, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    size = jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32)
    above, tied = lists.standing(labels, where)
    # All over 2 ** n, which would overflow: 2 ** -r - 2 ** -n, its mean over a tie.
    mean = (jnp.exp2(-above) - jnp.exp2(-above - tied)) / jnp.maximum(tied, 1.0)
    decay = lists.masked(mean - jnp.exp2(-size), where)
    total = jnp.sum(decay, axis=-1, keepdims=True)
    decay = decay / jnp.where(size > 1, total, 1.0)
    losses = jnp.sum(decay * _surprise(scores, labels, where), axis=-1)  # [*B]
    return weighted_sum(losses, _ordered(labels, where))


def approx_ndcg(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 0.1,
) -> WeightedSum:
    """1 - NDCG with ranks smoothed by sigmoids. Unit of weight: list.

    Definition: l(s, y) = 1 - sum over i of g_i / log2(1 + r_i),
        r_i = 1 + sum over j != i of sigmoid((s_j - s_i) / temperature),
        g_i = (2 ** y_i - 1) / (DCG of the ideal order)

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; a negative one counts as 0.
      where: [*B, L] bool, True for real documents.
      temperature: score units, above 0; towards 0 the ranks become the true ones, and
        their gradient vanishes.
    Returns: WeightedSum of float32 scalars: total over lists that have a label above 0,
        weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; in [0, 1];
        no cutoff.
    Gradients: finite for every `where`, all False included; 0 where scores lie many
        temperatures apart.
    Reference: Qin, Liu and Li, 2010, "A general approximation framework for direct
        optimization of information retrieval measures", alpha = 1 / temperature = 10,
        as in Bruch et al., 2019, "Revisiting approximate metric optimization".
    Example: two equal scores share rank 1.5, so 1 - 1 / log2(2.5).
        >>> import jax.numpy as jnp
        >>> y, where = jnp.array([1.0, 0.0]), jnp.ones(2, bool)
        >>> loss = approx_ndcg(jnp.zeros(2), y, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.2435, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    gain = lists.gains(labels, where)
    ranks = lists.approximate_ranks(scores, where, temperature)
    losses = 1 - jnp.sum(gain * lists.discounts(ranks), axis=-1)  # [*B]
    return weighted_sum(losses, jnp.any(gain > 0, axis=-1))


def lambda_loss(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    mu: float = 10.0,
) -> WeightedSum:
    """A bound on 1 - NDCG out of pairs, NDCG-Loss2++. Unit of weight: list.

    Definition: l(s, y) = sum over i, j with y_i > y_j of
        (rho_ij + mu * delta_ij) |g_i - g_j| log2(1 + exp(-(s_i - s_j))),
        rho_ij = |d(r_i) - d(r_j)|, delta_ij = d(|r_i - r_j|) - d(|r_i - r_j| + 1),
        d(r) = 1 / log2(1 + r), g_i = (2 ** y_i - 1) / (DCG of the ideal order),
        r the ranks by the current scores, of equal scores in the order of the list

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; a negative one gains as much as 0.
      where: [*B, L] bool, True for real documents.
      mu: weight of delta (NDCG-Loss2) against rho (LambdaRank), 0 or more.
    Returns: WeightedSum of float32 scalars: total over lists in which some label is
        higher than another, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; with mu = 0,
        `pairwise.ranknet` with `pairwise.delta_ndcg`, in bits and per list.
    Gradients: finite for every `where`, all False included; none through the ranks.
    Reference: Wang et al., 2018, "The LambdaLoss framework for ranking metric
        optimization", NDCG-Loss2++ with sigma = 1 and the hard assignment of ranks.
    Example: ranks 1 and 2: 2 (1 - 1 / log2(3)) = 0.7381 of a bit, for equal scores.
        >>> import jax.numpy as jnp
        >>> y, where = jnp.array([1.0, 0.0]), jnp.ones(2, bool)
        >>> loss = lambda_loss(jnp.zeros(2), y, where=where, mu=1.0)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.7381, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    gain = lists.gains(labels, where)
    ranks = lists.ranks(jax.lax.stop_gradient(scores), where)
    rho = jnp.abs(lists.differences(lists.discounts(ranks)))
    apart = jnp.maximum(jnp.abs(lists.differences(ranks)), 1.0)  # 0 where i = j
    delta = lists.discounts(apart) - lists.discounts(apart + 1)
    factors = (rho + mu * delta) * jnp.abs(lists.differences(gain))
    margins = lists.differences(lists.masked(scores, where))
    bits = jax.nn.softplus(-margins) / math.log(2)  # [*B, L, L]
    bits = jnp.where(lists.preferences(labels, where), factors * bits, 0.0)
    return weighted_sum(jnp.sum(bits, axis=(-2, -1)), _ordered(labels, where))
