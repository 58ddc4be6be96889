"""`train`: one training stage, from its config to its last checkpoint."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ranker import chips, config, errors, manifests, processes, storage
from ranker.data.prepare import prepare
from ranker.manifests import Manifest, TrainFacts, TrainResults
from ranker.models.attention import choose_kernel
from ranker.models.build import POSITION_BIAS
from ranker.models.flops import model_flops
from ranker.models.huggingface import flat
from ranker.training import preemption, profile
from ranker.training.checkpoint import Checkpoints
from ranker.training.epochs import epochs_line, settle
from ranker.training.failure import write_failure
from ranker.training.inputs import (
    STATES,
    Batches,
    MeasureParams,
    make_measure,
    open_feed,
)
from ranker.training.optim import make_optimizer, make_schedule
from ranker.training.progress import Progress, first_wrong
from ranker.training.reporter import Reporter
from ranker.training.run import TrainingRun, check_metric, plan
from ranker.training.scorer import device_batch, shards_of
from ranker.training.state import TrainState, init_state
from ranker.training.step import make_step
from ranker.training.weights import first_params

SHOWN = ("loss", "language", "point_mse", "margin_mse", "learning_rate")


def train(
    settings: config.Train,
    workdir: pathlib.Path,
    *,
    replace: bool = False,
    profile: int = 0,
) -> Manifest:
    """Trains one stage in WORKDIR/NAME, or resumes from its newest checkpoint.

    Args:
      settings: of the stage.
      workdir: of all stages.
      replace: moves a stage aside that was run with other settings.
      profile: steps that are traced into WORKDIR/NAME/profile; 0: none.

    Raises:
      ConfigError, DataError, StageError: with what is wrong and what to do.
      FloatingPointError: when a loss or gradient is not finite, naming the step.
      Stopped: at SIGTERM, with everything saved.
    """
    check_metric(settings)
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    run = plan(settings, prepared, workdir)
    return execute(run, replace=replace, profile=profile)


def execute(run: TrainingRun, *, replace: bool = False, profile: int = 0) -> Manifest:
    """Runs a planned stage; what is done already is left alone.

    Args:
      run: the stage.
      replace: as `train`'s.
      profile: as `train`'s.
    """
    with contextlib.ExitStack() as stack:
        claim = manifests.claim(run.folder, run.manifest, replace=replace)
        if not stack.enter_context(claim):
            kinds = (run.manifest.kind,)
            return manifests.require_stage(
                run.workdir, run.settings.name, kinds=kinds, by="train"
            )
        work = dataclasses.replace(open_work(run, stack), profile=profile)
        results = fit(work) if work.run.settings.loop.steps else take_over(work)
        return run.manifest.finish(run.folder, results)


def adopt(
    settings: config.Train, workdir: pathlib.Path, *, replace: bool = False
) -> Manifest:
    """Makes a checkpoint a stage of no steps, by a manifest alone: reads no weights.

    Raises:
      ConfigError, DataError, ModelError, StageError: as `train`.
    """
    prepared = prepare(settings.data, settings.text, workdir, replace=replace)
    run = plan(settings, prepared, workdir)
    results = TrainResults(metrics={}, steps=0, checkpoint=0)
    claim = manifests.claim(run.folder, run.manifest, replace=replace, wait=True)
    with claim as todo:
        if todo:
            run.manifest.finish(run.folder, results)
    kinds = (run.manifest.kind,)
    return manifests.require_stage(workdir, settings.name, kinds=kinds, by="score")


@dataclass(frozen=True)
class Work:
    """What a run works with on its way; `open_work` makes one."""

    run: TrainingRun
    batches: Batches | None  # None: no step is made
    measure: MeasureParams
    checkpoints: Checkpoints
    reporter: Reporter
    profile: int = 0  # steps that are traced

    def beside(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        assert self.batches is not None
        state = self.batches.get_state()
        return {"progress": progress.to_dict(), "batches": state}


def open_work(run: TrainingRun, stack: contextlib.ExitStack) -> Work:
    """Checks what only the devices and the data tell, then opens the stage's folder."""
    feed, epochs = None, run.settings.loop.epochs
    if run.settings.loop.steps:
        feed = open_feed(run)
    run = settle(run, feed)
    loop, measure, batches = run.settings.loop, make_measure(run), None
    if feed is not None:
        batches = feed(shards_of(run.network))
        stack.callback(batches.close)
    run.manifest.begin(run.folder)
    reporter = Reporter(
        run.folder,
        run.settings.name,
        total=loop.steps,
        unit="step",
        peak=_peak(run),
    )
    stack.callback(reporter.close)
    if epochs:
        reporter.note(epochs_line(epochs, loop.steps))
    if kernel := _displaced(run):
        reporter.note(
            "model.attention_dropout: while training, attention is by plain products "
            f"(xla), which hold a layer's weights [R, N, T, T]; {kernel}, the kernel "
            "of these devices and rows, has no place for dropout"
        )
    checkpoints = Checkpoints(
        run.folder, keep=loop.keep, best_metric=loop.best_metric, note=reporter.note
    )
    stack.callback(checkpoints.close)
    return Work(run, batches, measure, checkpoints, reporter)


