import hashlib
import json
import pathlib
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from ranker.data.records import Document
from ranker.data.text import Tokenizer, train_bpe, train_wordpiece
from ranker.errors import DataError

TEXTS = ["cheap flights to Rome", "title: a", "summary: low fares, every day"] * 5
KINDS = {"decoder": "prompt", "encoder": "pair"}
DOCUMENT = Document("d", "Low Fares", "flights to Rome 🦄 " * 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    train_bpe(iter(TEXTS), 300, root / "decoder")
    train_wordpiece(iter(TEXTS), 200, root / "encoder")
    return root


def test_decoder_template(folders):
    tokenizer = Tokenizer(folders / "decoder", "prompt")
    [query] = tokenizer.queries(["cheap flights"])
    [document] = tokenizer.documents([Document("d", "Low", "fares")])
    segment = tokenizer.segment(query, document, 64)
    text = tokenizer.backend.decode(segment.tokens, skip_special_tokens=False)
    assert text == "query: cheap flights\ntitle: Low\nsummary: fares</s>"
    assert segment.score == len(segment.tokens) - 1
    assert segment.tokens[segment.score] == tokenizer.loaded.eos_token_id
    assert tokenizer.backend.decode(segment.tokens[segment.document :]).startswith(
        "title"
    )


def test_encoder_template_is_the_stock_pair(folders):
    tokenizer = Tokenizer(folders / "encoder", "pair")
    stock = AutoTokenizer.from_pretrained(str(folders / "encoder"))
    query = "cheap Flights"
    text = f"{DOCUMENT.title} {DOCUMENT.text}"
    expected = stock(query, text, truncation="only_second", max_length=40)
    segment = tokenizer.segment(
        tokenizer.queries([query])[0], tokenizer.documents([DOCUMENT])[0], 40
    )
    assert segment.tokens == expected["input_ids"]
    assert segment.types == expected["token_type_ids"]
    assert segment.score == 0


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("length", [24, 30, 64])
def test_truncation_cuts_the_document_alone(folders, kind, length):
    tokenizer = Tokenizer(folders / kind, KINDS[kind])
    [query] = tokenizer.queries(["flights to Rome"])
    [document] = tokenizer.documents([DOCUMENT])
    segment = tokenizer.segment(query, document, length)
    assert len(segment.tokens) == length
    assert segment.tokens[: len(query)] == query
    assert segment.tokens[-len(tokenizer.tail) :] == tokenizer.tail


def test_a_query_without_room_is_refused(folders):
    tokenizer = Tokenizer(folders / "encoder", "pair")
    [query] = tokenizer.queries(["flights " * 30])
    with pytest.raises(DataError, match="no room for a document; raise text"):
        tokenizer.segment(query, [5], 16)


def test_digests_tell_tokenizers_apart(folders):
    encoder, decoder = (
        Tokenizer(folders / kind, KINDS[kind]) for kind in ("encoder", "decoder")
    )
    assert encoder.digest != decoder.digest
    assert encoder.digest == Tokenizer(folders / "encoder", "pair").digest
    assert encoder.template_digest != decoder.template_digest


def test_folders_that_are_no_tokenizer(folders, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        Tokenizer(tmp_path / "none", "pair")
    with pytest.raises(DataError, match="cannot load a tokenizer"):
        Tokenizer(tmp_path, "pair")
    with pytest.raises(DataError, match="has no cls_token"):
        Tokenizer(folders / "decoder", "pair")
    with pytest.raises(DataError, match="has no eos_token"):
        Tokenizer(folders / "encoder", "prompt")


def wordpiece_digest(folder):
    texts = [f"Word{i % 37} naïve 東京 unfold-{i % 11}ing #{i}!" for i in range(300)]
    train_wordpiece(texts, 200, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest(), vocabulary


def test_a_trained_wordpiece_is_the_same_in_every_process(tmp_path):
    """A stage that is prepared again after a kill must read text as before."""
    here, vocabulary = wordpiece_digest(tmp_path / "a")
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_text as t\n"
        "print(t.wordpiece_digest(pathlib.Path(sys.argv[2]))[0])"
    )
    folder = pathlib.Path(__file__).parent
    there = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here
    assert list(vocabulary)[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"word", "naive", "東", "##o", "w", "!"} <= vocabulary.keys()
    assert len(vocabulary) == 200
    loaded = Tokenizer(str(tmp_path / "a"), "pair").loaded
    assert loaded.tokenize("WORD3 naïve!") == ["word3", "naive", "!"]
    assert "[UNK]" not in loaded.tokenize("unfold wold")
