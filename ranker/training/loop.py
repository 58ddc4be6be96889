"""`train`: one training stage, from its config to its last checkpoint."""

import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from ranker import config, manifest, sharding
from ranker.data.pipeline import skip
from ranker.data.prepare import NAME as PREPARE
from ranker.data.prepare import Prepared, prepare
from ranker.models.build import Head
from ranker.training.checkpoint import Checkpoints
from ranker.training.inputs import Evaluate, make_batches, make_evaluate
from ranker.training.objectives import make_objective
from ranker.training.optim import make_optimizer, make_schedule
from ranker.training.report import Reporter
from ranker.training.scoring import device_batch
from ranker.training.state import (
    Network,
    TrainState,
    init_state,
    make_network,
)
from ranker.training.step import make_step
from ranker.training.trained import KINDS
from ranker.training.weights import Origin, find_origin, first_params

SHOWN = ("loss", "language", "point_mse", "margin_mse", "learning_rate")

# Which kinds of stage a stage can take its first weights from.
PARENTS = {"cpt": ("cpt",), "sft": ("cpt", "sft"), "distill": ("sft", "distill")}


def train(
    settings: config.Train, workdir: pathlib.Path, *, replace: bool = False
) -> manifest.Manifest:
    """Trains one stage in WORKDIR/NAME, or goes on from its newest checkpoint.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
      FloatingPointError: when the loss is not finite, naming the steps.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    folder = workdir / settings.name
    origin = find_origin(settings, prepared)
    account = describe(settings, origin, prepared, workdir)
    if manifest.is_done(folder, account, replace=replace):
        return manifest.require(
            workdir, settings.name, kinds=(account.kind,), by="train"
        )
    mesh = sharding.make_mesh(settings.mesh)
    objective = make_objective(settings.objective, groups=sharding.num_shards(mesh))
    head: Head = objective.head
    network = make_network(origin.model, origin.vocab_size, head, mesh, settings.lora)
    steps = settings.loop.steps
    role = origin.role
    evaluate = make_evaluate(settings, role, prepared, network, objective)
    if steps:
        tx = make_optimizer(settings.optim, steps, network.abstract)
        batches = make_batches(settings, role, prepared, network, workdir)
    else:
        tx, batches = optax.identity(), None
    account.save(folder)
    with contextlib.ExitStack() as stack:
        reporter = Reporter(
            folder, settings.name, total=settings.loop.steps, unit="step"
        )
        stack.callback(reporter.close)
        params, frozen = first_params(
            settings,
            origin,
            network,
            head,
            prepared,
            workdir,
            PARENTS[account.kind],
            reporter,
        )
        state = init_state(network, params, tx, settings.seed)
        checkpoints = Checkpoints(folder, keep=settings.loop.keep)
        stack.callback(checkpoints.close)
        if batches is None:
            checkpoints.save(state, 0, {})
            dev = evaluate(nnx.merge_state(state.params, frozen))
            results = {"metrics": dev, "steps": 0}
            _report_dev(reporter, 0, results["metrics"])
            return account.finish(folder, **results)
        if checkpoints.latest is not None:
            state, _ = checkpoints.restore(state)
            skip(batches, int(state.step))
            reporter.note(f"goes on from the checkpoint at step {checkpoints.latest}")
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
        )
    return account.finish(folder, **results)


def describe(
    settings: config.Train, origin: Origin, prepared: Prepared, workdir: pathlib.Path
) -> manifest.Manifest:
    """The stage's manifest: what its result depends on; checks its parents' kinds."""
    kind = KINDS[type(settings.objective)]
    inputs = {PREPARE: prepared.account.key}
    for name, kinds in (
        (settings.parent, PARENTS[kind]),
        (settings.scores, ("score",)),
    ):
        if name:
            parent = manifest.require(
                workdir, name, kinds=kinds, by=f"the {kind} stage {settings.name!r}"
            )
            inputs[name] = parent.key
            if name == settings.parent:
                _check_same_model(settings, origin, parent)
    return manifest.Manifest(
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
        },
        inputs=inputs,
        facts={
            **prepared.account.facts[origin.role],
            "vocab_size": origin.vocab_size,
            **_base(settings),
        },
    )


def _checkpoint(settings: config.Train, origin: Origin) -> dict[str, Any]:
    """What the first weights depend on, where they are a checkpoint's."""
    if settings.parent or not origin.checkpoint:
        return {}
    assert isinstance(settings.model, config.Pretrained)
    return {
        "checkpoint": {
            "digest": origin.checkpoint.digest,
            "keep_layers": list(settings.model.keep_layers),
            "score_tokens": list(settings.model.score_tokens),
        }
    }


