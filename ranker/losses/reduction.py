"""`WeightedSum`: what every loss returns, and the only place that divides by a weight."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightedSum:
    """A loss summed over items, and the number of items."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """total / weight; 0 at weight 0, but a NaN in the total is let through."""
        empty = self.weight == 0
        return jnp.where(empty, self.total * 0, self.total) / jnp.where(
            empty, 1.0, self.weight
        )

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        return WeightedSum(self.total + other.total, self.weight + other.weight)


def reduce(values: Float[Array, "*N"], where: Bool[Array, "*N"]) -> WeightedSum:
    """Sum of the values where `where`, and how many they are, in float32."""
    values = jnp.where(where, values.astype(jnp.float32), 0.0)
    return WeightedSum(jnp.sum(values), jnp.sum(where, dtype=jnp.float32))
