"""Language modelling, for continued pre-training."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ranker.losses.reduction import WeightedSum, weighted_sum


def next_token(
    logits: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    *,
    where: Bool[Array, "*B T"],
) -> WeightedSum:
    """Cross-entropy of tokens given those before them. Unit of weight: token.

    Definition: l = sum over t > 0 with where[t] of
        logsumexp(logits[t - 1]) - logits[t - 1, tokens[t]]

    Args:
      logits: [*B, T, V], of the token after each position.
      tokens: [*B, T] int, the text, not shifted.
      where: [*B, T] bool, True for the tokens to predict. The first of a row has
        nothing before it and never counts.
    Returns: WeightedSum of float32 scalars: total over valid tokens, weight = their
        number.
    Raises: AssertionError when shapes differ (while tracing).
    Properties: unchanged when a constant is added to all logits of a position. The
        logits are neither sliced nor normalised, which would cost a copy of them each.
    Gradients: finite for every `where`, all False included.
    Reference: DisRanker (arXiv 2411.04539), continued pre-training, as reported:
        negative log-likelihood of title and summary given the query.
    Example: a uniform guess among two tokens costs ln 2.
        >>> import jax.numpy as jnp
        >>> tokens = jnp.array([0, 1])
        >>> loss = next_token(jnp.zeros((2, 2)), tokens, where=jnp.array([True, True]))
        >>> round(float(loss.total), 4), float(loss.weight)
        (0.6931, 1.0)
    """
    chex.assert_equal_shape([tokens, where])
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    return _cross_entropy(logits, *_shift(tokens, where))


def next_token_by_chunks(
    hidden: Float[Array, "R T D"],
    to_logits: Callable[[Float[Array, "R C D"]], Float[Array, "R C V"]],
    tokens: Int[Array, "R T"],
    *,
    where: Bool[Array, "R T"],
    chunks: int,
) -> WeightedSum:
    """`next_token` without ever holding the logits of all tokens.

    Rows are cut into `chunks` parts of C tokens, one after the other; the backward pass
    makes each part's logits anew. Rows stay whole, so a batch that is split by rows
    stays where it is.

    Args:
      hidden: [R, T, D], what the logits are made from.
      to_logits: makes them, token by token.
      tokens: [R, T] int, the text, not shifted.
      where: [R, T] bool, True for the tokens to predict.
      chunks: parts that T is cut into, which divides it.
    Returns: what `next_token` does.
    Raises: AssertionError when shapes differ (while tracing).
    """
    chex.assert_equal_shape([tokens, where])
    chex.assert_is_divisible(tokens.shape[1], chunks)
    following, predicted = _shift(tokens, where)
    if chunks == 1:
        return _cross_entropy(to_logits(hidden), following, predicted)

    def cut(x: Array) -> Array:
        R, T, *rest = x.shape
        return jnp.moveaxis(x.reshape(R, chunks, T // chunks, *rest), 1, 0)

    @jax.checkpoint
    def body(total: WeightedSum, part: tuple[Array, ...]) -> tuple[WeightedSum, None]:
        hidden, following, predicted = part
        return total + _cross_entropy(to_logits(hidden), following, predicted), None

    none = WeightedSum(jnp.zeros(()), jnp.zeros(()))
    parts = tuple(cut(x) for x in (hidden, following, predicted))
    return jax.lax.scan(body, none, parts)[0]


def _shift(tokens: Array, where: Array) -> tuple[Array, Array]:
    """At each position the token after it, and whether that is to be predicted."""
    following = jnp.roll(tokens, -1, axis=-1)
    return following, jnp.roll(where, -1, axis=-1).at[..., -1].set(False)


def _cross_entropy(logits: Array, following: Array, predicted: Array) -> WeightedSum:
    logits = logits.astype(jnp.float32)
    # A comparison, not a look-up: that would gather a vocabulary that is split.
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(places == following[..., None], logits, 0.0), axis=-1)
    return weighted_sum(jax.nn.logsumexp(logits, axis=-1) - chosen, predicted)