def _displaced(run: TrainingRun) -> str:
    """The attention kernel that dropout leaves no place for; "": none."""
    model, settings = run.network.model, run.settings
    if isinstance(model, config.Decoder) or not model.attention_dropout:
        return ""
    length = settings.text.of(run.role, "length")
    shape = (1, length, model.num_heads, model.head_dim)
    platform = run.mesh.devices.flat[0].platform
    kernel = choose_kernel(platform, shape, jnp.dtype(model.dtype), 0.0)
    return "" if kernel == "xla" else kernel


def _peak(run: TrainingRun) -> float:
    """Tokens of full-length texts a second, did the devices only multiply at peak."""
    chip = chips.find(jax.devices()[0].device_kind)
    if chip is None:
        return 0.0
    settings, length = run.settings, run.settings.text.of(run.role, "length")
    language = isinstance(settings.objective, config.Language)
    needed = model_flops(
        run.network.model,
        vocab_size=run.origin.vocab_size,
        rows=1,
        length=length,
        scored=0 if language else 1,
        language=language,
        train=True,
    )
    return chip.share(chip.flops) * jax.device_count() * length / needed


def take_over(work: Work) -> TrainResults:
    """The stage of no steps: its weights are those that it starts from."""
    run = work.run
    params, frozen = first_params(run, work.reporter)
    state = init_state(run.network, params, optax.identity(), run.settings.seed)
    if TrainFacts.of(run.manifest.facts).source is None:
        work.checkpoints.save(state, 0, {}, {})
    dev = work.measure(nnx.merge_state(params, frozen))
    _report_dev(work.reporter, 0, dev)
    work.checkpoints.wait()
    return TrainResults(metrics=dev, steps=0, checkpoint=0)


def fit(work: Work) -> TrainResults:
    """The stage of one or more steps: makes or restores its state, then the loop."""
    run, settings, batches = work.run, work.run.settings, work.batches
    assert batches is not None
    tx = make_optimizer(settings.optim, settings.loop.steps, run.network.abstract)
    params, frozen = first_params(run, work.reporter)
    state = init_state(run.network, params, tx, settings.seed)
    progress = Progress()
    if restored := work.checkpoints.restore(state):
        state, progress = restored[0], Progress(**restored[1]["progress"])
        batches.set_state(restored[1]["batches"])
        work.reporter.note(f"resumes from the checkpoint at step {int(state.step)}")
    work.reporter.resume(int(state.step), measured=progress.measured)
    step = make_step(run.network, run.objective, tx, state)
    if settings.lora.rank:
        step = functools.partial(step, frozen=frozen)

    def measure(params: Any) -> dict[str, float]:
        return work.measure(nnx.merge_state(params, frozen))

    with jax.set_mesh(run.mesh):
        return loop(dataclasses.replace(work, measure=measure), state, step, progress)


@dataclass(frozen=True)
class Due:
    """What is done after a step; a function of its number alone, but for a signal."""

    logs: bool
    measures: bool
    saves: bool

    @classmethod
    def at(cls, number: int, settings: config.Loop) -> "Due":
        """After step `number`; of step 0 nothing."""
        end = number == settings.steps

        def every(steps: float) -> bool:
            return bool(steps) and number % steps == 0

        if not number:
            return cls(False, False, False)
        return cls(
            logs=every(settings.log_every) or number == 1 or end,
            measures=every(settings.eval_every) or end,
            saves=every(settings.save_every) or end,
        )


def loop(
    work: Work, state: TrainState, step: Callable, progress: Progress
) -> TrainResults:
    """The loop: step, log, save, measure. Returns what the stage has come to.

    Everything that it writes is a function of the step's number, not of where this
    process began, so that a run in several pieces leaves what one in one piece does.
    """
    run, settings, batches = work.run, work.run.settings.loop, work.batches
    assert batches is not None
    waiting: list[dict[str, jax.Array]] = []  # metrics still on the devices
    number = first = int(state.step)
    processes.meet()  # what they compute together begins in all at once
    work.reporter.start(first)
    if Due.at(first, settings).measures and progress.measured < first:
        _measure(work, state, progress, saved=True)  # killed after the save
    folder = run.folder / "profile"
    tracing = profile.tracing(folder, work.profile, note=work.reporter.note)
    with preemption.watch() as is_stopped, tracing as trace:
        while number < settings.steps and not progress.has_stalled(settings.patience):
            number += 1
            with work.reporter.apart("input"):
                batch = device_batch(next(batches), run.network, leading=1)
            state, values = step(state, batch)
            waiting.append(values)
            trace(values)
            due, stop = Due.at(number, settings), is_stopped(number)
            # Seen before the batches that it would go back to are forgotten.
            looks = len(waiting) == STATES or number == first + 1
            if not (due.logs or due.measures or due.saves or stop or looks):
                continue
            taken, waiting = _fetch(waiting), []
            _check(work, state, taken, progress, number)
            work.reporter.count_tokens(int(sum(one["tokens"] for one in taken)))
            if number == first + 1:
                work.reporter.start(number)  # that step was compiled
            if due.logs:
                _log(work, progress, number)
            if due.saves or stop:
                _save(work, state, progress, {})
            if stop and number < settings.steps:
                _stop(work, number)
            if due.measures:
                _measure(work, state, progress, saved=due.saves)
    return _finish(work, state, progress)


