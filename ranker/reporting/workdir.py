"""What a report shows, gathered from a workdir: whatever of it is there."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker import errors, manifests
from ranker.data import datasets, trec
from ranker.data.records import Document
from ranker.errors import DataError
from ranker.metrics import agreement
from ranker.online import rehearsal

_ORDER = ("prepare", "cpt", "sft", "score", "distill", "evaluate", "export")
_TEXT = 320  # characters of a document that are shown
TOP = 5  # documents of a query that are shown
EXTREMES = 5  # queries won and lost that are shown


@dataclass(frozen=True)
class StageFolder:
    """One folder of the workdir."""

    name: str
    manifest: manifests.Manifest
    metrics: list[dict[str, Any]]  # lines of metrics.jsonl, a step once
    broken_lines: int  # of metrics.jsonl

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric."""
        found = [
            (float(row["step"]), float(row[name]))
            for row in self.metrics
            if isinstance(row.get(name), int | float) and "step" in row
        ]
        return [step for step, _ in found], [value for _, value in found]


@dataclass(frozen=True)
class TeacherComparison:
    """Scores of a student and its teacher for the same documents."""

    student: str
    teacher: str
    found: agreement.Agreement
    teacher_scores: np.ndarray  # [N]
    student_scores: np.ndarray  # [N]
    kendall: np.ndarray  # by query, NaN where there is no order


@dataclass(frozen=True)
class ShownDocument:
    """A document as one system ranked it."""

    id: str
    score: float
    grade: int | None  # None: nobody judged it
    title: str
    text: str


@dataclass(frozen=True)
class Duel:
    """A query that two systems answer differently."""

    query_id: str
    query: str
    values: tuple[float, float]  # of the reference and of the other
    tops: tuple[list[ShownDocument], list[ShownDocument]]


@dataclass(frozen=True)
class WorkdirReport:
    """All that a report shows."""

    workdir: pathlib.Path
    stages: list[StageFolder]
    summary: dict[str, Any] | None
    calibrations: list[TeacherComparison] = field(default_factory=list)
    against: str = ""  # system that the reference is shown against
    won: list[Duel] = field(default_factory=list)
    lost: list[Duel] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # sentences on what is not shown
    # of simulated users of the synthetic collection, as `ranker.online interleave` has
    online: dict[str, Any] | None = None


def read_workdir(workdir: pathlib.Path, *, against: str = "") -> WorkdirReport:
    """Reads a workdir; a part that is missing or broken is named, the rest is shown.

    Args:
      workdir: of `ranker.run` or of single stages.
      against: system whose answers are shown beside the reference's; empty: bm25, or
        the first other one.

    Raises:
      StageError: where there is no stage at all.
      DataError: when `against` is none of the systems.
    """
    stages, missing = _stages(workdir)
    if not stages:
        raise errors.StageError(
            f"{workdir} holds no stage: no folder in it has a {manifests.FILE}; name "
            "the --workdir of a run"
        )
    evaluation = next((s for s in stages if s.manifest.kind == "evaluate"), None)
    if evaluation is None or not evaluation.manifest.done:
        missing.append("No system has been evaluated yet: no table, slices or queries.")
        return WorkdirReport(workdir, stages, None, missing=missing)
    summary = manifests.EvaluateFacts.of(evaluation.manifest.facts).summary
    names, reference = list(summary["systems"]), summary["reference"]
    if against and against not in names:
        raise DataError(
            f"--against: {against!r} is not one of the systems {', '.join(names)}"
        )
    others = [name for name in names if name != reference]
    against = against or ("bm25" if "bm25" in others else "".join(others[:1]))
    folder = workdir / evaluation.name
    runs = {}
    for name in names:
        try:
            runs[name] = trec.load_run(folder / f"{name}.trec").scores
        except DataError as error:
            missing.append(f"The run of {name} cannot be shown: {error}")
    calibrations = [
        _calibrate(student, one["teacher"], runs)
        for student, one in summary.get("agreement", {}).items()
        if student in runs and one["teacher"] in runs
    ]
    won: list[Duel] = []
    lost: list[Duel] = []
    if against in runs and reference in runs:
        try:
            won, lost = _duels(workdir, folder, summary, runs, against)
        except (DataError, OSError, ValueError, KeyError) as error:
            missing.append(f"Single queries cannot be shown: {error}")
    online = None
    if any("world" in one.manifest.settings.get("data", {}) for one in stages):
        try:
            online = _rehearse(workdir, summary, runs)
        except (DataError, OSError, ValueError, KeyError) as error:
            missing.append(f"No online test could be simulated: {error}")
    return WorkdirReport(
        workdir, stages, summary, calibrations, against, won, lost, missing, online
    )


