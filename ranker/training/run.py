"""One training stage as it is to be run: its settings, inputs, model and manifest."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from ranker import config, errors, manifests, sharding
from ranker.data.prepare import Prepared
from ranker.manifests import Manifest, TrainFacts, TrainSettings
from ranker.metrics.measures import COUNTS, parse_measure
from ranker.training import card
from ranker.training.objectives import Objective, make_objective
from ranker.training.origin import (
    Origin,
    check_scores,
    find_origin,
    model_name,
)
from ranker.training.state import Network, make_network
from ranker.training.trained import KINDS

# Which kinds of stage a stage can take its first weights from.
PARENTS = {"cpt": ("cpt",), "sft": ("cpt", "sft"), "distill": ("sft", "distill")}


@dataclass(frozen=True)
class TrainingRun:
    """What the functions of a training stage share; `plan` makes one.

    The mesh and what lies on it are made when they are first asked for: a plan starts
    no device.
    """

    settings: config.Train
    workdir: pathlib.Path
    prepared: Prepared
    origin: Origin
    manifest: Manifest

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage."""
        return self.workdir / self.settings.name

    @property
    def role(self) -> config.Role:
        """Whose tokenizer and template the model reads."""
        return self.origin.role

    @property
    def by(self) -> str:
        """The stage's name, for messages."""
        return f"the stage {self.settings.name!r}"

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return sharding.make_mesh(self.settings.mesh)

    @functools.cached_property
    def objective(self) -> Objective:
        """What is minimised."""
        groups = sharding.num_shards(self.mesh)
        passages = self.settings.text.passages(self.role)
        objective = self.settings.objective
        return make_objective(objective, groups=groups, passages=passages)

    @functools.cached_property
    def network(self) -> Network:
        """The model on the mesh, without its numbers."""
        return make_network(
            self.origin.model,
            self.origin.vocab_size,
            self.objective.head,
            self.mesh,
            self.settings.lora,
            position_bias=self.objective.position_bias,
        )


def _digest_of(path: str) -> str:
    """Of a file's content; another content makes another stage."""
    try:
        with pathlib.Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise config.ConfigError(
            f"click_lists is {path!r}, which cannot be read ({error.strerror}); write "
            "it by python -m ranker.online impressions --out"
        ) from error


def plan(
    settings: config.Train,
    prepared: Prepared,
    workdir: pathlib.Path,
    planned: Mapping[str, Manifest] | None = None,
) -> TrainingRun:
    """The stage with its manifest: what its result depends on. Computes nothing.

    Args:
      settings: of the stage.
      prepared: data of the workdir.
      workdir: folder of all stages.
      planned: stages as a dry run would leave them.

    Raises:
      ConfigError, ModelError, StageError: when it cannot be run from what is there.
    """
    check_metric(settings)
    origin = find_origin(settings, prepared)
    _check_dev(settings, prepared)
    kind = KINDS[type(settings.objective)]
    if kind == "cpt":
        pieces = ["clicks/train", "clicks/dev"]
    else:  # of a distillation's lists the scores' own key tells
        judged = kind == "sft" and settings.judged_lists and not settings.negatives
        lists = ["lists/train"] if judged else []
        pieces = ["corpus", "lists/dev", *lists]
    inputs = prepared.inputs(origin.role, *pieces)
    if settings.click_lists:
        inputs["click lists"] = _digest_of(settings.click_lists)
    for name, kinds in (
        (settings.parent, PARENTS[kind]),
        (settings.scores, ("score",)),
        (settings.negatives, ("score",)),
    ):
        if name:
            by = f"the {kind} stage {settings.name!r}"
            parent = manifests.require_stage(
                workdir, name, kinds=kinds, by=by, planned=planned
            )
            inputs[name] = parent.key
            if name == settings.negatives:
                _check_judged(parent, name, by)
            if name == settings.parent:
                _check_same_model(settings, origin, parent)
    manifest = Manifest(
        kind=kind,
        settings=_settings(settings, origin).to_dict(),
        inputs=inputs,
        facts=_facts(settings, origin, prepared).to_dict(),
    )
    return TrainingRun(settings, workdir, prepared, origin, manifest)


