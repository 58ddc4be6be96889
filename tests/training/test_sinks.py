"""Trackers are told the metrics, and never stop a stage that trains."""

import json

import pytest

from ranker import config
from ranker.training import sinks
from ranker.training.reporter import Reporter


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wandb,neptune", r"names 'neptune'; there are wandb, mlflow"),
        ("mlflow", r"mlflow, which is not installed: pip install 'ranker\[mlflow\]'"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_named(tmp_path, monkeypatch, given, said):
    monkeypatch.setenv(sinks.TRACKERS, given)
    monkeypatch.setattr(
        sinks.importlib.util, "find_spec", lambda name: name == "wandb" or None
    )
    with pytest.raises(config.ConfigError, match=said):
        Reporter(tmp_path, "sft", total=2, unit="step")


class _Tracker:
    """Takes one line, and then its server is away."""

    name = "tracker"

    def __init__(self, folder, stage):
        self.taken, self.closed = [], False

    def write(self, values, count):
        if self.taken:
            raise ConnectionError("no route to host")
        self.taken.append((values, count))

    def close(self):
        self.closed = True


def test_a_tracker_that_is_away_stops_nothing(tmp_path, monkeypatch, capsys):
    made = []

    def make(folder, stage):
        made.append(_Tracker(folder, stage))
        return made[-1]

    monkeypatch.setitem(sinks.KINDS, "wandb", make)
    monkeypatch.setenv(sinks.TRACKERS, " wandb ")
    monkeypatch.setattr(
        sinks.importlib.util, "find_spec", lambda name: name == "wandb" or None
    )
    reporter = Reporter(tmp_path, "sft", total=3, unit="step")
    for step in (1, 2, 3):
        reporter.record(step, {"loss": 1.0 / step, "what": "a word"})
    reporter.close()
    [tracker] = made
    assert tracker.taken == [({"loss": 1.0}, 1)] and not tracker.closed
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("tracker takes no more metrics (ConnectionError: no route") == 1


def test_a_stage_keeps_its_run_of_a_tracker(tmp_path):
    numbers = iter("ab")
    first = sinks.identity(tmp_path, "wandb", lambda: next(numbers))
    assert sinks.identity(tmp_path, "wandb", lambda: next(numbers)) == first == "a"
    assert sinks.identity(tmp_path, "mlflow", lambda: next(numbers)) == "b"
