"""How many steps so many passes over the training records are."""

import contextlib
import dataclasses
import math

from ranker import processes
from ranker.data.pairs import ALL_IN_ONE
from ranker.training.inputs import Feed
from ranker.training.run import TrainingRun

SAMPLED = 1 << 20  # tokens, padding included, that are packed to find out


def settle(run: TrainingRun, feed: Feed | None) -> TrainingRun:
    """The run with its number of steps, and no setting in epochs or shares of them.

    Every process calls it together, and is told the number of the first.

    Args:
      run: as planned.
      feed: of its batches; None: it makes no step.

    Raises:
      ConfigError: when the warm-up has more steps than there are.
    """
    steps = run.settings.loop.steps
    if run.settings.loop.by_epochs:
        assert feed is not None, "epochs of no records"
        counted = count_steps(feed, run.settings.loop.epochs)
        steps = processes.first(lambda: counted)
    exact = run.settings.loop.exact(steps)
    return dataclasses.replace(
        run, settings=dataclasses.replace(run.settings, loop=exact)
    )


def count_steps(feed: Feed, epochs: float) -> int:
    """Steps until every record has been packed so often.

    How many records fill a batch is found by packing. What takes more than `SAMPLED`
    tokens is extrapolated. Everything is packed as one data shard, so that the number
    does not depend on the devices, as a stage may resume on others.

    Args:
      feed: of the stage's batches.
      epochs: passes over the records, above 0.
    """
    steps = tokens = 0
    with contextlib.closing(feed(ALL_IN_ONE)) as batches:
        while batches.epoch < epochs and tokens < SAMPLED:
            tokens += next(batches).rows.tokens.size
            steps += 1
        packed = batches.epoch
    if packed >= epochs:
        return steps
    return math.ceil(steps * epochs / packed)


def epochs_line(epochs: float, steps: int) -> str:
    """The sentence of a run or a dry run."""
    passes = "1 epoch is" if epochs == 1 else f"{epochs:g} epochs are"
    return f"{passes} {steps:,} step{'s' if steps != 1 else ''}"
