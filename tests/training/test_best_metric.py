"""The best checkpoint by any measure of dev, and what is refused as one."""

import dataclasses
import json

import pytest

from ranker import config
from ranker.training.train import train

STAGE = config.Train(
    name="stage",
    data=config.Data(
        world=config.World(
            num_topics=6,
            labelled_queries=12,
            unlabelled_queries=0,
            dev_queries=6,
            test_queries=2,
            clicks=20,
            candidates=6,
        )
    ),
    text=config.Text(student_vocab_size=300, student_length=32),
    model=config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16),
    objective=config.Rank(),
    optim=config.Optim(learning_rate=3e-2, warmup=0),
    batch=config.Batch(size=8, list_size=4),
    loop=config.Loop(
        steps=6, keep=1, eval_every=1, best_metric="dev_P@1", result="best"
    ),
)


def of(metric):
    loop = dataclasses.replace(STAGE.loop, best_metric=metric)
    return dataclasses.replace(STAGE, loop=loop)


@pytest.mark.slow
def test_the_best_by_a_measure_is_kept_and_is_the_result(tmp_path):
    done = train(STAGE, tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "stage" / "metrics.jsonl").read_text().splitlines()
    ]
    measured = {one["step"]: one for one in lines if "dev_ndcg@5" in one}
    assert list(measured) == [1, 2, 3, 4, 5, 6]
    values = {step: one["dev_P@1"] for step, one in measured.items()}
    assert len(set(values.values())) > 1
    # The first of equals.
    assert done.facts["checkpoint"] == max(values, key=lambda step: values[step])
    assert done.facts["metrics"].keys() >= {"loss", "dev_ndcg@5", "dev_P@1"}


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("ndcg@5", "expected none, dev_language, or dev_ before a measure"),
        ("dev_language", "measures rankings"),
        ("dev_ndgc@5", r"unknown measure 'ndgc@5'; did you mean NDCG@k\?"),
        ("dev_P", "measure 'P' needs a cut"),
        ("dev_num_rel", "num_rel does not tell which ranking is better"),
        ("dev_Judged@5", "Judged does not tell"),
    ],
)
def test_what_is_no_measure_is_refused_before_any_work(tmp_path, metric, words):
    with pytest.raises(config.ConfigError, match=words):
        train(of(metric), tmp_path)
    assert not list(tmp_path.iterdir())