def _settings(settings: config.Train, origin: Origin) -> TrainSettings:
    """What the stage's result depends on, beside its inputs."""
    loop, checkpoint, best = settings.loop, None, None
    passages = settings.text.passages(origin.role)
    language = isinstance(settings.objective, config.Language)
    if origin.checkpoint and not settings.parent:
        assert isinstance(settings.model, config.Pretrained)
        checkpoint = {
            "digest": origin.checkpoint.digest,
            "keep_layers": settings.model.keep_layers,
            "score_tokens": list(origin.checkpoint.score_tokens),
            "fresh_head": settings.model.fresh_head,
        }
    if loop.result == "best" or loop.patience:  # the result is another checkpoint
        best = {
            "metric": loop.best_metric,
            "eval_every": loop.eval_every,
            "eval_queries": loop.eval_queries,
            "patience": loop.patience,
            "result": loop.result,
        }
    return TrainSettings(
        model=config.to_dict(origin.model),
        role=origin.role,
        checkpoint=checkpoint,
        lora=config.to_dict(settings.lora) if settings.lora.rank else None,
        objective=config.to_dict(settings.objective),
        optim=config.to_dict(settings.optim),
        batch=config.to_dict(settings.batch),
        steps=None if loop.epochs else loop.steps,
        epochs=float(loop.epochs) or None,
        length=settings.text.of(origin.role, "length"),
        seed=settings.seed,
        best=best,
        passages=dataclasses.asdict(passages)
        if passages.most > 1 and not language
        else None,
    )


def _facts(settings: config.Train, origin: Origin, prepared: Prepared) -> TrainFacts:
    base = None
    if settings.lora.rank:  # what the adapters belong to: a stage, or a checkpoint
        base = settings.parent or config.to_dict(settings.model)
    reads = prepared.facts.of_role(origin.role)
    return TrainFacts(
        tokenizer=reads.tokenizer,
        template=reads.template,
        vocab_size=origin.vocab_size,
        base=base,
        source=_source(settings, origin),
        begins_from=_begins(settings, origin),
    )


def _begins(settings: config.Train, origin: Origin) -> dict[str, Any] | None:
    """Where the weights are from, for the model card."""
    if settings.parent or not origin.checkpoint:
        return None
    return card.base_of(model_name(settings), origin.checkpoint.folder)


def _source(settings: config.Train, origin: Origin) -> dict[str, Any] | None:
    """The checkpoint that a stage without steps is, so that it need not be copied.

    Raises:
      ConfigError: when the scores of such a stage would be drawn at random.
    """
    if settings.loop.steps:
        return None
    if not isinstance(settings.objective, config.Language):
        check_scores(settings, origin)
    if settings.parent or settings.lora.rank or not origin.checkpoint:
        return None
    assert isinstance(settings.model, config.Pretrained)
    folder = str(origin.checkpoint.folder.resolve())
    return config.to_dict(dataclasses.replace(settings.model, path=folder, revision=""))


def check_metric(settings: config.Train) -> None:
    """Raises `ConfigError` for an unknown best_metric, before any work begins."""
    name = settings.loop.best_measure
    try:
        base = parse_measure(name).base if name else ""
        if base in (*COUNTS, "RBP-residual", "Judged"):
            raise ValueError(f"{base} does not tell which ranking is better")
    except ValueError as error:
        raise config.ConfigError(
            f"stage {settings.name!r}: loop.best_metric is "
            f"{settings.loop.best_metric!r}, dev_ before a measure: {error}"
        ) from error


def _check_dev(settings: config.Train, prepared: Prepared) -> None:
    """Raises `ConfigError` where the best checkpoint is asked for and nothing tells."""
    metric = settings.loop.best_metric
    source = prepared.clicks if metric == config.DEV_LANGUAGE else prepared.lists
    if metric != "none" and not len(source("dev")):
        raise config.ConfigError(
            f"loop.best_metric is {metric!r}, but the split 'dev' is empty; leave it "
            "out, or give the data a dev split"
        )


def _check_judged(parent: Manifest, name: str, by: str) -> None:
    if "judge" not in parent.settings:
        raise errors.StageError(
            f"{by} learns from lists whose negatives a teacher has judged, and "
            f"{name!r} is a stage of scores alone; name one of config.Judging"
        )


# Of a score's head alone, which a language model does not have.
_OF_HEAD = ("grades", "head_bias", "head_activation", "pooling")


def _check_same_model(settings: config.Train, origin: Origin, parent: Manifest) -> None:
    ours, theirs = config.to_dict(origin.model), parent.settings["model"]
    ours = json.loads(json.dumps(ours))  # as the parent's went: tuples become lists
    head = _OF_HEAD if parent.kind == "cpt" else ()
    free = (*config.FREE_FIELDS, *head)
    differing = [
        f"{name} {theirs.get(name)} -> {ours.get(name)}"
        for name in {**theirs, **ours}
        if name not in free and ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise errors.StageError(
            f"the stage {settings.name!r} and its parent {settings.parent!r} have "
            f"different models: {', '.join(differing)}; make them equal"
        )
