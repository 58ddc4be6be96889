"""`WeightedSum`, what every loss returns."""

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
        """The total / weight; 0 at weight 0, but a NaN in the total comes through."""
        empty = self.weight == 0
        total = jnp.where(empty, self.total * 0, self.total)
        return total / jnp.where(empty, 1.0, self.weight)

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
