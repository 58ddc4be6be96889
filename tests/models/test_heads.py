"""What is read off the hidden states: poolings and heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ranker import config
from ranker.batch import Rows
from ranker.models import build
from ranker.models.heads import GradeHead, segment_ends

SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0], [3, 0, 0, 0, 0, 0]], jnp.int32)
ENCODER = config.Encoder(
    num_layers=2, embed_dim=8, num_heads=2, mlp_dim=12, max_positions=8
)
DECODER = config.Decoder(
    num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12
)


def test_first_and_last_tokens_of_segments():
    np.testing.assert_array_equal(
        segment_ends(SEGMENTS, last=True),
        [[2, 2, 2, 4, 4, 5], [6, 11, 11, 11, 11, 11]],
    )
    np.testing.assert_array_equal(
        segment_ends(SEGMENTS, last=False),
        [[0, 0, 0, 3, 3, 5], [6, 7, 7, 7, 7, 7]],
    )


def test_the_expected_grade_by_hand():
    c = dataclasses.replace(DECODER, grades=3)
    head = GradeHead(c, rngs=nnx.Rngs(0))
    head.dense.set_value(jnp.asarray(np.eye(3, 8), jnp.float32))
    x = jnp.asarray([[np.log(1.0), np.log(2.0), np.log(5.0), 9, 9, 9, 9, 9]])
    # Chances 1/8, 2/8 and 5/8 of the grades 0, 1 and 2.
    np.testing.assert_allclose(head(x, key=None), [12 / 8], rtol=1e-6)


@pytest.mark.parametrize("c", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_poolings_are_of_the_documents_own_tokens(c):
    """Two texts in one row score as each alone does, whatever they are pooled by."""
    tokens = jnp.asarray([[5, 6, 7, 8, 9, 0]], jnp.int32)
    places = jnp.asarray([[0, 1, 2, 0, 1, 0]], jnp.int32)
    rows = Rows(tokens, SEGMENTS[:1], places, tokens * 0)
    alone = Rows(
        tokens[:, 3:5],
        *(jnp.asarray([[a, b]]) for a, b in ((1, 1), (0, 1))),
        tokens[:, 3:5] * 0,
    )
    for pooling in ("cls", "last", "mean", "late"):
        changed = dataclasses.replace(c, pooling=pooling)
        model = build.build(changed, 16, "score", key=jax.random.key(0))
        # Encoders are given the first token, decoders the last one.
        at = 3 if isinstance(c, config.Encoder) else 4
        both = model(rows, jnp.asarray([[at]], jnp.int32))
        one = model(alone, jnp.asarray([[at - 3]], jnp.int32))
        np.testing.assert_allclose(both, one, atol=1e-6)


def test_a_decoder_that_reads_both_ways_has_no_language_head():
    c = dataclasses.replace(DECODER, causal=False)
    with pytest.raises(config.ConfigError, match="reads both ways"):
        build.build(c, 16, "language", key=jax.random.key(0))
