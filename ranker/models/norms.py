"""Normalisation, in float32, with gradients that keep no more than they need.

For the backward pass a norm keeps its input, and two numbers a token. On a CPU all sums
over a token's features are products with a vector: XLA's compiler would write out what
else it computes of them, each token's numbers repeated for every feature.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ranker import sharding


def rms_norm(
    x: Float[Array, "*N D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*N D"]:
    """Divides by the root mean square, in float32 (Zhang and Sennrich, 2019)."""
    return _norm((False, eps), x, scale, jnp.zeros_like(scale))


def layer_norm(
    x: Float[Array, "*N D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    eps: float,
) -> Float[Array, "*N D"]:
    """Zero mean and unit variance, in float32 (Ba et al., 2016)."""
    return _norm((True, eps), x, scale, jnp.zeros_like(scale) if bias is None else bias)


# Whether the mean is taken off, and what is added to the variance.
_Rule = tuple[bool, float]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(rule: _Rule, x: Array, scale: Array, bias: Array) -> Array:
    return _forward(rule, x, scale, bias)[0]


def _forward(rule: _Rule, x: Array, scale: Array, bias: Array):
    centred, eps = rule
    ones = jnp.ones(x.shape[-1], jnp.float32)
    wide = x.astype(jnp.float32)
    mean = _mean(wide, ones) if centred else None
    apart = _take_off(wide, mean)
    factor = jax.lax.rsqrt(_mean(apart * apart, ones) + eps)
    y = apart * factor[..., None] * _like(scale, x) + _like(bias, x)
    return y.astype(x.dtype), (x, mean, factor, scale)


def _backward(rule: _Rule, saved, gradient: Array):
    x, mean, factor, scale = saved
    up, by = gradient.astype(jnp.float32), scale.astype(jnp.float32)
    y = _take_off(x.astype(jnp.float32), mean) * factor[..., None]
    # A norm takes off what moves all features alike, and what stretches them.
    d_x = up * _like(by, x) - y * _mean(up * y, by)[..., None]
    if rule[0]:
        d_x = d_x - _mean(up, by)[..., None]
    d_x = d_x * factor[..., None]
    tokens = tuple(range(x.ndim - 1))
    d_scale, d_bias = jnp.sum(up * y, tokens), jnp.sum(up, tokens)
    dtype = scale.dtype
    return d_x.astype(x.dtype), d_scale.astype(dtype), d_bias.astype(dtype)


_norm.defvjp(_forward, _backward)


def _mean(x: Float[Array, "*N D"], by: Float[Array, " D"]) -> Float[Array, "*N"]:
    """The mean over features of x times `by`."""
    if sharding.platform() == "cpu":
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("...D,D->...", x, by / x.shape[-1], precision=highest)
    return jnp.mean(x * _like(by, x), axis=-1)


def _take_off(x: Float[Array, "*N D"], mean: Float[Array, "*N"] | None) -> Array:
    return x if mean is None else x - mean[..., None]


def _like(vector: Float[Array, " D"], x: Array) -> Array:
    """Adds leading dimensions, so that ranks match without promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape).astype(jnp.float32)
