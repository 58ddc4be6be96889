"""Teachers on nqqed: their raw scores of all pairs, each made once."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import population
import untrained
from lists import Collection
from population import Student, Task
from setting import Run


def scores(run: Run, name: str) -> np.ndarray:
    """Raw scores [Q, K] by a teacher, kept in OUT/teacher_NAME.npy.

    NaN where nobody asks: beyond test, dev and what is distilled.
    """
    path = run.out / f"teacher_{name}.npy"
    if path.exists():
        return np.load(path)
    make = {"cosine": cosine, "minilm": tuned_minilm, "smollm": tuned_smollm}[name]
    start = time.monotonic()
    found = make(run)
    checkpoint = run.args.smollm if name == "smollm" else run.args.minilm
    cost = {
        "seconds": time.monotonic() - start,
        "parameters": pipelines.count(checkpoint),
    }
    path.with_suffix(".json").write_text(json.dumps(cost))
    np.save(path, found)
    return found


def student(run: Run, teacher: str, layers: str, path=None) -> Task:
    """Layers of MiniLM on nqqed, with a teacher's scores as targets.

    Args:
      run: where things are.
      teacher: whose scores.
      layers: of the checkpoint that are kept.
      path: another checkpoint than MiniLM, for a warm start.
    """
    return Task(
        run.nqqed,
        run.tokens,
        standardised(scores(run, teacher), run.nqqed),
        population.load(path or run.args.minilm, layers, run.dtype()),
        run.sizes.nqqed,
    )


def tuned_minilm(run: Run) -> np.ndarray:
    """MiniLM after the listwise loss on the labelled lists."""
    model = population.load(run.args.minilm, "", run.dtype())
    grid = dataclasses.replace(run.sizes.nqqed, lists=4)
    zeros = jnp.zeros(run.nqqed.grades.shape, jnp.float32)
    task = Task(run.nqqed, run.tokens, zeros, model, grid)
    pool = run.nqqed.parts["labelled"][: grid.labelled]
    one = Student("minilm", "labels", 0, 1e-4, pool)
    params = population.train(task, [one], run.sizes.teacher_steps)
    return population.score(task, params, np.arange(len(run.nqqed.ids)))[0]


def tuned_smollm(run: Run) -> np.ndarray:
    """SmolLM2 after the listwise loss on the labelled lists, by the product."""
    pairs = pipelines.llm_teacher(run)
    data = run.nqqed
    found = np.full(data.grades.shape, np.nan, np.float32)
    for row in pipelines.asked(run):
        found[row] = [pairs[data.ids[row], one] for one in data.documents[row]]
    return found


def cosine(run: Run) -> np.ndarray:
    """MiniLM's untrained cosine of the pairs that a teacher is asked for; else NaN."""
    score, _ = untrained.make_cosine(run)
    data, found = run.nqqed, np.full(run.nqqed.grades.shape, np.nan, np.float32)
    rows = pipelines.asked(run)
    for first in range(0, len(rows), 100):
        chosen = rows[first : first + 100]
        found[chosen] = score([data.texts[row] for row in chosen])
    return found


def standardised(found: np.ndarray, data: Collection) -> jax.Array:
    """A teacher's scores, standardised over the lists that it labels; 0 where none."""
    known = found[data.parts["unlabelled"]]
    scaled = (found - np.nanmean(known)) / np.nanstd(known)
    return jnp.asarray(np.nan_to_num(scaled), jnp.float32)
