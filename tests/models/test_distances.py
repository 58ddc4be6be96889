"""Learned biases by distance, against transformers' own and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from ranker import config, sharding
from ranker.models import attention, distances
from ranker.models.masks import Rule, make_mask

FAR = 300  # tokens, beyond what has a bucket of its own


@pytest.mark.parametrize(
    ("count", "theirs"),
    [
        (32, MPNetEncoder.relative_position_bucket),
        (16, T5Attention._relative_position_bucket),
        (64, T5Attention._relative_position_bucket),
    ],
)
def test_buckets_are_transformers(count, theirs):
    away = torch.arange(-FAR, FAR + 1)
    expected = theirs(away, num_buckets=count, max_distance=128).numpy()
    index = np.clip(away.numpy(), -distances.REACH, distances.REACH)
    found = distances.buckets(count)[index + distances.REACH]
    np.testing.assert_array_equal(found, expected)


def test_a_bias_by_hand():
    """Eight buckets: 0 and 1 before, 5 behind, then shared ones."""
    table = jnp.stack([jnp.arange(8.0), 10 + jnp.arange(8.0)], axis=1)
    found = distances.bias(table, 4)
    assert found.shape == (1, 2, 4, 4)
    picture = [[0, 5, 6, 6], [1, 0, 5, 6], [2, 1, 0, 5], [2, 2, 1, 0]]
    np.testing.assert_array_equal(found[0, 0], picture)
    np.testing.assert_array_equal(found[0, 1], 10 + np.array(picture))


def test_a_bias_takes_the_plain_kernel_on_every_platform(monkeypatch):
    """Of a length that a TPU's kernel refuses; a very low bias hides a key."""
    draw = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(draw.normal(size=(1, 200, 2, 8)), jnp.float32) for _ in range(3)
    )
    segments = jnp.ones((1, 200), jnp.int32)
    bias = jnp.zeros((1, 2, 200, 200)).at[:, :, :, 150:].set(-1e9)
    whole = attention.attend(q, k, v, segments, Rule(causal=False), bias=bias)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    with pytest.raises(config.ConfigError, match="200 tokens"):
        attention.attend(q, k, v, segments, Rule(causal=False))
    same = attention.attend(q, k, v, segments, Rule(causal=False), bias=bias)
    np.testing.assert_array_equal(same, whole)
    rule = Rule(causal=False, scale=8**-0.5)
    mask = make_mask(segments, rule)
    formula = attention.reference(q, k, v, mask, rule, bias=bias)
    np.testing.assert_allclose(formula, whole, atol=1e-6)
    hidden = segments.at[:, 150:].set(0)
    monkeypatch.undo()
    cut = attention.attend(q, k, v, hidden, Rule(causal=False))
    np.testing.assert_allclose(whole[:, :150], cut[:, :150], atol=1e-6)


@pytest.mark.parametrize("count", [4, 30, 260])
def test_numbers_of_buckets_that_cannot_be(count):
    with pytest.raises(config.ConfigError, match=f"distance_buckets .*{count}"):
        config.Encoder(
            num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, distance_buckets=count
        )
