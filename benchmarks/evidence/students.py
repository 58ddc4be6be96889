"""Parts that train populations: E0 (depth), E1 (losses) and E3 (labels)."""

import json
import pathlib

import jax.numpy as jnp
import lists
import numpy as np
import pipelines
import population
import teachers

from lists import Collection
from population import Student, Task
from setting import Run
from sizes import Grid

DEV_SEED = 1000  # of rates and of E0; the seeds that count begin at 0


def pool(data: Collection, grid: Grid, arm: str) -> np.ndarray:
    """The lists that an arm learns from."""
    if arm == "labels":
        return data.parts["labelled"][: grid.labelled]
    return data.parts["unlabelled"]


def rate_trials(data: Collection, grid: Grid) -> list[Student]:
    """Every arm at every rate, with a seed of its own."""
    return [
        Student(f"{arm}@{rate:g}", arm, DEV_SEED, rate, pool(data, grid, arm))
        for arm in grid.arms
        for rate in grid.rates
    ]


def best_rates(folder: pathlib.Path, data: Collection) -> dict[str, float]:
    """Learning rate of each arm, by NDCG@10 on dev."""
    best: dict[str, tuple[float, float]] = {}
    for path in sorted(folder.glob("*.npz")):
        found = np.load(path)
        values = data.ndcg(found["dev"], data.parts["dev"]).mean(-1)
        members = json.loads(str(found["members"]))
        for (_, arm, _, rate, _), value in zip(members, values, strict=True):
            best[arm] = max(best.get(arm, (-1.0, 0.0)), (float(value), rate))
    return {arm: rate for arm, (_, rate) in best.items()}


def seeded(data: Collection, grid: Grid, rates: dict[str, float]) -> list[Student]:
    """Every arm with every seed; seed by seed, so that a part of them is a smaller E1."""
    return [
        Student(arm, arm, seed, rates[arm], pool(data, grid, arm))
        for seed in range(grid.seeds)
        for arm in grid.arms
    ]


def losses(folder: pathlib.Path, task: Task) -> None:
    """E1 with one teacher: rates on dev, then every arm with every seed.

    Args:
      folder: of the part; FOLDER-rates has the rates' students.
      task: with the teacher's scores.
    """
    grid = task.grid
    trials = folder.with_name(folder.name + "-rates")
    each = rate_trials(task.data, grid)
    population.run(trials, task, each, splits=("dev",))
    rates = best_rates(trials, task.data)
    print(f"{folder.name}: rates {rates}", flush=True)
    population.run(folder, task, seeded(task.data, grid, rates))


def e1_synthetic(run: Run) -> None:
    """E1 on the synthetic collection."""
    losses(run.out / "e1-synthetic", synthetic_task(run))


# --- the synthetic collection ---


def synthetic_task(run: Run) -> Task:
    """The quickstart's student and its teacher's scores, on the synthetic collection."""
    workdir = pipelines.synthetic_teacher(run)
    grid, data = run.sizes.synthetic, lists.prepared(workdir / "prepare")
    tokenizer = workdir / "prepare" / "tokenizers" / "student"
    words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    found = lists.tokenise(data, tokenizer, grid.length)
    return Task(
        data,
        {name: jnp.asarray(one) for name, one in found.items()},
        teachers.standardised(pipelines.synthetic_scores(workdir, data), data),
        population.from_scratch(pipelines.quickstart(run).student, len(words)),
        grid,
    )
