"""Runs the whole method in one workdir: raw data in, a student and its numbers out.

    python -m ranker.run --config configs/quickstart.py --workdir runs/quickstart

Stages that are done are not run again; one whose settings or inputs have changed is,
and so is what depends on it. `--dry-run` says what would be done, and why.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

from ranker import cli, config


def _functions() -> dict[type, Callable]:
    from ranker.scoring.given import given
    from ranker.training.evaluate import evaluate
    from ranker.training.export import export
    from ranker.training.score import score
    from ranker.training.train import train

    return {
        config.Train: train,
        config.Score: score,
        config.Given: given,
        config.Evaluate: evaluate,
        config.Export: export,
    }


def _call():
    from ranker.training.imports import check_imports

    def run(settings: config.Pipeline, workdir) -> None:
        start = time.monotonic()
        stages = settings.stages()  # checks the settings of all before any work
        check_imports(stages.values())  # and what is named, before the slow imports

        import jax

        from ranker.data.prepare import prepare, remember
        from ranker.training.evaluate import check_measures

        functions = _functions()
        check_measures(settings.measures)
        prepared = prepare(settings.data, settings.reading, workdir, replace=True)
        if jax.process_index() == 0:
            remember(prepared, settings.data)
        print(f"[prepare] done after {time.monotonic() - start:.0f} s", flush=True)
        for name, stage in stages.items():
            functions[type(stage)](stage, workdir, replace=True)
            print(f"[{name}] done after {time.monotonic() - start:.0f} s", flush=True)

    return run


def _dry_call():
    from ranker import manifests
    from ranker.data.prepare import predict, prepare
    from ranker.training.evaluate import check_measures
    from ranker.training.imports import check_imports

    functions = _functions()

    def decide(call: Callable, *arguments) -> manifests.Decision:
        try:
            call(*arguments, replace=True)
        except manifests.Decision as decision:
            return decision
        raise AssertionError("a stage has decided nothing")

    def dry_run(settings: config.Pipeline, workdir: pathlib.Path) -> None:
        stages = settings.stages()
        check_measures(settings.measures)
        for line in check_imports(stages.values(), fetch=False):
            print(f"[models] {line}")
        with manifests.dry_run() as planned:
            first = decide(prepare, settings.data, settings.reading, workdir)
            print(f"[prepare] {describe(first)}")
            if first.found is None or "pieces" not in first.found.facts:
                for name in stages:
                    print(f"[{name}] would run: its data has not been prepared")
                return
            planned[first.folder] = predict(first.found, first.manifest)
            for name, stage in stages.items():
                decision = decide(functions[type(stage)], stage, workdir)
                print(f"[{name}] {describe(decision)}")
                planned[decision.folder] = dataclasses.replace(
                    decision.manifest, done=True
                )

    return dry_run


def describe(decision) -> str:
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
    return f"would go on: {at}"


if __name__ == "__main__":
    arguments = [one for one in sys.argv[1:] if one != "--dry-run"]
    cli.main(
        config.Pipeline,
        _call if arguments == sys.argv[1:] else _dry_call,
        "Runs every stage of the method in order; --dry-run says what it would do.",
        arguments,
    )
