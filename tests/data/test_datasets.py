import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from ranker.data import datasets, tf_examples
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
    batches = datasets.click_batches(examples)
    datasets.write_clicks(tmp_path / "clicks", {"train": batches, "dev": iter(())})
    assert list(datasets.load_clicks(tmp_path / "clicks", "train")) == examples


# Lengths and numbers where protobuf's need one byte more, or several layers do at once.
_EDGES = [0, 1, 100, 110, 118, 119, 120, 127, 128, 4_095, 4_096, 16_383, 16_384]
_TEXTS = st.one_of(st.text(max_size=9), st.sampled_from(_EDGES).map("x".__mul__))
_COUNTS = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(_EDGES))


@given(st.lists(st.tuples(_TEXTS, _TEXTS, _COUNTS), max_size=5))
def test_records_are_what_protobuf_reads_and_writes(rows):
    texts, more, counts = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
    columns = {
        "query": pa.array(texts, pa.string()),
        "title": pa.array(more, pa.large_string()),
        "count": pa.array(counts, pa.int64()),
    }
    found = tf_examples.encode(columns)
    for record, (text, other, count) in zip(found, rows, strict=True):
        example = tf_example_pb2.Example.FromString(record)
        wanted = tf_example_pb2.Example()
        feature = wanted.features.feature
        feature["query"].bytes_list.value.append(text.encode())
        feature["title"].bytes_list.value.append(other.encode())
        feature["count"].int64_list.value.append(count)
        assert example == wanted
        assert len(record) == wanted.ByteSize()  # nothing is there twice


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
