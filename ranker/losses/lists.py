"""Masks, pairs, ranks and gains of lists: what the ranking losses are made of.

Nothing is sorted and nothing is infinite. A rank is a count of comparisons, L * L for a
list of L documents, and gradients stay finite for every mask. All is float32.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Stands in for minus infinity; a quarter, so that no difference of two overflows.
_LOWEST = float(jnp.finfo(jnp.float32).min) / 4


def masked(
    values: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """The values in float32, and 0 outside `where`, with no gradient there."""
    return jnp.where(where, values.astype(jnp.float32), 0.0)


def log_softmax(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Log-softmax over the real documents of each list; 0 for the others."""
    s = jnp.where(where, scores.astype(jnp.float32), _LOWEST)
    return masked(jax.nn.log_softmax(s, axis=-1), where)


def masked_logsumexp(
    values: Float[Array, "*B L"], where: Bool[Array, "*B L L"]
) -> Float[Array, "*B L"]:
    """Logarithm of the sum of exp(values[j]) over the j with where[i, j]; needs one."""
    values = jnp.broadcast_to(values[..., None, :], where.shape)  # [*B, L, L]
    return jax.nn.logsumexp(jnp.where(where, values, _LOWEST), axis=-1)


# --- pairs ---


def differences(values: Float[Array, "*B L"]) -> Float[Array, "*B L L"]:
    """values[i] - values[j] for all i, j of a list."""
    return values[..., :, None] - values[..., None, :]


def both(where: Bool[Array, "*B L"]) -> Bool[Array, "*B L L"]:
    """True where i and j are real documents, i = j included."""
    return where[..., :, None] & where[..., None, :]


def pairs(where: Bool[Array, "*B L"]) -> Bool[Array, "*B L L"]:
    """True for the pairs of two real documents with i < j: each pair once."""
    return both(where) & jnp.triu(jnp.ones_like(both(where)), k=1)


