"""The language loss by chunks changes nothing; bfloat16 computes, float32 learns."""

import dataclasses
import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ranker import config
from ranker.losses import language
from ranker.training import objectives, weights
from ranker.training import scorer as scoring

CAPPED = dataclasses.replace(helpers.DECODER, logit_cap=3.0)


def value_and_grad(settings, mesh_name, loss):
    """Of loss(model, batch), on a mesh."""
    network = helpers.network_of(settings, mesh_name, "language")
    params = weights.complete_params(
        {}, network, settings, helpers.V, "language", seed=0
    )
    batch = jax.tree.map(lambda x: x[0], helpers.batch_of())

    def total(params, batch):
        return loss(nnx.merge(network.graphdef, params), batch).mean()

    with jax.set_mesh(network.mesh):
        placed = scoring.device_batch(batch, network, leading=0)
        compiled = jax.jit(jax.value_and_grad(total)).lower(params, placed).compile()
        value, grads = compiled(params, placed)
    return float(value), jax.device_get(jax.tree.leaves(grads)), compiled.as_text()


def whole(model, batch):
    logits = model(batch.rows)
    return language.next_token(logits, batch.rows.tokens, where=batch.loss_mask)


def by_chunks(model, batch):
    made = objectives.make_objective(config.Language(), groups=1)
    return made.parts(model, batch, None)["language"]


@pytest.mark.parametrize(
    ("settings", "mesh"),
    [(CAPPED, "one"), (helpers.DECODER, "data2-fsdp2-tensor2")],
    ids=["capped-one", "plain-sharded"],
)
def test_chunks_change_nothing(settings, mesh, monkeypatch):
    rows = helpers.batch_of().rows.tokens.shape[1]
    monkeypatch.setattr(objectives, "_LOGITS", rows * helpers.V * 3)
    assert objectives.num_chunks(rows, helpers.T, helpers.V) == 4
    expected = value_and_grad(settings, "one", whole)
    found = value_and_grad(settings, mesh, by_chunks)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    # The logits of all tokens are nowhere, and no device has the whole vocabulary's.
    shapes = set(re.findall(r"f32\[([\d,]+)\]", found[2]))
    assert f"{rows},{helpers.T},{helpers.V}" not in shapes
    if mesh == "one":
        assert f"{rows},{helpers.T},{helpers.V}" in re.findall(
            r"f32\[([\d,]+)\]", expected[2]
        )
        assert f"{rows},3,{helpers.V}" in shapes
    else:
        assert f"{rows // 4},3,{helpers.V // 2}" in shapes
        assert not [one for one in shapes if re.fullmatch(rf"\d+,3,{helpers.V}", one)]


def test_chunks_are_as_few_as_fit():
    assert objectives.num_chunks(64, 32, 2048) == 1
    assert objectives.num_chunks(8, 512, 32000) == 8
    assert objectives.num_chunks(10**6, 12, 10**6) == 12  # a token at a time


def test_bfloat16_computes_and_float32_learns():
    settings, objective = helpers.OBJECTIVES["language"]
    low = dataclasses.replace(settings, dtype="bfloat16")
    batches = [helpers.batch_of(micro=2, seed=i) for i in range(2)]
    params, metrics = helpers.train(settings, objective, "one", batches)
    others, values = helpers.train(low, objective, "one", batches)
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype("float32")}
    moved = 0
    for a, b in zip(metrics, values, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=0.02)
        moved += a["loss"] != b["loss"]
    assert moved  # it is not float32 under another name
