"""`score`: the teacher scores the candidates of many queries, offline."""

import contextlib
import dataclasses
import pathlib

import numpy as np

from ranker import config, manifest, sharding
from ranker.data.prepare import prepare
from ranker.data.scores import load_scores, path_of, save_scores
from ranker.manifest import Manifest
from ranker.models.folder import resolve_folder
from ranker.training.loop import adopt
from ranker.training.report import Reporter
from ranker.training.scoring import make_score, score_lists
from ranker.training.trained import load_trained

_REPORT_EVERY = 50  # batches


def score(
    settings: config.Score, workdir: pathlib.Path, *, replace: bool = False
) -> Manifest:
    """Scores the settings' splits into WORKDIR/NAME, a Parquet file each.

    A split that is already there is kept, so a run that was stopped goes on with the
    next one.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
      FloatingPointError: at a score that is not finite.
    """
    settings = with_teacher(settings, workdir, replace=replace)
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    by = f"the score stage {settings.name!r}"
    parent = manifest.require(
        workdir, settings.teacher, kinds=("sft", "distill"), by=by
    )
    account = Manifest(
        kind="score",
        settings={"splits": list(settings.splits)},
        inputs={
            **prepared.inputs("corpus", *(f"lists/{one}" for one in settings.splits)),
            **prepared.inputs(parent.settings["role"]),
            settings.teacher: parent.key,
        },
        facts={"teacher": settings.teacher, "teacher_facts": parent.facts},
    )
    folder = workdir / settings.name
    if manifest.is_done(folder, account, replace=replace):
        return manifest.require(workdir, settings.name, kinds=("score",), by=by)
    mesh = sharding.make_mesh(settings.mesh)
    teacher = load_trained(
        workdir, settings.teacher, prepared, mesh, kinds=("sft", "distill"), by=by
    )
    account.save(folder)
    encoder, corpus = teacher.encoder(prepared), prepared.corpus()
    compiled = make_score(teacher.network)
    everything = []
    for split in settings.splits:
        lists = prepared.lists(split)
        if not path_of(folder, split).exists():
            total = sum(len(lists[i].documents) for i in range(len(lists)))
            reporter = Reporter(
                folder, f"{settings.name}/{split}", total=total, unit="pair"
            )
            with contextlib.closing(reporter):
                scores = score_lists(
                    compiled,
                    teacher.params,
                    teacher.network,
                    lists,
                    encoder,
                    rows=settings.rows,
                    progress=_every(reporter, _REPORT_EVERY * settings.rows),
                )
            if reporter.active:
                save_scores(folder, split, lists, corpus, scores)
        everything += load_scores(folder, split, lists)
    flat = np.concatenate(everything) if everything else np.zeros(0, np.float32)
    if not len(flat):
        raise manifest.StageError(
            f"{by}: the splits {', '.join(settings.splits)} hold no pair to score"
        )
    return account.finish(
        folder,
        pairs=len(flat),
        mean=float(flat.mean(dtype=np.float64)),
        std=float(flat.std(dtype=np.float64)),
        min=float(flat.min()),
        max=float(flat.max()),
    )


def _every(reporter: Reporter, pairs: int):
    """A progress function that reports each time that many pairs more are done."""
    reporter.start(0)
    reported = tokens_since = 0

    def progress(done: int, tokens: int) -> None:
        nonlocal reported, tokens_since
        tokens_since += tokens
        if done - reported >= pairs or done == reporter.total:
            reporter.progress(done, tokens=tokens_since, values={})
            reported, tokens_since = done, 0

    return progress


def with_teacher(
    settings: config.Score, workdir: pathlib.Path, *, replace: bool
) -> config.Score:
    """The settings with a stage as the teacher, where they name a checkpoint.

    The stage `teacher` is a manifest alone; evaluate and export know it like any other.

    Raises:
      ConfigError, DataError, ModelError, StageError: as `train`.
    """
    if "/" not in settings.teacher:
        return settings
    resolve_folder(settings.teacher)  # a wrong name is not its tokenizer's fault
    tokenizer = settings.text.teacher_tokenizer or settings.teacher
    text = dataclasses.replace(settings.text, teacher_tokenizer=tokenizer)
    stage = config.Train(
        data=settings.data,
        text=text,
        mesh=settings.mesh,
        name="teacher",
        model=config.Pretrained(path=settings.teacher, dtype=settings.dtype),
        role="teacher",
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1.0, warmup=0),  # no step is made
        batch=config.Batch(size=1),
        loop=config.Loop(steps=0),
    )
    adopt(stage, workdir, replace=replace)
    return dataclasses.replace(settings, text=text, teacher=stage.name)
