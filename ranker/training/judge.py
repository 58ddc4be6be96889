"""The teacher judges the negatives: what nobody judged may be relevant all the same.

An unjudged candidate that the teacher puts near the best positive is dropped from its
list, or relabelled. The result is a scoring job of its own, with its lists beside it,
so distillation and a second fine-tuning read it as they read the teacher's scores:

    DIR/lists         the lists of each split; teacher scores beside labels
    DIR/chunks        their scores, as of any scoring job
    DIR/report.json   what was found, and DIR/report.html, a page of examples

Nobody has judged what is relabelled: `judged` stays false in the records.
"""

import dataclasses
import heapq
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker import config, manifests, storage
from ranker.data import datasets
from ranker.data.prepare import Prepared
from ranker.data.records import RankedList
from ranker.errors import DataError, StageError
from ranker.manifests import Manifest, ScoreFacts
from ranker.reporting import judge_page
from ranker.scoring import given
from ranker.scoring.targets import load_targets

LISTS = "lists"
REPORT = "report.json"
PAGE = "report.html"
_EXAMPLES = 50  # on the page
_EXCERPT = 400  # characters of a document


@dataclass(frozen=True)
class JudgeRun:
    """The stage with its manifest."""

    settings: config.Judging
    workdir: pathlib.Path
    prepared: Prepared
    scores: Manifest
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage."""
        return self.workdir / self.settings.name


def judged_lists(folder: pathlib.Path, split: str) -> datasets.Records[RankedList]:
    """The lists of a split that a stage of this kind has left in its folder."""
    return datasets.load_lists(folder / LISTS, split)


def plan(
    settings: config.Judging,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> JudgeRun:
    """The stage with its manifest; arguments as of `training.run.plan`.

    Raises:
      StageError: when the scores are not of prepared splits, or judged already.
    """
    by = f"the stage {settings.name!r}"
    scores = manifests.require_stage(
        workdir, settings.scores, kinds=("score",), by=by, planned=planned
    )
    splits = scores.settings.get("splits")
    if splits is None or "judge" in scores.settings:
        raise StageError(
            f"{by} judges the lists of prepared splits by a teacher's scores, and "
            f"{settings.scores!r} holds "
            f"{'those of another input' if splits is None else 'judged lists'}"
        )
    scored = ScoreFacts.of(scores.facts)
    teacher = scored.teacher
    manifest = Manifest(
        kind="score",
        settings={
            "splits": splits,
            "format": "parquet",
            "chunk_pairs": settings.chunk_pairs,
            "judge": config.to_dict(settings.judge),
        },
        inputs={
            **prepared.inputs("corpus", *(f"lists/{name}" for name in splits)),
            teacher: scores.inputs[teacher],  # whose scores they are, as a job says
            settings.scores: scores.key,
        },
        facts=ScoreFacts(
            teacher=teacher,
            teacher_facts=scored.teacher_facts,
        ).to_dict(),
    )
    return JudgeRun(settings, workdir, prepared, scores, manifest)


def execute(run: JudgeRun, *, replace: bool = False) -> Manifest:
    """Runs a planned stage, in the first process; what is done is left alone."""
    return manifests.complete(
        run.folder, run.manifest, lambda: _write(run), replace=replace
    )


# --- one list ---


def suspects(record: RankedList, scores: np.ndarray, judge: config.Judge) -> np.ndarray:
    """Which documents may be relevant though nobody judged them, bool [n].

    Args:
      record: the list.
      scores: float32 [n], of the teacher, higher is better.
      judge: the margin.
    """
    positive = record.judged & (record.labels > 0)
    if not positive.any():
        return np.zeros(len(scores), bool)
    best = float(scores[positive].max())
    margin = judge.margin
    if judge.unit == "relative":
        margin *= best - float(scores.min())
    return ~record.judged & (scores > best - margin)


def judge_list(
    record: RankedList, scores: np.ndarray, judge: config.Judge
) -> tuple[RankedList, np.ndarray]:
    """The list without its suspects, or with their grade; scores are beside it.

    Returns:
      The list, its `teacher` being the scores, and the `suspects` of the one given.
    """
    found = suspects(record, scores, judge)
    if judge.action == "relabel":
        labels = np.where(found, np.float32(judge.grade), record.labels)
        return dataclasses.replace(record, labels=labels, teacher=scores), found
    kept = ~found
    documents = {
        name: getattr(record, name)[kept]
        for name in ("documents", "labels", "first_stage", "judged")
    }
    return dataclasses.replace(record, teacher=scores[kept], **documents), found


# --- all lists ---


@dataclass
class Findings:
    """What was found, for the report.

    Attributes:
      lists: that were looked at.
      with_positive: of these, those with a positive that the teacher scored.
      judged: candidates that somebody has judged.
      unjudged: candidates of lists with a positive that nobody judged.
      suspects: of these.
      above: suspects that the teacher puts above every positive.
      ranks: suspects by their place in the first stage, from 1, by tens.
      examples: (excess, number, example), those furthest above the positive.
    """

    lists: int = 0
    with_positive: int = 0
    judged: int = 0
    unjudged: int = 0
    suspects: int = 0
    above: int = 0
    ranks: dict[int, int] = field(default_factory=dict)
    examples: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    _taken: int = 0

    def add(
        self, record: RankedList, scores: np.ndarray, found: np.ndarray, corpus: Any
    ) -> None:
        """Takes in a list as it was, and which of its documents are suspects."""
        self.lists += 1
        self.judged += int(record.judged.sum())
        positive = record.judged & (record.labels > 0)
        if not positive.any():
            return
        self.with_positive += 1
        self.unjudged += int((~record.judged).sum())
        self.suspects += int(found.sum())
        best = int(np.argmax(np.where(positive, scores, -np.inf)))
        for place in np.flatnonzero(found).tolist():
            self.above += bool(scores[place] > scores[best])
            tens = place // 10
            self.ranks[tens] = self.ranks.get(tens, 0) + 1
            # The number makes entries differ before examples are compared.
            key = (float(scores[place] - scores[best]), -self._taken)
            self._taken += 1
            if len(self.examples) == _EXAMPLES and key < self.examples[0][:2]:
                continue
            example = _example(record, scores, corpus, best, place)
            heapq.heappush(self.examples, (*key, example))
            if len(self.examples) > _EXAMPLES:
                heapq.heappop(self.examples)

    def report(self, judge: config.Judge) -> dict[str, Any]:
        """For report.json."""
        done = {"drop": "dropped", "relabel": "relabelled"}[judge.action]
        return {
            "judge": config.to_dict(judge),
            "lists": self.lists,
            "lists_with_a_positive": self.with_positive,
            "judged_candidates": self.judged,
            "unjudged_candidates": self.unjudged,
            done: self.suspects,
            "above_every_positive": self.above,
            "by_rank": {
                f"{10 * tens + 1}-{10 * tens + 10}": count
                for tens, count in sorted(self.ranks.items())
            },
            "examples": [one[-1] for one in sorted(self.examples, reverse=True)],
        }


def _example(
    record: RankedList, scores: np.ndarray, corpus: Any, best: int, place: int
) -> dict[str, Any]:
    def shown(at: int) -> dict[str, Any]:
        document = corpus[int(record.documents[at])]
        return {
            "id": document.id,
            "title": document.title[:_EXCERPT],
            "text": document.text[:_EXCERPT],
            "score": float(scores[at]),
            "rank": at + 1,
        }

    return {
        "query_id": record.query_id,
        "query": record.query,
        "positive": shown(best),
        "suspect": shown(place),
    }


def _write(run: JudgeRun) -> Manifest:
    """Writes lists, scores, report and page."""
    judge, corpus, findings = run.settings.judge, run.prepared.corpus(), Findings()
    splits = run.manifest.settings["splits"]
    lists = {split: run.prepared.lists(split) for split in splits}
    place = ScoreFacts.of(run.scores.facts).output or run.workdir / run.settings.scores
    targets = iter(load_targets(place, lists))

    def judged(split: str) -> Iterator[RankedList]:
        for record in lists[split]:
            scores = next(targets)
            result, found = judge_list(record, scores, judge)
            findings.add(record, scores, found, corpus)
            yield result

    datasets.write_lists(run.folder / LISTS, {one: judged(one) for one in splits})
    if not findings.with_positive:
        raise DataError(
            f"the stage {run.settings.name!r}: none of {findings.lists} lists has a "
            "positive that the teacher scored, so nothing can be judged; score the "
            "split train too (Score.splits), or leave judge.action at none"
        )
    report = findings.report(judge)
    storage.write_json(run.folder / REPORT, report)
    with storage.writing(run.folder / PAGE, "w") as file:
        file.write(judge_page.render(run.settings.name, report))
    share = findings.suspects / max(findings.unjudged, 1)
    done = "dropped" if judge.action == "drop" else "relabelled"
    print(
        f"[{run.settings.name}] {findings.suspects:,} of {findings.unjudged:,} "
        f"unjudged candidates ({share:.1%}) {done}; examples: {run.folder / PAGE}",
        flush=True,
    )
    read = {split: judged_lists(run.folder, split) for split in splits}
    return given.write_job(run.folder, run.manifest, read, corpus)
