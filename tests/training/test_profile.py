"""Traces of steps, and what a stage says of its speed and memory."""

import json
import time

import jax.numpy as jnp
import pytest

from ranker import chips, train
from ranker.training.profile import WARM, tracing
from ranker.training.reporter import Reporter, memory_peak


def test_steps_are_traced_once_warm(tmp_path):
    notes = []
    with tracing(tmp_path / "profile", 3, note=notes.append) as after:
        for _ in range(WARM + 9):
            after(jnp.ones(3) * 2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert notes == [f"3 steps are traced in {tmp_path / 'profile'}"]


def test_a_stage_that_ends_earlier_keeps_its_trace(tmp_path):
    notes = []
    with tracing(tmp_path, 100, note=notes.append) as after:
        for _ in range(WARM + 1):
            after(jnp.ones(3))
    assert list(tmp_path.rglob("*.xplane.pb")) and notes[0].startswith("1 steps")


def test_nothing_is_traced_unless_asked(tmp_path):
    with tracing(tmp_path / "profile", 0, note=print) as after:
        for _ in range(WARM + 1):
            after(jnp.ones(3))
    assert not (tmp_path / "profile").exists()


def test_a_wrong_number_of_steps_is_named(capsys):
    with pytest.raises(SystemExit):
        train.main(["--profile", "many"])
    assert "'many' is not a number of steps" in capsys.readouterr().err


def test_devices_are_known_by_their_kind():
    kinds = {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA L4": "l4",
    }
    found = {kind: chips.find(kind) for kind in kinds}
    assert {kind: one.name for kind, one in found.items() if one} == kinds
    assert chips.find("cpu") is None and chips.find("NVIDIA L40S") is None


def test_utilisation_is_a_share_of_the_peak(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reporter = Reporter(tmp_path, "x", total=20, unit="step", peak=200.0)
    reporter.start(0)
    now[0] += 2
    reporter.count_tokens(100)
    reporter.progress(10, values={})
    reporter.close()
    [line] = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["mfu"] == pytest.approx(0.25)
    assert 0 < line["memory_peak"] <= memory_peak()
