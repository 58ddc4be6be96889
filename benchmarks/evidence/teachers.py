"""Teachers on nqqed: their raw scores of all pairs, each made once."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import population
from lists import Collection
from population import Student, Task
from setting import Run


def scores(run: Run, name: str) -> np.ndarray:
    """Raw scores [Q, K] by a teacher, kept in OUT/teacher_NAME.npy.

    Of SmolLM2, NaN where nobody asks: beyond test, dev and what is distilled.
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
    """MiniLM's untrained cosine [Q, K] of a query and its documents, times 10."""
    from tokenizers import Tokenizer

    data, length = run.nqqed, run.sizes.nqqed.length
    tokenizer = Tokenizer.from_file(str(run.args.minilm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = population.load(run.args.minilm, "", "float32")
    params = model.fresh(jax.random.key(0))
    embed = jax.jit(model.vectors)

    def vectors(texts):
        ids = [one.ids[:length] for one in tokenizer.encode_batch(texts)]
        parts = []
        for first in range(0, len(ids), 256):
            chunk = ids[first : first + 256]
            tokens = np.zeros((256, length), np.int32)
            for row, one in enumerate(chunk):
                tokens[row, : len(one)] = one
            lengths = np.int32([*map(len, chunk), *[1] * (256 - len(chunk))])
            parts.append(np.asarray(embed(params, tokens, lengths))[: len(chunk)])
        return np.concatenate(parts)

    texts = [[f"{a} {b}".strip() for a, b in pairs] for _, pairs in data.texts]
    unique = {text: i for i, text in enumerate({d for ds in texts for d in ds})}
    documents = vectors(list(unique))
    queries = vectors([query for query, _ in data.texts])
    chosen = np.array([[unique[d] for d in ds] for ds in texts])
    return 10 * np.einsum("qd,qkd->qk", queries, documents[chosen])


def standardised(found: np.ndarray, data: Collection) -> jax.Array:
    """A teacher's scores, standardised over the lists that it labels; 0 where none."""
    known = found[data.parts["unlabelled"]]
    scaled = (found - np.nanmean(known)) / np.nanstd(known)
    return jnp.asarray(np.nan_to_num(scaled), jnp.float32)
