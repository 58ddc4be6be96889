"""Evaluation of TREC files, made by whatever system."""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ranker.data import trec
from ranker.errors import ConfigError, DataError
from ranker.metrics import comparison, ranking
from ranker.reporting import tables

MEASURES = ("NDCG@10", "MRR@10", "MAP", "R@100", "P@10")
_SUFFIXES = (".gz", ".txt", ".trec", ".run", ".res", ".tsv")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What `python -m ranker.evaluate --qrels FILE --run FILE` is told."""

    qrels: pathlib.Path  # TREC's 4 columns, or BEIR's 3 with a header; also gzip
    runs: dict[str, pathlib.Path]  # system -> TREC run file; also gzip
    measures: tuple[str, ...] = MEASURES
    reference: str = ""  # system that the others are compared with; empty: the first
    relevance: int = 1  # lowest grade that counts as relevant
    complete: bool = True  # a judged query that a run lacks counts 0
    depth: int | None = None  # documents of each query that count
    permutations: int = 10_000  # of the randomisation test; samples of the bootstrap
    seed: int = 0  # of both
    teacher: str = ""  # system whose scores the others' are set beside
    queries: pathlib.Path | None = None  # texts, for slices by length
    fields: pathlib.Path | None = None  # a field of each query, for slices
    json: pathlib.Path | None = None  # written: the summary
    per_query: pathlib.Path | None = None  # written: every query's values
    markdown: pathlib.Path | None = None  # written: the tables

    def __post_init__(self):
        for name in self.measures:
            try:
                ranking.parse_measure(name)
            except ValueError as error:
                raise ConfigError(f"--measures: {error}") from error
        for flag, name in (("reference", self.reference), ("teacher", self.teacher)):
            if name and name not in self.runs:
                raise ConfigError(
                    f"--{flag}: {name!r} is none of the runs {', '.join(self.runs)}"
                )
        for flag in ("relevance", "depth", "permutations"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise ConfigError(f"--{flag} must be from 1, found {value}")


def name_runs(given: Sequence[str]) -> dict[str, pathlib.Path]:
    """Systems from the values of --run: FILE, named after itself, or NAME=FILE.

    Raises:
      ConfigError: for two of one name.
    """
    runs: dict[str, pathlib.Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or pathlib.Path(one).is_file():
            name, path = pathlib.Path(one).name, one
            while pathlib.Path(name).suffix in _SUFFIXES:
                name = pathlib.Path(name).stem
        if not name or not path:
            raise ConfigError(f"--run: expected FILE or NAME=FILE, found {one!r}")
        if name in runs:
            raise ConfigError(
                f"--run: {runs[name]} and {path} are both called {name!r}; give them "
                "names, as in --run first=A --run second=B"
            )
        runs[name] = pathlib.Path(path)
    return runs


def evaluate_files(settings: Files) -> dict[str, Any]:
    """Measures the runs, prints the tables, and writes the files that are asked for.

    Returns:
      The summary, as `--json` writes it.

    Raises:
      ConfigError, DataError: with what is wrong, naming the flag, or file and line.
    """
    qrels = trec.load_qrels(settings.qrels)
    fields: dict[str, Any] = {}
    if settings.queries:
        texts = trec.load_queries(settings.queries)
        fields |= trec.query_lengths({q: texts[q] for q in qrels if q in texts})
    if settings.fields:
        fields |= trec.load_fields(settings.fields)
    for name, values in fields.items():
        if not values.keys() & qrels.keys():
            path = settings.fields if settings.fields else settings.queries
            raise DataError(
                f"{path}: field {name!r}: none of its queries has a judgement in "
                f"{settings.qrels}"
            )
    runs, notes = {}, []
    for name, path in settings.runs.items():
        loaded = trec.load_run(path)
        notes += loaded.notes + _check_overlap(settings, loaded, qrels)
        runs[name] = loaded.scores
    try:
        found = comparison.compare(
            qrels,
            runs,
            settings.measures,
            reference=settings.reference or next(iter(runs)),
            complete=settings.complete,
            relevance=settings.relevance,
            depth=settings.depth,
            permutations=settings.permutations,
            seed=settings.seed,
            fields=fields,
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    summary = found.summary()
    summary["settings"] = {
        "qrels": str(settings.qrels),
        "runs": {name: str(path) for name, path in settings.runs.items()},
        "relevance": settings.relevance,
        "complete": settings.complete,
        "depth": settings.depth,
        "permutations": settings.permutations,
        "seed": settings.seed,
    }
    more = {}
    if settings.teacher:
        summary["agreement"], more = agreements(
            runs, {name: settings.teacher for name in runs}, found.queries
        )
    notes += _untested(found)
    summary["notes"] = notes
    tables.show(tables.grids(summary))
    for path, text in (
        (settings.json, lambda: json.dumps(summary, indent=1, ensure_ascii=False)),
        (settings.markdown, lambda: tables.markdown_page(summary)),
        (
            settings.per_query,
            lambda: tables.per_query(
                found, more, json_lines=".jsonl" in str(settings.per_query)
            ),
        ),
    ):
        if path:
            _write(path, text() + "\n")
    return summary


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def agreements(
    runs: dict[str, ranking.Run], teachers: dict[str, str], queries: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Each student's scores beside its teacher's: a summary, and values by query.

    Args:
      runs: scores by query and document, of each system.
      teachers: student -> teacher; a pair without scores of both is left out.
      queries: over which.
    """
    import dataclasses

    from ranker.metrics import agreement  # brings scipy, which others need not wait for

    found, values = {}, {}
    for student, teacher in teachers.items():
        if student == teacher or teacher not in runs:
            continue
        both = agreement.in_both(runs[teacher], runs[student], queries)
        if not sum(map(len, both[0])):
            continue
        fields = dataclasses.asdict(agreement.agreement(*both))
        found[student] = {
            "teacher": teacher,
            **{k: v if math.isfinite(v) else None for k, v in fields.items()},
        }
        kendall, spearman = agreement.correlations(*both)
        values[student] = {"kendall": kendall, "spearman": spearman}
    return found, values


