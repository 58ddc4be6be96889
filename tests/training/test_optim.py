"""Settings of the optimiser and of precision do what they say."""

import dataclasses
import math
import typing

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import config
from ranker.training import optim, state, weights

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


def rates(steps, **fields):
    settings = config.Optim(**{"learning_rate": 1.0, "warmup": 0, **fields})
    found = optim.make_schedule(settings, steps)(np.arange(steps))
    return np.asarray(found, np.float64).round(6).tolist()


@pytest.mark.parametrize(
    ("steps", "fields", "expected"),
    [
        (4, {"warmup": 2}, [1 / 3, 2 / 3, 1, 0.1]),
        (4, {}, [1, 0.775, 0.325, 0.1]),  # cosine: halves of 1 + cos(60 degrees)
        (1, {"warmup": 1}, [0.5]),
        (1, {}, [1]),
        (5, {"schedule": "linear", "final_fraction": 0}, [1, 0.75, 0.5, 0.25, 0]),
        (5, {"schedule": "linear", "warmup": 0.4}, [1 / 3, 2 / 3, 1, 0.55, 0.1]),
        (4, {"schedule": "constant", "warmup": 1}, [0.5, 1, 1, 1]),
        (6, {"schedule": "wsd", "decay": 1 / 3}, [1, 1, 1, 1, 0.55, 0.1]),
        (5, {"schedule": "wsd", "decay": 1.0, "warmup": 3}, [0.25, 0.5, 0.75, 1, 0.1]),
        (3, {"warmup": 3}, [0.25, 0.5, 0.75]),
    ],
)
def test_rates_are_exact_at_both_ends(steps, fields, expected):
    assert rates(steps, **fields) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.integers(0, 40),
    st.sampled_from(typing.get_args(config.Schedule)),
    st.floats(0, 1),
)
def test_rates_rise_then_never_rise_again(steps, warmup, schedule, share):
    fields = {"schedule": schedule, "final_fraction": share, "decay": share}
    found = rates(steps, warmup=warmup, **fields)
    assert found[0] > 0 or (steps == 1 and warmup == 0) or share == 0
    rise = found[: warmup + 1]
    assert rise == sorted(rise) and max(found) <= 1
    fall = found[warmup:]
    assert fall == sorted(fall, reverse=True)
    if steps > warmup + 1:
        assert found[warmup] == 1
        last = 1 if schedule == "constant" else share
        assert found[-1] == pytest.approx(last, abs=1e-5)


def test_warmup_as_a_share():
    settings = config.Optim(learning_rate=1.0, warmup=0.03)
    assert settings.warmup_steps(1000) == 30
    with pytest.raises(config.ConfigError, match="whole number of steps, or a share"):
        config.Optim(learning_rate=1.0, warmup=1.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"b1": 1.0},
        {"b1": -0.5},
        {"b2": 1.0},
        {"ema": 1.0},
        {"weight_decay": -1.0},
        {"weight_decay": float("inf")},
        {"final_fraction": 7.0},
        {"decay": -1.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.5},
        {"head_rate": 0.0},
        {"clip_norm": float("nan")},
        {"learning_rate": float("inf")},
        {"warmup": -1},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_by_name(wrong):
    [name] = wrong
    with pytest.raises(config.ConfigError, match=name):
        config.Optim(**{"learning_rate": 1.0, "warmup": 0, **wrong})


def test_the_config_names_the_optimisers_there_are():
    assert list(typing.get_args(config.Optimiser)) == list(optim.OPTIMISERS)


def _update(settings, gradient=lambda x: x + 1, steps=1):
    """What the last of some steps adds to parameters of one, by path."""
    abstract = helpers.network_of(helpers.ENCODER, "one").abstract
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), abstract)
    gradients = jax.tree.map(lambda x: gradient(jnp.zeros(x.shape, x.dtype)), abstract)
    tx = optim.make_optimizer(settings, 100, abstract)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradients, state, params)
        return updates, optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for _ in range(steps):
        updates, params, state = step(params, state)
    flat = {
        ".".join(map(str, path)): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(updates)
    }
    return flat, state


PLAIN = {"schedule": "constant", "clip_norm": 0.0, "weight_decay": 0.0, "warmup": 0}


def test_layers_below_learn_slower_and_heads_at_their_own_rate():
    # Adam's first step is the rate, whatever the gradient.
    settings = config.Optim(learning_rate=0.1, layer_decay=0.5, head_rate=3.0, **PLAIN)
    found, _ = _update(settings)
    np.testing.assert_allclose(found["head.dense"], -0.3, rtol=1e-5)
    np.testing.assert_allclose(found["body.norm"], -0.1, rtol=1e-5)
    for name in ("q", "q_bias", "mlp_norm"):
        bottom, top = found[f"body.layers.{name}"]
        np.testing.assert_allclose(top, -0.05, rtol=1e-5)
        np.testing.assert_allclose(bottom, -0.025, rtol=1e-5)
    for name in ("embedding", "positions", "types"):
        np.testing.assert_allclose(found[f"body.{name}"], -0.0125, rtol=1e-5)


