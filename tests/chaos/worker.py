"""Runs the whole method and is killed, again and again, until it has ended.

    python tests/chaos/worker.py FOLDER KILLS SEED [PROCESSES]

Once without a kill and by one process in FOLDER/clean, unless that is there; then in
FOLDER/killed, where each stage is killed KILLS times: half of them from inside, at a
random one of the moments in which it touches a file or takes a step, the others from
outside, at a random time, and at its end at the latest. With several processes that do
the run together, one of them is killed, another each time, and the others then, as
launch/run.sh does. Writes FOLDER/kills.json, how each killed process ended, and prints
each kill. One process imports the package, and forks another for each life: an import
costs more than the work.
"""

import dataclasses
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import threading
import time

import jax
import tensorflow_datasets  # noqa: F401  a life would import it
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

from ranker import config, manifests, run
from ranker.data import prepare
from ranker.training import checkpoint
from ranker.training import evaluate as evaluation
from ranker.training import export as exporting
from ranker.training import reporter as report
from ranker.training import score as teacher
from ranker.training import train as loop

STAGES = ("prepare", "cpt", "sft", "scores", "distill", "evaluate", "export")


def pipeline() -> config.Pipeline:
    """A tiny one, with what must not be lost: accumulation, dropout, a best one.

    The teacher has dropout where a decoder has it, on what its adapters read; the
    student on the residual stream and on attention.
    """

    def recipe(steps, lora=config.NO_LORA, **fields):
        return config.Recipe(
            optim=config.Optim(learning_rate=1e-3, warmup=1),
            batch=config.Batch(size=4, list_size=4, accumulate=2),
            lora=lora,
            loop=config.Loop(
                steps=steps, log_every=3, save_every=4, eval_every=3, **fields
            ),
        )

    world = config.World(
        num_topics=4,
        documents_per_topic=16,
        labelled_queries=8,
        unlabelled_queries=8,
        dev_queries=4,
        test_queries=6,
        clicks=100,
        candidates=4,
    )
    return config.Pipeline(
        data=config.Data(world=world),
        text=config.Text(
            teacher_length=32,
            student_length=24,
            teacher_vocab_size=400,
            student_vocab_size=400,
        ),
        teacher=config.Decoder(
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            mlp_dim=16,
        ),
        student=config.Encoder(
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            mlp_dim=16,
            dropout=0.1,
            attention_dropout=0.1,
        ),
        cpt=recipe(10),
        sft=recipe(
            8,
            lora=config.Lora(rank=2, dropout=0.1),
            best_metric="dev_ndcg@5",
            result="best",
        ),
        distill=recipe(10),
        labels=recipe(2),
        compare=(),
        rows=8,
    )