def _check_overlap(
    settings: Files, loaded: trec.LoadedRun, qrels: ranking.Qrels
) -> list[str]:
    """Notes on queries and documents that only the run or only the judgements have."""
    path, scores = loaded.path, loaded.scores
    unknown = [query for query in scores if query not in qrels]
    if len(unknown) == len(scores):
        documents = {name for listed in scores.values() for name in listed}
        hint = "is it the run of another split?"
        if documents & qrels.keys():
            hint = "its columns of query and document look swapped"
        raise DataError(
            f"{path}:1: query {unknown[0]!r}: none of this run's {len(scores)} queries "
            f"has a judgement in {settings.qrels}, whose first is "
            f"{next(iter(qrels))!r}; {hint}"
        )
    notes = []
    if unknown:
        rest = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        notes.append(
            f"{path}:{trec.line_of(path, unknown[0])}: query {unknown[0]!r}{rest} "
            f"without a judgement in {settings.qrels}: left out"
        )
    missing = [query for query in qrels if query not in scores]
    if missing:
        rest = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        counts = "count 0 (--no-complete leaves them out)"
        if not settings.complete:
            counts = "are left out"
        notes.append(
            f"{path}: has nothing for the judged query {missing[0]!r}{rest}: these "
            f"{counts}"
        )
    shared = scores.keys() & qrels.keys()
    if not any(qrels[query].keys() & scores[query].keys() for query in shared):
        query = next(query for query in scores if query in qrels)
        notes.append(
            f"{path}:{trec.line_of(path, query)}: none of the run's documents is "
            f"judged for its query; query {query!r} has {next(iter(scores[query]))!r} "
            f"here and {next(iter(qrels[query]))!r} in {settings.qrels}: are these ids "
            "of the same corpus?"
        )
    return notes


def _untested(found: comparison.Comparison) -> list[str]:
    """A note where a difference had too few queries to test."""
    return [
        f"{system} and {found.reference} have fewer than 2 queries in common with a "
        f"value of {', '.join(names)}; a paired test needs at least 2"
        for system, by_measure in found.differences.items()
        if (names := [name for name, one in by_measure.items() if one is None])
    ]