def preferences(
    labels: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Bool[Array, "*B L L"]:
    """True for the pairs of real documents of which i has the higher label."""
    return both(where) & (differences(masked(labels, where)) > 0)


# --- ranks ---


def ranks(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Ranks 1, 2, ... of the real documents by falling score; of equal ones, in order.

    Equal scores get different ranks, so that a swap of two documents still changes DCG
    when a fresh model scores all alike.

    >>> import jax.numpy as jnp
    >>> ranks(jnp.array([0.5, 2.0, 0.5]), jnp.ones(3, bool)).tolist()
    [2.0, 1.0, 3.0]
    """
    lead = differences(masked(scores, where))  # [*B, L, L], s_i - s_j
    earlier = jnp.tril(jnp.ones_like(lead, bool), k=-1)  # j < i
    ahead = both(where) & ((lead < 0) | ((lead == 0) & earlier))
    return 1 + jnp.sum(ahead, axis=-1, dtype=jnp.float32)


def standing(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> tuple[Float[Array, "*B L"], Float[Array, "*B L"]]:
    """How many real documents score above each, and how many the same, itself too."""
    lead = differences(masked(scores, where))
    ahead = jnp.sum(both(where) & (lead < 0), axis=-1, dtype=jnp.float32)
    equal = jnp.sum(both(where) & (lead == 0), axis=-1, dtype=jnp.float32)
    return ahead, equal


def average_ranks(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """Ranks of the real documents by falling score; equal ones share their mean rank.

    >>> import jax.numpy as jnp
    >>> average_ranks(jnp.array([0.5, 2.0, 0.5]), jnp.ones(3, bool)).tolist()
    [2.5, 1.0, 2.5]
    """
    ahead, equal = standing(scores, where)
    return ahead + (equal + 1) / 2


def approximate_ranks(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"], temperature: float
) -> Float[Array, "*B L"]:
    """1 + sum over other real j of sigmoid((s_j - s_i) / temperature), differentiable.

    Reference: Qin, Liu and Li, 2010, "A general approximation framework for direct
        optimization of information retrieval measures", with alpha = 1 / temperature.

    >>> import jax.numpy as jnp
    >>> approximate_ranks(jnp.array([9.0, 9.0]), jnp.ones(2, bool), 1.0).tolist()
    [1.5, 1.5]
    """
    lead = differences(masked(scores, where))
    ahead = jnp.where(both(where), jax.nn.sigmoid(-lead / temperature), 0.0)
    return 0.5 + jnp.sum(ahead, axis=-1)  # half a document ahead of itself is taken off


def collapsed(
    scores: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Bool[Array, ""]:
    """True when a batch's scores order nothing: a sign that training has failed.

    Either a real document has a score that is not finite, or in no list do two real
    documents differ by more than float32 rounding (4 units in the last place). A batch
    without a list of two real documents is not collapsed: it says nothing.

    >>> import jax.numpy as jnp
    >>> bool(collapsed(jnp.array([[2.0, 2.0], [7.0, 7.0]]), jnp.ones((2, 2), bool)))
    True
    >>> bool(collapsed(jnp.array([[2.0, 2.0], [7.0, 7.1]]), jnp.ones((2, 2), bool)))
    False
    """
    s = masked(scores, where)
    highest = jnp.max(jnp.where(where, s, _LOWEST), axis=-1)
    lowest = jnp.min(jnp.where(where, s, -_LOWEST), axis=-1)
    rounding = 4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(s), axis=-1)
    lists = jnp.sum(where, axis=-1) > 1
    apart = lists & (highest - lowest > rounding)
    return ~jnp.all(jnp.isfinite(s)) | (jnp.any(lists) & ~jnp.any(apart))


# --- discounted cumulative gain ---


def discounts(ranks: Float[Array, "*B L"]) -> Float[Array, "*B L"]:
    """1 / log2(1 + rank)."""
    return 1 / jnp.log2(1 + ranks)


def gains(
    labels: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
    weights: Float[Array, "*B L"] | None = None,
    cutoff: int = 0,
) -> Float[Array, "*B L"]:
    """Gains 2 ** label - 1, divided by the DCG of the ideal order: they sum up to NDCG.

    A negative label gains nothing, and neither does any document of a list without a
    label above 0. Large labels do not overflow.

    Args:
      labels: [*B, L], judgements.
      where: [*B, L] bool, True for real documents.
      weights: [*B, L], 0 or more, factors of the gains; None: 1 each.
      cutoff: rank at which the ideal DCG ends; 0: it has none.

    >>> import jax.numpy as jnp
    >>> g = gains(jnp.array([0.0, 1.0, 2.0]), jnp.ones(3, bool))
    >>> [round(x, 4) for x in g.tolist()]
    [0.0, 0.2754, 0.8262]
    """
    y = jnp.maximum(masked(labels, where), 0.0)
    # Relative to the largest label: the ratio stays, and 2 ** label cannot overflow.
    top = jnp.max(y, axis=-1, keepdims=True)
    gain = masked(jnp.exp2(y - top) - jnp.exp2(-top), where)
    if weights is None:
        rank = ranks(y, where)
    else:
        gain = gain * masked(weights, where)
        rank = ranks(gain, where)
    discount = discounts(rank)
    if cutoff:
        discount = jnp.where(rank <= cutoff, discount, 0.0)
    ideal = jnp.sum(gain * discount, axis=-1, keepdims=True)
    return gain / jnp.where(ideal > 0, ideal, 1.0)


# --- weights ---


def weighted_shares(
    shares: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
    weights: Float[Array, "*B L"] | None,
) -> tuple[Float[Array, "*B L"], Float[Array, "*B"] | None]:
    """Shares times documents' weights, made to add up to 1 again, and their sum before.

    The sum is the mean weight of what a list is about: what the list itself counts by.
    Without weights the shares are what they were, and the sum is None, for 1.

    >>> import jax.numpy as jnp
    >>> shares, weights = jnp.array([0.5, 0.5, 0.0]), jnp.array([6.0, 2.0, 9.0])
    >>> shares, worth = weighted_shares(shares, jnp.ones(3, bool), weights)
    >>> shares.tolist(), float(worth)
    ([0.75, 0.25, 0.0], 4.0)
    """
    if weights is None:
        return shares, None
    chex.assert_equal_shape([shares, where, weights])
    shares = shares * masked(weights, where)
    worth = jnp.sum(shares, axis=-1)
    return shares / jnp.where(worth > 0, worth, 1.0)[..., None], worth
