"""Runs the whole method in one workdir: raw data in, a student and its numbers out.

    python -m ranker.run --config configs/quickstart.py --workdir runs/quickstart

Stages that are done are not run again; one whose settings or inputs have changed is,
and so is what depends on it.
"""

import time

from ranker import cli, config


def _call():
    from ranker.data.prepare import prepare
    from ranker.training.evaluation import check_measures, evaluate
    from ranker.training.exporting import export
    from ranker.training.loop import train
    from ranker.training.teacher import score

    functions = {
        config.Train: train,
        config.Score: score,
        config.Evaluate: evaluate,
        config.Export: export,
    }

    def run(settings: config.Pipeline, workdir) -> None:
        start = time.monotonic()
        stages = settings.stages()  # checks the settings of all before any work
        check_measures(settings.measures)
        prepare(settings.data, settings.reading, workdir, replace=True)
        print(f"[prepare] done after {time.monotonic() - start:.0f} s", flush=True)
        for name, stage in stages.items():
            functions[type(stage)](stage, workdir, replace=True)
            print(f"[{name}] done after {time.monotonic() - start:.0f} s", flush=True)

    return run


if __name__ == "__main__":
    cli.main(config.Pipeline, _call, "Runs every stage of the method in order.")
