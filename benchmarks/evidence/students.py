"""Parts that train populations: E0 (depth), E1 (losses) and E3 (labels)."""

import dataclasses
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
    return data.parts["unlabelled"][: grid.scored]


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
    """Every arm with every seed; seed by seed, so that a part is a smaller E1."""
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


def e1(run: Run, teacher: str) -> None:
    """E1 on nqqed, with students of four of MiniLM's layers."""
    task = teachers.student(run, teacher, run.sizes.kept("4"))
    losses(run.out / f"e1-{teacher}", task)


# --- E0: how shallow, and what helps --------------------------------------------------


def trial(name: str, arm: str, rate: float, run: Run) -> list[Student]:
    """Students of E0: seeds of their own, on the unlabelled lists."""
    data, grid = run.nqqed, run.sizes.nqqed
    return [
        Student(name, arm, DEV_SEED + seed, rate, pool(data, grid, arm))
        for seed in range(grid.trials)
    ]


def e0_layers(run: Run) -> None:
    """Students of 2, 3, 4 and 6 layers by the hybrid, at every rate."""
    for layers, kept in run.sizes.layers:
        task = teachers.student(run, "minilm", kept)
        each = [
            one
            for rate in run.sizes.nqqed.rates
            for one in trial(f"{layers} layers, {rate:g}", "hybrid", rate, run)
        ]
        folder = run.out / f"e0-layers-{layers}"
        population.run(folder, task, each, splits=("dev",))


def e0_pairs(run: Run) -> None:
    """Three layers that see one, two and four times as many pairs, of all lists."""
    data, grid = run.nqqed, run.sizes.nqqed
    task = teachers.student(run, "minilm", run.sizes.kept("3"))
    every = np.concatenate([data.parts["unlabelled"], data.parts["labelled"]])
    for times in (1, 2, 4):
        each = [
            dataclasses.replace(one, pool=every)
            for one in trial(f"{times} x pairs", "hybrid", grid.rates[0], run)
        ]
        folder = run.out / f"e0-pairs-{times}"
        population.run(folder, task, each, splits=("dev",), steps=times * grid.steps)


def e0_warm(run: Run) -> None:
    """Two and three layers that begin from the fine-tuned teacher's own weights."""
    checkpoint = pipelines.warm_checkpoint(run)
    for layers in ("2", "3"):
        kept = run.sizes.kept(layers)
        task = teachers.student(run, "minilm", kept, path=checkpoint)
        name, rate = f"{layers} layers, warm", run.sizes.nqqed.rates[0]
        folder = run.out / f"e0-warm-{layers}"
        each = trial(name, "hybrid", rate, run)
        population.run(folder, task, each, splits=("dev",))


def e0_temper(run: Run) -> None:
    """Four layers by KL at four temperatures, and by targets scaled in each list."""
    task = teachers.student(run, "minilm", run.sizes.kept("4"))
    rate = run.sizes.nqqed.rates[0]
    each = [
        one
        for arm in ("kl_half", "kl", "kl_2", "kl_4", "point", "point_list")
        for one in trial(arm, arm, rate, run)
    ]
    population.run(run.out / "e0-temper", task, each, splits=("dev",))


# --- E3: labels -----------------------------------------------------------------------


def e3(run: Run) -> None:
    """Students of few to all labelled lists, beside the hybrid of the unlabelled."""
    data, grid = run.nqqed, run.sizes.nqqed
    task = teachers.student(run, "minilm", run.sizes.kept("4"))
    labelled, rate = data.parts["labelled"], grid.rates[0]
    sizes = [n for n in run.sizes.label_sizes if n < len(labelled)] + [len(labelled)]
    each = []
    for seed in range(grid.few_seeds):
        for n in sizes:
            name = f"{n} labelled lists"
            each.append(Student(name, "labels", seed, rate, labelled[:n]))
        scored = pool(data, grid, "hybrid")
        each.append(Student("distilled", "hybrid", seed, rate, scored))
    population.run(run.out / "e3", task, each)


# --- the synthetic collection ---


def synthetic_task(run: Run) -> Task:
    """The quickstart's student and its teacher's scores."""
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
