"""`train`: one training stage, from its config to its last checkpoint."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
import optax
from flax import nnx

from ranker import config, errors, manifests, sharding
from ranker.data.prepare import Prepared, prepare
from ranker.models.build import Head
from ranker.training import card, preemption
from ranker.training.checkpoint import Checkpoints
from ranker.training.failure import write_failure
from ranker.training.inputs import (
    STATES,
    Batches,
    Evaluate,
    make_batches,
    make_evaluate,
)
from ranker.training.objectives import make_objective
from ranker.training.optim import make_optimizer, make_schedule
from ranker.training.progress import Progress, first_wrong
from ranker.training.reporter import Reporter
from ranker.training.scorer import device_batch
from ranker.training.state import (
    Network,
    TrainState,
    init_state,
    make_network,
)
from ranker.training.step import make_step
from ranker.training.trained import KINDS
from ranker.training.weights import (
    Origin,
    check_scores,
    find_origin,
    first_params,
    model_name,
)

SHOWN = ("loss", "language", "point_mse", "margin_mse", "learning_rate")

# Which kinds of stage a stage can take its first weights from.
PARENTS = {"cpt": ("cpt",), "sft": ("cpt", "sft"), "distill": ("sft", "distill")}


def train(
    settings: config.Train, workdir: pathlib.Path, *, replace: bool = False
) -> manifests.Manifest:
    """Trains one stage in WORKDIR/NAME, or goes on from its newest checkpoint.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
      FloatingPointError: when a loss or gradient is not finite, naming the step.
      Stopped: at SIGTERM, with everything saved.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    origin = find_origin(settings, prepared)
    _check_dev(settings, prepared)
    folder = workdir / settings.name
    manifest = describe(settings, origin, prepared, workdir)
    with contextlib.ExitStack() as stack:
        claim = manifests.claim(
            folder, manifest, replace=replace, leads=jax.process_index() == 0
        )
        if not stack.enter_context(claim):
            return manifests.require(
                workdir, settings.name, kinds=(manifest.kind,), by="train"
            )
        mesh = sharding.make_mesh(settings.mesh)
        objective = make_objective(settings.objective, groups=sharding.num_shards(mesh))
        head: Head = objective.head
        network = make_network(
            origin.model, origin.vocab_size, head, mesh, settings.lora
        )
        loop, role = settings.loop, origin.role
        evaluate = make_evaluate(settings, role, prepared, network, objective)
        if loop.steps:
            tx = make_optimizer(settings.optim, loop.steps, network.abstract)
            batches = make_batches(settings, role, prepared, network, workdir)
        else:
            tx, batches = optax.identity(), None
        manifest.save(folder)
        reporter = Reporter(folder, settings.name, total=loop.steps, unit="step")
        stack.callback(reporter.close)
        params, frozen = first_params(
            settings,
            origin,
            network,
            head,
            prepared,
            workdir,
            PARENTS[manifest.kind],
            reporter,
        )
        state = init_state(network, params, tx, settings.seed)
        checkpoints = Checkpoints(
            folder, keep=loop.keep, best_metric=loop.best_metric, note=reporter.note
        )
        stack.callback(checkpoints.close)
        if batches is None:
            if "source" not in manifest.facts:
                checkpoints.save(state, 0, {}, {})
            dev = evaluate(nnx.merge_state(state.params, frozen))
            results = {"metrics": dev, "steps": 0, "checkpoint": 0}
            _report_dev(reporter, 0, results["metrics"])
            checkpoints.wait()
            return manifest.finish(folder, **results)
        stack.callback(batches.close)
        progress = Progress()
        if restored := checkpoints.restore(state):
            state, progress = restored[0], Progress(**restored[1]["progress"])
            batches.set_state(restored[1]["batches"])
            reporter.note(f"goes on from the checkpoint at step {int(state.step)}")
        reporter.resume(int(state.step))
        step = make_step(network, objective, tx, state)
        if settings.lora.rank:
            step = functools.partial(step, frozen=frozen)
        stack.enter_context(jax.set_mesh(mesh))
        results = run(
            settings,
            state,
            step,
            batches,
            network,
            checkpoints,
            reporter,
            lambda params: evaluate(nnx.merge_state(params, frozen)),
            progress,
        )
        return manifest.finish(folder, **results)


def _check_dev(settings: config.Train, prepared: Prepared) -> None:
    """Raises `ConfigError` where the best checkpoint is asked for and nothing tells."""
    metric = settings.loop.best_metric
    source = prepared.clicks if metric == "dev_language" else prepared.lists
    if metric != "none" and not len(source("dev")):
        raise config.ConfigError(
            f"loop.best_metric is {metric!r}, and the split 'dev' is empty; leave it "
            "out, or give the data a dev split"
        )


