"""Benchmarks that wait for a card run through on a CPU, with tiny models."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *flags],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as the tests themselves
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "figure"),
    [
        ("pairs-minilm", "pairs_per_second"),
        ("pairs-qwen2-1.5b", "pairs_per_second"),
        ("attention", "ours_gradient"),
    ],
)
def test_parts_run_on_a_cpu(part, figure):
    done = run("--smoke", "--only", part)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["part"] == part and "failed" not in result
    [found] = result["found"]
    assert found[figure] > 0
    if part == "pairs-qwen2-1.5b":
        assert found["shared_prompt"] is True


def test_a_part_that_is_not_there_is_refused():
    done = run("--only", "pairs-minilm,pairs-huge")
    assert done.returncode == 2
    assert "--only pairs-huge: no such part; there are train-bert-base" in done.stderr


def test_the_pages_name_parts_that_are_there():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    script = (ROOT / "benchmarks" / "gpu.py").read_text()
    parts = set(re.findall(r'^    "([\w.-]+)": \(', script, re.MULTILINE))
    assert len(parts) > 10
    [named] = re.findall(r"gpu\.py --only\s+([\w.,-]+)", page)
    assert set(named.split(",")) <= parts