class Moments:
    """Counts what a stage does, and ends the process at a chosen count."""

    def __init__(self, stage: str, count: int):
        self.stage, self.count = stage, count
        self.current = ""
        self.lock = threading.Lock()

    def pass_by(self) -> None:
        with self.lock:
            if self.current == self.stage:
                self.count -= 1
                if self.count <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name: str) -> None:
        """Counts before and after each call of `owner.name`."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*arguments, **keywords):
            self.pass_by()
            result = original(*arguments, **keywords)
            self.pass_by()
            return result

        setattr(owner, name, watched)

    def name(self, owner, function: str, stage: str | None) -> None:
        """Calls of `owner.function` are the stage, which ends with them at latest."""
        original = getattr(owner, function)

        @functools.wraps(original)
        def named(given, *arguments, **keywords):
            self.current = stage or given.settings.name  # of a run that was planned
            result = original(given, *arguments, **keywords)
            if self.current == self.stage:
                os.kill(os.getpid(), signal.SIGKILL)
            self.current = ""
            return result

        setattr(owner, function, named)


def live(workdir: pathlib.Path, stage: str, count: int) -> None:
    """One life: to the end, or to the `count`-th moment of `stage`, or to its end."""
    moments = Moments(stage, count)
    moments.name(prepare, "prepare", "prepare")
    moments.name(loop, "execute", None)
    moments.name(teacher, "execute", None)
    moments.name(evaluation, "execute", "evaluate")
    moments.name(exporting, "execute", "export")
    for owner, name in (
        (pathlib.Path, "replace"),
        (pathlib.Path, "rename"),
        (pathlib.Path, "mkdir"),
        (pathlib.Path, "unlink"),
        (pathlib.Path, "write_text"),
        (shutil, "rmtree"),
        (manifests, "file_digests"),
        (checkpoint.Checkpoints, "save"),
        (checkpoint.Checkpoints, "_finish"),
        (checkpoint.Checkpoints, "_delete_old"),
        (checkpoint.Checkpoints, "restore"),
        (report.Reporter, "record"),
        (loop, "device_batch"),
    ):
        moments.watch(owner, name)
    run.run(pipeline(), workdir)


@dataclasses.dataclass(frozen=True)
class Death:
    """Which process dies, and when; the defaults: none does."""

    stage: str = ""
    count: int = 0  # moments of the stage until then
    seconds: float = 0  # until it is killed from outside; 0: it is not
    process: int = 0


NOBODY = Death()


def fork(workdir: pathlib.Path, processes: int, death: Death = NOBODY) -> int:
    """A life in processes of its own: the exit status of the one that is to die.

    Negative: the signal. Where none dies, the first status that is not 0. They have
    two devices between them.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    children = [
        _child(workdir, death if i == death.process else NOBODY, (address, n, i))
        for n, i in ((processes, i) for i in range(processes))
    ]
    if death.seconds:
        time.sleep(death.seconds)
        os.kill(children[death.process], signal.SIGKILL)
    first = children.pop(death.process)
    status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    for child in children:
        if status:  # it waits for the one that left
            os.kill(child, signal.SIGKILL)
        other = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        status = status or other
    return status


def _child(workdir: pathlib.Path, death: Death, place: tuple[str, int, int]) -> int:
    child = os.fork()
    if child:
        return child
    with open(workdir.parent / "output.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    status = 1
    try:
        if place[1] > 1:
            jax.config.update("jax_num_cpu_devices", 2 // place[1])
            jax.distributed.initialize(*place)
        live(workdir, death.stage, death.count)
        jax.distributed.shutdown()  # waits for the others, as every exit but this does
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(status)


def kill_once(
    killed: pathlib.Path, stage: str, number: int, duration: float, place: list[int]
) -> list:
    """Kills a stage for the `number`-th time, at a moment that only the seed chooses.

    Args:
      killed: the workdir.
      stage: to be killed; those before it are done.
      number: from 0.
      duration: seconds that a run without a kill takes.
      place: the seed, and how many processes do the run.

    Returns:
      The stage, the moment or the seconds, and the exit status of who was killed.
    """
    seed, processes = place
    generator = random.Random(f"{seed} {stage} {number}")
    # Not `load`: it starts jax's threads, which no fork survives.
    if (found := manifests.read_manifest(killed / stage)) and found.done:
        shutil.rmtree(killed / stage)  # a stage that is done is not killed
    outside = number % 2 == 1
    seconds = generator.uniform(0.02, 0.4) * duration if outside else 0
    last = number == 2  # once at the very end, wherever that is
    count = 10_000 if outside or last else generator.randint(1, 40)
    process = (STAGES.index(stage) + number // 2) % processes
    death = Death(stage, count, seconds, process)
    status = fork(killed, processes, death)
    print(f"seed {seed}, of {processes}: kill {number}, {death}: {status}", flush=True)
    if status != -signal.SIGKILL:
        raise SystemExit((killed.parent / "output.txt").read_text()[-5000:])
    return [stage, round(seconds, 2) or count, status]


def main(folder: pathlib.Path, kills: int, seed: int, processes: int = 1) -> None:
    clean, killed, seconds = (folder / one for one in ("clean", "killed", "seconds"))
    if not clean.exists():
        begun = time.monotonic()
        assert fork(clean, 1) == 0, (folder / "output.txt").read_text()
        seconds.write_text(str(time.monotonic() - begun))
    duration = float(seconds.read_text())
    ends = [
        kill_once(killed, stage, number, duration, [seed, processes])
        for stage in STAGES
        for number in range(kills)
    ]
    ends.append(["to the end", 0, fork(killed, processes)])
    (folder / "kills.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
