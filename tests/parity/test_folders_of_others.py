"""Folders as others than today's transformers have written them."""

import json

import jax.numpy as jnp
import numpy as np
import parity_helpers as helpers
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from ranker import config
from ranker.data.text import train_wordpiece
from ranker.models.huggingface import (
    ModelError,
    export_huggingface,
    flat,
    open_checkpoint,
)

SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    max_position_embeddings=32,
)


def save(folder, kind, **fields):
    """A tiny model of transformers' class, every parameter random."""
    settings = getattr(transformers, f"{kind.partition('For')[0]}Config")
    model = getattr(transformers, kind)(settings(**SIZES, num_labels=1, **fields))
    helpers.randomised(model).save_pretrained(folder)
    return model


def edit(folder, change):
    """Writes the folder's tensors anew: `change` of them by name."""
    path = folder / "model.safetensors"
    tensors = change({name: value.copy() for name, value in load_file(path).items()})
    save_file(tensors, path, metadata={"format": "pt"})


def plan(folder, head="score", **fields):
    settings = config.Pretrained(path=str(folder), **fields)
    return open_checkpoint(settings).match(head)


def test_norms_by_their_old_names(tmp_path):
    save(tmp_path, "BertForSequenceClassification")
    _, before, _ = helpers.load(tmp_path, "score")

    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    edit(tmp_path, lambda tensors: {old(n): v for n, v in tensors.items()})
    _, after, notes = helpers.load(tmp_path, "score")
    assert set(before) == set(after) and not notes
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path])


def test_a_new_file_beside_an_old_index(tmp_path):
    save(tmp_path, "BertForSequenceClassification")
    tensors = load_file(tmp_path / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file({n: v * 0 for n, v in tensors.items()}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    _, params, _ = helpers.load(tmp_path, "score")
    assert np.abs(params["head.dense"]).max() > 0


def test_a_score_without_the_pooler_it_was_trained_behind(tmp_path):
    save(tmp_path, "BertForSequenceClassification")
    edit(tmp_path, lambda t: {n: v for n, v in t.items() if "pooler" not in n})
    found = plan(tmp_path)
    assert not found.scores and "head.dense" not in found.entries
    assert any("trained with head.pooler" in note for note in found.notes)


def test_two_labels_are_one_score(tmp_path):
    model = save_labels(tmp_path, 2)
    _, params, notes = helpers.load(tmp_path, "score")
    both = model.classifier.weight.detach().numpy()
    np.testing.assert_allclose(params["head.dense"], both[1] - both[0], atol=1e-6)
    bias = model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(params["head.bias"], bias[1] - bias[0], atol=1e-6)
    assert any("second's logit less the first's" in note for note in notes)
    assert "head.dense" not in plan(tmp_path, fresh_head=True).entries


def save_labels(folder, count):
    settings = transformers.BertConfig(**SIZES, num_labels=count)
    model = transformers.BertForSequenceClassification(settings)
    helpers.randomised(model).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(is_decoder=True), "is_decoder is True"),
        (dict(add_cross_attention=True), "add_cross_attention is True"),
        (dict(hidden_act="mish"), "hidden_act is 'mish'"),
        (dict(model_type="deberta-v2"), "given_scores"),
        (dict(model_type="qwen3_moe"), "mixture of experts.*given_scores"),
    ],
)
def test_fields_that_change_a_model_are_refused(fields, message, tmp_path):
    save_labels(tmp_path, 1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ModelError, match=message):
        plan(tmp_path)


def test_strange_fields_and_code_are_noted(tmp_path):
    save_labels(tmp_path, 1)
    path = tmp_path / "config.json"
    more = dict(my_field=3, auto_map={"AutoModel": "own.Model"})
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    notes = " ".join(plan(tmp_path).notes)
    assert "my_field" in notes and "auto_map" in notes and "not run" in notes


@pytest.mark.parametrize("pooling", ["mean"])
def test_a_pooling_without_a_class_is_written_as_modules(pooling, tmp_path):
    """CrossEncoder loads BERT pooled by its mean, and so does this package."""
    from sentence_transformers import CrossEncoder

    save_labels(tmp_path / "in", 1)
    texts = ["cheap flights to rome", "low fares every day"] * 3
    train_wordpiece(iter(texts), 40, tmp_path / "tokenizer")
    model, settings = helpers.imported(tmp_path / "in", "score", pooling=pooling)
    notes = export_huggingface(
        tmp_path / "out",
        settings,
        nnx.state(model, nnx.Param),
        head="score",
        tokenizer=tmp_path / "tokenizer",
        length=30,
    )
    assert "modules" in notes[-1]
    stock = CrossEncoder(str(tmp_path / "out"), device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    pair = ("cheap fares", "every day to rome")
    expected = stock.predict([pair], show_progress_bar=False)
    found = tokenizer(*pair)
    n = len(found["input_ids"])
    arrays = [found["input_ids"], [1] * n, range(n), found["token_type_ids"]]
    rows = helpers.as_jax([[list(one)] for one in arrays])
    ours = model(rows, jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)
    checkpoint, params, _ = helpers.load(tmp_path / "out", "score")
    assert checkpoint.model.pooling == pooling
    before = dict(flat(nnx.state(model, nnx.Param)))
    for path, value in params.items():
        np.testing.assert_allclose(value, before[path], atol=1e-6, err_msg=path)