def adopt(
    settings: config.Train, workdir: pathlib.Path, *, replace: bool = False
) -> manifests.Manifest:
    """Makes a checkpoint a stage of no steps, by a manifest alone: reads no weights.

    Raises:
      ConfigError, DataError, ModelError, StageError: as `train`.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    origin = find_origin(settings, prepared)
    manifest = describe(settings, origin, prepared, workdir)
    folder = workdir / settings.name
    leads = jax.process_index() == 0
    claim = manifests.claim(folder, manifest, replace=replace, leads=leads, wait=True)
    with claim as mine:
        if mine and leads:
            manifest.finish(folder, metrics={}, steps=0, checkpoint=0)
    return manifests.require(workdir, settings.name, kinds=(manifest.kind,), by="score")


def describe(
    settings: config.Train, origin: Origin, prepared: Prepared, workdir: pathlib.Path
) -> manifests.Manifest:
    """The stage's manifest: what its result depends on; checks its parents' kinds."""
    kind = KINDS[type(settings.objective)]
    if kind == "cpt":
        pieces = ["clicks/train", "clicks/dev"]
    else:  # of a distillation's lists the scores' own key tells
        lists = ["lists/train"] if kind == "sft" else []
        pieces = ["corpus", "lists/dev", *lists]
    inputs = prepared.inputs(origin.role, *pieces)
    for name, kinds in (
        (settings.parent, PARENTS[kind]),
        (settings.scores, ("score",)),
    ):
        if name:
            parent = manifests.require(
                workdir, name, kinds=kinds, by=f"the {kind} stage {settings.name!r}"
            )
            inputs[name] = parent.key
            if name == settings.parent:
                _check_same_model(settings, origin, parent)
    return manifests.Manifest(
        kind=kind,
        settings={
            "model": config.to_dict(origin.model),
            "role": origin.role,
            **_checkpoint(settings, origin),
            **_adapters(settings),
            "objective": config.to_dict(settings.objective),
            "optim": config.to_dict(settings.optim),
            "batch": config.to_dict(settings.batch),
            "steps": settings.loop.steps,
            "length": settings.text.of(origin.role, "length"),
            "seed": settings.seed,
            **_choice(settings.loop),
        },
        inputs=inputs,
        facts={
            **prepared.manifest.facts[origin.role],
            "vocab_size": origin.vocab_size,
            **_base(settings),
            **_source(settings, origin),
            **_begins(settings, origin),
        },
    )


def _choice(loop: config.Loop) -> dict[str, Any]:
    """What the checkpoint depends on that later stages read, where it is the best."""
    if loop.result == "last":
        return {}
    return {"best": {"metric": loop.best_metric, "eval_every": loop.eval_every}}


def _checkpoint(settings: config.Train, origin: Origin) -> dict[str, Any]:
    """What the first weights depend on, where they are a checkpoint's."""
    if settings.parent or not origin.checkpoint:
        return {}
    assert isinstance(settings.model, config.Pretrained)
    return {
        "checkpoint": {
            "digest": origin.checkpoint.digest,
            "keep_layers": settings.model.keep_layers,
            "score_tokens": list(origin.checkpoint.score_tokens),
            "fresh_head": settings.model.fresh_head,
        }
    }


def _begins(settings: config.Train, origin: Origin) -> dict[str, Any]:
    """Where the weights are from, for the model card."""
    if settings.parent or not origin.checkpoint:
        return {}
    return card.origin_facts(model_name(settings), origin.checkpoint.folder)


def _source(settings: config.Train, origin: Origin) -> dict[str, Any]:
    """The checkpoint that a stage without steps is, so that it need not be copied.

    Raises:
      ConfigError: when the scores of such a stage would be drawn at random.
    """
    if settings.loop.steps:
        return {}
    if not isinstance(settings.objective, config.Language):
        check_scores(settings, origin)
    if settings.parent or settings.lora.rank or not origin.checkpoint:
        return {}
    assert isinstance(settings.model, config.Pretrained)
    folder = str(origin.checkpoint.folder.resolve())
    source = dataclasses.replace(settings.model, path=folder, revision="")
    return {"source": config.to_dict(source)}


def _adapters(settings: config.Train) -> dict[str, Any]:
    return {"lora": config.to_dict(settings.lora)} if settings.lora.rank else {}


def _base(settings: config.Train) -> dict[str, Any]:
    """What the adapters belong to: a stage's name, or a checkpoint."""
    base = settings.parent or config.to_dict(settings.model)
    return {"base": base} if settings.lora.rank else {}


# Of a model: how it computes, not what its weights are.
_FREE = ("dtype", "remat", "dropout")