def _fetch(waiting: list[dict[str, jax.Array]]) -> list[dict[str, float]]:
    return [
        {name: float(value) for name, value in one.items()}
        for one in jax.device_get(waiting)
    ]


def _check(
    work: Work,
    state: TrainState,
    taken: list[dict[str, float]],
    progress: Progress,
    number: int,
) -> None:
    """Takes in the metrics of the steps up to `number`; stops at what is not sound."""
    batches, settings = work.batches, work.run.settings.loop
    assert batches is not None
    if (wrong := first_wrong(taken)) is not None:
        progress.add(taken[:wrong])
        back = len(taken) - wrong  # the batches of that step and later ones
        batches.set_state(batches.get_state(back))
        _fail(work, state, taken[wrong], progress, number + 1 - back)
    progress.add(taken)
    progress.check_idle(number, min(settings.idle_steps, settings.steps))


def _log(work: Work, progress: Progress, number: int) -> None:
    settings = work.run.settings
    schedule = make_schedule(settings.optim, settings.loop.steps)
    values = progress.report()
    values["learning_rate"] = float(np.asarray(schedule(number - 1)))
    if work.batches is not None:
        values["epoch"] = work.batches.epoch
    work.reporter.progress(number, values=values, shown=SHOWN)


def _save(
    work: Work, state: TrainState, progress: Progress, measured: dict[str, float]
) -> None:
    with work.reporter.apart("saving"):
        rest = work.beside(progress)
        work.checkpoints.save(state, int(state.step), rest, measured)


def _measure(work: Work, state: TrainState, progress: Progress, *, saved: bool) -> None:
    """Measures on dev. A state that is saved already is given the result."""
    number, best = int(state.step), work.run.settings.loop.best_metric
    with work.reporter.apart("evaluation"):
        measured = work.measure(state.params)
    progress.take_dev(number, measured, best)
    _report_dev(work.reporter, number, measured)
    if saved:
        with work.reporter.apart("saving"):
            work.checkpoints.amend(number, work.beside(progress), measured)
    elif work.checkpoints.is_better(measured):
        _save(work, state, progress, measured)


def _stop(work: Work, number: int) -> NoReturn:
    work.checkpoints.wait()
    name, steps = work.run.settings.name, work.run.settings.loop.steps
    raise errors.Stopped(
        f"{name} was told to stop and has saved step {number} of {steps}; the same "
        "command resumes from there"
    )


def _finish(work: Work, state: TrainState, progress: Progress) -> TrainResults:
    number, settings = int(state.step), work.run.settings.loop
    if number < settings.steps:
        work.reporter.note(
            f"stops at step {number}: {settings.best_metric} has not improved in "
            f"{settings.patience} evaluations (loop.patience)"
        )
        if number not in processes.first(lambda: work.checkpoints.steps):
            _save(work, state, progress, progress.dev)
    work.checkpoints.wait()
    _tell_looks(work, state)
    best = None
    if settings.result == "best":
        best = processes.first(work.checkpoints.best)
    return TrainResults(
        metrics={**progress.last, **progress.dev},
        steps=number,
        checkpoint=best[0] if best else number,
    )


def _tell_looks(work: Work, state: TrainState) -> None:
    """Writes how much each position is looked at, where the stage has learned it.

    STAGE/looks.json is read wherever `ranker.online` takes --propensities.
    """
    bias = dict(flat(state.params)).get(POSITION_BIAS)
    if bias is None:
        return
    logits = np.asarray(jax.device_get(bias), np.float64)
    looks = [round(float(one), 6) for one in np.exp(logits - logits[0])]
    if processes.leads():
        storage.write_json(
            work.run.folder / "looks.json",
            {"model": "position bias", "propensities": looks},
        )
    shown = " ".join(f"{one:.2f}" for one in looks)
    work.reporter.note(f"positions are looked at, as a share of the first: {shown}")


def _fail(
    work: Work,
    state: TrainState,
    values: dict[str, float],
    progress: Progress,
    number: int,
) -> NoReturn:
    """Stops at the step `number`, whose loss or gradient is not finite.

    State and batches are those that the step began from. They are saved, so that the
    same command takes that very step again.
    """
    before, checkpoints, batches = number - 1, work.checkpoints, work.batches
    assert batches is not None
    if before not in processes.first(lambda: checkpoints.steps):
        checkpoints.save(state, before, work.beside(progress), {})
    checkpoints.wait()
    batch = next(batches)
    facts = {"checkpoint": before, "metrics": values, "records": batches.names()}
    folder = write_failure(checkpoints.folder, number, batch, facts)
    processes.meet()
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
