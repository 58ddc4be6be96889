"""The same numbers as transformers' own torch models, in both directions."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from ranker import config
from ranker.data.records import Document
from ranker.data.text import Tokenizer, train_wordpiece
from ranker.models import build
from ranker.models.huggingface import (
    ModelError,
    export_huggingface,
    import_params,
    open_checkpoint,
)
from ranker.sharding import make_mesh
from ranker.training.state import make_network

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def with_params(settings, params, head, vocab_size):
    """A model of ours with the parameters of these paths."""
    model = build.build(settings, vocab_size, head, key=jax.random.key(0))
    state = nnx.state(model, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(jnp.asarray(params[".".join(map(str, path))]))
    nnx.update(model, state)
    return model


def load(folder, head, **fields):
    """Config, parameters by path and notes of a folder, imported onto a mesh."""
    checkpoint = open_checkpoint(config.Pretrained(path=str(folder), **fields))
    tensor = 1 if checkpoint.vocab_size % 2 else 2
    mesh = make_mesh(config.Mesh(fsdp=2, tensor=tensor))  # widths, heads are split
    network = make_network(checkpoint.model, checkpoint.vocab_size, head, mesh)
    params, notes = import_params(checkpoint, head, network.abstract, network.shardings)
    params = {path: np.asarray(value) for path, value in params.items()}
    return checkpoint, params, notes


def imported(folder, head, **fields):
    """A model of ours from a folder, and its config."""
    checkpoint, params, _ = load(folder, head, **fields)
    model = with_params(checkpoint.model, params, head, checkpoint.vocab_size)
    return model, checkpoint.model


def batch_of(lengths, vocab_size, T=12):
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, vocab_size, (len(lengths), T))
    place = np.arange(T)
    real = place[None] < np.array(lengths)[:, None]
    return (
        tokens * real,
        real.astype(int),
        (place[None] * real),
        (place >= 4) * real.astype(int),
    )


def as_jax(arrays):
    return [jnp.asarray(np.asarray(x), jnp.int32) for x in arrays]


BERT = dict(
    vocab_size=98,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def randomised(model):
    """Random norms and biases too: fresh ones are ones and zeros, and prove nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


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
        scores.append(float(model(*as_jax(rows), jnp.zeros((1, 1), jnp.int32))[0, 0]))
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
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and only 'gelu'"),
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


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not beside the checkout")
def test_a_real_llama_tells_its_published_story():
    folder = SHARED / "stories260k"
    arrays = dict(np.load(folder / "stories260K.npz"))
    expected = json.loads((folder / "expected.json").read_text())
    settings = config.Decoder(
        num_layers=5,
        embed_dim=64,
        num_heads=8,
        num_kv_heads=4,
        head_dim=8,
        mlp_dim=172,
    )

    def halves(w, heads):
        """Rows of interleaved pairs (0, 1), (2, 3) to the halves that we rotate."""
        w = w.reshape(heads, 4, 2, 64)
        return w.transpose(0, 2, 1, 3).reshape(heads * 8, 64)

    def split(w, heads):
        """[out, in] of each layer to ours, [in, heads, head_dim]."""
        return np.stack([halves(x, heads).T.reshape(64, heads, 8) for x in w])

    params = {
        "body.embedding": arrays["tok_embeddings"],
        "body.norm": arrays["norm"],
        "body.layers.attention_norm": arrays["attention_norm"],
        "body.layers.mlp_norm": arrays["ffn_norm"],
        "body.layers.q": split(arrays["wq"], 8),
        "body.layers.k": split(arrays["wk"], 4),
        "body.layers.v": arrays["wv"].transpose(0, 2, 1).reshape(5, 64, 4, 8),
        "body.layers.o": arrays["wo"].transpose(0, 2, 1).reshape(5, 8, 8, 64),
        "body.layers.gate": arrays["w1"].transpose(0, 2, 1),
        "body.layers.up": arrays["w3"].transpose(0, 2, 1),
        "body.layers.down": arrays["w2"].transpose(0, 2, 1),
    }
    model = with_params(settings, params, "language", 512)
    greedy = expected["greedy_ids_from_bos"]
    tokens = jnp.asarray([greedy], jnp.int32)
    ones, place = jnp.ones_like(tokens), jnp.arange(256, dtype=jnp.int32)[None]
    logits = model(tokens, ones, place, ones * 0)
    # Each token is the most likely after those before it: greedy decoding at once.
    assert np.asarray(logits[0].argmax(-1))[:-1].tolist() == greedy[1:]
    first = np.asarray(logits[0, 0, :8])
    np.testing.assert_allclose(first, expected["logits_bos_first8"], atol=1e-4)