def test_frozen_embeddings_stay_and_do_not_count_in_the_clipped_norm():
    fields = {**PLAIN, "clip_norm": 1.0, "weight_decay": 0.1}
    settings = config.Optim(learning_rate=0.1, freeze_embeddings=True, **fields)
    found, state = _update(settings)
    for name, value in found.items():
        frozen = name.split(".")[1] in ("embedding", "positions", "types")
        assert (not value.any()) == frozen, name
    mu = optax.tree.norm(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(mu, 0.1, rtol=1e-4)  # of a norm of 1, after one step


def test_lion_moves_by_the_sign():
    settings = config.Optim(learning_rate=0.1, optimiser="lion", **PLAIN)
    found, _ = _update(settings, gradient=lambda x: x - 7)
    for value in found.values():
        np.testing.assert_allclose(value, 0.1, rtol=1e-6)


def test_muon_turns_the_matrices_of_layers_orthogonal():
    def gradient(zeros):
        key = jax.random.key(zeros.size)
        return jax.random.normal(key, zeros.shape)

    settings = config.Optim(learning_rate=0.1, optimiser="muon", **PLAIN)
    found, _ = _update(settings, gradient)
    for name, read in {"q": 1, "o": 2, "up": 1, "down": 1}.items():
        for layer in found[f"body.layers.{name}"]:
            matrix = layer.reshape(math.prod(layer.shape[:read]), -1)
            # Five iterations bring singular values near 1, here times 0.2 sqrt(width).
            size = 0.1 * 0.2 * math.sqrt(max(matrix.shape))
            values = np.linalg.svd(matrix, compute_uv=False) / size
            assert 0.3 < values.min() and values.max() < 1.3, (name, values)
    # Adam with Nesterov's momentum moves by more than the rate at the first step.
    first = 0.1 * (1 + 0.9 * (1 - 0.9) / (1 - 0.9**2))
    for name in ("body.embedding", "body.layers.q_bias", "head.dense"):
        np.testing.assert_allclose(np.abs(found[name]), first, rtol=1e-3)


def test_adafactor_keeps_rows_and_columns_of_matrices():
    decoder = dataclasses.replace(
        helpers.DECODER, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=96
    )
    abstract = helpers.network_of(decoder, "one").abstract
    settings = config.Optim(learning_rate=0.1, optimiser="adafactor", b1=0.0, warmup=0)
    tx = optim.make_optimizer(settings, 10, abstract)
    kept = jax.eval_shape(tx.init, abstract)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
    assert size < 0.1 * whole
    rows = {
        ".".join(map(str, path)): leaf.get_value().shape
        for path, leaf in nnx.to_flat_state(optax.tree.get(kept, "v_row"))
    }
    assert rows["body.layers.q"] == (2, 64) and rows["body.layers.o"] == (2, 64)


def test_the_average_of_weights():
    # Adam moves by -0.1 a step; the average begins with decay (1 + n) / (10 + n).
    settings = config.Optim(learning_rate=0.1, ema=0.15, **PLAIN)
    found, state = _update(settings, steps=3)
    average, fast = 1.0, 1.0
    for number in range(3):
        keep = min(0.15, (1 + number) / (10 + number))
        fast -= 0.1
        before, average = average, keep * average + (1 - keep) * fast
    np.testing.assert_allclose(found["head.dense"], average - before, rtol=1e-4)
    np.testing.assert_allclose(
        jax.tree.leaves(optim.gradient_params(state, None))[0], fast, rtol=1e-5
    )


def test_gradients_are_taken_at_the_weights_not_at_their_average():
    batches = [helpers.batch_of()] * 3
    plain = {"learning_rate": 0.1, "warmup": 0}
    fast, _ = helpers.train(
        helpers.DECODER, config.Rank(), "one", batches, config.Optim(**plain)
    )
    slow, _ = helpers.train(
        helpers.DECODER, config.Rank(), "one", batches, config.Optim(ema=0.9, **plain)
    )
    first, _ = helpers.train(
        helpers.DECODER, config.Rank(), "one", [], config.Optim(**plain)
    )
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, fast, first))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, slow, first))
    assert 0 < moved < apart


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
    batches = [helpers.batch_of()]
    low, metrics = helpers.train(settings, config.Rank(), "one", batches)
    high, _ = helpers.train(helpers.DECODER, config.Rank(), "one", batches)
    assert {x.dtype for x in jax.tree.leaves(low)} == {np.dtype("float32")}
    assert metrics[0]["loss"].dtype == np.float32
    differ = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True)
    ]
    assert 0 < max(differ) < 0.05


@pytest.mark.parametrize("name", optim.OPTIMISERS)
def test_the_abstract_state_is_the_real_one(name):
    made = helpers.network_of(helpers.DECODER, "data2-fsdp2-tensor2")
    settings = dataclasses.replace(SETTINGS, optimiser=name, ema=0.5)
    tx = optim.make_optimizer(settings, 10, made.abstract)
    params = weights.complete_params(
        {}, made, helpers.DECODER, helpers.V, "score", seed=0
    )
    real = state.abstract_like(state.init_state(made, params, tx, 0))
    planned = state.abstract_state(made, tx)
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, len(a.shape)), (a, b)
