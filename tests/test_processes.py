"""Two processes of four devices give the numbers of one process of eight."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The whole path of a run: the entry joins the processes, data is dealt to their shards,
# each step sums gradients over both, and the first process writes.
CONFIG = """
from ranker import config

def get_config(variant=""):
    world = config.World(num_topics=4, documents_per_topic=4, labelled_queries=24,
        unlabelled_queries=8, dev_queries=0, test_queries=4, clicks=200, candidates=4)
    return config.Train(
        name="sft",
        data=config.Data(world=world),
        text=config.Text(teacher_vocab_size=300, student_vocab_size=300,
            teacher_length=48, student_length=48),
        model=config.Decoder(num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2,
            head_dim=8, mlp_dim=16),
        mesh=config.Mesh(slices=2, data=2, fsdp=2),
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-2, warmup=1),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=4, log_every=1),
    )
"""


def start(tmp_path, workdir, devices, processes=""):
    code = (
        "import jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        f"jax.config.update('jax_num_cpu_devices', {devices})\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        "import runpy, sys\n"
        f"sys.argv = ['train', '--config', {str(tmp_path / 'stage.py')!r}, "
        f"'--workdir', {str(workdir)!r}]\n"
        "runpy.run_module('ranker.train', run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RANKER_PROCESSES", None)
    if processes:
        environment["RANKER_PROCESSES"] = processes
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [one.returncode for one in processes] == [0] * len(processes), outputs
    return outputs


def metrics(workdir):
    lines = (workdir / "sft" / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "loss", "softmax", "l2_grads", "l2_params", "l2_updates")
    found = [json.loads(line) for line in lines]
    return [{k: one[k] for k in kept if k in one} for one in found if "loss" in one]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    (tmp_path / "stage.py").write_text(CONFIG)
    finish(start(tmp_path, tmp_path / "one", 8))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = finish(
        *(start(tmp_path, tmp_path / "two", 4, f"{address},2,{i}") for i in (0, 1))
    )
    alone, together = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(alone) == len(together) == 4
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in a:
            assert abs(a[name] - b[name]) <= 2e-4 * abs(a[name]), (name, a, b)
    # One process reports, and the other only computes.
    assert "step 4/4" in first and "step 4/4" not in second
