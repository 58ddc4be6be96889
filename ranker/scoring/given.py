"""Teacher scores from outside, as the finished scoring job that distillation reads.

`prepare` has read them (`data.given_scores`): the lists of train and unlabelled hold
the documents that have a score, and their scores. So any teacher can be distilled: an
API, another framework, a model that nothing here can load.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ranker import config, manifests
from ranker.data.pairs import Indexed
from ranker.data.prepare import Prepared, prepare
from ranker.data.records import Document, RankedList
from ranker.errors import DataError
from ranker.manifests import Manifest, ScoreFacts
from ranker.scoring import job as jobs
from ranker.scoring import proof as proofs
from ranker.scoring.pairs import ChunkPairs, ListPairs
from ranker.storage import digest

SPLITS = ("train", "unlabelled")


@dataclass(frozen=True)
class GivenRun:
    """The stage with its manifest."""

    settings: config.Given
    workdir: pathlib.Path
    prepared: Prepared
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage."""
        return self.workdir / self.settings.name


def plan(
    settings: config.Given,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> GivenRun:
    """The stage with its manifest; no other stage is needed."""
    del planned
    inputs = prepared.inputs("corpus", *(f"lists/{name}" for name in SPLITS))
    manifest = Manifest(
        kind="score",
        settings={
            "splits": list(SPLITS),
            "format": "parquet",
            "chunk_pairs": settings.chunk_pairs,
        },
        inputs={**inputs, "given": digest([settings.data.given_scores, inputs])},
        facts=ScoreFacts(teacher="given", teacher_facts={}).to_dict(),
    )
    return GivenRun(settings, workdir, prepared, manifest)


def given(
    settings: config.Given, workdir: pathlib.Path, *, replace: bool = False
) -> Manifest:
    """Writes the scores that came with the data as a scoring job.

    Returns:
      The finished stage's manifest, of the kind "score".

    Raises:
      DataError: when the data came without scores.
      StageError: when the workdir holds other data, or another run works on it.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    return execute(plan(settings, prepared, workdir), replace=replace)


def execute(run: GivenRun, *, replace: bool = False) -> Manifest:
    """Runs a planned stage, in the first process; what is done is left alone."""
    return manifests.complete(
        run.folder, run.manifest, lambda: _write(run), replace=replace
    )


def _write(run: GivenRun) -> Manifest:
    lists = {name: run.prepared.lists(name) for name in SPLITS}
    return write_job(run.folder, run.manifest, lists, run.prepared.corpus())


def write_job(
    folder: pathlib.Path,
    manifest: Manifest,
    lists: Mapping[str, Indexed[RankedList]],
    corpus: Indexed[Document],
) -> Manifest:
    """Writes the scores that lists have as a scoring job, and finishes the stage.

    Args:
      folder: of the stage.
      manifest: of the stage, of the kind "score".
      lists: of each split, in order, with their `teacher` scores.
      corpus: documents by row.
    """
    source = ListPairs(lists, corpus)
    size = manifest.settings["chunk_pairs"]
    job = jobs.open_job(folder, manifest, source, size=size, format="parquet")
    manifest.save(folder)
    for number in job.missing():
        chunk = job.chunks[number]
        records = [lists[chunk.source][chunk.begin + i] for i in range(chunk.count)]
        content = source.read(chunk)
        jobs.save_chunk(
            job,
            number,
            content,
            _scores(records, content),
            seconds=0.0,
            chips=0,
            tokens=0,
            device="given",
            code="given",
        )
    proof = proofs.verify(job)
    facts = dataclasses.replace(
        ScoreFacts.of(manifest.facts),
        pairs=proof.pairs,
        quarantined=0,
        mean=proof.mean,
        std=proof.std,
        min=proof.min,
        max=proof.max,
    )
    return manifest.finish(folder, facts)


def _scores(records: list[RankedList], content: ChunkPairs) -> np.ndarray:
    """float32 [n], the scores of a chunk's pairs."""
    without = [
        one.query_id for one in records if len(one.teacher) != len(one.documents)
    ]
    if without:
        raise DataError(
            f"{len(without)} lists came without scores, the first of query "
            f"{without[0]!r}; name scores with --config.given_scores"
        )
    none = [np.zeros(0, np.float32)]
    found = np.concatenate([one.teacher for one in records] or none)
    assert len(found) == len(content.pairs)
    return found
