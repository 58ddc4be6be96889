"""Several processes give the numbers of one, also where launch/ starts them."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from cloud import Cloud

from ranker import manifests
from ranker.scoring.job import load_job, read_chunk

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

# A whole run of seconds: adapters, and a best checkpoint chosen while training.
PIPELINE = """
from ranker import config

def get_config(variant=""):
    def recipe(steps, lora=config.Lora(), **loop):
        return config.Recipe(optim=config.Optim(learning_rate=1e-2, warmup=1),
            batch=config.Batch(size=6, list_size=4), lora=lora,
            loop=config.Loop(steps=steps, log_every=1, save_every=2, **loop))

    world = config.World(num_topics=4, documents_per_topic=4, labelled_queries=16,
        unlabelled_queries=16, dev_queries=4, test_queries=8, clicks=100, candidates=4)
    best = dict(eval_every=1, best_metric="dev_ndcg@5", result="best")
    return config.Pipeline(
        data=config.Data(world=world),
        text=config.Text(teacher_vocab_size=300, student_vocab_size=300,
            teacher_length=48, student_length=48),
        teacher=config.Decoder(num_layers=1, embed_dim=16, num_heads=2,
            num_kv_heads=2, head_dim=8, mlp_dim=16),
        student=config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16),
        cpt=recipe(2), sft=recipe(2, lora=config.Lora(rank=2)),
        distill=recipe(4, **best), labels=recipe(2),
        compare=(), measures=("NDCG@5",), rows=16,
    )
"""

# Two machines that mount one bucket: no lock reaches the other, digests take long.
APART = """
import fcntl, time
fcntl.flock = lambda *_: None
from ranker import storage
digests = storage.file_digests
def slow(folder, *rest):
    found = digests(folder, *rest)
    time.sleep(1 if "step_" in str(folder) else 0)
    return found
storage.file_digests = slow
"""

# The first process is told that its machine goes away, while the student trains.
STOPPED = """
import os, signal
from ranker.training.reporter import Reporter
progress = Reporter.progress
def told(reporter, count, **more):
    progress(reporter, count, **more)
    if reporter.name == "distill" and count == 1 and jax.process_index() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
Reporter.progress = told
"""

# What the first start left is kept beside, by the first process of the second start,
# before it joins the other.
KEPT = """
import os, pathlib, shutil
run = pathlib.Path(os.environ["RANKER_BUCKET_FOLDER"], "run")
if os.environ["OMPI_COMM_WORLD_RANK"] == "0" and run.exists():
    shutil.copytree(run, run.with_name("stopped"))
"""


def program(tmp_path, workdir, devices, *, entry="train", before="", more=()):
    """Python that runs an entry on so many devices."""
    return (
        "import jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        f"jax.config.update('jax_num_cpu_devices', {devices})\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        f"{before}\n"
        "import runpy, sys\n"
        f"sys.argv = ['{entry}', '--config', {str(tmp_path / 'stage.py')!r}, "
        f"'--workdir', {str(workdir)!r}, *{tuple(more)!r}]\n"
        f"runpy.run_module('ranker.{entry}', run_name='__main__')\n"
    )


def surroundings(tmp_path):
    """Environment of every process: what one compiles, the next one loads."""
    return {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(tmp_path, workdir, devices, processes="", **more):
    environment = {**os.environ, **surroundings(tmp_path)}
    environment.pop("RANKER_PROCESSES", None)
    if processes:
        environment["RANKER_PROCESSES"] = processes
    return subprocess.Popen(
        [sys.executable, "-c", program(tmp_path, workdir, devices, **more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def finish(*processes, code=0):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [one.returncode for one in processes] == [code] * len(processes), outputs
    return outputs


def several(tmp_path, workdir, count, devices, **more):
    """Starts so many processes, which do one run on so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(tmp_path, workdir, devices, f"{address},{count},{index}", **more)
        for index in range(count)
    ]


