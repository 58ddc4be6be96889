"""Sizes that the mesh does not divide: kept whole, padded or repeated in a step."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ranker import config, sharding
from ranker.batch import Rows
from ranker.training import objectives, state, weights

VOCABULARY = 30  # not divisible by 4
SPLIT = config.Mesh(data=2, tensor=4)


def _scores(model, mesh):
    network = state.make_network(model, VOCABULARY, "score", mesh)
    params = weights.complete_params({}, network, model, VOCABULARY, "score", seed=0)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (8, 8)).astype(np.int32)
    ones = np.ones_like(tokens)
    places = np.broadcast_to(np.arange(8, dtype=np.int32), tokens.shape).copy()
    rows = Rows(tokens, ones, places, ones - 1)
    index = np.arange(8, dtype=np.int32).reshape(8, 1) * 8 + 7

    @jax.jit
    def score(params):
        module = nnx.merge(network.graphdef, params)
        return module(rows, index, groups=sharding.num_shards(mesh))

    with jax.set_mesh(mesh):
        return network, np.asarray(score(params))


@pytest.mark.parametrize("num_kv_heads", [2, 8])
def test_uneven_sizes_give_the_same_scores(num_kv_heads):
    model = config.Decoder(
        num_layers=1,
        embed_dim=16,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        head_dim=4,
        mlp_dim=32,
    )
    whole = sharding.make_mesh(config.Mesh(data=8))
    split = sharding.make_mesh(config.Mesh(data=2, tensor=4))
    network, found = _scores(model, split)
    np.testing.assert_allclose(found, _scores(model, whole)[1], atol=1e-6)
    where = network.shardings["body"]
    assert where["embedding"].get_value().spec[0] is None
    kv = sharding.fitting(("embed", "kv_heads"), (16, num_kv_heads), split.shape)
    assert kv[1] == (None if num_kv_heads == 2 else "tensor")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_uneven_vocabulary_is_padded_where_it_is_multiplied(tied):
    """Loss, logits and gradients are those of one device; each makes its part."""
    model = config.Decoder(
        num_layers=1,
        embed_dim=16,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=32,
        tie_embeddings=tied,
        logit_cap=30.0,
    )
    batch = helpers.batch_of(lists=8, size=1)
    batch = jax.tree.map(lambda x: x[0], batch)
    tokens = batch.rows.tokens % VOCABULARY
    rows = dataclasses.replace(batch.rows, tokens=tokens)
    batch = dataclasses.replace(batch, rows=rows)
    found = {}
    for name, mesh in (("whole", config.Mesh(data=8)), ("split", SPLIT)):
        mesh = sharding.make_mesh(mesh)
        network = state.make_network(model, VOCABULARY, "language", mesh)
        params = weights.complete_params(
            {}, network, model, VOCABULARY, "language", seed=0
        )
        groups = sharding.num_shards(mesh)
        objective = objectives.make_objective(config.Language(), groups=groups)

        def loss(params, graphdef=network.graphdef, objective=objective):
            module = nnx.merge(graphdef, params)
            part = objective.parts(module, batch, None)["language"]
            return part.total, module(batch.rows)

        def table(params, graphdef=network.graphdef):
            return nnx.merge(graphdef, params).table()

        with jax.set_mesh(mesh):
            made = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
            (total, logits), slopes = made
            rows = 32 if name == "split" else 30
            assert jax.eval_shape(table, params).shape == (rows, 16)
        assert logits.shape[-1] == VOCABULARY
        found[name] = (total, logits, jax.device_get(slopes))
        # What is kept has no padding, so that it is the same on every mesh.
        embedding = network.abstract["body"]["embedding"].get_value()
        assert embedding.shape == (VOCABULARY, 16)
    leaves = [jax.tree.leaves(found[name]) for name in ("whole", "split")]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert max(np.abs(x).max() for x in jax.tree.leaves(found["whole"][2])) > 1e-2


def test_scoring_splits_no_vocabulary_and_a_language_model_does():
    model = helpers.DECODER
    mesh = sharding.make_mesh(SPLIT)
    scores = state.make_network(model, 64, "score", mesh).shardings["body"]
    assert scores["embedding"].get_value().spec == PartitionSpec(None, "fsdp")
    language = state.make_network(model, 64, "language", mesh).shardings["body"]
    assert language["embedding"].get_value().spec == PartitionSpec("tensor", "fsdp")


def test_what_has_no_copy_must_divide():
    model = config.Encoder(num_layers=1, embed_dim=18, num_heads=3, mlp_dim=32)
    mesh = sharding.make_mesh(config.Mesh(data=2, tensor=4))
    with pytest.raises(config.ConfigError, match="heads 3 is not divisible by mesh.te"):
        state.make_network(model, 32, "score", mesh)
