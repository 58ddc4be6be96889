"""Systems against each other on held-out queries: runs, metrics, tests, the table."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ranker import config, errors, manifests, sharding, storage
from ranker.data import formats, trec
from ranker.data.bm25 import Bm25
from ranker.data.pairs import Source
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.errors import DataError
from ranker.metrics import comparison
from ranker.metrics.cascade import merge_runs
from ranker.metrics.measures import parse_measure
from ranker.metrics.ranking import Rules
from ranker.metrics.runs import agreements, qrels_of, run_of
from ranker.reporting import tables
from ranker.training.reporter import Reporter
from ranker.training.scorer import make_score, score_lists
from ranker.training.trained import load_trained

_REPORT_EVERY = 10.0  # seconds


def _records(lists: Source[RankedList]) -> list[RankedList]:
    return [lists[i] for i in range(len(lists))]


def check_measures(measures: Sequence[str]) -> None:
    """Raises `ConfigError` for a measure that does not exist, before any work."""
    for name in measures:
        try:
            parse_measure(name)
        except ValueError as error:
            raise config.ConfigError(f"--config.measures: {error}") from error


def evaluate(
    settings: config.Evaluate, workdir: pathlib.Path, *, replace: bool = False
) -> dict[str, Any]:
    """Measures the systems and BM25 on a split of held-out queries.

    Writes `WORKDIR/evaluate/NAME.trec` for each system, `per_query.tsv` and `table.md`
    beside them, and `WORKDIR/summary.json`, and prints the tables.

    Returns:
      The summary that `metrics.comparison.Comparison` makes: per system each metric's
      mean (None where it has no finite value, as PNR without a discordant pair), and
      its difference from `settings.reference` with interval and p-values; means by
      slice; and for each student the agreement of its scores with its teacher's.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
    """
    check_measures(settings.measures)
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    if not len(prepared.lists(settings.split)):
        raise errors.StageError(f"the split {settings.split!r} has no query")
    by = "the evaluate stage"
    parents = {
        name: manifests.require(workdir, name, kinds=("sft", "distill"), by=by)
        for name in settings.systems
    }
    fields: dict[str, Any] = {}
    if settings.query_fields:
        fields = trec.load_fields(pathlib.Path(settings.query_fields))
    folder = workdir / "evaluate"
    manifest = manifests.Manifest(
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
    with manifests.claim(folder, manifest, replace=replace) as todo:
        if todo:
            teachers = teachers_of(parents, workdir)
            summary = _measure(
                settings, prepared, workdir, folder, by, teachers, fields
            )
            files = manifests.outputs(folder)
            manifest.finish(folder, summary=summary, files=files)
        else:
            found = manifests.load(folder)
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
    teachers: dict[str, str],
    fields: comparison.Fields,
) -> dict[str, Any]:
    """Scores the candidates by every system, writes the runs, and compares them."""
    lists, corpus = prepared.lists(settings.split), prepared.corpus()
    runs = {"bm25": run_of(lists, corpus, bm25_scores(lists, corpus))}
    mesh = sharding.make_mesh(settings.mesh)
    for name in settings.systems:
        trained = load_trained(
            workdir, name, prepared, mesh, kinds=("sft", "distill"), by=by
        )
        total = sum(len(one.documents) for one in _records(lists))
        reporter = Reporter(folder, f"evaluate/{name}", total=total, unit="pair")
        with contextlib.closing(reporter):
            scores = score_lists(
                make_score(trained.network),
                trained.params,
                trained.network,
                lists,
                trained.encoder(prepared),
                rows=settings.rows,
                progress=_now_and_then(reporter),
            )
        runs[name] = run_of(lists, corpus, scores)
    for cascade in settings.cascades:
        pair = runs[cascade.first], runs[cascade.second]
        runs[cascade.name] = merge_runs(*pair, cascade.keep)
    if jax.process_index() == 0:
        for name, run in runs.items():
            formats.write_run(folder / f"{name}.trec", run, tag=name)
    texts = {one.query_id: one.query for one in _records(lists)}
    try:
        found = comparison.compare(
            qrels_of(lists),
            runs,
            settings.measures,
            reference=settings.reference,
            rules=Rules(relevance=settings.relevance),
            tests=comparison.Inference(
                permutations=settings.permutations, seed=settings.seed
            ),
            fields={**trec.query_lengths(texts), **fields},
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    agreement, correlations = agreements(runs, teachers, found.queries)
    summary = {**found.summary(), "agreement": agreement, "split": settings.split}
    if jax.process_index() == 0:
        with storage.writing(folder / "per_query.tsv", "w") as file:
            file.write(tables.per_query(found, correlations) + "\n")
        with storage.writing(folder / "table.md", "w") as file:
            file.write(tables.markdown_page(summary))
    return summary


def _now_and_then(reporter: Reporter) -> Callable[[int, int], None]:
    """A progress function that reports every few seconds, and at the end."""
    reporter.start(0)
    last, tokens_since = time.monotonic(), 0

    def progress(done: int, tokens: int) -> None:
        nonlocal last, tokens_since
        tokens_since += tokens
        if time.monotonic() - last > _REPORT_EVERY or done == reporter.total:
            reporter.progress(done, tokens=tokens_since, values={})
            last, tokens_since = time.monotonic(), 0

    return progress


def teachers_of(
    parents: dict[str, manifests.Manifest], workdir: pathlib.Path
) -> dict[str, str]:
    """The stage whose scores each of the distilled systems has learned from."""
    teachers = {}
    for name, parent in parents.items():
        for other in parent.inputs:
            found = manifests.load(workdir / other)
            if found and found.kind == "score":
                teachers[name] = found.facts["teacher"]
    return teachers


def bm25_scores(lists: Source[RankedList], corpus: Source[Document]) -> np.ndarray:
    """BM25 of every candidate of every list, with the corpus's statistics."""
    documents = (corpus[row] for row in range(len(corpus)))
    index = Bm25.build(f"{one.title} {one.text}" for one in documents)
    scores = [
        index.score(record.query, record.documents)
        for record in (lists[i] for i in range(len(lists)))
    ]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def _finish(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    if jax.process_index() == 0:
        storage.write_json(workdir / "summary.json", summary)
        tables.show(tables.grids(summary))
        for note in summary.get("notes", ()):
            print(f"note: {note}")
