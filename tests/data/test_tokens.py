"""A corpus tokenised once reads as one that is tokenised at each use."""

import numpy as np
import pytest

from ranker.data.pairs import ListEncoder
from ranker.data.records import Document
from ranker.data.text import Tokenizer, train_bpe
from ranker.data.tokens import find_store, key_of, make_store

CORPUS = [Document(f"d{i}", f"title {i % 5}", "word " * (i % 7)) for i in range(31)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe")
    train_bpe((f"{one.title} {one.text}" for one in CORPUS), 280, path)
    return path


def test_segments_are_those_of_the_live_path(folder, tmp_path, monkeypatch):
    tokenizer = Tokenizer(folder, "prompt")
    key = key_of("corpus", tokenizer)
    assert find_store(tmp_path, key) is None
    monkeypatch.setattr("ranker.data.tokens._AT_ONCE", 7)
    store = make_store(tmp_path, key, CORPUS, tokenizer)
    assert len(store) == len(CORPUS)
    assert [ids.tolist() for ids in map(store.__getitem__, range(31))] == (
        tokenizer.documents(CORPUS)
    )
    lists = [("one query", [3, 30, 3]), ("two", np.array([0, 29]))]
    live = ListEncoder(CORPUS, tokenizer, 24).many(lists)
    stored = ListEncoder([], tokenizer, 24, tokens=store).many(lists)
    for one, other in zip(sum(live, []), sum(stored, []), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.tokens.dtype == other.tokens.dtype == np.int32
        assert (one.document, one.score) == (other.document, other.score)
    # Made once: the corpus is not read again.
    again = make_store(tmp_path, key, [], tokenizer)
    assert again[3].tolist() == store[3].tolist()
    assert [path.name for path in tmp_path.iterdir()] == [key]


def test_other_documents_or_templates_are_other_files(folder):
    one, other = (Tokenizer(folder, name) for name in ("prompt", "{query}|||{both}|||"))
    keys = {key_of("a", one), key_of("b", one), key_of("a", other)}
    assert len(keys) == 3
