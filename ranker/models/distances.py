"""Learned biases of attention by distance, as MPNet and T5 have them.

How far a key is from its query falls into one of some buckets, and each bucket has a
number for each head, which is added to the logit.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

REACH = 128  # tokens; all keys as far away or farther are in one bucket of each side


def buckets(count: int) -> Int[np.ndarray, " distances"]:
    """The bucket of each distance, key less query, from -REACH to REACH.

    The first half of the buckets are of the query's own token and of keys before it,
    the second of keys behind it. In each half, the nearest distances have a bucket
    each, and the others share by their logarithm (Raffel et al., 2020, arXiv
    1910.10683, section 2.1; MPNet: arXiv 2004.09297).

    Args:
      count: of buckets, a multiple of 4.
    """
    distance = np.arange(-REACH, REACH + 1)
    away = np.abs(distance)
    side, exact = count // 2, count // 4
    # In float32, as torch has it: at a bucket's edge a rounding decides.
    ratio = np.log(np.maximum(away, exact).astype(np.float32) / np.float32(exact))
    share = ratio / np.float32(math.log(REACH / exact))
    far = exact + (share * np.float32(side - exact)).astype(np.int64)
    near = np.where(away < exact, away, np.minimum(far, side - 1))
    return np.where(distance > 0, side, 0) + near


def bias(table: Float[Array, "buckets N"], tokens: int) -> Float[Array, "1 N T T"]:
    """What each query (row) adds to its logit of each key (column).

    Distances are counted in places of the row. Segments are contiguous, so within one
    they are those of its positions, and other keys are masked.

    Args:
      table: a number for each bucket and head.
      tokens: T, of a row; may be symbolic.
    """
    place = jnp.arange(tokens)
    distance = place[None, :] - place[:, None]  # [T, T]
    index = jnp.clip(distance, -REACH, REACH) + REACH
    by_distance = jnp.take(table, buckets(table.shape[0]), axis=0)
    return jnp.moveaxis(jnp.take(by_distance, index, axis=0), -1, 0)[None]
