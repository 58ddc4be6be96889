"""The same numbers as transformers' own torch models, in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from parity_helpers import BERT, as_jax, imported, load
from safetensors.numpy import load_file, save_file

from ranker import config
from ranker.data.records import Document
from ranker.data.text import Tokenizer, train_wordpiece
from ranker.models import build
from ranker.models.huggingface import (
    ModelError,
    export_huggingface,
    open_checkpoint,
)


def test_a_bert_without_a_head_starts_with_a_fresh_one(tmp_path):
    bare = transformers.BertModel(transformers.BertConfig(**BERT))
    bare.save_pretrained(tmp_path)
    _, params, notes = load(tmp_path, "score")
    assert "head.dense" not in params and "head.pooler" in params
    assert any("head.dense: not in the checkpoint" in note for note in notes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    texts = ["cheap flights to rome", "low fares every day", "🦄 cats and dogs"] * 3
    train_wordpiece(iter(texts), 150, root / "tokenizer")
    tokenizer = Tokenizer(root / "tokenizer", "pair")
    settings = config.Encoder(
        num_layers=2, embed_dim=32, num_heads=4, mlp_dim=48, max_positions=40
    )
    model = build.build(settings, tokenizer.vocab_size, "score", key=jax.random.key(3))
    params = nnx.state(model, nnx.Param)
    for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf.set_value(leaf.get_value() * 8 + 0.01)
    nnx.update(model, params)
    export_huggingface(
        root / "out",
        settings,
        params,
        head="score",
        tokenizer=root / "tokenizer",
        length=20,
    )
    return root / "out", model, tokenizer


PAIRS = [
    ("cheap flights", Document("a", "Low Fares", "to rome every day " * 20)),
    ("cats", Document("b", "", "🦄 cats unknownword")),
    ("dogs and cats to rome", Document("c", "Cats", "")),
]


def our_scores(model, tokenizer, T=20):
    scores = []
    for query, document in PAIRS:
        segment = tokenizer.segment(
            tokenizer.queries([query])[0], tokenizer.documents([document])[0], T
        )
        n = len(segment.tokens)
        arrays = [segment.tokens, [1] * n, range(n), segment.types]
        rows = np.zeros((4, 1, T), np.int32)
        for row, values in zip(rows, arrays, strict=True):
            row[0, :n] = list(values)
        scores.append(float(model(as_jax(rows), jnp.zeros((1, 1), jnp.int32))[0, 0]))
    return scores


def test_stock_transformers_loads_the_export(exported):
    folder, model, tokenizer = exported
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder
    ).eval()
    assert type(stock).__name__ == "BertForSequenceClassification"
    encode = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [f"{document.title} {document.text}".strip() for _, document in PAIRS]
    inputs = encode(
        [query for query, _ in PAIRS],
        texts,
        truncation="only_second",
        padding=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"].shape[1] == 20  # model_max_length is in the folder
    with torch.no_grad():
        scores = stock(**inputs).logits[:, 0].numpy()
    np.testing.assert_allclose(scores, our_scores(model, tokenizer), atol=1e-4)
    assert np.ptp(scores) > 0.05


def test_cross_encoder_gives_raw_scores(exported):
    from sentence_transformers import CrossEncoder

    folder, model, tokenizer = exported
    stock = CrossEncoder(str(folder), device="cpu")
    texts = [f"{document.title} {document.text}".strip() for _, document in PAIRS]
    pairs = [(query, text) for (query, _), text in zip(PAIRS, texts, strict=True)]
    scores = stock.predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(scores, our_scores(model, tokenizer), atol=1e-4)


def test_the_export_is_read_back(exported):
    folder, model, tokenizer = exported
    _, _, notes = load(folder, "score")
    again, _ = imported(folder, "score")
    assert our_scores(again, tokenizer) == our_scores(model, tokenizer)
    assert not notes


# --- checkpoints that cannot be read ---


@pytest.fixture
def bert_folder(tmp_path):
    torch_config = transformers.BertConfig(**BERT, num_labels=1)
    transformers.BertForSequenceClassification(torch_config).save_pretrained(tmp_path)
    return tmp_path


def amend(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' is unknown; known are"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', and only gelu, "),
        ({"intermediate_size": 64}, r"shape \(48, 32\), expected \(64, 32\)"),
        ({"num_hidden_layers": 4}, "encoder.layer.3.* missing"),
        ({"num_hidden_layers": 2}, "encoder.layer.2.* unknown"),
    ],
)
def test_configs_that_do_not_fit_name_every_problem(bert_folder, fields, message):
    amend(bert_folder, **fields)
    with pytest.raises(ModelError, match=message):
        load(bert_folder, "score")


def test_files_that_are_missing_or_cut(bert_folder):
    weights = bert_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model.safetensors: .*fetch the file again"):
        load(bert_folder, "score")
    weights.unlink()
    with pytest.raises(ModelError, match="no model.safetensors; it holds config.json"):
        load(bert_folder, "score")
    (bert_folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load(bert_folder, "score")


def shard(folder, parts):
    """The folder's weights in so many files, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number in range(parts):
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        chosen = {name: tensors[name] for name in sorted(tensors)[number::parts]}
        save_file(chosen, folder / file)
        where |= dict.fromkeys(chosen, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


def test_shards_are_one_model_and_a_missing_one_is_named(bert_folder):
    _, before, _ = load(bert_folder, "score")
    index = shard(bert_folder, 3)
    _, after, _ = load(bert_folder, "score")
    assert set(before) == set(after)
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])
    second = bert_folder / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    (bert_folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ModelError) as raised:  # both are told at once
        load(bert_folder, "score")
    message = str(raised.value)
    assert "00002-of-00003.safetensors" in message and "not fully covered" in message
    assert "00003-of-00003.safetensors" in message and "fetch the file again" in message
    index.unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors.index.json; fetch it"):
        load(bert_folder, "score")


