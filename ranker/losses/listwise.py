"""Listwise losses: over the whole list of a query at once.

`document_weights` and `list_weights` are explained in losses/reduction.py. Here a
document's weight multiplies what the document is worth in its list (its share of the
labels, its gain, its draw), and the list counts by the mean weight of what it is about.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses import lists, schemes
from ranker.losses.reduction import WeightedSum, over_lists


def softmax(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Cross-entropy of labels' shares and the scores' softmax. Unit of weight: list.

    Definition: l(s, y) = -sum over i of y_i / sum(y) * log_softmax(s / temperature)_i

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; a document's share is its label's, a negative one
        counts as 0.
      where: [*B, L] bool, True for real documents.
      temperature: score units, above 0; the lower, the more the highest scores count.
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over lists of two or more documents
        that have a label above 0, weight = their number.
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
    shares, worth = lists.weighted_shares(shares, where, document_weights)
    s = lists.masked(scores, where) / temperature
    losses = -jnp.sum(shares * lists.log_softmax(s, where), axis=-1)  # [*B]
    taught = (total[..., 0] > 0) & (jnp.sum(where, axis=-1) > 1)
    return over_lists(losses, taught, worth, list_weights)


def list_net(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 1.0,
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Cross-entropy of the labels' softmax and the scores'. Unit of weight: list.

    Definition: l(s, y) = -sum over i of softmax(y)_i * log_softmax(s / temperature)_i

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements on the scale of scores; their differences count, so
        that one grade is worth a factor of e.
      where: [*B, L] bool, True for real documents.
      temperature: score units that are worth one unit of the labels, above 0.
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    target, worth = lists.weighted_shares(target, where, document_weights)
    s = lists.masked(scores, where) / temperature
    losses = -jnp.sum(target * lists.log_softmax(s, where), axis=-1)  # [*B]
    return over_lists(losses, _ordered(labels, where), worth, list_weights)


def info_nce(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    relevance: float = 1.0,
    temperature: float = 1.0,
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Each positive on its own against the list's negatives. Unit of weight: list.

    Definition: l(s, y) = mean over i with y_i >= relevance of
        ln(exp(s_i / temperature) + sum over j with y_j < relevance of
        exp(s_j / temperature)) - s_i / temperature

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; all that counts is which reach `relevance`.
      where: [*B, L] bool, True for real documents.
      relevance: lowest label of a positive.
      temperature: score units, above 0; the lower, the more hard negatives count.
      document_weights: [*B, L], 0 or more, of the positives; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over lists with a positive and a
        negative, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list. Positives do
        not compete; with one of label 1 and the others 0 it is `softmax`.
    Gradients: finite for every `where`, all False included.
    Reference: van den Oord, Li and Vinyals, 2018 (arXiv 1807.03748), eq. 4, with the
        negatives of the same query as in Gao, Dai and Callan, 2021 (arXiv 2101.08751).
    Example: each of two positives against one negative of the same score: ln 2.
        >>> import jax.numpy as jnp
        >>> y, where = jnp.array([1.0, 2.0, 0.0]), jnp.ones(3, bool)
        >>> loss = info_nce(jnp.zeros(3), y, where=where)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    s = lists.masked(scores, where) / temperature
    positive = where & (lists.masked(labels, where) >= relevance)
    negative = where & ~positive
    rest = lists.masked_logsumexp(s, negative[..., None, :])  # [*B, 1]
    losses = lists.masked(jax.nn.softplus(rest - s), positive)
    number = jnp.sum(positive, axis=-1, keepdims=True, dtype=jnp.float32)
    shares = positive.astype(jnp.float32) / jnp.maximum(number, 1.0)
    shares, worth = lists.weighted_shares(shares, where, document_weights)
    both = jnp.any(positive, axis=-1) & jnp.any(negative, axis=-1)
    return over_lists(jnp.sum(shares * losses, axis=-1), both, worth, list_weights)


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
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """Surprise at drawing the documents in the order of labels. Unit of weight: list.

    Definition: l(s, y) = sum over i of ln(sum over j with y_j <= y_i of exp(s_j)) - s_i

    Args:
      scores: [*B, L], logarithms of Plackett-Luce strengths, unbounded.
      labels: [*B, L], judgements; only their order counts.
      where: [*B, L] bool, True for real documents.
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    size = jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32)
    shares = where.astype(jnp.float32) / jnp.maximum(size, 1.0)
    shares, worth = lists.weighted_shares(shares, where, document_weights)
    surprise = size * shares * _surprise(scores, labels, where)
    losses = jnp.sum(surprise, axis=-1)  # [*B]
    return over_lists(losses, _ordered(labels, where), worth, list_weights)


