"""Numbers that are left out at random while training (Srivastava et al., 2014)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array


@dataclass(frozen=True)
class Drop:
    """A rate, and the key that the entries are drawn by."""

    rate: float
    key: Array

    def __call__(self, x: Array, place: int) -> Array:
        """X with entries dropped; each `place` of a layer draws others."""
        return dropout(x, self.rate, jax.random.fold_in(self.key, place))


def make_drop(rate: float, key: Array | None) -> Drop | None:
    """None without a key, or at the rate 0."""
    return None if key is None or not rate else Drop(rate, key)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with chance `rate` and scales the rest; nothing without a key.

    Each random word serves two entries, so the rate is rounded to 1 / 65,536.
    """
    if key is None or rate == 0:
        return x
    *lead, D = x.shape
    words = jax.random.bits(key, (*lead, -(-D // 2)), jnp.uint32)
    chance = max(round((1 - rate) * 65536), 1)
    # Put together when compared: a byte an entry, which the backward pass needs too.
    halves = (words >> 16 < chance, words & 0xFFFF < chance)
    kept = jnp.concatenate(halves, axis=-1)[..., :D]
    return jnp.where(kept, x * (65536 / chance), jnp.zeros_like(x))
