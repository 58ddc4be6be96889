"""Tokenizers are what their tokenizer.json says."""

import json

import pytest
import tokenizers
import transformers

from ranker.data.backends import PADDING, choose_padding, load_tokenizer
from ranker.data.text import Tokenizer, words_of
from ranker.errors import DataError

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
NAMES = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
WORDS = ["lamp.rope", "lamp", "rope", ".", "Kettle", "kettle"]


def make(words=WORDS, specials=SPECIALS, model=None):
    vocabulary = {word: i for i, word in enumerate([*specials, *words])}
    kind = model or tokenizers.models.WordPiece
    made = tokenizers.Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(specials)
    return made


def save(folder, made, **fields):
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, **fields}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("named", ["BertTokenizer", "RobertaTokenizer"])
def test_the_file_counts_and_not_the_class_named(named, tmp_path):
    made = make()
    folder = save(tmp_path / "t", made, tokenizer_class=named, do_lower_case=False)
    text = "lamp.rope Kettle"
    expected = made.encode(text, "lamp").ids
    built = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    assert built.encode(text, "lamp").ids != expected  # or this proves nothing
    found = load_tokenizer(folder)
    assert found.backend_tokenizer.encode(text, "lamp").ids == expected
    assert found.pad_token_id == 0 and found.sep_token_id == 3
    # And so it stays when it is saved and read again.
    found.save_pretrained(str(tmp_path / "again"))
    again = load_tokenizer(tmp_path / "again")
    assert again.backend_tokenizer.encode(text, "lamp").ids == expected


def test_types_are_those_that_are_declared(tmp_path):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    folder = save(tmp_path / "t", make(), model_input_names=names)
    assert Tokenizer(folder, "pair").type_ids == (0, 1)
    folder = save(tmp_path / "t", make(), model_input_names=names[::2])
    assert Tokenizer(folder, "pair").type_ids == (0, 0)


def test_tokens_beyond_the_embeddings_are_taken_out(tmp_path):
    made = make(["lamp", "rope", "kettle"])
    made.add_special_tokens(["<image>"])  # id 7
    folder = save(tmp_path / "t", made)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 6}))
    found = Tokenizer(folder, "pair")
    assert found.vocab_size == 6
    # "kettle" (6) and "<image>" (7) are unknown.
    assert found.backend.encode("rope kettle <image>").ids == [2, 5, 1, 1, 3]
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8}))
    assert Tokenizer(folder, "pair").vocab_size == 8


def test_words_of_pieces_beyond_the_embeddings_are_refused(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=262, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator(["lamp lamp rope rope"] * 3, trainer)
    folder = tmp_path / "t"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    described = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<s>")
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4}))
    with pytest.raises(DataError, match="embeddings for 4; the tokenizer belongs to"):
        load_tokenizer(folder)


def test_padding_is_special_and_never_a_word():
    made = make()
    assert choose_padding(made, taken=(3,), rows=20) == 0
    assert choose_padding(made, taken=(0,), rows=20) == 1  # [UNK]
    bare = make(specials=["[UNK]"])
    # No special token is to spare: one is added after the last.
    size = bare.get_vocab_size()
    assert choose_padding(bare, taken=(0,), rows=20) == size
    assert bare.token_to_id(PADDING) == size
    with pytest.raises(DataError, match="embeddings are all taken"):
        choose_padding(make(specials=["[UNK]"]), taken=(0,), rows=size)


def test_a_template_may_end_with_the_document(tmp_path):
    folder = save(tmp_path / "t", make(), bos_token="[CLS]", eos_token="[SEP]")
    tokenizer = Tokenizer(folder, "{query}|||{text}|||-")
    assert tokenizer.tail == []
    segment = tokenizer.segment([2, 5], [6, 7, 8], 4)
    assert segment.tokens == [2, 5, 6, 7] and segment.score == 3
    assert Tokenizer(folder, "{query}|||{text}|||").tail == [3]


def test_rankllama_has_a_second_beginning_and_no_end():
    words = words_of("rankllama")
    assert words is not None and not words.closed and words.middle == "<s>"
