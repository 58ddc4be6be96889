"""The driver of the evidence: every part runs, and its tables and figures come out."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from ranker.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).resolve().parents[1]
DRIVER = ROOT / "benchmarks" / "evidence"
GROUPS = {
    "synthetic": ("e1-synthetic",),
    "cosine": ("e1-cosine",),
    "depth": ("e0-layers", "e0-pairs", "e0-temper"),
    "labels": ("e3", "e1-minilm"),
    "parity": ("e5", "e0-warm"),
    "untrained": ("e4-cosine", "e4-likelihood", "e4-yes_no"),
    "clicks": ("e2-smollm-nqqed",),
    "smollm": ("e1-smollm",),
    "templates": ("e2-smollm-medquad",),
    "scratch": ("e2-scratch-medquad",),
}
# Parts that share their code with another group's: run where time is no matter.
TWINS = ("synthetic", "cosine", "depth", "clicks", "smollm")
every = pytest.mark.skipif(
    not os.environ.get("RANKER_EVIDENCE_ALL"),
    reason="minutes, for code that other groups run: RANKER_EVIDENCE_ALL=1 runs it",
)
TABLES = {
    "e0": "| students | seeds | NDCG@10 on dev |",
    "e1": "| hybrid - point (primary) |",
    "e2": "| clicks - shuffled (primary) |",
    "e3": "| distilled - 4 labelled lists |",
    "e4": "| BM25 | 1 x 8 |",
    "e5": "| ours - theirs |",
}


def run(program, *flags):
    """What a program of the driver prints."""
    command = [sys.executable, program, *flags]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def states(out):
    """Name of each part -> done, begun or missing."""
    lines = run(DRIVER, "--out", out, "--smoke", "--status").splitlines()
    rows = [[cell.strip() for cell in one.split("|")] for one in lines[2:] if one]
    return {row[1]: row[2] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=name, marks=[every] if name in TWINS else [])
        for name, parts in GROUPS.items()
    ],
)
def test_parts_run_and_their_tables_come_out(tmp_path, parts):
    run(DRIVER, "--out", tmp_path, "--smoke", "--parts", *parts)
    assert json.loads((tmp_path / "size.json").read_text()) == {"size": "smoke"}
    found = states(tmp_path)
    assert [found[part] for part in parts] == ["done"] * len(parts)
    data = tmp_path / "smoke" / "data"
    flags = ("--out", tmp_path, "--data", data, "--smoke")
    printed = run(DRIVER / "report.py", *flags)
    for part in parts:
        assert TABLES[part[:2]] in printed
        figure = (
            "e4" if part[:2] == "e4" else part[:2] if part in ("e3", "e5") else part
        )
        if part[:2] != "e0":
            assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 5_000
    if parts[0] == "e3":  # what is done is left alone
        assert "[e3] done before" in run(DRIVER, *flags[:2], "--smoke", "--parts", "e3")


@pytest.mark.slow
def test_every_part_is_in_a_group(tmp_path):
    assert set(states(tmp_path)) == {
        part for parts in GROUPS.values() for part in parts
    }
    assert set(states(tmp_path).values()) == {"missing"}


@pytest.fixture
def sizes(monkeypatch):
    """The driver's module of sizes."""
    monkeypatch.syspath_prepend(DRIVER)
    return importlib.import_module("sizes")


def test_sizes_do_not_mix_in_a_folder(tmp_path, sizes):
    sizes.check(tmp_path, "gpu")  # no record: parts there are of the size asked for
    sizes.record(tmp_path, "cpu")
    sizes.check(tmp_path, "cpu")
    for other, flag in (("gpu", "--size gpu"), ("smoke", "--smoke")):
        with pytest.raises(ConfigError) as stop:
            sizes.check(tmp_path, other)
        said = f"{tmp_path} holds parts of --size cpu, not of {flag}; give --size cpu"
        assert str(stop.value).startswith(said)
    sizes.record(tmp_path, "cpu")  # a later run of the same size
    assert json.loads((tmp_path / "size.json").read_text()) == {"size": "cpu"}


@pytest.mark.parametrize("text", ["{", "[]", '{"size": "big"}'])
def test_a_damaged_record_says_what_to_write(tmp_path, sizes, text):
    (tmp_path / "size.json").write_text(text)
    with pytest.raises(
        DataError, match=r"size\.json: .*write {\"size\": \"gpu\"} to it"
    ):
        sizes.check(tmp_path, "gpu")


@pytest.mark.slow
def test_the_driver_refuses_another_size(tmp_path):
    (tmp_path / "size.json").write_text('{"size": "gpu"}')
    command = [sys.executable, DRIVER, "--out", tmp_path, "--status"]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds parts of --size gpu, not of --size cpu" in done.stderr
