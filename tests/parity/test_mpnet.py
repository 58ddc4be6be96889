"""MPNet beyond what all families are tried for: long texts, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import parity_helpers as helpers
import pytest
import torch
import transformers
from flax import nnx

from ranker.models.huggingface import ModelError, flat
from ranker.models.layers import INIT_STD

V = 98
LENGTHS = (140, 200)  # of two texts in one row; distances from 128 on share a bucket


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory):
    """transformers' model, its folder, and what was imported of it."""
    folder = tmp_path_factory.mktemp("mpnet")
    settings = transformers.MPNetConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        num_labels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = transformers.MPNetForSequenceClassification(settings)
    theirs = helpers.randomised(theirs)
    with torch.no_grad():  # as large as logits are
        theirs.mpnet.encoder.relative_attention_bias.weight.mul_(1 / INIT_STD)
    theirs.save_pretrained(folder)
    return theirs, folder, *helpers.imported(folder, "score")


def test_long_texts_in_one_row_have_the_scores_and_gradients_of_torch(mpnet):
    theirs, _, model, settings = mpnet
    assert settings.distance_buckets == 32 and settings.max_positions == 254
    draw = np.random.default_rng(0)
    texts = [draw.integers(4, V, n) for n in LENGTHS]
    weights = (1.0, -0.5)
    scores = [theirs(torch.tensor(text[None])).logits[0, 0] for text in texts]
    theirs.zero_grad()
    sum(w * s for w, s in zip(weights, scores, strict=True)).backward()
    expected = [float(score.detach()) for score in scores]
    row = np.concatenate(texts)[None]
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(LENGTHS)])[None]
    places = np.concatenate([np.arange(n) for n in LENGTHS])[None]
    rows = helpers.as_jax([row, segments, places, row * 0])
    index = jnp.asarray([[0, LENGTHS[0]]], jnp.int32)
    graph, params = nnx.split(model, nnx.Param)

    def total(params):
        found = nnx.merge(graph, params)(rows, index)
        return jnp.sum(found * jnp.asarray([weights])), found

    with jax.default_matmul_precision("highest"):
        slopes, found = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    slopes = dict(flat(slopes))
    body = theirs.mpnet.encoder
    wanted = body.relative_attention_bias.weight.grad.numpy()
    assert np.count_nonzero(wanted[:, 0]) == 31  # no key is both behind and at hand
    close(slopes["body.distances"], wanted)
    wanted = body.layer[0].attention.attn.q.weight.grad.numpy().T.reshape(32, 4, 8)
    close(slopes["body.layers.q"][0], wanted)


def close(found, wanted):
    allowed = 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=allowed, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"), [("relative_attention_num_buckets", 64), ("pad_token_id", 0)]
)
def test_fields_that_its_class_does_not_follow_are_refused(
    mpnet, tmp_path, field, value
):
    _, folder, *_ = mpnet
    changed = tmp_path / "changed"
    config = transformers.MPNetConfig.from_pretrained(folder)
    changed.mkdir()
    (changed / "model.safetensors").symlink_to(folder / "model.safetensors")
    setattr(config, field, value)
    config.save_pretrained(changed)
    with pytest.raises(ModelError, match=f"{field} is {value}"):
        helpers.load(changed, "score")