def _check_same_model(
    settings: config.Train, origin: Origin, parent: manifests.Manifest
) -> None:
    ours, theirs = config.to_dict(origin.model), parent.settings["model"]
    ours = json.loads(json.dumps(ours))  # as the parent's went: tuples become lists
    differing = [
        f"{name} {theirs.get(name)} -> {ours.get(name)}"
        for name in {**theirs, **ours}
        if name not in _FREE and ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise errors.StageError(
            f"the stage {settings.name!r} and its parent {settings.parent!r} have "
            f"different models: {', '.join(differing)}; make them equal"
        )


def run(
    settings: config.Train,
    state: TrainState,
    step: Callable,
    batches: Batches,
    network: Network,
    checkpoints: Checkpoints,
    reporter: Reporter,
    evaluate: Evaluate,
    progress: Progress,
) -> dict[str, Any]:
    """The loop: step, log, evaluate, save. Returns what the stage has come to.

    Everything that it writes is a function of the step's number, not of where this
    process began, so that a run in several pieces leaves what one in one piece does.
    """
    loop = settings.loop
    schedule = make_schedule(settings.optim, loop.steps)
    waiting: list[dict[str, jax.Array]] = []  # metrics still on the devices
    tokens = 0  # since the last report, in this process
    first = int(state.step)
    reporter.start(first)
    with preemption.watch() as is_stopped:
        for number in range(first + 1, loop.steps + 1):
            batch = device_batch(next(batches), network, leading=1)
            state, values = step(state, batch)
            waiting.append(values)
            stop, end = is_stopped(number), number == loop.steps
            logs = number % loop.log_every == 0 or number == 1 or end
            evaluates = end or (loop.eval_every and number % loop.eval_every == 0)
            saves = number % loop.save_every == 0 or end or stop
            # Seen before the batches that it would go back to are forgotten.
            looks = len(waiting) == STATES
            if not (logs or evaluates or saves or looks):
                continue
            taken: list[dict[str, float]] = [
                {name: float(value) for name, value in one.items()}
                for one in jax.device_get(waiting)
            ]
            waiting = []
            if (wrong := first_wrong(taken)) is not None:
                progress.add(taken[:wrong])
                back = len(taken) - wrong  # the batches of that step and later ones
                batches.set_state(batches.get_state(back))
                at = number + 1 - back
                _fail(at, taken[wrong], state, batches, checkpoints, progress)
            progress.add(taken)
            progress.check_idle(number, min(loop.idle_steps, loop.steps))
            tokens += int(sum(one["tokens"] for one in taken))
            if logs:
                values = progress.report()
                values["learning_rate"] = float(np.asarray(schedule(number - 1)))
                reporter.progress(number, tokens=tokens, values=values, shown=SHOWN)
                tokens = 0
            measured: dict[str, float] = {}
            if evaluates:
                measured = progress.dev = evaluate(state.params)
                _report_dev(reporter, number, measured)
                saves = saves or checkpoints.is_better(measured)
            if saves:
                rest = _beside(progress, batches)
                checkpoints.save(state, number, rest, measured)
            if stop and not end:
                checkpoints.wait()
                raise errors.Stopped(
                    f"{settings.name} was told to stop and has saved step {number} of "
                    f"{loop.steps}; the same command goes on from there"
                )
    checkpoints.wait()
    best = checkpoints.best() if loop.result == "best" else None
    return {
        "metrics": {**progress.last, **progress.dev},
        "steps": loop.steps,
        "checkpoint": best[0] if best else loop.steps,
    }


def _beside(progress: Progress, batches: Batches) -> dict[str, Any]:
    """What a checkpoint holds beside the state."""
    return {"progress": progress.to_dict(), "batches": batches.get_state()}


def _fail(
    number: int,
    values: dict[str, float],
    state: TrainState,
    batches: Batches,
    checkpoints: Checkpoints,
    progress: Progress,
) -> NoReturn:
    """Stops at the step `number`, whose loss or gradient is not finite.

    State and batches are those that the step began from. They are saved, so that the
    same command takes that very step again.
    """
    before = number - 1
    if before not in checkpoints.steps:
        checkpoints.save(state, before, _beside(progress, batches), {})
    checkpoints.wait()
    batch = next(batches)
    facts = {"checkpoint": before, "metrics": values, "records": batches.names()}
    folder = write_failure(checkpoints.folder, number, batch, facts)
    what = "gradient" if math.isfinite(values["loss"]) else "loss"
    value = values["l2_grads" if what == "gradient" else "loss"]
    raise FloatingPointError(
        f"the {what} is {value} at step {number}; its batch is in {folder}, and the "
        f"state before it is the checkpoint at step {before}: the same command takes "
        "that step again (with JAX_DEBUG_NANS=1 it stops where the number is made). "
        "Lower optim.learning_rate, or look at the data of that step"
    )


def _report_dev(reporter: Reporter, step: int, values: dict[str, float]) -> None:
    if values:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        reporter.note(f"step {step}  {shown}")
        reporter.record(step, values)
