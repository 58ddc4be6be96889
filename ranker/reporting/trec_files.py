"""Evaluation of TREC files, made by whatever system."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ranker import storage
from ranker.data import trec
from ranker.errors import ConfigError, DataError
from ranker.metrics import comparison, macro, ranking, runs
from ranker.reporting import exports, files_page, tables
from ranker.reporting.inputs import ALONE, EvaluationFiles


@dataclass(frozen=True)
class JudgedRuns:
    """Judgements and runs of one collection, and what is odd about their files."""

    qrels: trec.LoadedQrels
    runs: dict[str, list[trec.LoadedRun]]  # system -> seeds
    fields: dict[str, dict[str, str | float]]
    texts: dict[str, str]
    notes: list[str]

    def scores(self, system: str) -> ranking.Run:
        """The run of a system's first seed."""
        return self.runs[system][0].scores


def evaluate_files(settings: EvaluationFiles) -> dict[str, Any]:
    """Measures the runs, prints the tables, and writes the files that are asked for.

    Returns:
      The summary, as `--json` writes it.

    Raises:
      ConfigError, DataError: with what is wrong, naming the flag, or file and line.
    """
    loaded = {name: _load(settings, name) for name in settings.qrels}
    found = {name: _compare(settings, one) for name, one in loaded.items()}
    summaries = {
        name: _summary(settings, one, found[name]) for name, one in loaded.items()
    }
    if ALONE in summaries:
        summary = summaries[ALONE]
    else:
        summary = _joined(settings, found, summaries)
    summary["settings"] = _settings(settings)
    tables.show(tables.grids(summary))
    _write_all(settings, summary, loaded, found)
    for note in summary["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return summary


def _load(settings: EvaluationFiles, name: str) -> JudgedRuns:
    source = trec.open_file_or_pipe(settings.qrels[name])
    qrels = trec.load_qrels(source)
    grades, notes = qrels.grades, list(qrels.notes)
    fields: dict[str, Any] = {}
    texts: dict[str, str] = {}
    given = []
    if settings.queries:
        texts = trec.load_queries(trec.open_file_or_pipe(settings.queries))
        fields |= trec.query_lengths({q: texts[q] for q in grades if q in texts})
        given += [settings.queries] * len(fields)
    if settings.fields:
        more = trec.load_fields(trec.open_file_or_pipe(settings.fields))
        fields |= more
        given += [settings.fields] * len(more)
    for (field, values), path in zip(fields.items(), given, strict=False):
        if not values.keys() & grades.keys():
            raise DataError(
                f"{path}: field {field!r}: none of its queries has a judgement in "
                f"{source}"
            )
    loaded: dict[str, list[trec.LoadedRun]] = {}
    for system, seeds in settings.runs[name].items():
        loaded[system] = [
            trec.load_run(trec.open_file_or_pipe(one)) for one in seeds.values()
        ]
        for one in loaded[system]:
            notes += one.notes + _check_overlap(settings, one, qrels)
    return JudgedRuns(qrels, loaded, fields, texts, notes)


def _compare(settings: EvaluationFiles, one: JudgedRuns) -> comparison.Comparison:
    try:
        return comparison.compare(
            one.qrels.grades,
            {name: [x.scores for x in seeds] for name, seeds in one.runs.items()},
            settings.measures,
            reference=settings.reference or next(iter(one.runs)),
            rules=settings.rules,
            tests=_tests(settings),
            fields=one.fields,
        )
    except ValueError as error:
        raise DataError(f"{one.qrels.path}: {error}") from error


def _tests(settings: EvaluationFiles) -> comparison.Inference:
    return comparison.Inference(
        permutations=settings.permutations,
        seed=settings.seed,
        margin=settings.equivalence,
    )


def _summary(
    settings: EvaluationFiles, one: JudgedRuns, found: comparison.Comparison
) -> dict[str, Any]:
    summary = found.summary()
    summary["notes"] = [*one.notes, *summary["notes"]]
    summary["margin"] = settings.equivalence
    if settings.teacher:
        scores = {name: one.scores(name) for name in one.runs}
        summary["agreement"], _ = runs.agreements(
            scores, dict.fromkeys(scores, settings.teacher), found.queries
        )
    if settings.across_queries:
        scores = {name: one.scores(name) for name in one.runs}
        level = settings.rules.relevance
        across, notes = runs.comparable_scores(
            one.qrels.grades, scores, relevance=level
        )
        summary["across_queries"] = across
        summary["notes"] += notes
    return summary


def _joined(
    settings: EvaluationFiles,
    found: Mapping[str, comparison.Comparison],
    summaries: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """A summary of several collections: each one's own, and the macro mean."""
    notes = [
        f"{name}: {note}" for name, one in summaries.items() for note in one["notes"]
    ]
    systems = macro.macro(found, _tests(settings))
    for system in settings.systems:
        if system not in systems:
            without = [name for name, one in found.items() if system not in one.results]
            notes.append(
                f"{system} has no run of {', '.join(without)}, and so no macro mean"
            )
    first = next(iter(summaries.values()))
    return {
        "reference": first["reference"],
        "measures": first["measures"],
        "queries": sum(one["queries"] for one in summaries.values()),
        "systems": systems,
        "slices": [],
        "collections": dict(summaries),
        "margin": settings.equivalence,
        "notes": notes,
    }


def _settings(settings: EvaluationFiles) -> dict[str, Any]:
    def by_collection(values: Mapping[str, Any]) -> Any:
        return values[ALONE] if ALONE in values else dict(values)

    def files(seeds: Mapping[str, pathlib.Path]) -> Any:
        if "" in seeds:
            return str(seeds[""])
        return {seed: str(path) for seed, path in seeds.items()}

    named = {
        collection: {name: files(seeds) for name, seeds in systems.items()}
        for collection, systems in settings.runs.items()
    }
    return {
        "qrels": by_collection({k: str(v) for k, v in settings.qrels.items()}),
        "runs": by_collection(named),
        **dataclasses.asdict(settings.rules),
        "permutations": settings.permutations,
        "seed": settings.seed,
        "equivalence": settings.equivalence,
    }


def _write_all(
    settings: EvaluationFiles,
    summary: dict[str, Any],
    loaded: Mapping[str, JudgedRuns],
    found: Mapping[str, comparison.Comparison],
) -> None:
    outputs = settings.outputs
    agreed = {
        name: _correlations(settings, loaded[name], one) for name, one in found.items()
    }
    for path, text in (
        (outputs.json, lambda: json.dumps(summary, indent=1, ensure_ascii=False)),
        (outputs.markdown, lambda: tables.markdown_page(summary).rstrip("\n")),
        (outputs.csv, lambda: exports.csv_text(summary)),
        (outputs.latex, lambda: exports.latex_text(summary)),
        (
            outputs.html,
            lambda: files_page.render(_page(summary, loaded, found)),
        ),
        (
            outputs.per_query,
            lambda: tables.per_query(
                found, agreed, json_lines=".jsonl" in str(outputs.per_query)
            ),
        ),
    ):
        if path:
            _write(path, text() + "\n")


def _correlations(
    settings: EvaluationFiles, one: JudgedRuns, found: comparison.Comparison
) -> dict[str, dict[str, Any]]:
    if not settings.teacher:
        return {}
    scores = {name: one.scores(name) for name in one.runs}
    return runs.agreements(
        scores, dict.fromkeys(scores, settings.teacher), found.queries
    )[1]


def _page(
    summary: dict[str, Any],
    loaded: Mapping[str, JudgedRuns],
    found: Mapping[str, comparison.Comparison],
) -> files_page.FilesReport:
    return files_page.FilesReport(
        summary,
        {
            name: files_page.CollectionReport(
                found[name],
                one.qrels.grades,
                {system: one.scores(system) for system in one.runs},
                one.texts,
            )
            for name, one in loaded.items()
        },
    )


def _write(path: pathlib.Path, text: str) -> None:
    try:
        storage.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _others(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    more = len(names) - 1
    rest = f" and {more} {'others' if more > 1 else 'other'}" if more else ""
    return f"{names[0]!r}{rest}"


def _check_overlap(
    settings: EvaluationFiles, loaded: trec.LoadedRun, judged: trec.LoadedQrels
) -> list[str]:
    """Notes on queries and documents that only the run or only the judgements have."""
    path, scores, qrels = loaded.path, loaded.scores, judged.grades
    unknown = [query for query in scores if query not in qrels]
    if len(unknown) == len(scores):
        documents = {name for listed in scores.values() for name in listed}
        hint = "is it the run of another split?"
        if documents & qrels.keys():
            hint = "its columns of query and document look swapped"
        raise DataError(
            f"{path}:1: query {unknown[0]!r}: none of this run's {len(scores)} queries "
            f"has a judgement in {judged.path}, whose first is "
            f"{next(iter(qrels))!r}; {hint}"
        )
    notes = []
    if unknown:
        notes.append(
            f"{path}:{trec.line_of(path, unknown[0])}: query {_others(unknown)} "
            f"without a judgement in {judged.path}: left out"
        )
    missing = [query for query in qrels if query not in scores]
    if missing:
        counts = "count 0 (--no-complete leaves them out)"
        if not settings.rules.complete:
            counts = "are left out"
        notes.append(
            f"{path}: has nothing for the judged query {_others(missing)}: these "
            f"{counts}"
        )
    shared = scores.keys() & qrels.keys()
    if not any(qrels[query].keys() & scores[query].keys() for query in shared):
        query = next(query for query in scores if query in qrels)
        notes.append(
            f"{path}:{trec.line_of(path, query)}: none of the run's documents is "
            f"judged for its query; query {query!r} has {next(iter(scores[query]))!r} "
            f"here and {next(iter(qrels[query]))!r} in {judged.path}: are these ids "
            "of the same corpus?"
        )
    return notes
