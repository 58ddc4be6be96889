"""Systems against each other on held-out queries: runs, metrics, tests, the table."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ranker import config, errors, manifests, processes, sharding, storage
from ranker.data import formats, trec
from ranker.data.bm25 import Bm25
from ranker.data.pairs import Indexed
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.errors import DataError
from ranker.manifests import EvaluateFacts, Manifest, ScoreFacts
from ranker.metrics import comparison
from ranker.metrics.cascade import merge_runs
from ranker.metrics.measures import parse_measure
from ranker.metrics.ranking import Rules
from ranker.metrics.runs import agreements, comparable_scores, qrels_of, run_of
from ranker.reporting import tables
from ranker.training.reporter import Reporter
from ranker.training.scorer import make_score, score_lists
from ranker.training.trained import load_trained


def _records(lists: Indexed[RankedList]) -> list[RankedList]:
    return [lists[i] for i in range(len(lists))]


def check_measures(measures: Sequence[str]) -> None:
    """Raises `ConfigError` for a measure that does not exist, before any work."""
    for name in measures:
        try:
            parse_measure(name)
        except ValueError as error:
            raise config.ConfigError(f"--config.measures: {error}") from error


_KINDS = ("sft", "distill")  # stages that can be measured
_BY = "the evaluate stage"


@dataclass(frozen=True)
class EvaluateRun:
    """What is to be measured, before a model is loaded."""

    settings: config.Evaluate
    workdir: pathlib.Path
    prepared: Prepared
    parents: dict[str, Manifest]  # of the systems
    fields: comparison.QueryFields  # of the queries
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage."""
        return self.workdir / "evaluate"


