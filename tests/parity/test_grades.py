"""A decoder that answers with grades: trained, scored, exported, read by others."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ranker import config
from ranker.models.folder import read_head
from ranker.models.huggingface import ModelError
from ranker.training.origin import Origin
from ranker.training.weights import score_of_words

# torch's Softmax without an axis takes the last of two, and warns that it is implicit.
pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")


def test_words_score_after_continued_pretraining():
    """Rows of the language head, or of the embeddings where these are tied."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    model = config.Decoder(
        num_layers=1,
        embed_dim=4,
        num_heads=2,
        num_kv_heads=2,
        head_dim=2,
        mlp_dim=8,
        logit_scale=0.5,
    )
    graded = dataclasses.replace(model, grades=3)

    class Source:
        score_tokens, fresh_head = (7, 2), False

    def head(params, model, source=Source):
        found = score_of_words(params, Origin(model, "teacher", 9, source))
        return found.get("head.dense")

    expected = 0.5 * (table[7] - table[2])
    tied, apart = {"body.embedding": table}, {"body.embedding": table * 0}
    np.testing.assert_allclose(head(tied, model), expected, atol=1e-6)
    np.testing.assert_allclose(head({**apart, "head": table}, model), expected)
    Source.score_tokens = (1, 2, 3)
    np.testing.assert_allclose(head(tied, graded), table[1:4])
    Source.fresh_head = True
    assert head(tied, graded) is None and head(tied, model, None) is None


@pytest.mark.parametrize(
    ("weights", "bias", "residual", "message"),
    [
        ([[0.0, 2.0, 4.0]], False, False, r"weights \[0.0, 2.0, 4.0\]"),
        ([[0.0, 1.0, 2.0]], True, False, "both without a bias"),
        ([[0.0, 1.0, 2.0]], False, True, "3_Dense has use_residual"),
    ],
)
def test_modules_with_a_softmax_that_are_no_grades(
    weights, bias, residual, message, tmp_path
):
    from safetensors.numpy import save_file

    parts = ("Transformer", "Pooling", "Dense", "Dense")
    listed = []
    for i, kind in enumerate(parts):
        path = f"{i}_{kind}" if i else ""
        (tmp_path / path).mkdir(exist_ok=True)
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"x.{kind}"})
    dense = dict(activation_function="torch.nn.Softmax", out_features=3)
    last = dict(activation_function="torch.nn.Identity", out_features=1)
    last |= dict(module_output_name="scores", use_residual=residual)
    for i, fields in enumerate([dict(pooling_mode="lasttoken"), dense, last], start=1):
        (tmp_path / listed[i]["path"] / "config.json").write_text(json.dumps(fields))
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    made = {"linear.weight": np.zeros((3, 4), np.float32)}
    made |= {"linear.bias": np.zeros(3, np.float32)} if bias else {}
    save_file(made, tmp_path / "2_Dense" / "model.safetensors")
    made = {"linear.weight": np.array(weights, np.float32)}
    save_file(made, tmp_path / "3_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        read_head(tmp_path)
