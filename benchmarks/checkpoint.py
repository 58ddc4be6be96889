"""What saving costs: the same training steps without and with checkpoints, in turns.

    python benchmarks/checkpoint.py

A BERT of 11 million parameters trains on one batch (132 MB with the moments). A
save is copied while training waits, and written and digested while it continues; both
cost the processor time that the difference shows. Its share at an interval is the cost
of one save over that interval.
"""

import argparse
import pathlib
import shutil
import tempfile
import time

import jax
import numpy as np
import optax

from ranker import config, sharding, storage
from ranker.data.packing import Layout, empty_batch
from ranker.training.checkpoint import Checkpoints
from ranker.training.objectives import make_objective
from ranker.training.scorer import device_batch
from ranker.training.state import init_state, make_network
from ranker.training.step import make_step
from ranker.training.weights import complete_params

LISTS, DOCUMENTS, LENGTH, VOCABULARY = 4, 4, 64, 30522


def main() -> None:
    """Prints the cost of a save and its share at a few intervals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24, help="of each measurement")
    parser.add_argument("--saves", type=int, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    mesh = sharding.make_mesh(config.Mesh())
    model = config.Encoder(num_layers=4, embed_dim=256, num_heads=4, mlp_dim=1024)
    objective = make_objective(config.Distillation(), groups=1)
    network = make_network(model, VOCABULARY, "score", mesh)
    params = complete_params({}, network, model, VOCABULARY, "score", seed=0)
    state = init_state(network, params, optax.adamw(1e-4), 0)
    step = make_step(network, objective, optax.adamw(1e-4), state)
    rows = LISTS * DOCUMENTS
    batch = empty_batch(Layout(rows=rows, length=LENGTH, size=DOCUMENTS), 0)
    generator = np.random.default_rng(0)
    tokens = batch.rows.tokens
    tokens[...] = generator.integers(0, VOCABULARY, tokens.shape)
    batch.rows.segments[...] = 1
    batch.score_index[:LISTS] = np.arange(rows).reshape(LISTS, DOCUMENTS) * LENGTH
    batch.targets[...] = generator.normal(size=batch.targets.shape)
    batch.where[:LISTS] = True
    batch = jax.tree.map(lambda leaf: leaf[None], batch)
    folder = pathlib.Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder, keep=2)
    number = 0

    def run(state, saves: int):
        nonlocal number
        blocked = 0.0
        begun = time.perf_counter()
        for place in range(arguments.steps):
            number += 1
            state, values = step(state, device_batch(batch, network, leading=1))
            if saves and place % (arguments.steps // saves) == 0:
                jax.block_until_ready(values)  # as reading the metrics does
                at = time.perf_counter()
                checkpoints.save(state, number, {}, {})
                blocked += time.perf_counter() - at
        jax.block_until_ready(state.params)
        checkpoints.wait()
        return state, time.perf_counter() - begun, blocked / max(saves, 1)

    with jax.set_mesh(mesh):
        for saves in (0, 1):  # compiled, and the folder made
            state, *_ = run(state, saves)
        plain, saving, blocked = [], [], []
        for _ in range(arguments.rounds):
            state, seconds, _ = run(state, 0)
            plain.append(seconds)
            state, seconds, waited = run(state, arguments.saves)
            saving.append(seconds)
            blocked.append(waited)
    checkpoints.close()
    newest = folder / "checkpoints" / f"step_{max(checkpoints.steps)}"
    size = sum(size for size, _ in storage.file_digests(newest).values())
    begun = time.perf_counter()
    storage.file_digests(newest)
    digesting = time.perf_counter() - begun
    cost = (np.median(saving) - np.median(plain)) / arguments.saves
    print(f"checkpoint: {size / 1e6:.0f} MB; step: {plain[0] / arguments.steps:.3f} s")
    print(f"training waits for a save {np.median(blocked) * 1e3:.0f} ms")
    print(f"a save costs {cost:.2f} s in all, its digests {digesting:.2f} s")
    for minutes in (1, 5, 10):
        print(f"every {minutes} minutes: {cost / (60 * minutes):.2%} of the time")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