def _rehearse(
    workdir: pathlib.Path,
    summary: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, dict[str, float]]],
) -> dict[str, Any] | None:
    """Simulated users choose between the reference, its teacher and BM25."""
    reference = summary["reference"]
    teacher = summary.get("agreement", {}).get(reference, {}).get("teacher", "")
    names = [name for name in dict.fromkeys((teacher, reference, "bm25"))]
    chosen = {name: runs[name] for name in names if name in runs}
    if len(chosen) < 2:
        return None
    lists = datasets.load_lists(workdir / "prepare" / "lists", summary["split"])
    grades = {
        one.query_id: dict(zip(one.judged_ids, one.judged_grades.tolist(), strict=True))
        for one in (lists[at] for at in range(len(lists)))
    }
    return rehearsal.interleave(chosen, grades)


def _stages(workdir: pathlib.Path) -> tuple[list[StageFolder], list[str]]:
    found, missing = [], []
    for path in sorted(workdir.glob(f"*/{manifests.FILE}")):
        folder = path.parent
        try:
            manifest = manifests.load_manifest(folder)
        except errors.StageError as error:
            missing.append(f"The stage {folder.name} cannot be shown: {error}")
            continue
        # A folder that a changed run has set aside is called NAME.KEY.
        if manifest is None or folder.name.endswith(f".{manifest.key}"):
            continue
        found.append(
            StageFolder(folder.name, manifest, *_metrics(folder / "metrics.jsonl"))
        )

    def begun(stage: StageFolder) -> tuple[int, float]:
        kind = stage.manifest.kind
        first = stage.metrics[0].get("time", 0.0) if stage.metrics else 0.0
        return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), first)

    return sorted(found, key=begun), missing


def _metrics(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """Rows, those of a step in one; and how many lines were broken."""
    rows: dict[Any, dict[str, Any]] = {}
    broken = 0
    if not path.is_file():
        return [], 0
    for number, line in enumerate(path.read_text(errors="replace").splitlines()):
        try:
            row = json.loads(line)
            key = row.get("step", f"line {number}")
            rows[key] = {**rows.get(key, {}), **row}
        except (ValueError, AttributeError):
            broken += 1
    return list(rows.values()), broken


def _calibrate(
    student: str, teacher: str, runs: Mapping[str, Mapping[str, dict[str, float]]]
) -> TeacherComparison:
    both = agreement.in_both(runs[teacher], runs[student], list(runs[student]))
    kendall, _ = agreement.correlations(*both)
    return TeacherComparison(
        student,
        teacher,
        agreement.agreement(*both),
        np.concatenate(both[0]),
        np.concatenate(both[1]),
        kendall,
    )


def _duels(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    summary: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, dict[str, float]]],
    against: str,
) -> tuple[list[Duel], list[Duel]]:
    """The queries that the reference wins and loses by most in the first measure."""
    reference, measure = summary["reference"], summary["measures"][0]
    values: dict[str, dict[str, float]] = {reference: {}, against: {}}
    with (folder / "per_query.tsv").open(encoding="utf-8") as file:
        header = next(file).rstrip("\n").split("\t")
        column = header.index(measure)
        for line in file:
            cells = line.rstrip("\n").split("\t")
            if cells[1] in values and cells[column]:
                values[cells[1]][cells[0]] = float(cells[column])
    leads = {
        query: value - values[against][query]
        for query, value in values[reference].items()
        if query in values[against]
    }
    order = sorted(leads, key=lambda query: (-leads[query], query))
    won = [query for query in order[:EXTREMES] if leads[query] > 0]
    lost = [query for query in order[::-1][:EXTREMES] if leads[query] < 0]
    prepared = workdir / "prepare"
    lists = datasets.load_lists(prepared / "lists", summary["split"])
    corpus = datasets.load_corpus(prepared / "corpus")
    records = {
        one.query_id: one
        for one in (lists[at] for at in range(len(lists)))
        if one.query_id in {*won, *lost}
    }

    def duel(query: str) -> Duel:
        record = records[query]
        documents = [corpus[row] for row in record.documents.tolist()]
        by_id = {one.id: one for one in documents}
        grades = dict(
            zip(record.judged_ids, record.judged_grades.tolist(), strict=True)
        )

        def top(system: str) -> list[ShownDocument]:
            listed = runs[system].get(query, {})
            best = sorted(listed, key=lambda one: (listed[one], one), reverse=True)
            return [_shown(one, listed[one], grades, by_id) for one in best[:TOP]]

        return Duel(
            query,
            record.query,
            (values[reference][query], values[against][query]),
            (top(reference), top(against)),
        )

    return [duel(query) for query in won], [duel(query) for query in lost]


def _shown(
    name: str,
    score: float,
    grades: Mapping[str, int],
    documents: Mapping[str, Document],
) -> ShownDocument:
    document = documents[name]
    text = document.text
    cut = text[:_TEXT] + ("…" if len(text) > _TEXT else "")
    return ShownDocument(name, score, grades.get(name), document.title[:_TEXT], cut)


def seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Time between the first and the last line of a stage's metrics."""
    times = [row["time"] for row in rows if isinstance(row.get("time"), int | float)]
    return max(times) - min(times) if len(times) > 1 else None
