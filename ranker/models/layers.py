"""Parameters and the small functions that layers are made of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

INIT_STD = 0.02  # of weight matrices, as in BERT and Llama


def weight(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None]
) -> nnx.Param:
    """A float32 matrix, normal with standard deviation 0.02; `axes` name its sizes."""
    return _param(INIT_STD * jax.random.normal(rngs.params(), shape), axes)


def zeros(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 bias of zeros."""
    return _param(jnp.zeros(shape), axes)


def ones(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 scale of ones."""
    return _param(jnp.ones(shape), axes)


def _param(value: Array, axes: Sequence[str | None]) -> nnx.Param:
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, axes=tuple(axes))


def rms_norm(
    x: Float[Array, "*N D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*N D"]:
    """Divides by the root mean square, in float32 (Zhang and Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return (y * _like(scale, y)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*N D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    eps: float,
) -> Float[Array, "*N D"]:
    """Zero mean and unit variance, in float32 (Ba et al., 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return (y * _like(scale, y) + _like(bias, y)).astype(x.dtype)


def _like(vector: Float[Array, " D"], x: Array) -> Array:
    """Adds leading dimensions, so that ranks match without promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def add_bias(x: Float[Array, "*N D"], bias: Float[Array, "*D"]) -> Array:
    """X plus a bias over its last dimensions, in x's dtype."""
    shape = (1,) * (x.ndim - bias.ndim) + bias.shape
    return x + bias.astype(x.dtype).reshape(shape)


def rotary(
    positions: Int[Array, "R T"], head_dim: int, theta: float
) -> tuple[Float[Array, "R T 1 H/2"], Float[Array, "R T 1 H/2"]]:
    """Cosine and sine of each position's angles; bfloat16 would blur positions."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    wavelength = theta**-exponent  # [H/2]
    angles = positions.astype(jnp.float32)[:, :, None, None] * wavelength.reshape(
        1, 1, 1, -1
    )  # [R, T, 1, H/2]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "R T N H"],
    angles: tuple[Float[Array, "R T 1 H/2"], Float[Array, "R T 1 H/2"]],
) -> Float[Array, "R T N H"]:
    """Rotates the pairs (i, i + H/2) by their angles (Su et al., 2021)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with chance `rate` and scales the rest; nothing without a key."""
    if key is None or rate == 0:
        return x
    kept: Bool[Array, ...] = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
