"""Runs the whole method in one workdir, from raw data to a student and its results.

    python -m ranker.run --config configs/quickstart.py --workdir runs/quickstart

Stages that are done are not run again; one whose settings or inputs have changed is,
and so is what depends on it. `--dry-run` says what would be done, and why.
"""

import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ranker import cli, config, errors

_DESCRIPTION = "Runs every stage of the method; --dry-run only says what would run."


def _modules() -> dict[type, ModuleType]:
    """The module of each kind of stage: its `plan` and `execute`."""
    from ranker.scoring import given
    from ranker.training import evaluate, export, judge, score, train

    return {
        config.Train: train,
        config.Score: score,
        config.Given: given,
        config.Judging: judge,
        config.Evaluate: evaluate,
        config.Export: export,
    }


def run(settings: config.Pipeline, workdir: pathlib.Path) -> None:
    """Runs what is not done of every stage."""
    from ranker import processes

    start = time.monotonic()

    def say_done(name: str) -> None:
        if processes.leads():
            print(f"[{name}] done after {time.monotonic() - start:.0f} s", flush=True)

    stages, modules = _checked(settings), _modules()

    from ranker.data.prepare import prepare, remember

    prepared = prepare(settings.data, settings.reading, workdir, replace=True)
    remember(prepared, settings.data)
    say_done("prepare")
    for name, stage in stages.items():
        module = modules[type(stage)]
        module.execute(module.plan(stage, prepared, workdir), replace=True)
        say_done(name)
    if processes.leads():
        print(f"[run] to serve it: {serve_command(settings, workdir)}", flush=True)


def serve_command(settings: config.Pipeline, workdir: pathlib.Path) -> str:
    """The command that serves the students of a pipeline."""
    folders = {
        name: str(workdir / stage.folder)
        for name, stage in settings.stages().items()
        if isinstance(stage, config.Export)
    }
    words = ["python", "-m", "ranker.serve", folders["export"]]
    if first := folders.get("export_first"):
        words += ["--first", first, "--keep", str(settings.keep)]
    return shlex.join(words)


def dry_run(settings: config.Pipeline, workdir: pathlib.Path) -> None:
    """Says of every stage what running it would do, and why; changes nothing."""
    from ranker import manifests
    from ranker.data import prepare

    stages = _checked(settings, fetch=False)
    modules = _modules()
    wanted = prepare.plan(settings.data, settings.reading)
    first = manifests.decide(workdir / prepare.NAME, wanted)
    print(f"[prepare] {decision_line(first)}")
    if first.found is None or not first.found.facts:
        for name in stages:
            print(f"[{name}] would run: its data has not been prepared")
        return
    predicted = prepare.predict(first.found, first.manifest)
    prepared = prepare.Prepared(first.folder, predicted, settings.reading)
    planned: dict[str, manifests.Manifest] = {}
    for name, stage in stages.items():
        one = modules[type(stage)].plan(stage, prepared, workdir, planned)
        decision = manifests.decide(one.folder, one.manifest)
        length = "" if decision.done else say_length(one)
        print(f"[{name}] {decision_line(decision)}{length}")
        planned[name] = dataclasses.replace(one.manifest, done=True)


def say_length(one: Any) -> str:
    """How many steps the epochs of a planned stage are; "" for any other."""
    settings = one.settings
    if not isinstance(settings, config.Train) or not settings.loop.epochs:
        return ""
    from ranker.training import epochs
    from ranker.training.inputs import open_feed

    try:
        steps = epochs.count_steps(open_feed(one, trains=False), settings.loop.epochs)
    except errors.StageError:  # what it learns from is yet to be made
        return f"; how many steps {settings.loop.epochs:g} epochs are is known then"
    return f"; {epochs.epochs_line(settings.loop.epochs, steps)}"


def _checked(
    settings: config.Pipeline, *, fetch: bool = True
) -> dict[str, config.Stage]:
    """The stages; what is wrong with any is said before any work."""
    from ranker.training.imports import check_imports

    stages = settings.stages()
    said = check_imports(stages.values(), fetch=fetch)  # before the slow imports

    from ranker.training.evaluate import check_measures
    from ranker.training.run import check_metric

    check_measures(settings.measures)
    for stage in stages.values():
        if isinstance(stage, config.Train):
            check_metric(stage)
    if not fetch:
        for line in said:
            print(f"[models] {line}")
    return stages


def decision_line(decision) -> str:
    """What a stage would do, and why, as one line.

    Args:
      decision: the stage's `manifests.Decision`.
    """
    from ranker import manifests
    from ranker.training.checkpoint import Checkpoints

    found = decision.found
    if decision.done:
        return "done"
    if found is None:
        return "would run: it has not been run"
    if found.key != decision.manifest.key:
        differing = ", ".join(manifests.changes(found, decision.manifest))
        return f"would run again: {differing}"
    if decision.damage:
        return f"would run again: it is damaged: {decision.damage}"
    step = Checkpoints(decision.folder).latest
    at = (
        "it has not finished" if step is None else f"from the checkpoint at step {step}"
    )
    return f"would resume: {at}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the flags and runs, or says what would run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    rest = [one for one in given if one != "--dry-run"]
    function = run if rest == given else dry_run
    cli.main(config.Pipeline, lambda: function, _DESCRIPTION, rest)


if __name__ == "__main__":
    main()
