"""A stage trained with several values of a field, and the table of what came."""

import json

import pytest

from ranker import cli, config, manifests, train
from ranker.config.sweep import trials
from ranker.training import sweep

CONFIG = """
from ranker import config

def get_config(variant=""):
    world = config.World(num_topics=4, labelled_queries=8, unlabelled_queries=4,
        dev_queries=4, test_queries=2, clicks=40, candidates=4)
    model = config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    return config.Train(name="sft", model=model, objective=config.Rank(),
        data=config.Data(candidates=4, world=world),
        text=config.Text(teacher_length=32, student_length=32),
        optim=config.Optim(learning_rate=1e-3, warmup=0),
        batch=config.Batch(size=8, list_size=4), loop=config.Loop(steps=2))
"""


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch):
    """The entry minds SIGTERM; the tests' process keeps its own way."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)


def test_every_combination_in_order():
    found = trials(["optim.learning_rate=1e-4,3e-4", "--config.seed= 0, 1 "])
    assert [one.flags for one in found] == [
        ["--config.optim.learning_rate=1e-4", "--config.seed=0"],
        ["--config.optim.learning_rate=1e-4", "--config.seed=1"],
        ["--config.optim.learning_rate=3e-4", "--config.seed=0"],
        ["--config.optim.learning_rate=3e-4", "--config.seed=1"],
    ]
    assert found[0].suffix == "learning_rate-1e-4-seed-0"
    assert trials(["model.path=a/b"])[0].suffix == "path-a-b"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["optim.learning_rate"], "expected FIELD=VALUE,VALUE"),
        (["seed=1,,2"], "expected FIELD=VALUE,VALUE"),
        (["=1,2"], "expected FIELD=VALUE,VALUE"),
        (["seed=1,1"], "names a value twice"),
        (["seed=1", "config.seed=2"], "names seed twice"),
        (["name=a,b"], "a name of its own"),
        (["data.seed=1,2"], "share what was prepared"),
        (["model.path=a/b,a:b"], "two runs would have the folder NAME-path-a-b"),
    ],
)
def test_what_is_no_sweep(given, words):
    with pytest.raises(config.ConfigError, match=words):
        trials(given)


def test_a_sweep_ends_with_one_table_whatever_diverges(tmp_path, capsys, monkeypatch):
    real = sweep.train

    def diverging(stage, workdir, **options):
        if stage.optim.learning_rate > 1:
            raise FloatingPointError("the loss is nan; lower optim.learning_rate")
        return real(stage, workdir, **options)

    monkeypatch.setattr(sweep, "train", diverging)
    (tmp_path / "stage.py").write_text(CONFIG)
    workdir = tmp_path / "runs"
    flags = ["--config", str(tmp_path / "stage.py"), "--workdir", str(workdir)]
    flags += ["--sweep", "optim.learning_rate=1e-3,1e30,2e-3"]
    train.main(flags)
    out = capsys.readouterr().out
    names = [f"sft-learning_rate-{rate}" for rate in ("1e-3", "1e30", "2e-3")]
    good = [names[0], names[2]]
    runs = json.loads((workdir / "sft-sweep.json").read_text())["runs"]
    assert [one["stage"] for one in runs] == names
    assert "failed" not in runs[0] and "learning_rate" in runs[1]["failed"]
    for run in runs:
        if run["stage"] in good:
            manifest = manifests.load_manifest(workdir / run["stage"])
            assert manifest.done and run["steps"] == run["checkpoint"] == 2
            rate = float(run["values"]["optim.learning_rate"])
            assert manifest.settings["optim"]["learning_rate"] == rate
            dev = manifest.facts["metrics"]["dev_ndcg@5"]
            assert run["metrics"]["dev_ndcg@5"] == dev and run["metrics"]["loss"] > 0
    winner = max(
        good,
        key=lambda name: manifests.load_manifest(workdir / name).facts["metrics"][
            "dev_ndcg@5"
        ],
    )
    page = (workdir / "sft-sweep.md").read_text()
    assert page.count("\n| ") == 5 and f"| {winner}* | " in page
    assert f"| {names[1]} | 1e30 |" in page and "not finite" in page
    assert all(name in out for name in names) and out.count("Sweep of sft") == 1
    # What is done is not done again.
    train.main([*flags[:4], "--sweep", "optim.learning_rate=1e-3,2e-3"])
    assert "step 2/2" not in capsys.readouterr().out


def test_every_value_is_checked_before_the_first_run(tmp_path, capsys):
    (tmp_path / "stage.py").write_text(CONFIG)
    flags = ["--config", str(tmp_path / "stage.py"), "--workdir", str(tmp_path / "w")]
    with pytest.raises(SystemExit):
        train.main([*flags, "--sweep", "optim.b1=0.9,1.5"])
    assert "optim.b1 must be" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit, match="expected FIELD=VALUE"):
        train.main([*flags, "--sweep", "optim.b1"])
    assert not (tmp_path / "w").exists()


def test_the_best_is_that_of_dev_or_none():
    def row(name, **metrics):
        return {"stage": name, "metrics": metrics}

    rows = [row("a", dev_language=2.0), row("b", dev_language=1.0), {"stage": "c"}]
    assert sweep.best(rows) == "b"
    rows = [row("a", **{"dev_ndcg@5": 0.5}), row("b", **{"dev_ndcg@5": 0.4})]
    assert sweep.best(rows) == "a"
    # What the checkpoints are chosen by decides.
    rows[0]["metrics"]["dev_MRR@10"], rows[1]["metrics"]["dev_MRR@10"] = 0.1, 0.2
    assert sweep.best(rows) == "b"
    assert sweep.best([row("a", loss=1.0)]) == ""