def metrics(workdir):
    lines = (workdir / "sft" / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "loss", "softmax", "l2_grads", "l2_params", "l2_updates")
    found = [json.loads(line) for line in lines]
    return [{k: one[k] for k in kept if k in one} for one in found if "loss" in one]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    (tmp_path / "stage.py").write_text(CONFIG)
    finish(start(tmp_path, tmp_path / "one", 8))
    first, second = finish(*several(tmp_path, tmp_path / "two", 2, 4))
    alone, together = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(alone) == len(together) == 4
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in a:
            assert abs(a[name] - b[name]) <= 2e-4 * abs(a[name]), (name, a, b)
    # One process reports, and the other only computes.
    assert "step 4/4" in first and "step 4/4" not in second


def results(workdir):
    """What a whole run has come to: NDCG of each system, and the teacher's scores."""
    systems = json.loads((workdir / "summary.json").read_text())["systems"]
    assert (workdir / "export" / "model.safetensors").is_file()
    facts = manifests.read_manifest(workdir / "distill").facts
    kept = workdir / "distill" / "checkpoints" / f"step_{facts['checkpoint']}.json"
    assert kept.is_file()  # a finished stage names what is there
    return {name: one["metrics"]["NDCG@5"] for name, one in systems.items()}


def scores(folder):
    job = load_job(folder)
    tables = [read_chunk(job, number)[0] for number in range(len(job.chunks))]
    return np.concatenate([table["score"].to_numpy() for table in tables])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with the config of a whole run, and that run by one process: `one`."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "stage.py").write_text(PIPELINE)
    finish(start(folder, folder / "one", 6, entry="run"))
    return folder


def free_port():
    """One of those that Open MPI's variables can name."""
    for port in range(61440 + os.getpid() % 4000, 65536):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def launched(one, tmp_path_factory):
    """The cloud where launch/ had two workers do that run, and what it printed.

    launch/worker.sh sets RANKER_PROCESSES to auto. In the bucket are `run`, and
    `stopped`: what it was when the workers had left.
    """
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    cloud.made("--bucket", "gs://my-bucket")
    (cloud.folder / "port").write_text(str(free_port()))
    told = dict(entry="run", before=KEPT + APART + STOPPED)
    code = program(one, cloud.bucket / "run", 3, **told)
    command = ("run.sh", "tpu1", "--job", "job", "--", sys.executable, "-c", code)
    yield cloud, cloud(*command, JAX_PLATFORMS="cpu", **surroundings(one))
    cloud.end_jobs()


def test_a_run_that_launch_starts_stops_and_resumes_is_that_of_one(one, launched):
    cloud, printed = launched
    assert "exit code 75" in printed.stderr and "attempt 2" in printed.stderr
    assert "[distill] resumes from the checkpoint" in cloud.log(attempt=2)
    # The first process reports, of two that did the run together.
    assert printed.stdout.count("[distill] step 4/4") == 1
    assert "step 4/4" not in cloud.log(attempt=2, worker=1)
    assert results(cloud.bucket / "run") == results(one / "one")


def test_one_teacher_over_two_processes_scores_as_one_on_each(one, launched):
    workdir = launched[0].bucket / "run"
    again = ("--stage=scores", "--config.name=all", "--config.devices=all")
    finish(*several(one, workdir, 2, 3, entry="score", more=again))
    local = scores(one / "one" / "scores")
    for name in ("scores", "all"):
        np.testing.assert_allclose(scores(workdir / name), local, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_that_two_processes_left_is_resumed_by(count, one, launched):
    workdir = one / f"by_{count}"
    shutil.copytree(launched[0].bucket / "stopped", workdir)
    alone = [start(one, workdir, 6, entry="run")] if count == 1 else []
    first, *_ = finish(
        *(alone or several(one, workdir, count, 2, entry="run", before=APART))
    )
    assert "[distill] resumes from the checkpoint" in first
    assert results(workdir) == results(one / "one")
