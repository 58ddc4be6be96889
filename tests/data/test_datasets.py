import pickle

import numpy as np
import pytest

from ranker.data import datasets
from ranker.data.records import ClickExample, Document, RankedList
from ranker.errors import DataError


def ranked(n, name="q"):
    return RankedList(
        query_id=name,
        query="ask ü",
        documents=np.arange(n) + 5,
        labels=np.ones(n, np.float32),
        first_stage=-np.arange(n, dtype=np.float32),
        judged_ids=("x", "ÿ"),
        judged_grades=np.array([3, -1], np.int32),
    )


def test_records_keep_their_order(tmp_path, capfd):
    documents = [Document(f"d{i}", f"title {i}", "text 🦄") for i in range(3000)]
    datasets.write_corpus(tmp_path / "corpus", iter(documents))
    corpus = datasets.load_corpus(tmp_path / "corpus")
    assert len(corpus) == 3000
    assert list(corpus) == documents
    assert corpus[-1] == documents[-1]
    with pytest.raises(IndexError):
        corpus[3000]
    assert pickle.loads(pickle.dumps(corpus))[1234] == documents[1234]
    shown = capfd.readouterr()
    assert not shown.out and not shown.err  # no bars, no chatter


def test_lists_round_trip_with_empty_ones(tmp_path):
    splits = {"train": [ranked(3), ranked(0, "r"), ranked(1, "s")], "dev": []}
    datasets.write_lists(tmp_path / "lists", {k: iter(v) for k, v in splits.items()})
    train = datasets.load_lists(tmp_path / "lists", "train")
    assert len(train) == 3
    for found, wanted in zip(train, splits["train"], strict=True):
        assert found.query_id == wanted.query_id and found.query == wanted.query
        assert found.judged_ids == wanted.judged_ids
        for name in ("documents", "labels", "first_stage", "judged_grades"):
            a, b = getattr(found, name), getattr(wanted, name)
            assert a.dtype == b.dtype and a.tolist() == b.tolist(), name
    assert len(datasets.load_lists(tmp_path / "lists", "dev")) == 0
    assert len(datasets.load_lists(tmp_path / "lists", "never")) == 0


def test_clicks_round_trip(tmp_path):
    examples = [ClickExample("q", "t", "s", 4), ClickExample("q2", "", "s", 1)]
    datasets.write_clicks(tmp_path / "clicks", {"train": examples, "dev": []})
    assert list(datasets.load_clicks(tmp_path / "clicks", "train")) == examples


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield Document("d", "t", "x")
        raise DataError("corpus.jsonl:2: field 'text': found 3, expected a text")

    with pytest.raises(DataError, match=r"corpus.jsonl:2"):
        datasets.write_corpus(tmp_path / "corpus", broken())
    assert not (tmp_path / "corpus").exists()
    with pytest.raises(DataError, match="no such data set"):
        datasets.load_corpus(tmp_path / "corpus")
    datasets.write_corpus(tmp_path / "corpus", [Document("d", "t", "x")])
    assert len(datasets.load_corpus(tmp_path / "corpus")) == 1


def test_no_tensorflow():
    import sys

    assert "tensorflow" not in sys.modules
