"""`WeightedSum`, what every loss returns, and the masks and pairs that losses share."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
        """total / weight; 0 at weight 0, but a NaN in the total comes through."""
        empty = self.weight == 0
        return jnp.where(empty, self.total * 0, self.total) / jnp.where(
            empty, 1.0, self.weight
        )

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        """Sum of two parts of a batch."""
        return WeightedSum(self.total + other.total, self.weight + other.weight)


def weighted_sum(values: Float[Array, "*N"], where: Bool[Array, "*N"]) -> WeightedSum:
    """Sum of the values where `where`, and how many those are; float32.

    A caller whose values are not finite outside `where` must mask what they are made
    from: a gradient does not stop at this mask.
    """
    values = jnp.where(where, values.astype(jnp.float32), 0.0)
    return WeightedSum(jnp.sum(values), jnp.sum(where, dtype=jnp.float32))


def masked(
    values: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Float[Array, "*B L"]:
    """The values in float32, and 0 outside `where`, with no gradient there."""
    return jnp.where(where, values.astype(jnp.float32), 0.0)


def differences(values: Float[Array, "*B L"]) -> Float[Array, "*B L L"]:
    """values[i] - values[j] for all i, j of a list."""
    return values[..., :, None] - values[..., None, :]


def pairs(where: Bool[Array, "*B L"]) -> Bool[Array, "*B L L"]:
    """True for the pairs of two real documents with i < j: each pair once."""
    size = where.shape[-1]
    upper = jnp.triu(jnp.ones((size, size), bool), k=1)
    upper = upper.reshape((1,) * (where.ndim - 1) + (size, size))
    return where[..., :, None] & where[..., None, :] & upper


def preferences(
    labels: Float[Array, "*B L"], where: Bool[Array, "*B L"]
) -> Bool[Array, "*B L L"]:
    """True for the pairs of real documents of which i has the higher label."""
    real = where[..., :, None] & where[..., None, :]
    return real & (differences(masked(labels, where)) > 0)