def position_aware_list_mle(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
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
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
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
    decay, worth = lists.weighted_shares(decay, where, document_weights)
    losses = jnp.sum(decay * _surprise(scores, labels, where), axis=-1)  # [*B]
    return over_lists(losses, _ordered(labels, where), worth, list_weights)


def approx_ndcg(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    temperature: float = 0.1,
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
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
      document_weights: [*B, L], 0 or more; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over lists in which some document
        gains more than another, weight = their number.
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
    gain = lists.gains(labels, where, document_weights)
    ranks = lists.approximate_ranks(scores, where, temperature)
    losses = 1 - jnp.sum(gain * lists.discounts(ranks), axis=-1)  # [*B]
    worth = _worth(labels, where, document_weights)
    return over_lists(losses, _ordered(gain, where), worth, list_weights)


def _worth(
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
    weights: Float[Array, "*B L"] | None,
) -> Float[Array, "*B"] | None:
    """Mean weight of the documents of each list, by their gains."""
    if weights is None:
        return None
    gain = lists.gains(labels, where)
    total = jnp.sum(gain, axis=-1, keepdims=True)
    shares = gain / jnp.where(total > 0, total, 1.0)
    return lists.weighted_shares(shares, where, weights)[1]


def lambda_loss(
    scores: Float[Array, "*B L"],
    labels: Float[Array, "*B L"],
    *,
    where: Bool[Array, "*B L"],
    scheme: schemes.Scheme = schemes.ndcg_loss_2pp,
    mu: float = 10.0,
    sigma: float = 1.0,
    cutoff: int = 0,
    document_weights: Float[Array, "*B L"] | None = None,
    list_weights: Float[Array, "*B"] | None = None,
) -> WeightedSum:
    """A bound on 1 - NDCG out of pairs. Unit of weight: list.

    Definition: l(s, y) = sum over i, j of w_ij log2(1 + exp(-sigma (s_i - s_j))),
        w = scheme(g, r, mu), g_i = (2 ** y_i - 1) / (DCG of the ideal order),
        r the ranks by the current scores, of equal scores in the order of the list

    Args:
      scores: [*B, L], unbounded.
      labels: [*B, L], judgements; a negative one gains as much as 0.
      where: [*B, L] bool, True for real documents.
      scheme: factors of the pairs, a function of losses/schemes.py.
      mu: weight of the second term of NDCG-Loss2++ against the first, 0 or more.
      sigma: steepness of the logistic, per score unit, above 0.
      cutoff: k of NDCG@k: pairs count of which a document is among the first k, and the
        ideal order ends there; 0: all pairs.
      document_weights: [*B, L], 0 or more, factors of the gains; None: 1 each.
      list_weights: [*B], 0 or more; None: 1 each.
    Returns: WeightedSum of float32 scalars: total over lists in which some document
        gains more than another, weight = their number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to the scores of a list; with mu = 0,
        `pairwise.ranknet` with `pairwise.delta_ndcg`, in bits and per list.
    Gradients: finite for every `where`, all False included; none through the ranks.
    Reference: Wang et al., 2018, "The LambdaLoss framework for ranking metric
        optimization", with the hard assignment of ranks; eq. 18 for the cutoff.
    Example: ranks 1 and 2: 2 (1 - 1 / log2(3)) = 0.7381 of a bit, for equal scores.
        >>> import jax.numpy as jnp
        >>> y, where = jnp.array([1.0, 0.0]), jnp.ones(2, bool)
        >>> loss = lambda_loss(jnp.zeros(2), y, where=where, mu=1.0)
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.7381, 1.0)
    """
    chex.assert_equal_shape([scores, labels, where])
    gain = lists.gains(labels, where, document_weights, cutoff)
    ranks = lists.ranks(jax.lax.stop_gradient(scores), where)
    pairs = lists.both(where)
    if cutoff:
        pairs &= schemes.within(ranks, cutoff)
    margins = lists.differences(lists.masked(scores, where))
    bits = jax.nn.softplus(-sigma * margins) / math.log(2)  # [*B, L, L]
    bits = jnp.where(pairs, scheme(gain, ranks, mu) * bits, 0.0)
    losses = jnp.sum(bits, axis=(-2, -1))  # [*B]
    worth = _worth(labels, where, document_weights)
    return over_lists(losses, _ordered(gain, where), worth, list_weights)
