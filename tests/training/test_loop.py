"""What the loop decides by the number of a step and by what was measured."""

import importlib.util
import json
import time

import jax
import pytest
from jax._src import distributed

from ranker import config, processes
from ranker.training.progress import Progress
from ranker.training.reporter import Reporter
from ranker.training.train import Due


def test_what_is_due_depends_on_the_step_alone():
    loop = config.Loop(steps=10, log_every=4, eval_every=5, save_every=3)
    due = {number: Due.at(number, loop) for number in range(11)}
    assert [n for n, one in due.items() if one.logs] == [1, 4, 8, 10]
    assert [n for n, one in due.items() if one.measures] == [5, 10]
    assert [n for n, one in due.items() if one.saves] == [3, 6, 9, 10]
    # Without eval_every it is measured at the end.
    last = config.Loop(steps=10)
    assert [n for n in range(11) if Due.at(n, last).measures] == [10]


def test_training_ends_early_after_measurements_without_a_better_one():
    progress = Progress()
    stalled = []
    for step, value in enumerate([0.1, 0.3, 0.3, 0.2, 0.4, 0.1], 1):
        progress.take_dev(step, {"dev_ndcg@5": value}, "dev_ndcg@5")
        stalled.append(progress.has_stalled(2))
    # An equal value is no better; a better one begins the count again.
    assert stalled == [False, False, False, True, False, False]
    assert progress.best == 0.4 and progress.measured == 6
    assert not progress.has_stalled(0)
    lower = Progress()
    for step, value in enumerate([3.0, 2.0, 2.5], 1):
        lower.take_dev(step, {"dev_language": value}, "dev_language")
    assert lower.best == 2.0 and lower.stalled == 1
    # It is saved with a checkpoint.
    assert Progress(**json.loads(json.dumps(lower.to_dict()))) == lower


def test_no_patience_without_a_metric():
    with pytest.raises(config.ConfigError, match="loop.patience is 3.*best_metric"):
        config.Loop(steps=10, patience=3)


def test_evaluation_and_saving_count_in_no_rate(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reporter = Reporter(tmp_path, "x", total=20, unit="step")
    reporter.start(0)
    now[0] += 2
    reporter.count_tokens(300)
    with reporter.apart("evaluation"):
        now[0] += 50
    with reporter.apart("input"):  # a part of a step: the devices wait for it
        now[0] += 1
    reporter.progress(10, values={"loss": 1.0}, shown=("loss",))
    reporter.close()
    [line] = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["tokens_per_second"] == pytest.approx(100)
    assert line["seconds_evaluation"] == 50 and line["seconds_input"] == 1
    assert line["input_share"] == pytest.approx(1 / 3)
    assert "step 10/20  loss 1  100 tokens/s  ETA 0:03" in capsys.readouterr().out


def test_what_was_measured_after_a_lost_record_is_measured_again(tmp_path):
    reporter = Reporter(tmp_path, "x", total=9, unit="step")
    for step in (2, 4):
        reporter.record(step, {"loss": 1.0})
        reporter.record(step, {"dev_ndcg@5": 0.5})
    reporter.resume(4, measured=2)
    reporter.close()
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    kept = [(one["step"], "dev_ndcg@5" in one) for one in lines]
    assert kept == [(2, False), (2, True), (4, False)]


def test_one_process_decides_for_itself():
    assert processes.first(lambda: processes.together(lambda: 7)) == [7]
    assert processes.leads() and processes.count() == 1
    with pytest.raises(KeyError):
        processes.first(lambda: {}["x"])


class _Service:
    """The key-value part of jax's coordination service, for threads in its place."""

    def __init__(self):
        self.values = {}

    def key_value_set_bytes(self, key, value):
        assert key not in self.values, key
        self.values[key] = value

    def blocking_key_value_get_bytes(self, key, timeout):
        return self.values[key]


def test_the_others_are_told_results_and_errors(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed.global_state, "client", _Service())
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def refuse():
        raise config.ConfigError("set x")

    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        processes = copy_of("ranker.processes")  # each process has its own

        def decide(processes=processes):
            calls.append(processes.index())
            return processes.first(lambda: {"step": 3})  # within: an ordinary call

        assert processes.first(decide) == {"step": 3}
        with pytest.raises(config.ConfigError, match="^set x$"):
            processes.first(refuse)
    assert calls == [0]


def copy_of(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
