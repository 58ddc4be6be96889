"""What saving costs: the same training steps without and with checkpoints, in turns.

    python benchmarks/checkpoint.py

A BERT of 11 million parameters trains on one batch (132 MB with the moments). A
save is copied while training waits, and written and digested while it continues; both
cost the processor time that the difference shows. Its share at an interval is the cost
of one save over that interval.
"""

import argparse
import itertools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

from ranker import config, sharding, storage
from ranker.data.packing import Layout, empty_batch
from ranker.training.checkpoint import Checkpoints
from ranker.training.objectives import make_objective
from ranker.training.scorer import device_batch
from ranker.training.state import Network, TrainState, init_state, make_network
from ranker.training.step import make_step
from ranker.training.weights import complete_params

LISTS, DOCUMENTS, LENGTH, VOCABULARY = 4, 4, 64, 30522


@dataclass(frozen=True)
class Training:
    """A step, the batch that it is taken on, and where its state is saved."""

    network: Network
    step: Any
    batch: Any  # one micro-batch
    checkpoints: Checkpoints
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def run(
        self, state: TrainState, steps: int, saves: int
    ) -> tuple[TrainState, float, float]:
        """The state after so many steps, their seconds, and those a save blocked."""
        blocked = 0.0
        begun = time.perf_counter()
        for place in range(steps):
            number = next(self.numbers)
            placed = device_batch(self.batch, self.network, leading=1)
            state, values = self.step(state, placed)
            if saves and place % (steps // saves) == 0:
                jax.block_until_ready(values)  # as reading the metrics does
                at = time.perf_counter()
                self.checkpoints.save(state, number, {}, {})
                blocked += time.perf_counter() - at
        jax.block_until_ready(state.params)
        self.checkpoints.wait()
        return state, time.perf_counter() - begun, blocked / max(saves, 1)


def make_batch() -> Any:
    """One micro-batch of random tokens and targets."""
    rows = LISTS * DOCUMENTS
    batch = empty_batch(Layout(rows=rows, length=LENGTH, size=DOCUMENTS), 0)
    generator = np.random.default_rng(0)
    tokens = batch.rows.tokens
    tokens[...] = generator.integers(0, VOCABULARY, tokens.shape)
    batch.rows.segments[...] = 1
    batch.score_index[:LISTS] = np.arange(rows).reshape(LISTS, DOCUMENTS) * LENGTH
    batch.targets[...] = generator.normal(size=batch.targets.shape)
    batch.where[:LISTS] = True
    return jax.tree.map(lambda leaf: leaf[None], batch)


def begin(mesh: jax.sharding.Mesh, folder: pathlib.Path) -> tuple[Training, TrainState]:
    """The training of a random BERT, with its checkpoints in `folder`."""
    model = config.Encoder(num_layers=4, embed_dim=256, num_heads=4, mlp_dim=1024)
    objective = make_objective(config.Distillation(), groups=1)
    network = make_network(model, VOCABULARY, "score", mesh)
    params = complete_params({}, network, model, VOCABULARY, "score", seed=0)
    state = init_state(network, params, optax.adamw(1e-4), 0)
    step = make_step(network, objective, optax.adamw(1e-4), state)
    checkpoints = Checkpoints(folder, keep=2)
    return Training(network, step, make_batch(), checkpoints), state


def time_digests(folder: pathlib.Path) -> tuple[int, float]:
    """Bytes of a checkpoint, and the seconds that their digests take."""
    size = sum(size for size, _ in storage.file_digests(folder).values())
    begun = time.perf_counter()
    storage.file_digests(folder)
    return size, time.perf_counter() - begun


def main() -> None:
    """Prints the cost of a save and its share at a few intervals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24, help="of each measurement")
    parser.add_argument("--saves", type=int, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    mesh = sharding.make_mesh(config.Mesh())
    folder = pathlib.Path(tempfile.mkdtemp())
    training, state = begin(mesh, folder)
    steps, saves = arguments.steps, arguments.saves
    with jax.set_mesh(mesh):
        for few in (0, 1):  # compiled, and the folder made
            state, *_ = training.run(state, steps, few)
        plain, saving, blocked = [], [], []
        for _ in range(arguments.rounds):
            state, seconds, _ = training.run(state, steps, 0)
            plain.append(seconds)
            state, seconds, waited = training.run(state, steps, saves)
            saving.append(seconds)
            blocked.append(waited)
    checkpoints = training.checkpoints
    checkpoints.close()
    newest = folder / "checkpoints" / f"step_{max(checkpoints.steps)}"
    size, digesting = time_digests(newest)
    cost = (np.median(saving) - np.median(plain)) / saves
    print(f"checkpoint: {size / 1e6:.0f} MB; step: {plain[0] / steps:.3f} s")
    print(f"training waits for a save {np.median(blocked) * 1e3:.0f} ms")
    print(f"a save costs {cost:.2f} s in all, its digests {digesting:.2f} s")
    for minutes in (1, 5, 10):
        print(f"every {minutes} minutes: {cost / (60 * minutes):.2%} of the time")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
