"""Sizes that the mesh does not divide: a vocabulary and key heads stay whole."""

import jax
import numpy as np
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.batch import Rows
from ranker.training import state, weights

VOCABULARY = 30  # not divisible by 4


def _scores(model, mesh):
    network = state.make_network(model, VOCABULARY, "score", mesh)
    params = weights.complete({}, network, model, VOCABULARY, "score", seed=0)
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


def test_what_has_no_copy_must_divide():
    model = config.Encoder(num_layers=1, embed_dim=18, num_heads=3, mlp_dim=32)
    mesh = sharding.make_mesh(config.Mesh(data=2, tensor=4))
    with pytest.raises(config.ConfigError, match="heads 3 is not divisible by mesh.te"):
        state.make_network(model, 32, "score", mesh)
