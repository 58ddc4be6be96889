"""Settings of the optimiser and of precision do what they say."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import optax
import pytest

from ranker import config
from ranker.training import optim, state, weights

_path = pathlib.Path(__file__).resolve().parents[1] / "test_sharding.py"
_spec = importlib.util.spec_from_file_location("helpers", _path)
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

SETTINGS = config.Optim(learning_rate=0.1, warmup=0, weight_decay=0.0, b1=0.5, b2=0.5)


def network():
    return helpers.network_of(helpers.DECODER, "one")


def moments(settings):
    made = network()
    tx = optim.make_optimizer(settings, 10, made.abstract)
    return jax.eval_shape(tx.init, made.abstract)


def test_the_first_moment_is_kept_as_asked():
    for dtype in ("float32", "bfloat16"):
        kept = moments(dataclasses.replace(SETTINGS, mu_dtype=dtype))
        assert {x.dtype for x in jax.tree.leaves(optax.tree.get(kept, "mu"))} == {
            np.dtype(dtype)
        }
        second = jax.tree.leaves(optax.tree.get(kept, "nu"))
        assert {x.dtype for x in second} == {np.dtype("float32")}


@pytest.mark.parametrize("clip", [0.0, 1.0, 1000.0])
def test_gradients_are_clipped_to_their_norm(clip):
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), network().abstract)
    gradients = jax.tree.map(lambda x: x + 1, params)
    norm = float(optax.tree.norm(gradients))
    assert 1 < norm < 1000
    settings = dataclasses.replace(SETTINGS, clip_norm=clip)
    tx = optim.make_optimizer(settings, 10, network().abstract)
    _, after = jax.jit(tx.update)(gradients, tx.init(params), params)
    seen = optax.tree.norm(optax.tree.get(after, "mu")) / (1 - SETTINGS.b1)
    np.testing.assert_allclose(seen, min(norm, clip) if clip else norm, rtol=1e-5)


def test_masters_are_float32_whatever_computes():
    settings = dataclasses.replace(helpers.DECODER, dtype="bfloat16")
    batches = [helpers.batch_of()] * 2  # the first step's learning rate is 0
    low, metrics = helpers.train(settings, config.Rank(), "one", batches)
    high, _ = helpers.train(helpers.DECODER, config.Rank(), "one", batches)
    assert {x.dtype for x in jax.tree.leaves(low)} == {np.dtype("float32")}
    assert metrics[0]["loss"].dtype == np.float32
    differ = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True)
    ]
    assert 0 < max(differ) < 0.05


def test_the_abstract_state_is_the_real_one():
    made = helpers.network_of(helpers.DECODER, "data2-fsdp2-tensor2")
    tx = optim.make_optimizer(SETTINGS, 10, made.abstract)
    params = weights.complete({}, made, helpers.DECODER, helpers.V, "score", seed=0)
    real = state.abstract_like(state.init_state(made, params, tx, 0))
    planned = state.abstract_state(made, tx)
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, len(a.shape)), (a, b)