def test_an_index_that_promises_too_much(bert_folder):
    index = shard(bert_folder, 2)
    listed = json.loads(index.read_text())
    listed["weight_map"]["bert.more"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(ModelError, match="bert.more is not in it, and the index says"):
        load(bert_folder, "score")
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(ModelError, match="is not a file of this folder"):
        load(bert_folder, "score")
    index.write_text("[]")
    with pytest.raises(ModelError, match="has no weight_map"):
        load(bert_folder, "score")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_of_other_floats(bert_folder, dtype):
    path = bert_folder / "model.safetensors"
    _, before, _ = load(bert_folder, "score")
    tensors = {k: v.astype(jnp.dtype(dtype)) for k, v in load_file(path).items()}
    save_file(tensors, path)
    _, after, _ = load(bert_folder, "score")
    for name, value in after.items():
        assert value.dtype == np.float32
        rounded = before[name].astype(jnp.dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(value, rounded)


def test_integer_weights_are_refused(bert_folder):
    path = bert_folder / "model.safetensors"
    tensors = load_file(path)
    name = "bert.pooler.dense.weight"
    save_file({**tensors, name: tensors[name].astype(np.int8)}, path)
    with pytest.raises(ModelError, match=f"{name} has the dtype I8, expected F32"):
        load(bert_folder, "score")
    amend(bert_folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="weights are quantised"):
        load(bert_folder, "score")


def test_folders_that_hold_something_else(bert_folder, tmp_path):
    weights = bert_folder / "model.safetensors"
    weights.rename(bert_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles, which are not read; load it with"):
        load(bert_folder, "score")
    (bert_folder / "config.json").rename(bert_folder / "adapter_config.json")
    with pytest.raises(ModelError, match="holds adapters alone; merge them"):
        load(bert_folder, "score")
    with pytest.raises(ModelError, match="no such folder, and no hub name"):
        load(tmp_path / "nothing" / "there", "score")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_attention_heads=5), "config.json: .*32.* 5"),
        (dict(hidden_size=None), "config.json: "),
        (dict(num_hidden_layers="three"), "config.json: "),
    ],
)
def test_sizes_that_do_not_divide(bert_folder, fields, message):
    amend(bert_folder, **fields)
    with pytest.raises(ModelError, match=message):
        load(bert_folder, "score")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_attention_heads=5, head_dim=None), "config.json: .*5"),
        (
            dict(num_key_value_heads=3, head_dim=8),
            "num_heads 4 is not divisible by model.num_kv_heads 3",
        ),
        (dict(head_dim=7), "config.json: .*even.* 7|`head_dim`=7"),
    ],
)
def test_sizes_of_a_decoder_that_do_not_divide(tmp_path, fields, message):
    described = dict(
        model_type="llama",
        vocab_size=9,
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    (tmp_path / "config.json").write_text(json.dumps({**described, **fields}))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(tmp_path, "score")


def test_a_head_of_several_labels(tmp_path):
    settings = transformers.BertConfig(**BERT, num_labels=3)
    transformers.BertForSequenceClassification(settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a head of 3 labels.* model.fresh_head=True"):
        load(tmp_path, "score")
    _, params, notes = load(tmp_path, "score", fresh_head=True)
    assert "head.dense" not in params and "head.pooler" in params
    assert "head.dense: starts fresh (model.fresh_head)" in notes


def test_a_body_is_no_language_model(tmp_path):
    small = dict(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    settings = transformers.LlamaConfig(
        **small, num_attention_heads=2, tie_word_embeddings=False
    )
    transformers.LlamaModel(settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lm_head.weight: missing"):
        load(tmp_path, "language")
    _, params, notes = load(tmp_path, "score")
    assert notes == ["head.dense: not in the checkpoint, starts fresh"]


def test_a_digest_knows_the_weights(bert_folder):
    before = open_checkpoint(config.Pretrained(path=str(bert_folder))).digest
    path = bert_folder / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1e-3
    save_file(tensors, path)
    assert open_checkpoint(config.Pretrained(path=str(bert_folder))).digest != before


def test_a_hub_name_is_found_in_the_cache(bert_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    model = tmp_path / "hub" / "models--some--bert"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    bert = [(p.name, p.read_bytes()) for p in bert_folder.iterdir() if p.is_file()]
    folder = model / "snapshots" / commit
    folder.mkdir()
    for name, content in bert:
        (folder / name).write_bytes(content)
    checkpoint = open_checkpoint(config.Pretrained(path="some/bert"))
    assert checkpoint.folder == folder and checkpoint.model.num_layers == 3
    with pytest.raises(ModelError, match="some/other: no such folder, and it cannot"):
        open_checkpoint(config.Pretrained(path="some/other"))
