"""The step's gradient is that of the whole batch, however it is cut."""

import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ranker import config
from ranker.batch import PackedBatch
from ranker.losses.reduction import WeightedSum
from ranker.training import objectives
from ranker.training.state import TrainState
from ranker.training.step import make_step

RATE = 0.1


class Line(nnx.Module):
    """A slope and an offset."""

    def __init__(self):
        self.slope = nnx.Param(jnp.float32(0.5))
        self.offset = nnx.Param(jnp.float32(-2.0))


def _weights(batch):
    count = jnp.sum(batch.where, dtype=jnp.float32)
    return {"squares": count, "drift": 0.01 * count}


def _parts(model, batch, key):
    """A fit of targets by labels, and the offset times noise, at less than weight 1."""
    slope, offset = model.slope[...], model.offset[...]
    lost = jnp.where(batch.where, (slope * batch.labels - batch.targets) ** 2, 0.0)
    drift = jax.random.uniform(key) * offset * jnp.sum(batch.where)
    # A label of 99 has a finite loss, 0, and no finite gradient.
    chosen = batch.labels == 99
    wild = jnp.where(chosen, jnp.sqrt(jnp.where(chosen, 0.0 * slope, 1.0)), 0.0)
    weights = _weights(batch)
    return {
        "squares": WeightedSum(jnp.sum(lost + wild), weights["squares"]),
        "drift": WeightedSum(drift, weights["drift"]),
    }


def _begin():
    """The compiled step and the state of a line, with momentum."""
    graphdef, params = nnx.split(Line(), nnx.Param)
    tx = optax.sgd(RATE, momentum=0.9)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=tx.init(params),
        key=jax.random.key(3),
        sound=jnp.ones((), bool),
    )
    objective = objectives.Objective(
        _parts, _weights, {"squares": 0.5, "drift": 2.0}, "score"
    )
    network = types.SimpleNamespace(graphdef=graphdef)
    return make_step(network, objective, tx, state), state  # type: ignore[arg-type]


def _line(state):
    return np.array([state.params["slope"][...], state.params["offset"][...]])


def test_a_step_by_hand():
    """Two micro-batches of unequal weight, in float64 numpy."""
    step, state = _begin()
    batch = helpers.batch_of(lists=8, micro=2)
    segments = batch.rows.segments * np.arange(1, 9)[:, None]  # several in a batch
    batch = jax.tree.map(jnp.asarray, batch)
    rows = batch.rows.__class__(
        **{**vars(batch.rows), "segments": jnp.asarray(segments)}
    )
    batch = PackedBatch(**{**vars(batch), "rows": rows})
    where = np.asarray(batch.where)
    y, t = (np.float64(x)[where] for x in (batch.labels, batch.targets))
    each = where.sum(axis=(1, 2))
    assert each[0] != each[1]
    given = state.params
    found, metrics = step(state, batch)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(3), 0), 2)
    noise = np.float64([jax.random.uniform(key) for key in keys])
    squares = np.mean((0.5 * y - t) ** 2)
    drift = np.sum(noise * -2.0 * each) / (0.01 * len(y))
    slopes = np.array(
        [
            0.5 * np.mean(2 * (0.5 * y - t) * y),
            2.0 * np.sum(noise * each) / (0.01 * len(y)),
        ]
    )
    expected = np.array([0.5, -2.0]) - RATE * slopes
    np.testing.assert_allclose(_line(found), expected, rtol=1e-5)
    assert int(found.step) == 1 and bool(found.sound)
    told = {
        "loss": 0.5 * squares + 2.0 * drift,
        "squares": squares,
        "drift": drift,
        "weight_squares": len(y),
        "weight_drift": 0.01 * len(y),
        "tokens": np.sum(segments > 0),
        "padding": np.mean(segments == 0),
        "l2_grads": np.linalg.norm(slopes),
        "l2_params": np.linalg.norm(expected),
        "l2_updates": RATE * np.linalg.norm(slopes),
    }
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(told, rel=1e-5)
    # The state that was given is used up.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_a_part_that_nothing_contributes_to_counts_nothing():
    step, state = _begin()
    batch = jax.tree.map(jnp.asarray, helpers.batch_of())
    nothing = PackedBatch(**{**vars(batch), "where": jnp.zeros_like(batch.where)})
    found, metrics = step(state, nothing)
    assert metrics["loss"] == metrics["squares"] == metrics["l2_grads"] == 0
    assert bool(found.sound) and _line(found).tolist() == [0.5, -2.0]


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_all_later_steps(wrong):
    step, state = _begin()
    good = jax.tree.map(jnp.asarray, helpers.batch_of())
    changed = {"targets": good.targets.at[0].set(jnp.inf)}
    if wrong == "gradient":
        changed = {"labels": good.labels.at[0].set(99.0)}
    bad = PackedBatch(**{**vars(good), "where": good.where | True, **changed})
    state, _ = step(state, good)
    before = jax.device_get((state.step, state.params, state.opt_state))
    state, metrics = step(state, bad)
    assert np.isfinite(metrics["loss"]) == (wrong == "gradient")
    assert not np.isfinite(metrics["l2_grads"]) and not state.sound
    state, metrics = step(state, good)
    assert np.isfinite(metrics["loss"]) and not state.sound
    after = jax.device_get((state.step, state.params, state.opt_state))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)


