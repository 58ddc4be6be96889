"""Exported folders keep their contract, and what breaks it is named."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from ranker import check, config, manifests, sharding
from ranker.data.records import Document, RankedList
from ranker.data.text import (
    TEMPLATES,
    Tokenizer,
    document_text,
    train_bpe,
    train_wordpiece,
)
from ranker.serving import causes, contract, readers
from ranker.serving.frame import tokenizer_frame
from ranker.serving.golden import frame_pairs
from ranker.training import weights
from ranker.training.export import write_folder
from ranker.training.state import make_network
from ranker.training.trained import Trained

WORDS = "cheap flights to rome low fares every day cats and dogs in the Snow".split()
ENCODER = config.Encoder(
    num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_positions=200
)
DECODER = config.Decoder(
    num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
LENGTHS = {"pair": 40, "prompt": 256}  # by template


class Data:
    """Prepared data of a few made texts, in memory."""

    def __init__(self, root, template):
        generator = np.random.default_rng(0)

        def text(n):
            return " ".join(generator.choice(WORDS, n))

        self._corpus = [
            Document(str(i), text(2), text(int(generator.integers(3, 12))))
            for i in range(40)
        ]
        none = np.zeros(0, np.int32)
        self._lists = [
            RankedList(
                str(i),
                text(int(generator.integers(1, 4))),
                generator.permutation(40)[:5],
                np.zeros(5, np.float32),
                np.zeros(5, np.float32),
                (),
                none,
            )
            for i in range(20)
        ]
        self.template, self.folder = template, root / "tokenizer"
        make = train_wordpiece if template == "pair" else train_bpe
        size = 120 if template == "pair" else 300
        make((f"{d.title} {d.text}" for d in self._corpus), size, self.folder)

    def corpus(self):
        return self._corpus

    def lists(self, split):
        return self._lists if split == "train" else []

    def tokenizer(self, role):
        return Tokenizer(self.folder, self.template)

    def tokenizer_folder(self, role):
        return self.folder


def exported(root, model, template):
    data = Data(root, template)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    size = data.tokenizer("").vocab_size
    network = make_network(model, size, "score", mesh)
    params = weights.complete_params({}, network, model, size, "score", seed=0)
    # Fresh weights are so small that all scores are alike.
    params = jax.tree.map(lambda x: x * 7, params)
    manifest = manifests.Manifest(kind="sft", settings={}, inputs={})
    length = LENGTHS[template]
    trained = Trained("sft", manifest, model, "student", size, length, network, params)
    write_folder(root / "out", trained, data, mesh)
    return root / "out"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "encoder": exported(tmp_path_factory.mktemp("encoder"), ENCODER, "pair"),
        "decoder": exported(tmp_path_factory.mktemp("decoder"), DECODER, "prompt"),
    }


@pytest.fixture
def copy(folders, tmp_path):
    def make(kind):
        return pathlib.Path(shutil.copytree(folders[kind], tmp_path / kind))

    return make


def amend(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_an_export_keeps_its_contract(folders, kind, capsys):
    assert check.main([str(folders[kind])]) == 0
    shown = capsys.readouterr().out
    assert "ranker: 16 of 16 equal" in shown
    assert "transformers: 16 of 16 equal" in shown


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_golden_pairs_are_of_every_kind(folders, kind):
    promise = contract.load_contract(folders[kind])
    assert len(promise.golden) == 16
    kinds = {one.kind for one in promise.golden}
    hard = {"short", "cut", "other script", "padding", "punctuation"}
    assert kinds == {*hard, "spread"}
    for one in promise.golden:
        full = len(one.tokens) == promise.length
        assert full if one.kind == "cut" else len(one.tokens) <= promise.length
        assert one.tokens[-len(promise.suffix) :] == promise.suffix
    assert promise.scores["std"] > 0.05
    scores = [one.score for one in promise.golden]
    assert promise.scores["min"] <= min(scores) < max(scores) <= promise.scores["max"]


def test_cross_encoder_scores_the_texts_of_the_contract(folders):
    """What a stock user feeds, for a pair and for a decoder's template."""
    from sentence_transformers import CrossEncoder

    for folder in folders.values():
        promise = contract.load_contract(folder)
        texts = [
            (
                promise.query.format(query=one.query),
                promise.document.format(
                    title=one.title,
                    text=one.text,
                    both=f"{one.title} {one.text}".strip(),
                ),
            )
            for one in promise.golden
        ]
        found = CrossEncoder(str(folder), device="cpu").predict(
            texts, show_progress_bar=False
        )
        golden = [one.score for one in promise.golden]
        np.testing.assert_allclose(found, golden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("template", TEMPLATES)
def test_stock_tokenizers_frame_a_decoders_pair(folders, tmp_path, template):
    """Templates of many special tokens, and a tokenizer that has no padding token."""
    source = folders["decoder"].parent / "tokenizer"
    bare = pathlib.Path(shutil.copytree(source, tmp_path / "tokenizer"))
    amend(bare / "tokenizer_config.json", lambda c: c.pop("pad_token"))
    tokenizer = Tokenizer(bare, template)
    out = pathlib.Path(shutil.copytree(bare, tmp_path / "out"))
    end = tokenizer.tail[-1] if tokenizer.tail else None
    size = tokenizer.vocab_size + 1  # a row that no token has yet
    described = {"pad_token_id": end, "vocab_size": size}
    (out / "config.json").write_text(json.dumps(described))
    frame_pairs(out, tokenizer_frame(tokenizer, 400))
    stock = AutoTokenizer.from_pretrained(out)
    document = Document("", "Low fares", "every day to rome " * 60)
    words = TEMPLATES[template]
    first = words.query.format(query="cheap flights")
    second = document_text(document, template)
    for length in (400, 1000):
        expected = tokenizer.segment(
            tokenizer.queries(["cheap flights"])[0],
            tokenizer.documents([document])[0],
            length,
        )
        found = stock(first, second, truncation="only_second", max_length=length)
        assert found["input_ids"] == expected.tokens
    # Stock models look for the last token other than padding.
    described = json.loads((out / "config.json").read_text())
    assert stock.pad_token_id == described["pad_token_id"] != end


def edit_weights(folder, wanted):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name in wanted:
            tensors[name] = tensors[name] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})


