"""Teacher scores from outside, as the finished scoring job that distillation reads.

`prepare` has read them (`data.given_scores`): the lists of train and unlabelled hold
the documents that have a score, and their scores. So any teacher can be distilled: an
API, another framework, a model that nothing here can load.
"""

import pathlib

import numpy as np

from ranker import config, manifests
from ranker.data.prepare import prepare
from ranker.data.records import RankedList
from ranker.errors import DataError
from ranker.manifests import Manifest
from ranker.scoring import job as jobs
from ranker.scoring import proof as proofs
from ranker.scoring.pairs import Content, ListPairs
from ranker.storage import digest

SPLITS = ("train", "unlabelled")


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
    inputs = prepared.inputs("corpus", *(f"lists/{name}" for name in SPLITS))
    manifest = Manifest(
        kind="score",
        settings={
            "splits": list(SPLITS),
            "format": "parquet",
            "chunk_pairs": settings.chunk_pairs,
        },
        inputs={**inputs, "given": digest([settings.data.given_scores, inputs])},
        facts={"teacher": "given", "teacher_facts": {}},
    )
    folder = workdir / settings.name
    with manifests.claim(folder, manifest, replace=replace) as todo:
        if not todo:
            found = manifests.load(folder)
            assert found is not None
            return found
        lists = {name: prepared.lists(name) for name in SPLITS}
        source = ListPairs(lists, prepared.corpus())
        job = jobs.open_job(
            folder, manifest, source, size=settings.chunk_pairs, format="parquet"
        )
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
        return manifest.finish(
            folder,
            output="",
            pairs=proof.pairs,
            quarantined=0,
            mean=proof.mean,
            std=proof.std,
            min=proof.min,
            max=proof.max,
        )


def _scores(records: list[RankedList], content: Content) -> np.ndarray:
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
