from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranker import config, sharding
from ranker.models import norms


def mesh():
    return jax.set_mesh(sharding.make_mesh(config.Mesh(fsdp=2)))


def example(shape=(4, 6, 8), dtype=jnp.float32):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(3, 2, shape), dtype)
    scale, bias = (jnp.asarray(generator.normal(size=shape[-1:])) for _ in range(2))
    return x, scale.astype(jnp.float32), bias.astype(jnp.float32)


def layer_norm(x, scale, bias):
    """The formula in float64, and jax's own gradient of it."""
    x = x.astype(float)
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


def rms_norm(x, scale, bias):
    x = x.astype(float)
    y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return y * scale.reshape(1, 1, -1) + 0 * jnp.sum(bias)


FORMULAS = {
    "layer": (partial(norms.layer_norm, eps=1e-5), layer_norm),
    "rms": (lambda x, scale, _: norms.rms_norm(x, scale, 1e-5), rms_norm),
}
kinds = pytest.mark.parametrize("kind", FORMULAS.values(), ids=FORMULAS.keys())


@kinds
@pytest.mark.parametrize("on_mesh", [False, True], ids=["no mesh", "mesh"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_and_their_gradients_are_the_formula(kind, on_mesh, dtype):
    """With a mesh of CPUs sums are products; without one they are sums."""
    ours, formula = kind
    values = example(dtype=dtype)
    with jax.enable_x64(True):
        up = jnp.asarray(np.random.default_rng(1).normal(size=values[0].shape))
        wanted, backward = jax.vjp(formula, *values)
        expected = backward(up)
    up = up.astype(dtype)

    def both(*values):
        found, backward = jax.vjp(ours, *values)
        return found, backward(up)

    if on_mesh:
        with mesh():
            found, grads = jax.jit(both)(*values)
    else:
        found, grads = jax.jit(both)(*values)
    assert found.dtype == dtype
    atol = 2e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(found.astype(float), wanted, atol=atol)
    for grad, value, one in zip(grads, values, expected, strict=True):
        assert grad.dtype == value.dtype
        np.testing.assert_allclose(grad.astype(float), one.astype(float), atol=atol)


def test_a_norm_without_a_bias():
    x, scale, _ = example()
    given = norms.layer_norm(x, scale, jnp.zeros_like(scale), 1e-5)
    np.testing.assert_array_equal(norms.layer_norm(x, scale, None, 1e-5), given)
    jax.grad(lambda x: jnp.sum(norms.layer_norm(x, scale, None, 1e-5)))(x)


@kinds
def test_a_norm_keeps_its_input_and_two_numbers_a_token(kind):
    ours, _ = kind
    values = example(shape=(4, 6, 256), dtype=jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(ours, *values)[1])
    assert any(leaf.shape == values[0].shape for leaf in kept)
    size = sum(leaf.nbytes for leaf in kept)
    assert size <= values[0].nbytes + 4 * (2 * 4 * 6) + 4 * 2 * 256


@kinds
def test_on_a_mesh_of_cpus_sums_over_features_are_products(kind):
    """Sums would make the compiler write out each token's mean for every feature."""
    ours, _ = kind
    values = example()

    def loss(*values):
        return jnp.sum(ours(*values) ** 2)

    with mesh():
        text = jax.jit(jax.grad(loss)).lower(*values).as_text()
    sums = [line for line in text.splitlines() if "stablehlo.reduce" in line]
    assert not [line for line in sums if "dimensions = [2]" in line]
    assert text.count("stablehlo.dot_general") >= 2