def edit_post_processor(folder, change):
    def edit(found):
        change(found["post_processor"])

    amend(folder / "tokenizer.json", edit)


def drop_last(processor):
    for name in ("single", "pair"):
        processor[name].pop()


def drop_activation(folder):
    amend(folder / "config.json", lambda c: c.pop("sentence_transformers"))


def set_tokenizer(folder, **fields):
    amend(folder / "tokenizer_config.json", lambda c: c.update(fields))


def set_contract(folder, **fields):
    amend(folder / contract.FILE, lambda c: c.update(fields))


def pad_is_end(folder):
    amend(folder / "config.json", lambda c: c.update(pad_token_id=1))


def bfloat16(folder):
    import ml_dtypes

    path = folder / "model.safetensors"
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})


# kind, what is done to the folder, who finds it, the cause, words of the sentence
FAULTS = {
    "end token": (
        "decoder",
        lambda f: edit_post_processor(f, drop_last),
        "transformers",
        "end token",
        "'</s>'.*missing",
    ),
    "padding side": (
        "encoder",
        lambda f: set_tokenizer(f, padding_side="left"),
        "transformers",
        "padding side",
        "on the left",
    ),
    "no truncation": (
        "encoder",
        lambda f: set_tokenizer(f, model_max_length=int(1e30)),
        "transformers",
        "truncation",
        "not cut",
    ),
    "shorter": (
        "decoder",
        lambda f: set_tokenizer(f, model_max_length=100),
        "transformers",
        "truncation",
        "cut to 100 tokens, but should be cut to 256",
    ),
    "activation": (
        "encoder",
        drop_activation,
        "transformers",
        "activation",
        "sigmoid",
    ),
    "activation and end token": (
        "decoder",
        lambda f: [drop_activation(f), edit_post_processor(f, drop_last)],
        "transformers",
        "end token, activation",
        "missing.*sigmoid",
    ),
    "head": (
        "encoder",
        lambda f: edit_weights(f, ["classifier.weight"]),
        "ranker",
        "head",
        r"1 have other numbers \(classifier.weight\)",
    ),
    "weights": (
        "decoder",
        lambda f: edit_weights(f, ["model.layers.1.mlp.up_proj.weight"]),
        "ranker",
        "weights",
        "layers.1.mlp.up_proj",
    ),
    "dtype": ("decoder", bfloat16, "ranker", "dtype", "stored as BF16"),
    "config": (
        "decoder",
        lambda f: amend(
            f / "config.json",
            lambda c: c["rope_parameters"].update(rope_theta=50.0),
        ),
        "ranker",
        "config",
        "rope",
    ),
    "padding token": (
        "decoder",
        pad_is_end,
        "transformers",
        "padding token",
        "one token early",
    ),
    "template, stock": (
        "decoder",
        lambda f: set_contract(f, query="{query}", document="{both}"),
        "transformers",
        "template",
        "without the template's words",
    ),
    "template, ours": (
        "decoder",
        lambda f: set_contract(f, template="bge_reranker_gemma"),
        "ranker",
        "template",
        "golden tokens are in the template 'prompt'",
    ),
    "lower case": (
        "decoder",
        lambda f: amend(
            f / "tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"})
        ),
        "ranker",
        "tokenizer",
        "pair 0 has the tokens",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_a_contract_is_named(copy, fault, capsys):
    kind, damage, reader, cause, words = FAULTS[fault]
    folder = copy(kind)
    damage(folder)
    assert check.main([str(folder)]) == 1
    shown = capsys.readouterr().out
    part = shown[shown.index(f"\n{reader}: ") :]
    found = re.search(r"likely cause: ([\w ,]+): (.*)", part)
    assert found and found[1].startswith(cause), shown
    assert re.search(words, found[2]), found[2]
    assert re.search(r"first difference: pair \d+ \([\w ]+\), query '", part)
    if reader == "transformers" and fault != "template, stock":
        assert "ranker: 16 of 16 equal" in shown  # this package feeds it right


