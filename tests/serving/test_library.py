"""`ranker.load`: a folder as an object, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from made_rankers import export

import ranker
from ranker.data.text import Segment
from ranker.errors import DataError, ModelError
from ranker.serving import contract

PAIRS = [
    ("cheap flights", "low fares to rome every day"),
    ("cats", ("dogs", "in the Snow")),
    ("cats", {"title": "dogs", "text": "in the Snow"}),
    ("cats", ""),
    ("cheap flights", "cats and dogs " * 60),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export(tmp_path_factory.mktemp("library") / "export")


def test_pairs_score_as_transformers_scores_them(model):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    stock = AutoModelForSequenceClassification.from_pretrained(model.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    texts = [(q, d if isinstance(d, str) else "dogs in the Snow") for q, d in PAIRS]
    expected = []
    for pair in texts:
        # transformers takes an empty second text for none, and leaves its end out.
        pair = pair if pair[1] else (pair[0], "[SEP]")
        inputs = tokenizer(*pair, truncation="only_second", return_tensors="pt")
        if pair[1] == "[SEP]":
            inputs = {name: value[:, :-1] for name, value in inputs.items()}
        with torch.no_grad():
            expected.append(float(stock(**inputs).logits[0, 0]))
    found = model.predict(PAIRS)
    assert found.dtype == np.float32 and found.shape == (5,)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.predict([]).shape == (0,)


def test_ranking(model):
    documents = ["cats", "low fares to rome", "dogs", "cats"]
    scores = model.predict([("flights", one) for one in documents])
    ranked = model.rank("flights", documents)
    assert [i for i, _ in ranked] == sorted(range(4), key=lambda i: (-scores[i], i))
    assert [score for _, score in ranked] == sorted(map(float, scores), reverse=True)
    assert model.rank("flights", documents, top_k=2) == ranked[:2]


def test_golden_pairs_are_scored_as_promised(model):
    golden = model.contract.golden
    found = model.predict([(g.query, (g.title, g.text)) for g in golden])
    np.testing.assert_allclose(found, [g.score for g in golden], atol=1e-6)


def test_saved_and_loaded_again(model, tmp_path):
    (tmp_path / "out").mkdir()
    model.save(tmp_path / "out")
    again = ranker.load(tmp_path / "out")
    np.testing.assert_array_equal(again.predict(PAIRS), model.predict(PAIRS))
    assert again.frame == model.frame
    (tmp_path / "out" / contract.FILE).unlink()
    bare = ranker.load(str(tmp_path / "out"))  # read as its own tokenizer joins a pair
    assert bare.contract is None
    np.testing.assert_allclose(bare.predict(PAIRS), model.predict(PAIRS), atol=1e-6)
    short = ranker.load(tmp_path / "out", length=8)
    assert short.predict(PAIRS[-1:])[0] != model.predict(PAIRS[-1:])[0]
    with pytest.raises(ModelError, match="overwritten"):
        model.save(model.folder)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("text", "expected a list of"),
        (("query", "document"), r"give \[\(query, document\)\]"),
        ([("a", "b"), ("a",)], "pair 1"),
        ([("a", 3)], "pair 0: the document is 3"),
        ([(None, "b")], "pair 0: the query is None"),
        ([("a", "b\ud800")], "lone surrogate"),
        ([("a", {"body": "b"})], "dict with title and text"),
        (7, "found 7"),
    ],
)
def test_what_is_no_pair_is_refused(model, pairs, message):
    with pytest.raises(DataError, match=message):
        model.predict(pairs)


def test_other_mistakes_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="top_k is 0"):
        model.rank("a", ["b"], top_k=0)
    with pytest.raises(DataError, match="documents is one str"):
        model.rank("a", "b")
    with pytest.raises(DataError, match="length is given"):
        ranker.load(model.folder, length=9)
    with pytest.raises(ModelError, match="no such folder"):
        ranker.load(tmp_path / "nowhere")


def test_a_token_without_an_embedding_is_named(model):
    with pytest.raises(DataError, match="pair 1 has the token id 5000"):
        model.scorer([Segment([1, 2], (0, 1), 1, 0), Segment([5000], (0, 1), 1, 0)])
    with pytest.raises(DataError, match="pair 0 is empty"):
        model.scorer([Segment([], (0, 1), 0, 0)])


def test_import_is_light():
    code = (
        "import sys, ranker\n"
        "heavy = {'jax', 'flax', 'transformers', 'torch', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(ranker.load)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
