"""Imports are planned before any work, and all problems are told together."""

import dataclasses
import json
import pathlib
import runpy
import subprocess
import sys

import published as headers
import pytest

from ranker import config, run
from ranker.errors import ModelError
from ranker.training.imports import check_imports

ROOT = pathlib.Path(__file__).resolve().parents[2]

TEACHER, STUDENT = "Qwen/Qwen3-Reranker-0.6B", "google-bert/bert-base-uncased"


def write(folder, name, change=lambda tensors: tensors):
    """A published checkpoint without weights, its header changed."""
    folder.mkdir()
    published = json.loads(json.dumps(headers.PUBLISHED[name]))
    published["tensors"] = change(published["tensors"])
    headers.write_header(folder, published)


def pipeline(folder):
    path = ROOT / "configs" / "qwen3_reranker_to_bert.py"
    settings = runpy.run_path(str(path))["get_config"]("smoke")
    return dataclasses.replace(
        settings,
        teacher=config.Pretrained(path=str(folder / "teacher"), score_tokens=()),
        student=config.Pretrained(path=str(folder / "student"), keep_layers="1::2"),
        sft=config.replace(settings.sft, loop=config.Loop(steps=4)),
        text=dataclasses.replace(settings.text, teacher_template="prompt"),
    )


def without(part):
    return lambda tensors: {n: one for n, one in tensors.items() if part not in n}


def reshaped(part):
    def change(tensors):
        return {
            name: [one[0], [7, *one[1][1:]], *one[2:]] if part in name else one
            for name, one in tensors.items()
        }

    return change


def test_checkpoints_of_a_pipeline_are_planned(tmp_path):
    write(tmp_path / "teacher", TEACHER)
    write(tmp_path / "student", STUDENT)
    said = check_imports(pipeline(tmp_path).stages().values())
    assert len(said) == 2  # each once, whatever stages it has
    assert said[0].startswith(f"{tmp_path}/teacher: qwen3, 28 layers")
    assert said[1].startswith(f"{tmp_path}/student: bert, 6 layers")


def test_problems_of_all_checkpoints_are_told_before_any_work(tmp_path):
    write(tmp_path / "teacher", TEACHER, without("mlp.up_proj"))
    write(tmp_path / "student", STUDENT, reshaped("pooler.dense.bias"))
    settings, workdir = pipeline(tmp_path), tmp_path / "run"
    for entry in (run.run, run.dry_run):
        with pytest.raises(ModelError) as found:
            entry(settings, workdir)
        message = str(found.value)
        # All 28 layers of the one, and the shape of the other.
        for layer in (0, 13, 27):
            assert f"model.layers.{layer}.mlp.up_proj.weight: missing" in message
        assert "pooler.dense.bias: shape (7,), expected (768,)" in message
        assert len(message.splitlines()) == 2
    assert not workdir.exists()


@pytest.mark.slow
def test_a_plan_of_one_stage_opens_its_checkpoint_first(tmp_path):
    write(tmp_path / "student", STUDENT, without("intermediate"))
    path = tmp_path / "stage.py"
    path.write_text(
        "from ranker import config\n\n\ndef get_config(variant=''):\n"
        "    return config.Train(name='distill', role='student',\n"
        f"        model=config.Pretrained(path={str(tmp_path / 'student')!r}),\n"
        "        objective=config.Rank(),\n"
        "        optim=config.Optim(learning_rate=1e-3, warmup=0),\n"
        "        batch=config.Batch(size=8), loop=config.Loop(steps=2))\n"
    )
    flags = ["--config", str(path), "--topology", "v5e:2x2"]
    done = subprocess.run(
        [sys.executable, "-m", "ranker.plan", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "intermediate.dense.weight: missing" in done.stderr