def test_two_folders_are_compared(folders, copy, capsys):
    other = copy("encoder")
    (other / contract.FILE).unlink()  # a copy that is served has none
    assert check.main([str(folders["encoder"]), "--against", str(other)]) == 0
    edit_weights(other, ["classifier.bias", "classifier.weight"])
    assert check.main([str(folders["encoder"]), "--against", str(other)]) == 1
    shown = capsys.readouterr().out
    assert f"scores of {other}:" in shown and "likely cause: head" in shown


def test_scores_of_a_server_are_explained(folders, tmp_path, capsys):
    promise = contract.load_contract(folders["encoder"])
    golden = np.array([one.score for one in promise.golden])
    path = tmp_path / "served.json"
    call = [str(folders["encoder"]), "--scores", str(path)]
    path.write_text(json.dumps(golden.tolist()))
    assert check.main(call) == 0
    path.write_text(json.dumps((1 / (1 + np.exp(-golden))).tolist()))
    assert check.main(call) == 1
    assert "likely cause: activation" in capsys.readouterr().out
    path.write_text(json.dumps([1.0] * len(golden)))
    assert check.main(call) == 1
    assert "a softmax is applied over one logit" in capsys.readouterr().out
    path.write_text(json.dumps(np.sin(golden * 40).tolist()))
    assert check.main(call) == 1
    assert "likely cause: unknown" in capsys.readouterr().out
    path.write_text("[1, 2]")
    with pytest.raises(SystemExit, match="expected a list of 16 scores"):
        check.main(call)


def test_every_fault_of_the_table_is_named_by_itself(folders):
    """What a fault scores is explained by that fault, or by one with equal scores."""
    promise = contract.load_contract(folders["encoder"])
    trial = causes.FaultTrial(readers.Stock(folders["encoder"], promise), promise)
    golden = np.array([one.score for one in promise.golden], np.float32)
    named = set()
    for fault in causes.FAULTS:
        found = fault.scores(trial)
        if found is None or np.abs(found - golden).max() < 1e-5:
            continue
        cause = causes.find_cause(trial, None, found, golden, 1e-6)
        assert cause.name == fault.name
        named.add(fault.sentence.split(";")[0])
    for words in (
        "GELU is computed by its tanh approximation",
        "the document's first tokens are cut",
        "words that spell the padding token are taken for padding",
        "texts are not cut",
    ):
        assert any(one.startswith(words) for one in named), (words, named)


def test_half_precision_is_named(folders):
    import torch

    promise = contract.load_contract(folders["encoder"])
    trial = causes.FaultTrial(readers.Stock(folders["encoder"], promise), promise)
    golden = np.array([one.score for one in promise.golden], np.float32)
    found = trial.reader.otherwise(trial.given, lambda model: model.to(torch.bfloat16))
    cause = causes.find_cause(trial, None, found, golden, 1e-6)
    assert cause.name == "precision" and "float16" in cause.sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no ranker_contract.json"),
        ("{", "is not JSON"),
        ('{"version": 9}', "has the version 9, and this package reads 1"),
        ("[]", "has the version None"),
        ('{"version": 1, "golden": []}', "is not whole"),
    ],
)
def test_contracts_that_cannot_be_read(copy, text, message):
    folder = copy("encoder")
    if text is None:
        (folder / contract.FILE).unlink()
    else:
        (folder / contract.FILE).write_text(text)
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        check.main([str(folder)])


def test_a_workdir_is_told_where_its_export_is(tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / contract.FILE).write_text("{}")
    with pytest.raises(SystemExit, match=f"did you mean {re.escape(str(export))}?"):
        check.main([str(tmp_path)])


def test_folders_that_cannot_be_loaded(copy, tmp_path):
    with pytest.raises(SystemExit, match="^error: .*no such folder"):
        check.main([str(tmp_path / "nowhere")])
    folder = copy("decoder")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="^error: .*model.safetensors"):
        check.main([str(folder)])


def test_help_is_quick_and_complete(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    shown = capsys.readouterr().out
    assert "--against" in shown and "--scores" in shown
