"""Parts that are runs of the product's own stages, by its configs."""

import dataclasses
import pathlib

import lists
import numpy as np
from lists import Collection
from setting import Run

from ranker import config
from ranker.training import evaluate, score, train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pipeline(name: str, *flags: str) -> config.Pipeline:
    """A config of configs/ with `--config.` flags as on the command line."""
    given = [f"--config.{flag}" for flag in flags]
    return config.load(str(ROOT / "configs" / name), given, of=config.Pipeline)


def read_run(path: pathlib.Path) -> dict[tuple[str, str], float]:
    """Scores by query and document of a TREC run."""
    from ranker.data import formats

    return {
        (one.query_id, one.document_id): one.score for one in formats.read_run(path)
    }


def scores_of(path: pathlib.Path, data: Collection, rows: np.ndarray) -> np.ndarray:
    """Scores [len(rows), K] of a TREC run, in the order of the candidates."""
    found = read_run(path)
    return np.float32(
        [[found[data.ids[r], d] for d in data.documents[r]] for r in rows]
    )


# --- the synthetic collection ---


def quickstart(run: Run) -> config.Pipeline:
    """The quickstart with as many test queries as E1 asks for."""
    grid, smoke = run.sizes.synthetic, run.sizes.name == "smoke"
    world = "data.world."
    return pipeline(
        "quickstart.py:smoke" if smoke else "quickstart.py",
        f"{world}labelled_queries={grid.labelled}",
        f"{world}unlabelled_queries={grid.unlabelled}",
        f"{world}dev_queries={grid.dev}",
        f"{world}test_queries={grid.test}",
        f"{world}candidates={grid.candidates}",
    )


def synthetic_teacher(run: Run) -> pathlib.Path:
    """Workdir of the synthetic collection with a teacher and all of its scores."""
    workdir = run.out / "synthetic"
    stages = quickstart(run).stages()
    for name in ("cpt", "sft"):
        train.train(stages[name], workdir, replace=True)
    score.score(stages["scores"], workdir, replace=True)
    evaluate.evaluate(measured(stages["evaluate"]), workdir, replace=True)
    return workdir


def measured(stage: config.Stage) -> config.Evaluate:
    """The stage that ranks test by the teacher alone."""
    assert isinstance(stage, config.Evaluate)
    return dataclasses.replace(
        stage,
        systems=("sft",),
        reference="bm25",
        measures=("NDCG@10",),
        permutations=1000,
    )


def synthetic_scores(workdir: pathlib.Path, data: Collection) -> np.ndarray:
    """The teacher's raw scores [Q, K]; 0 on dev, which nobody asks for."""
    import pyarrow.dataset as tables

    chunks = tables.dataset(workdir / "scores" / "chunks").to_table()
    names = ("query_id", "document_id", "score")
    found = {(q, d): s for q, d, s in zip(*(chunks[n].to_pylist() for n in names))}
    found |= read_run(workdir / "evaluate" / "sft.trec")
    return np.float32(
        [
            [found.get((query, one), 0.0) for one in documents]
            for query, documents in zip(data.ids, data.documents, strict=True)
        ]
    )
