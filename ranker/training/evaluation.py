"""Systems against each other on held-out queries: runs, metrics, tests, the table."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ranker import config, manifest, sharding
from ranker.data import formats
from ranker.data.bm25 import Bm25
from ranker.data.pipeline import Source
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.metrics import ranking, significance
from ranker.training.scoring import make_score, score_lists
from ranker.training.trained import load_trained


def qrels_of(lists: Source[RankedList]) -> ranking.Qrels:
    """Judgements of every list's query."""
    records: list[RankedList] = [lists[i] for i in range(len(lists))]
    return {
        one.query_id: {
            document: int(grade)
            for document, grade in zip(one.judged_ids, one.judged_grades, strict=True)
        }
        for one in records
    }


def run_of(
    lists: Source[RankedList], corpus: Source[Document], scores: np.ndarray
) -> ranking.Run:
    """The scores of all candidates, [pairs] in the order of `lists`, by id."""
    run: ranking.Run = {}
    names: dict[int, str] = {}
    at = 0
    for number in range(len(lists)):
        record: RankedList = lists[number]
        documents = {}
        for row in record.documents.tolist():
            if row not in names:
                names[row] = corpus[row].id
            documents[names[row]] = float(scores[at])
            at += 1
        run[record.query_id] = documents
    return run


def mean_ndcg(
    lists: Source[RankedList], corpus: Source[Document], scores: np.ndarray
) -> float:
    """Mean NDCG@5 of the candidates ordered by `scores`."""
    result = ranking.evaluate(
        qrels_of(lists), run_of(lists, corpus, scores), ("NDCG@5",)
    )
    return result["NDCG@5"].mean


def check_measures(measures: Sequence[str]) -> None:
    """Raises `ConfigError` for a measure that does not exist, before any work."""
    for name in measures:
        try:
            ranking.parse_measure(name)
        except ValueError as error:
            raise config.ConfigError(f"--config.measures: {error}") from error


def evaluate(
    settings: config.Evaluate, workdir: pathlib.Path, *, replace: bool = False
) -> dict[str, Any]:
    """Measures the systems and BM25 on a split of held-out queries.

    Writes `WORKDIR/evaluate/NAME.trec` for each system and `WORKDIR/summary.json`, and
    prints the table.

    Returns:
      The summary: per system each metric's mean (None where it has no finite value, as
      PNR without a discordant pair), the number of queries, and the p-value of its
      difference from `settings.reference`.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    check_measures(settings.measures)
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    if not len(prepared.lists(settings.split)):
        raise manifest.StageError(f"the split {settings.split!r} has no query")
    by = "the evaluate stage"
    parents = {
        name: manifest.require(workdir, name, kinds=("sft", "distill"), by=by)
        for name in settings.systems
    }
    folder = workdir / "evaluate"
    account = manifest.Manifest(
        kind="evaluate",
        settings={
            "reference": settings.reference,
            "split": settings.split,
            "measures": list(settings.measures),
            "relevance": settings.relevance,
            "permutations": settings.permutations,
            "seed": settings.seed,
        },
        inputs={
            **prepared.inputs("corpus", f"lists/{settings.split}"),
            **{name: parent.key for name, parent in parents.items()},
        },
    )
    with manifest.claim(folder, account, replace=replace) as todo:
        if todo:
            summary = _measure(settings, prepared, workdir, folder, by)
            files = manifest.outputs(folder)
            account.finish(folder, summary=summary, files=files)
        else:
            found = manifest.load(folder)
            assert found is not None
            summary = found.facts["summary"]
    _finish(summary, workdir)
    return summary


def _measure(
    settings: config.Evaluate,
    prepared: Prepared,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    by: str,
) -> dict[str, Any]:
    """Scores the candidates by every system, writes the runs, and compares them."""
    lists, corpus = prepared.lists(settings.split), prepared.corpus()
    runs = {"bm25": run_of(lists, corpus, bm25_scores(lists, corpus))}
    mesh = sharding.make_mesh(settings.mesh)
    for name in settings.systems:
        trained = load_trained(
            workdir, name, prepared, mesh, kinds=("sft", "distill"), by=by
        )
        scores = score_lists(
            make_score(trained.network),
            trained.params,
            trained.network,
            lists,
            trained.encoder(prepared),
            rows=settings.rows,
        )
        runs[name] = run_of(lists, corpus, scores)
    if jax.process_index() == 0:
        for name, run in runs.items():
            formats.write_run(folder / f"{name}.trec", run, tag=name)
    return compare(
        qrels_of(lists),
        runs,
        measures=settings.measures,
        reference=settings.reference,
        relevance=settings.relevance,
        permutations=settings.permutations,
        seed=settings.seed,
    )


def bm25_scores(lists: Source[RankedList], corpus: Source[Document]) -> np.ndarray:
    """BM25 of every candidate of every list, with the corpus's statistics."""
    documents = (corpus[row] for row in range(len(corpus)))
    index = Bm25.build(f"{one.title} {one.text}" for one in documents)
    scores = [
        index.score(record.query, record.documents)
        for record in (lists[i] for i in range(len(lists)))
    ]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def compare(
    qrels: ranking.Qrels,
    runs: dict[str, ranking.Run],
    *,
    measures: Sequence[str],
    reference: str,
    relevance: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Every measure of every run, and paired tests against `reference`."""
    results = {
        name: ranking.evaluate(qrels, run, measures, relevance=relevance)
        for name, run in runs.items()
    }
    base = results[reference]
    systems: dict[str, Any] = {}
    for name, result in results.items():
        systems[name] = {
            "queries": len(qrels),
            "metrics": {
                measure: value if math.isfinite(value := result[measure].mean) else None
                for measure in measures
            },
            "p_value": {
                measure: None
                if name == reference
                else _p_value(base[measure], result[measure], permutations, seed)
                for measure in measures
            },
        }
    return {"reference": reference, "measures": list(measures), "systems": systems}


def _p_value(
    a: ranking.Result, b: ranking.Result, permutations: int, seed: int
) -> float | None:
    """None where the measure compares fewer than two queries, as PNR without pairs."""
    if np.sum(~np.isnan(a.values) & ~np.isnan(b.values)) < 2:
        return None
    return significance.randomisation_test(
        a.values, b.values, permutations=permutations, seed=seed
    )


def _finish(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    if jax.process_index() == 0:
        manifest.write_json(workdir / "summary.json", summary)
        Console().print(make_table(summary))


def make_table(summary: dict[str, Any]) -> Table:
    """The summary as a table for the terminal."""
    reference = summary["reference"]
    first = next(iter(summary["systems"].values()))
    table = Table(
        title=f"{first['queries']} held-out queries; p against {reference}, paired "
        "randomisation"
    )
    table.add_column("system")
    for measure in summary["measures"]:
        table.add_column(measure, justify="right")
    table.add_column(f"p ({summary['measures'][0]})", justify="right")
    for name, system in summary["systems"].items():
        p = system["p_value"][summary["measures"][0]]
        metrics = [system["metrics"][measure] for measure in summary["measures"]]
        values = ["-" if one is None else f"{one:.4f}" for one in metrics]
        table.add_row(
            name,
            *values,
            "" if p is None else f"{p:.4f}",
            style=_style(name, reference),
        )
    return table


def _style(name: str, reference: str) -> str:
    return "bold" if name == reference else ""