def plan(
    settings: config.Evaluate,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> EvaluateRun:
    """The stage with its manifest; arguments as of `training.run.plan`.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    check_measures(settings.measures)
    if not len(prepared.lists(settings.split)):
        raise errors.StageError(f"the split {settings.split!r} has no query")
    parents = {
        name: manifests.require_stage(
            workdir, name, kinds=_KINDS, by=_BY, planned=planned
        )
        for name in settings.systems
    }
    fields: dict[str, Any] = {}
    if settings.query_fields:
        fields = trec.load_fields(pathlib.Path(settings.query_fields))
    manifest = Manifest(
        kind="evaluate",
        settings={
            "reference": settings.reference,
            "split": settings.split,
            "measures": list(settings.measures),
            "relevance": settings.relevance,
            "permutations": settings.permutations,
            "seed": settings.seed,
            "query_fields": storage.digest(fields) if fields else "",
            "cascades": [one.name for one in settings.cascades],
        },
        inputs={
            **prepared.inputs("corpus", f"lists/{settings.split}"),
            **{name: parent.key for name, parent in parents.items()},
        },
    )
    return EvaluateRun(settings, workdir, prepared, parents, fields, manifest)


def evaluate_systems(
    settings: config.Evaluate, workdir: pathlib.Path, *, replace: bool = False
) -> dict[str, Any]:
    """Measures the systems and BM25 on a split of held-out queries.

    Writes `WORKDIR/evaluate/NAME.trec` for each system, `per_query.tsv` and `table.md`
    beside them, and `WORKDIR/summary.json`, and prints the tables.

    Returns:
      The summary that `metrics.comparison.Comparison` makes: per system each metric's
      mean (None where it has no finite value, as PNR without a discordant pair), and
      its difference from `settings.reference` with interval and p-values; means by
      slice; for each system how comparable its scores are between queries; and for
      each student the agreement of its scores with its teacher's.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    check_measures(settings.measures)
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    return execute(plan(settings, prepared, workdir), replace=replace)


def execute(run: EvaluateRun, *, replace: bool = False) -> dict[str, Any]:
    """Runs a planned evaluation; what is done already is read."""
    with manifests.claim(run.folder, run.manifest, replace=replace) as todo:
        if todo:
            summary = _measure(run)
            files = processes.first(lambda: manifests.outputs(run.folder))
            facts = EvaluateFacts(summary=summary)
            run.manifest.finish(run.folder, facts, files=files)
        else:
            found = manifests.load_manifest(run.folder)
            assert found is not None
            summary = EvaluateFacts.of(found.facts).summary
    _finish(summary, run.workdir)
    return summary


def _measure(run: EvaluateRun) -> dict[str, Any]:
    """Scores the candidates by every system, writes the runs, and compares them."""
    settings, folder = run.settings, run.folder
    lists, corpus = run.prepared.lists(settings.split), run.prepared.corpus()
    qrels = qrels_of(lists)
    runs = {"bm25": run_of(lists, corpus, bm25_scores(lists, corpus))}
    mesh = sharding.make_mesh(settings.mesh)
    for name in settings.systems:
        runs[name] = run_of(lists, corpus, _scores(run, name, mesh))
    # A cascade's scores order and mean nothing else: they are not set side by side.
    across, notes = comparable_scores(qrels, runs, relevance=settings.relevance)
    for cascade in settings.cascades:
        pair = runs[cascade.first], runs[cascade.second]
        runs[cascade.name] = merge_runs(*pair, cascade.keep)
    if processes.leads():
        for name, one in runs.items():
            formats.write_run(folder / f"{name}.trec", one, tag=name)
    texts = {one.query_id: one.query for one in _records(lists)}
    try:
        found = comparison.compare(
            qrels,
            runs,
            settings.measures,
            reference=settings.reference,
            rules=Rules(relevance=settings.relevance),
            tests=comparison.Inference(
                permutations=settings.permutations, seed=settings.seed
            ),
            fields={**trec.query_lengths(texts), **run.fields},
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    teachers = teachers_of(run.parents, run.workdir)
    agreement, correlations = agreements(runs, teachers, found.queries)
    summary = {
        **found.summary(),
        "agreement": agreement,
        "across_queries": across,
        "split": settings.split,
    }
    summary["notes"] += notes
    if processes.leads():
        with storage.writing(folder / "per_query.tsv", "w") as file:
            file.write(tables.per_query(found, correlations) + "\n")
        with storage.writing(folder / "table.md", "w") as file:
            file.write(tables.markdown_page(summary))
    return summary


def _scores(run: EvaluateRun, name: str, mesh: Mesh) -> np.ndarray:
    """A system's scores of all candidates, float32 [pairs]."""
    prepared, lists = run.prepared, run.prepared.lists(run.settings.split)
    trained = load_trained(run.workdir, name, prepared, mesh, kinds=_KINDS, by=_BY)
    total = sum(len(one.documents) for one in _records(lists))
    reporter = Reporter(run.folder, f"evaluate/{name}", total=total, unit="pair")
    reporter.start(0)
    with contextlib.closing(reporter):
        return score_lists(
            make_score(trained.network),
            trained.params,
            trained.network,
            lists,
            trained.encoder(prepared),
            rows=run.settings.rows,
            progress=reporter.now_and_then,
        )


def teachers_of(parents: dict[str, Manifest], workdir: pathlib.Path) -> dict[str, str]:
    """The stage whose scores each of the distilled systems has learned from."""
    teachers = {}
    for name, parent in parents.items():
        for other in parent.inputs:
            found = manifests.load_manifest(workdir / other)
            if found and found.kind == "score":
                teachers[name] = ScoreFacts.of(found.facts).teacher
    return teachers


def bm25_scores(lists: Indexed[RankedList], corpus: Indexed[Document]) -> np.ndarray:
    """BM25 of every candidate of every list, with the corpus's statistics."""
    documents = (corpus[row] for row in range(len(corpus)))
    index = Bm25.build(f"{one.title} {one.text}" for one in documents)
    scores = [
        index.score(record.query, record.documents)
        for record in (lists[i] for i in range(len(lists)))
    ]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def _finish(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    if processes.leads():
        storage.write_json(workdir / "summary.json", summary)
        tables.show(tables.grids(summary))
        for note in summary.get("notes", ()):
            print(f"note: {note}")
