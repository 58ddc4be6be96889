"""Adapters: the function that they add, its gradients, and what trains."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ranker import config, sharding
from ranker.models import adapters, build, dropout
from ranker.models.params import flat, unflat
from ranker.training import objectives, optim, state, step, weights
from ranker.training.scorer import device_batch
from ranker.training.trained import freeze

LORA = config.Lora(rank=3, alpha=6.0, base_dtype="float32")
GATED = config.Encoder(
    num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, gated=True, pre_norm=True
)
MODELS = {"decoder": helpers.DECODER, "encoder": helpers.ENCODER, "gated": GATED}
V = helpers.V


def adapted(settings, lora=LORA, head="score"):
    """(graphdef, params by path) of a model whose adapters add something."""
    model = build.build(settings, V, head, key=jax.random.key(0), lora=lora)
    graphdef, params = nnx.split(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def drawn(variable):
        if not isinstance(variable, adapters.Factor):
            return variable
        shape = variable.get_value().shape
        return variable.replace(0.1 * jax.random.normal(next(keys), shape))

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return graphdef, jax.tree.map(drawn, params, is_leaf=is_variable)


def scores_of(graphdef, params, batch):
    model = nnx.merge(graphdef, params)
    return model(batch.rows, batch.score_index)


def batch():
    return jax.tree.map(lambda x: jnp.asarray(x[0]), helpers.batch_of(lists=2))


def merged(settings, params, lora=LORA):
    plain = nnx.split(build.abstract(settings, V, "score"), nnx.Param)
    return plain[0], unflat(adapters.merge_adapters(dict(flat(params)), lora), plain[1])


@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_matrix_acts_as_the_sum(name):
    """The function with adapters is that of W + alpha / rank * A B."""
    graphdef, params = adapted(MODELS[name])
    whole, sums = merged(MODELS[name], params)
    found = scores_of(graphdef, params, batch())
    np.testing.assert_allclose(found, scores_of(whole, sums, batch()), atol=1e-5)
    values, before = dict(flat(sums)), dict(flat(params))
    for target, formula in (("q", "LDr,LrNH->LDNH"), ("o", "LNHr,LrD->LNHD")):
        path = f"body.layers.{target}"
        change = np.einsum(formula, before[f"{path}_a"], before[f"{path}_b"])
        np.testing.assert_allclose(values[path], before[path] + 2 * change, atol=1e-6)
    assert float(jnp.abs(values["body.layers.q"] - before["body.layers.q"]).max()) > 0.1


def test_fresh_adapters_add_nothing():
    lora = config.Lora(rank=2)
    model = build.build(helpers.DECODER, V, "score", key=jax.random.key(0), lora=lora)
    graphdef, params = nnx.split(model, nnx.Param)
    plain = build.build(helpers.DECODER, V, "score", key=jax.random.key(0))
    expected = scores_of(*nnx.split(plain, nnx.Param), batch())
    found = scores_of(graphdef, params, batch())
    np.testing.assert_array_equal(found, expected)
    a = np.asarray(dict(flat(params))["body.layers.down_a"])  # [L, F, r], F = 32
    assert 0.9 < np.abs(a).max() * 32**0.5 <= 1


def test_gradients_are_those_of_all_weights_projected():
    """Of A: s dW B', of B: s A' dW, where dW is full fine-tuning's gradient."""
    graphdef, params = adapted(helpers.DECODER)
    whole, sums = merged(helpers.DECODER, params)

    def loss(params, graphdef):
        return jnp.sum(jnp.sin(scores_of(graphdef, params, batch()) * 3))

    low = dict(flat(jax.grad(loss)(params, graphdef)))
    full = dict(flat(jax.grad(loss)(sums, whole)))
    values = dict(flat(params))
    for target in config.LORA_TARGETS:
        path = f"body.layers.{target}"
        a, b = (np.asarray(values[f"{path}_{x}"]) for x in "ab")
        layers, rank = a.shape[0], LORA.rank
        a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        dw = np.asarray(full[path]).reshape(layers, a.shape[1], b.shape[2])
        da, db = 2 * dw @ b.transpose(0, 2, 1), 2 * a.transpose(0, 2, 1) @ dw
        for name, expected in (("a", da), ("b", db)):
            found = np.asarray(low[f"{path}_{name}"]).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=path)
            assert np.abs(expected).max() > 1e-3


def network_of(head, mesh, lora):
    return state.make_network(helpers.DECODER, V, head, helpers.mesh_of(mesh), lora)


@pytest.mark.parametrize("head", ["score", "language"])
def test_adapters_and_score_head_train_and_nothing_else(head):
    lora = config.Lora(rank=2, targets=("q", "down"))
    network = network_of(head, "data2-fsdp2-tensor2", lora)
    factors = {f"body.layers.{t}_{x}" for t in ("q", "down") for x in "ab"}
    own = {"head.dense"} if head == "score" else set()
    assert {path for path, _ in flat(network.abstract)} == factors | own
    frozen = dict(flat(network.frozen))
    assert "body.embedding" in frozen and "body.layers.q" in frozen
    assert {leaf.dtype for leaf in frozen.values()} == {jnp.dtype("bfloat16")}
    specs = {path: one.spec for path, one in flat(network.shardings)}
    assert specs["body.layers.q_a"] == PartitionSpec(None, "fsdp", None)
    assert specs["body.layers.q_b"] == PartitionSpec(None, None, "tensor", None)
    assert specs["body.layers.down_a"] == PartitionSpec(None, "tensor", None)
    assert specs["body.layers.down_b"] == PartitionSpec(None, None, "fsdp")


