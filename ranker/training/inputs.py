"""What a training stage reads: its batches, and what it is measured on meanwhile."""

import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx

from ranker import config, manifest, sharding
from ranker.batch import Batch
from ranker.data import pipeline
from ranker.data.prepare import Prepared
from ranker.data.scores import Joined, load_scores
from ranker.losses.reduction import WeightedSum
from ranker.metrics.agreement import fit_affine
from ranker.training.evaluation import mean_ndcg
from ranker.training.objectives import Objective
from ranker.training.scoring import device_batch, make_score, score_lists
from ranker.training.state import Network

_SCORED_AT_ONCE = 16  # pairs a list of a training batch, when measuring on dev

Evaluate = Callable[[Any], dict[str, float]]  # parameters -> metrics


def make_batches(
    settings: config.Train,
    role: config.Role,
    prepared: Prepared,
    network: Network,
    workdir: pathlib.Path,
) -> grain.DatasetIterator:
    """Endless training batches of the stage, read as `role` does.

    Raises:
      ConfigError: when a micro-batch does not divide over the mesh.
    """
    shards = sharding.num_shards(network.mesh)
    micro = settings.batch.size // settings.batch.accumulate
    if micro % shards:
        raise config.ConfigError(
            f"a micro-batch of {micro} (batch.size {settings.batch.size} / "
            f"batch.accumulate {settings.batch.accumulate}) is not divisible by the "
            f"{shards} data shards of the mesh; set batch.size to a multiple of "
            f"{shards * settings.batch.accumulate}"
        )
    common: dict[str, Any] = dict(
        batch=settings.batch,
        seed=settings.seed,
        share=pipeline.Share.of_this_process(),
    )
    if isinstance(settings.objective, config.Language):
        return _texts(settings, role, prepared, "train", **common)
    encoder = _encoder(settings, role, prepared)
    if isinstance(settings.objective, config.Distillation):
        lists, targets = scored_lists(settings, prepared, workdir)
        return pipeline.list_batches(lists, encoder, targets=targets, **common)
    return pipeline.list_batches(prepared.lists("train"), encoder, **common)


def _texts(
    settings: config.Train,
    role: config.Role,
    prepared: Prepared,
    split: str,
    **common: Any,
) -> grain.DatasetIterator:
    return pipeline.text_batches(
        prepared.clicks(split),
        prepared.tokenizer(role),
        length=settings.text.of(role, "length"),
        **common,
    )


def _encoder(
    settings: config.Train, role: config.Role, prepared: Prepared
) -> pipeline.ListEncoder:
    tokens = settings.text.of(role, "length")
    return pipeline.ListEncoder(prepared.corpus(), prepared.tokenizer(role), tokens)


def scored_lists(
    settings: config.Train, prepared: Prepared, workdir: pathlib.Path
) -> tuple[Joined, list[np.ndarray]]:
    """Every list that the teacher has scored, and its scores on the scale asked for."""
    account = manifest.require(
        workdir, settings.scores, kinds=("score",), by=f"the stage {settings.name!r}"
    )
    splits = account.settings["splits"]
    lists = [prepared.lists(split) for split in splits]
    targets = [
        scores
        for split, source in zip(splits, lists, strict=True)
        for scores in load_scores(workdir / settings.scores, split, source)
    ]
    objective = settings.objective
    assert isinstance(objective, config.Distillation)
    scale, shift = _target_scale(objective, account, prepared, splits, targets)
    targets = [(scores * scale + shift).astype(np.float32) for scores in targets]
    return Joined(lists), targets


def _target_scale(
    objective: config.Distillation,
    account: manifest.Manifest,
    prepared: Prepared,
    splits: list[str],
    targets: list[np.ndarray],
) -> tuple[float, float]:
    """(scale, shift) that takes raw teacher scores to what the student learns.

    Raises:
      ConfigError: for `labels`, when no judged list was scored, or all its scores or
        grades are equal.
    """
    if objective.target_scale == "data":
        std = max(account.facts["std"], 1e-6)
        return 1 / std, -account.facts["mean"] / std
    if objective.target_scale == "labels":
        if "train" not in splits:
            raise config.ConfigError(
                "objective.target_scale=labels fits the teacher's scores to the grades "
                f"of the split 'train', and the teacher scored {splits}; score 'train' "
                "too (Score.splits), or choose another scale"
            )
        before = sum(len(prepared.lists(s)) for s in splits[: splits.index("train")])
        train = prepared.lists("train")
        grades = np.concatenate([train[i].labels for i in range(len(train))])
        scores = np.concatenate(targets[before : before + len(train)])
        slope, intercept = fit_affine(scores, grades)
        if not slope > 0:
            raise config.ConfigError(
                "objective.target_scale=labels: the line through the teacher's scores "
                f"and the grades of 'train' has the slope {slope:.3g}, so higher "
                "scores do not mean higher grades; choose another scale, or a better "
                "teacher"
            )
        return slope, intercept
    return 1.0, 0.0


def make_evaluate(
    settings: config.Train,
    role: config.Role,
    prepared: Prepared,
    network: Network,
    objective: Objective,
) -> Evaluate:
    """What measures parameters on dev: the language loss, or NDCG@5; {} without dev."""
    if isinstance(settings.objective, config.Language):
        return _language_evaluate(settings, role, prepared, network, objective)
    encoder, dev = _encoder(settings, role, prepared), prepared.lists("dev")
    score = make_score(network)
    rows = settings.batch.size * _SCORED_AT_ONCE

    def evaluate(params: Any) -> dict[str, float]:
        if not len(dev):
            return {}
        scores = score_lists(score, params, network, dev, encoder, rows=rows)
        return {"dev_ndcg@5": mean_ndcg(dev, encoder.corpus, scores)}

    return evaluate


def _language_evaluate(
    settings: config.Train,
    role: config.Role,
    prepared: Prepared,
    network: Network,
    objective: Objective,
) -> Evaluate:
    size = settings.batch.size // settings.batch.accumulate
    count = len(prepared.clicks("dev")) // size

    @jax.jit
    def loss(params: Any, batch: Batch) -> WeightedSum:
        model = nnx.merge(network.graphdef, params)
        return objective.parts(model, batch, None)["language"]

    def evaluate(params: Any) -> dict[str, float]:
        if not count:
            return {}
        batches = _texts(
            settings,
            role,
            prepared,
            "dev",
            batch=config.Batch(size=size),
            seed=0,
            share=pipeline.Share.of_this_process(),
        )
        parts = []
        for _ in range(count):
            micro = jax.tree.map(lambda leaf: leaf[0], next(batches))
            parts.append(loss(params, device_batch(micro, network, leading=0)))
        total = sum(parts[1:], start=parts[0])
        return {"dev_language": float(total.mean())}

    return evaluate
