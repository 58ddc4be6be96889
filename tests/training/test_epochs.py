"""Training by epochs: how many steps they are, and what is said of them."""

import dataclasses
import json

import pytest

from ranker import config, manifests, run
from ranker.data.pairs import ALL_IN_ONE
from ranker.data.prepare import prepare
from ranker.training import epochs
from ranker.training.inputs import open_feed
from ranker.training.train import plan, train

WORLD = config.World(
    num_topics=6,
    labelled_queries=40,
    unlabelled_queries=4,
    dev_queries=2,
    test_queries=2,
    clicks=60,
    candidates=4,
)


def stage(objective=None, **loop):
    language = isinstance(objective, config.Language)
    model = config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    if language:
        model = config.Decoder(
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            mlp_dim=16,
        )
    return config.Train(
        name="stage",
        model=model,
        data=config.Data(candidates=4, world=WORLD),
        text=config.Text(teacher_length=32, student_length=32),
        objective=objective or config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=0.5),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(log_every=1, **loop),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    one = stage(epochs=1)
    prepare(one.data, one.text, folder)
    return folder


def planned(workdir, settings):
    prepared = prepare(settings.data, settings.text, workdir)
    return plan(settings, prepared, workdir)


@pytest.mark.parametrize("objective", [config.Rank(), config.Language()])
def test_epochs_end_when_every_record_was_packed(workdir, objective):
    one = planned(workdir, stage(objective, epochs=2))
    feed = open_feed(one, trains=False)
    steps = epochs.count_steps(feed, 2)
    batches, seen = feed(ALL_IN_ONE), []
    for _ in range(steps):
        assert len(seen) < 2 * batches.size  # one step less is not enough
        next(batches)
        seen += batches.names()
    batches.close()
    assert len(seen) >= 2 * batches.size and batches.epoch >= 2


def test_what_is_not_packed_is_extrapolated(workdir, monkeypatch):
    feed = open_feed(planned(workdir, stage(epochs=1)), trains=False)
    exact = epochs.count_steps(feed, 40)
    monkeypatch.setattr(epochs, "SAMPLED", 8 * 4 * 32 * 5)  # five steps
    assert epochs.count_steps(feed, 40) == pytest.approx(exact, rel=0.15)


def test_a_run_by_epochs_on_any_devices_and_its_dry_run(workdir, capsys):
    by_epochs = stage(epochs=1.5, eval_every=0.5, save_every=0.5)
    one = planned(workdir, by_epochs)
    said = run.say_length(one)
    steps = epochs.count_steps(open_feed(one, trains=False), 1.5)
    assert said == f"; 1.5 epochs are {steps} steps" and steps > 2
    done = train(by_epochs, workdir)
    assert f"[stage] 1.5 epochs are {steps} steps" in capsys.readouterr().out
    assert done.facts["steps"] == done.facts["checkpoint"] == steps
    assert done.settings["epochs"] == 1.5 and "steps" not in done.settings
    lines = [
        json.loads(line)
        for line in (workdir / "stage" / "metrics.jsonl").read_text().splitlines()
    ]
    measured = [one["step"] for one in lines if "dev_ndcg@5" in one]
    assert (
        measured
        == sorted({round(0.5 * steps), 2 * round(0.5 * steps), steps})[: len(measured)]
    )
    rates = [one["learning_rate"] for one in lines if "learning_rate" in one]
    peak = by_epochs.optim.warmup_steps(steps)
    assert rates[peak] == pytest.approx(1e-3) and len(rates) == steps
    # The key holds the epochs, so that other devices, which pack otherwise, resume it.
    fewer = dataclasses.replace(by_epochs, mesh=config.Mesh(data=4, tensor=2))
    assert planned(workdir, fewer).manifest.key == done.key
    assert epochs.count_steps(open_feed(planned(workdir, fewer)), 1.5) == steps
    again = planned(workdir, stage(epochs=2.0, eval_every=0.5, save_every=0.5))
    assert manifests.changes(done, again.manifest) == ["epochs: 1.5 -> 2.0"]


def test_one_of_steps_and_epochs():
    for fields, words in (
        ({}, "neither loop.steps nor loop.epochs"),
        ({"steps": 5, "epochs": 1.0}, "loop.steps is 5 and loop.epochs is 1; give one"),
        ({"steps": 0, "epochs": 1.0}, "loop.steps is 0 and loop.epochs is 1; give one"),
        ({"epochs": -1.0}, "Loop.epochs must be 0 or more"),
        ({"epochs": float("inf")}, "Loop.epochs must be 0 or more and finite"),
        ({"steps": -2}, "loop.steps must be 0 or more, found -2"),
        ({"steps": 5, "eval_every": 2.5}, "loop.eval_every must be a whole number"),
        ({"steps": 5, "save_every": 0}, "Loop.save_every must be above 0"),
        ({"steps": 5, "eval_every": float("nan")}, "eval_every"),
    ):
        with pytest.raises(config.ConfigError, match=words):
            config.Loop(**fields)


def test_a_warm_up_longer_than_the_epochs_is_refused(workdir):
    long = stage(epochs=1)
    long = dataclasses.replace(long, optim=config.Optim(learning_rate=1, warmup=900))
    one = planned(workdir, long)
    with pytest.raises(config.ConfigError, match="optim.warmup 900 is over loop.steps"):
        epochs.settle(one, open_feed(one, trains=False))