def cut(batch, parts):
    """The same batch as `parts` micro-batches."""

    def reshape(x):
        return x.reshape((parts, x.shape[1] // parts, *x.shape[2:]))

    pieces = jax.tree.map(reshape, batch)
    rows = pieces.rows.tokens.shape[1]
    first = np.arange(parts)[:, None, None] * rows * helpers.T
    return PackedBatch(
        **{
            **{name: getattr(pieces, name) for name in vars(batch)},
            "score_index": (pieces.score_index - first).astype(np.int32),
        }
    )


@pytest.mark.parametrize("name", helpers.OBJECTIVES)
def test_accumulation_changes_nothing(name):
    """Lists are uneven: a mean of micro-batch means would be another number."""
    settings, objective = helpers.OBJECTIVES[name]
    batch = helpers.batch_of()
    params, metrics = helpers.train(settings, objective, "one", [batch])
    others, values = helpers.train(settings, objective, "one", [cut(batch, 4)])
    for key in metrics[0]:
        np.testing.assert_allclose(
            metrics[0][key], values[0][key], rtol=1e-4, err_msg=key
        )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_hybrid_is_the_weighted_sum_of_its_terms():
    batch = jax.tree.map(lambda x: x[0], helpers.batch_of())
    scores = np.float32(np.random.default_rng(0).normal(size=batch.labels.shape))

    class Fixed:
        def __call__(self, *_, **__):
            return scores

    def loss(alpha, beta):
        made = objectives.make_objective(
            config.Distillation(alpha=alpha, beta=beta, target_scale="raw"), groups=1
        )
        parts = made.parts(Fixed(), batch, None)
        return sum(
            made.coefficients[name] * part.mean() for name, part in parts.items()
        )

    point, margin = float(loss(1, 0)), float(loss(0, 1))
    np.testing.assert_allclose(
        float(loss(0.3, 0.7)), 0.3 * point + 0.7 * margin, rtol=1e-5
    )
    made = objectives.make_objective(config.Distillation(beta=0), groups=1)
    assert set(made.coefficients) == {"point_mse", "collapsed"}


@pytest.mark.parametrize("loss", ["softmax", "ranknet", "hinge"])
def test_every_rank_loss_learns(loss):
    objective = config.Rank(loss=(loss,))
    batch = helpers.batch_of()
    _, metrics = helpers.train(helpers.DECODER, objective, "one", [batch] * 8)
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def test_weight_decay_spares_norms_and_biases():
    from ranker.training.optim import decay_mask

    for settings in (helpers.DECODER, helpers.ENCODER, helpers.BIASED):
        network = helpers.network_of(settings, "one")
        mask = {
            ".".join(map(str, path)): leaf.get_value()
            for path, leaf in nnx.to_flat_state(decay_mask(network.abstract))
        }
        assert mask["body.layers.q"] and mask["body.embedding"]
        spared = ("norm", "bias", "distances")
        assert not any(v for k, v in mask.items() if any(one in k for one in spared))
