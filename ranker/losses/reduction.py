"""`WeightedSum`, what every loss returns, and how documents, pairs and lists count.

The arguments that losses share:

* `unit`: what counts alike in a mean. With "document" or "pair" a long list counts by
  what it holds: 28 pairs of 8 documents against one pair of 2. With "list" each list
  counts once, with the mean over its documents or pairs.
* `document_weights` [*B, L], 0 or more, such as inverse propensities of clicks: as if a
  document were there that many times. A pair counts by the product of its two. None: 1.
* `list_weights` [*B], 0 or more: as if a list were there that many times. None: 1.

All three enter the total and the weight alike, so a mean stays on the loss's scale, and
none of them may depend on the scores.
"""

from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

DocumentUnit = Literal["document", "list"]
PairUnit = Literal["pair", "list"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightedSum:
    """A loss summed over its items, and how many items there are.

    Sums of parts of a batch add up to the sum of the batch, which means do not:

    >>> import jax.numpy as jnp
    >>> first = WeightedSum(jnp.float32(4.0), jnp.float32(1.0))
    >>> rest = WeightedSum(jnp.float32(2.0), jnp.float32(2.0))
    >>> float((first + rest).mean())
    2.0
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """The total / weight; 0 at weight 0, but a NaN in the total comes through."""
        empty = self.weight == 0
        total = jnp.where(empty, self.total * 0, self.total)
        return total / jnp.where(empty, 1.0, self.weight)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        """Sum of two parts of a batch."""
        return WeightedSum(self.total + other.total, self.weight + other.weight)


def weighted_sum(
    values: Float[Array, "*N"],
    where: Bool[Array, "*N"],
    weights: Float[Array, "*N"] | None = None,
) -> WeightedSum:
    """Sum of weights * values where `where`, and that of the weights; float32.

    A caller whose values are not finite outside `where` must mask what they are made
    from: a gradient does not stop at this mask.

    Args:
      values: [*N], of the items.
      where: [*N] bool, True for real items.
      weights: [*N], 0 or more; None: 1 each.
    """
    values = jnp.where(where, values.astype(jnp.float32), 0.0)
    if weights is None:
        return WeightedSum(jnp.sum(values), jnp.sum(where, dtype=jnp.float32))
    chex.assert_equal_shape([values, where, weights])
    weights = jnp.where(where, weights.astype(jnp.float32), 0.0)
    return WeightedSum(jnp.sum(weights * values), jnp.sum(weights))


def over_documents(
    values: Float[Array, "*B L"],
    where: Bool[Array, "*B L"],
    *,
    unit: str,
    document_weights: Float[Array, "*B L"] | None,
    list_weights: Float[Array, "*B"] | None,
) -> WeightedSum:
    """`weighted_sum` over the documents of lists; unit: "document" or "list"."""
    _check_unit(unit, "document")
    weights = where.astype(jnp.float32)
    if document_weights is not None:
        chex.assert_equal_shape([where, document_weights])
        weights = jnp.where(where, document_weights.astype(jnp.float32), 0.0)
    total, weight = jnp.sum(_times(values, weights), -1), jnp.sum(weights, -1)
    return _over_lists(total, weight, unit, list_weights)


def over_pairs(
    values: Float[Array, "*B L L"],
    pairs: Float[Array, "*B L L"] | Bool[Array, "*B L L"],
    *,
    unit: str,
    document_weights: Float[Array, "*B L"] | None,
    list_weights: Float[Array, "*B"] | None,
) -> WeightedSum:
    """`weighted_sum` over pairs of lists, each counted by `pairs`; unit: pair, list."""
    _check_unit(unit, "pair")
    weights = pairs.astype(jnp.float32)
    if document_weights is not None:
        chex.assert_shape(document_weights, pairs.shape[:-1])
        w = document_weights.astype(jnp.float32)
        product = w[..., :, None] * w[..., None, :]  # [*B, L, L]
        weights = jnp.where(weights > 0, weights * product, 0.0)
    total = jnp.sum(_times(values, weights), (-2, -1))
    return _over_lists(total, jnp.sum(weights, (-2, -1)), unit, list_weights)


def over_lists(
    values: Float[Array, "*B"],
    where: Bool[Array, "*B"],
    worth: Float[Array, "*B"] | None,
    list_weights: Float[Array, "*B"] | None,
) -> WeightedSum:
    """`weighted_sum` over lists, each counted by its `worth` and its weight."""
    weights = worth
    if list_weights is not None:
        chex.assert_equal_shape([where, list_weights])
        weights = list_weights if worth is None else worth * list_weights
    return weighted_sum(values, where, weights)


def _check_unit(unit: str, item: str) -> None:
    if unit not in (item, "list"):
        raise ValueError(f"unit is {unit!r}; choose {item!r} or 'list'")


def _times(values: Array, weights: Array) -> Array:
    """Values times weights; exactly 0 at weight 0, whatever the value."""
    return weights * jnp.where(weights > 0, values.astype(jnp.float32), 0.0)


def _over_lists(
    total: Float[Array, "*B"],
    weight: Float[Array, "*B"],
    unit: str,
    list_weights: Float[Array, "*B"] | None,
) -> WeightedSum:
    if unit != "list":
        if list_weights is None:
            return WeightedSum(jnp.sum(total), jnp.sum(weight))
        chex.assert_equal_shape([weight, list_weights])
        counted = jnp.where(weight > 0, list_weights.astype(jnp.float32), 0.0)
        return WeightedSum(jnp.sum(counted * total), jnp.sum(counted * weight))
    means = total / jnp.where(weight > 0, weight, 1.0)
    return over_lists(means, weight > 0, None, list_weights)
