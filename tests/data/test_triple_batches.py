"""Batches of streamed triples, and how a stage may be told to read them."""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ranker import config
from ranker.data import pipeline, triples
from ranker.data.text import Segment

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


class Tokenizer:
    """A word is the number that it ends in."""

    pad = 0

    def queries(self, texts):
        return [[1, int(text.split()[-1]) + 2] for text in texts]

    def documents(self, documents):
        return [[int(one.text.split()[-1]) + 2] * 6 for one in documents]

    def segment(self, query, document, length):
        tokens = [*query, *document][:length]
        return Segment(tokens, (0, 1), len(query), len(tokens) - 1)


def batches(path, seed=0):
    order = triples.Shuffled(triples.Triples(path), seed)
    return pipeline.triple_batches(
        order,
        Tokenizer(),
        batch=config.Batch(size=4, list_size=1),
        length=16,
        shards=pipeline.Shards(1, (0,)),
    )


@pytest.fixture
def path(tmp_path):
    rows = range(60)
    table = pa.table(
        {
            "query": [f"q {i}" for i in rows],
            "document": [f"d {i}" for i in rows],
            "score": [float(i) for i in rows],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    return str(tmp_path / "x.parquet")


def test_each_pair_comes_with_its_own_score_and_resumes(path):
    stream = batches(path)
    seen = []
    states, after = [], []
    for _ in range(6):
        states.append(stream.get_state())
        batch = next(stream)
        after.append(batch)
        where = batch.where[0]
        tokens = batch.rows.tokens[0].reshape(-1)
        scored = tokens[batch.score_index[0][where]]
        # The last token of a pair names its row, and so does its score.
        np.testing.assert_array_equal(scored - 2, batch.targets[0][where])
        seen += batch.targets[0][where].tolist()
    assert len(seen) == 48  # two pairs of eight tokens a row
    again = batches(path)
    again.set_state(states[3])
    np.testing.assert_array_equal(next(again).targets, after[3].targets)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 1.0}, "margin_mse"),
        ({"target_scale": "data"}, "target_scale=raw"),
        ({"loss": ("listwise_kl",)}, "listwise_kl"),
    ],
)
def test_triples_take_point_wise_losses_of_raw_scores(change, words):
    fields = {"triples": "x", "beta": 0.0, "target_scale": "raw", **change}
    with pytest.raises(config.ConfigError, match=words):
        config.Distillation(**fields)


def test_the_recipe_by_size():
    of = (config.Train,)
    small = config.load(str(CONFIGS / "ettin.py"), [], of=of)
    large = config.load(f"{CONFIGS / 'ettin.py'}:1b", [], of=of)
    assert (small.optim.learning_rate, large.optim.learning_rate) == (2.4e-4, 3e-6)
    assert small.loop.epochs == 1 and small.loop.steps == -1
    steps = 143_000_000 // 1024
    assert small.optim.warmup_steps(steps) == 4189  # 3 %
    exact = small.loop.exact(steps)
    assert (exact.steps, exact.epochs, exact.eval_every) == (steps, 0, 6982)  # 5 %
    with pytest.raises(config.ConfigError, match="list_size=1"):
        dataclasses.replace(small, batch=config.Batch(size=8, list_size=2))
    with pytest.raises(config.ConfigError, match="folder of teacher scores there"):
        dataclasses.replace(small, scores="scores")


def test_a_list_of_one_document_teaches_nothing_to_a_loss_that_compares():
    stage = config.load(str(CONFIGS / "sft.py"), [], of=(config.Train,))
    one = config.Batch(size=8, list_size=1)
    with pytest.raises(config.ConfigError, match="softmax compares documents"):
        dataclasses.replace(stage, batch=one)
    dataclasses.replace(stage, batch=one, objective=config.Rank(loss=("mse",)))
