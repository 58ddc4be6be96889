"""In what gradients of weights are summed over devices."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.models import adapters, layers

BFLOAT = dataclasses.replace(helpers.ENCODER, dtype="bfloat16")


@pytest.mark.parametrize(
    ("choice", "shards", "expected"),
    [
        ("auto", 1, False),
        ("auto", 8, False),
        ("float32", 8, True),
        ("bfloat16", 8, False),
    ],
)
def test_what_is_asked_for(choice, shards, expected):
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:shards])
    with jax.set_mesh(mesh):
        assert sharding.sums_exactly(choice, "bfloat16") == expected
        assert not sharding.sums_exactly(choice, "float32")  # they are all the same
    assert not sharding.sums_exactly(choice, "bfloat16")  # serving has no mesh


def test_auto_is_float32_beyond_sixteen_data_shards(monkeypatch):
    mesh = sharding.make_mesh(config.Mesh())
    with jax.set_mesh(mesh):
        monkeypatch.setattr(sharding, "EXACT_BEYOND", 8)
        assert not sharding.sums_exactly("auto", "bfloat16")
        monkeypatch.setattr(sharding, "EXACT_BEYOND", 7)
        assert sharding.sums_exactly("auto", "bfloat16")
        assert not sharding.sums_exactly("bfloat16", "bfloat16")


def test_the_product_is_the_same_and_its_gradient_is_not_rounded():
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(4, 512, 16)), jnp.bfloat16)
    w = jnp.asarray(generator.normal(size=(16, 8)), jnp.float32)
    bias = jnp.asarray(generator.normal(size=8), jnp.float32)
    slope = jnp.asarray(generator.normal(size=(4, 512, 8)), jnp.bfloat16)

    def run(exact):
        module = nnx.Module()
        module.q = layers.weight(nnx.Rngs(0), (1, 16, 8), ("layers", None, None))
        module.q_bias = layers.zeros((1, 8), ("layers", None))
        ready = layers.make_ready(module, jnp.bfloat16, exact=exact)

        def function(x, w, bias):
            ours = ready({"q": w, "q_bias": bias})
            return layers.add_bias(adapters.project(x, ours, "q"), ours["q_bias"])

        out, back = jax.vjp(function, x, w, bias)
        return out, back(slope)

    out, (of_x, of_w, of_bias) = run(True)
    plain, (same_x, _, _) = run(False)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(of_x, same_x)
    assert of_w.dtype == of_bias.dtype == jnp.float32
    wide = np.asarray(x, np.float64).reshape(-1, 16)
    slopes = np.asarray(slope, np.float64).reshape(-1, 8)
    np.testing.assert_allclose(of_w, wide.T @ slopes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_bias, slopes.sum(0), rtol=1e-4, atol=1e-4)


def test_no_gradient_of_a_weight_is_rounded_on_its_way():
    """Read off the program: each is float32 from its product to the parameter."""
    for choice, wide in (("float32", True), ("bfloat16", False)):
        model = dataclasses.replace(BFLOAT, reduce_dtype=choice)
        network = helpers.network_of(model, "data8")
        params = jax.tree.map(
            lambda one: jax.ShapeDtypeStruct(one.shape, jnp.float32), network.abstract
        )
        rows = jax.tree.map(lambda x: x[0], helpers.batch_of().rows)

        def loss(params, graphdef=network.graphdef, rows=rows):
            module = nnx.merge(graphdef, params)
            return jnp.sum(module.body(rows).astype(jnp.float32))

        with jax.set_mesh(network.mesh):
            text = jax.jit(jax.grad(loss)).lower(params).as_text()
        # Rows of 12 tokens, 16 of them, are contracted: 192.
        of_weights = [
            line
            for line in text.splitlines()
            if "dot_general" in line and "contracting_dims = [0] x [0]" in line
        ]
        assert len(of_weights) >= 6, text[:2000]
        for line in of_weights:
            assert ("-> tensor" in line) and ("xf32>" in line.split("->")[1]) == wide


@pytest.mark.parametrize("make", ["encoder", "decoder", "pretrained"])
def test_a_dtype_that_gradients_never_have_is_refused(make):
    with pytest.raises(config.ConfigError, match="gradients are computed in model.dty"):
        if make == "encoder":
            dataclasses.replace(BFLOAT, dtype="float32", reduce_dtype="bfloat16")
        elif make == "decoder":
            dataclasses.replace(helpers.DECODER, reduce_dtype="bfloat16")
        else:
            config.Pretrained(path="x", reduce_dtype="bfloat16")