def _adapters(settings: config.Train) -> dict[str, Any]:
    return {"lora": config.to_dict(settings.lora)} if settings.lora.rank else {}


def _base(settings: config.Train) -> dict[str, Any]:
    """What the adapters belong to: a stage's name, or a checkpoint."""
    base = settings.parent or config.to_dict(settings.model)
    return {"base": base} if settings.lora.rank else {}


def _check_same_model(
    settings: config.Train, origin: Origin, parent: manifest.Manifest
) -> None:
    ours, theirs = config.to_dict(origin.model), parent.settings["model"]
    ours = json.loads(json.dumps(ours))  # as the parent's went: tuples become lists
    differing = [
        f"{name} {theirs.get(name)} -> {ours.get(name)}"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise manifest.StageError(
            f"the stage {settings.name!r} and its parent {settings.parent!r} have "
            f"different models: {', '.join(differing)}; make them equal"
        )


def run(
    settings: config.Train,
    state: TrainState,
    step: Callable,
    batches: grain.DatasetIterator,
    network: Network,
    checkpoints: Checkpoints,
    reporter: Reporter,
    evaluate: Evaluate,
) -> dict[str, Any]:
    """The loop: step, log, evaluate, save. Returns the last metrics."""
    loop = settings.loop
    schedule = make_schedule(settings.optim, loop.steps)
    window: list[dict[str, jax.Array]] = []
    last: dict[str, float] = {}
    first = int(state.step)
    reporter.start(first)
    for number in range(first + 1, loop.steps + 1):
        batch = device_batch(next(batches), network, leading=1)
        state, values = step(state, batch)
        window.append(values)
        if number % loop.log_every == 0 or number == loop.steps or number == first + 1:
            last, tokens = _summary(window, number)
            last["learning_rate"] = float(np.asarray(schedule(number - 1)))
            reporter.progress(number, tokens=tokens, values=last, shown=SHOWN)
            window = []
        if loop.eval_every and number % loop.eval_every == 0 and number < loop.steps:
            _report_dev(reporter, number, evaluate(state.params))
        if number % loop.save_every == 0 or number == loop.steps:
            checkpoints.save(state, number, batches.get_state())
    dev = evaluate(state.params)
    _report_dev(reporter, loop.steps, dev)
    checkpoints.wait()
    return {"metrics": {**last, **dev}, "steps": loop.steps}


def _summary(
    window: list[dict[str, jax.Array]], last_step: int
) -> tuple[dict[str, float], int]:
    """Means over the steps since the last report, and their tokens; stops on NaN."""
    values: list[dict[str, float]] = jax.device_get(window)
    losses = [float(one["loss"]) for one in values]
    bad = [
        last_step - len(values) + 1 + place
        for place, loss in enumerate(losses)
        if not math.isfinite(loss)
    ]
    if bad:
        raise FloatingPointError(
            f"the loss is {losses[bad[0] - last_step + len(values) - 1]} at step "
            f"{bad[0]} (reported at step {last_step}); lower optim.learning_rate, or "
            "look at the data of that step. The checkpoints before it are kept"
        )
    tokens = int(sum(one["tokens"] for one in values))
    names = [name for name in values[0] if name != "tokens"]
    means = {name: float(np.mean([one[name] for one in values])) for name in names}
    return means, tokens


def _report_dev(reporter: Reporter, step: int, values: dict[str, float]) -> None:
    if values:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        reporter.note(f"step {step}  {shown}")
        reporter.record(step, values)
