"""Folders as others than today's transformers have written them."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from ranker import config
from ranker.models.huggingface import open_checkpoint

_path = pathlib.Path(__file__).with_name("test_huggingface.py")
_spec = importlib.util.spec_from_file_location("huggingface_helpers", _path)
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

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
    return open_checkpoint(settings).plan(head)


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
    assert any("trained behind head.pooler" in note for note in found.notes)


# The documented forms of keep_layers, and what they keep of four layers.
KEPT = {"0,2": [0, 2], "::2": [0, 2], "1::2": [1, 3], ":2": [0, 1], "-2:": [2, 3]}
SMALL = {
    "BertForSequenceClassification": {},
    "RobertaForSequenceClassification": dict(pad_token_id=1),
    "ElectraForSequenceClassification": dict(embedding_size=16),
    "ModernBertForSequenceClassification": dict(
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "LlamaForSequenceClassification": {},
    "Qwen2ForSequenceClassification": dict(num_key_value_heads=1),
    "Qwen3ForSequenceClassification": dict(head_dim=8, num_key_value_heads=1),
    "Gemma2ForSequenceClassification": dict(head_dim=8, num_key_value_heads=1),
}


@pytest.mark.parametrize("kind", SMALL)
def test_fewer_layers_of_every_family(kind, tmp_path):
    save(tmp_path, kind, **SMALL[kind])
    whole = plan(tmp_path)
    for text, kept in KEPT.items():
        found = plan(tmp_path, keep_layers=text)
        for path, (entry, sources) in found.entries.items():
            every = whole.entries[path][1]
            assert sources == ([every[i] for i in kept] if entry.stacked else every)
        said = f"layers {kept[0]}, {kept[1]} are kept"
        assert any(said in note for note in found.notes)
