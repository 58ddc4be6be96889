"""How much each pair counts in `listwise.lambda_loss`: the schemes of LambdaLoss.

A scheme is a function (gains, ranks, mu) -> [*B, L, L] factors of the pairs (i, j), 0
or more. Gains add up to NDCG, ranks are by the current scores, and no gradient flows
through either. With d(r) = 1 / log2(1 + r):

    ndcg_loss_1     g_i d(r_i)                       over all i != j
    lambda_rank     |g_i - g_j| |d(r_i) - d(r_j)|    over the pairs with g_i > g_j
    ndcg_loss_2     |g_i - g_j| delta_ij             over the pairs with g_i > g_j
    ndcg_loss_2pp   lambda_rank + mu ndcg_loss_2
    delta_ij = d(|r_i - r_j|) - d(|r_i - r_j| + 1)

Reference: Wang et al., 2018, "The LambdaLoss framework for ranking metric
    optimization", sections 5 and 6.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ranker.losses import lists

Gains = Float[Array, "*B L"]
Ranks = Float[Array, "*B L"]
Factors = Float[Array, "*B L L"]
Scheme = Callable[[Gains, Ranks, float], Factors]


def ndcg_loss_1(gains: Gains, ranks: Ranks, mu: float) -> Factors:
    """g_i d(r_i) of all pairs of different documents; a loose bound, for comparison."""
    del mu
    factors = (gains * lists.discounts(ranks))[..., :, None]
    return jnp.where(lists.differences(ranks) == 0, 0.0, factors)


def lambda_rank(gains: Gains, ranks: Ranks, mu: float) -> Factors:
    """By how much NDCG changes when i and j swap ranks."""
    del mu
    return _lead(gains) * jnp.abs(lists.differences(lists.discounts(ranks)))


def ndcg_loss_2(gains: Gains, ranks: Ranks, mu: float) -> Factors:
    """By the discount between ranks that are so far apart: a tighter bound."""
    del mu
    apart = jnp.maximum(jnp.abs(lists.differences(ranks)), 1.0)  # 0 where i = j
    delta = lists.discounts(apart) - lists.discounts(apart + 1)
    return _lead(gains) * delta


def ndcg_loss_2pp(gains: Gains, ranks: Ranks, mu: float) -> Factors:
    """`lambda_rank` + mu `ndcg_loss_2`, the best of the paper's experiments."""
    return lambda_rank(gains, ranks, mu) + mu * ndcg_loss_2(gains, ranks, mu)


def within(ranks: Ranks, cutoff: int) -> Bool[Array, "*B L L"]:
    """True for the pairs of which one document is among the first `cutoff`."""
    high = ranks <= cutoff
    return high[..., :, None] | high[..., None, :]


def _lead(gains: Gains) -> Factors:
    """How much more i gains than j; 0 where it does not."""
    return jnp.maximum(lists.differences(gains), 0.0)