def train(mesh, lora, batches):
    """States, frozen weights and metrics of a few steps on a mesh."""
    made = objectives.make_objective(
        config.Rank(), groups=sharding.num_shards(helpers.mesh_of(mesh))
    )
    network = network_of(made.head, mesh, lora)
    plain = helpers.network_of(helpers.DECODER, mesh)
    base = weights.complete_params({}, plain, helpers.DECODER, V, "score", seed=0)
    taken = dict(flat(base))
    frozen = freeze(taken, network, by="a test")
    params = weights.complete_params(
        taken, network, helpers.DECODER, V, "score", seed=0, lora=lora
    )
    tx = optim.make_optimizer(
        config.Optim(learning_rate=1e-2, warmup=1), 10, network.abstract
    )
    current = state.init_state(network, params, tx, 0)
    before = jax.device_get((current.params, frozen))
    moments = sum(x.nbytes for x in jax.tree.leaves(current.opt_state))
    compiled = step.make_step(network, made, tx, current)
    metrics = []
    with jax.set_mesh(network.mesh):
        for one in batches:
            placed = device_batch(one, network, leading=1)
            current, values = compiled(current, placed, frozen)
            metrics.append(jax.device_get(values))
    after = jax.device_get((current.params, frozen))
    return before, after, metrics, moments


def test_eight_devices_train_adapters_as_one_does():
    lora = config.Lora(rank=2, alpha=4.0)
    batches = [helpers.batch_of()] * 4
    before, after, metrics, moments = train("one", lora, batches)
    for a, b in zip(flat(before[0]), flat(after[0]), strict=True):
        assert (a[1] != b[1]).any(), a[0]  # all that trains has changed
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
    assert metrics[-1]["loss"] < metrics[1]["loss"] - 0.05  # and learns
    trained = sum(x.size for x in jax.tree.leaves(after[0]))
    assert moments <= 2 * 4 * trained + 64  # two moments and the counters
    frozen = sum(x.nbytes for x in jax.tree.leaves(after[1]))
    assert frozen == 2 * sum(x.size for x in jax.tree.leaves(after[1]))  # bfloat16
    _, others, values, _ = train("data2-fsdp2-tensor2", lora, batches)
    for a, b in zip(metrics, values, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-4)
    for (path, a), (_, b) in zip(flat(after[0]), flat(others[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=path)


def test_settings_that_cannot_work():
    with pytest.raises(config.ConfigError, match="names gate, .* they have q, k, v, o"):
        lora = config.Lora(rank=1, targets=("q", "gate"))
        build.abstract(helpers.ENCODER, V, "score", lora)
    with pytest.raises(config.ConfigError, match="twice"):
        config.Lora(rank=1, targets=("q", "q"))
    with pytest.raises(config.ConfigError, match="rank must be 0 or more"):
        config.Lora(rank=-1)
    with pytest.raises(config.ConfigError, match="no weights to adapt; name a parent"):
        config.Train(
            name="sft",
            model=helpers.DECODER,
            objective=config.Rank(),
            optim=config.Optim(learning_rate=1e-3, warmup=0),
            batch=config.Batch(size=1),
            loop=config.Loop(steps=1),
            lora=config.Lora(rank=1),
        )


def test_what_trains_is_float32_whatever_it_comes_in():
    network = helpers.network_of(helpers.DECODER, "one")
    half = jnp.zeros((V, 16), jnp.bfloat16)
    params = weights.complete_params(
        {"body.embedding": half}, network, helpers.DECODER, V, "score", seed=0
    )
    found = dict(flat(params))
    assert {value.dtype for value in found.values()} == {jnp.dtype("float32")}
    assert not found["body.embedding"].any() and found["body.layers.q"].any()


def test_decay_reaches_both_factors():
    network = network_of("score", "one", LORA)
    mask = dict(flat(optim.decay_mask(network.abstract)))
    assert mask["body.layers.q_a"] and mask["body.layers.o_b"]


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_of_what_adapters_read_alone(name):
    lora = dataclasses.replace(LORA, dropout=0.5)
    graphdef, params = adapted(MODELS[name], lora)

    def scores(key, params=params):
        model = nnx.merge(graphdef, params)
        return model(batch().rows, batch().score_index, key=key)

    one, other = (scores(jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(one, scores(jax.random.key(0)))
    assert not np.allclose(one, other)
    whole, sums = merged(MODELS[name], params, lora)
    np.testing.assert_allclose(scores(None), scores_of(whole, sums, batch()), atol=1e-5)
    # Adapters that add nothing hide the draw: the frozen matrices read all.
    nothing = jax.tree.map(
        lambda one: (
            one.replace(0 * one.get_value())
            if isinstance(one, adapters.Factor)
            else one
        ),
        params,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    still = scores(jax.random.key(0), nothing)
    np.testing.assert_array_equal(still, scores(None, nothing))


def test_a_layers_adapters_draw_each_for_itself():
    drop = dropout.Drop(0.5, jax.random.key(0))
    x = jnp.ones((2, 4, 16))
    draws = {
        name: np.asarray(drop(x, 1 + config.LORA_TARGETS.index(name)))
        for name in config.LORA_TARGETS
    }
    values = list(draws.values())
    assert all(
        not np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i]
    )
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(config.ConfigError, match="lora.dropout must be in"):
            config.Lora(rank=2, dropout=rate)
    with pytest.raises(config.ConfigError, match="lora.dropout is 0.1 and lora.rank 0"):
        config.Lora(dropout=0.1)
