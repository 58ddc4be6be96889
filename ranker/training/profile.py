"""A trace of some training steps, for xprof or TensorBoard."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ranker import processes

WARM = 2  # steps before: one is compiled, one may still wait for it


@contextlib.contextmanager
def tracing(
    folder: pathlib.Path, steps: int, *, note: Callable[[str], None]
) -> Iterator[Callable[[Any], None]]:
    """Traces `steps` steps, once `WARM` are done; each process writes its own devices'.

    Args:
      folder: that `xprof --logdir FOLDER` or `tensorboard --logdir FOLDER` opens.
      steps: how many; 0: none.
      note: takes a line about the trace.

    Yields:
      A function of what a step returned, to be called after each.
    """
    done, running = 0, False

    def stop() -> None:
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        if processes.leads():
            note(f"{done - WARM} steps are traced in {folder}")

    def after(values: Any) -> None:
        nonlocal done, running
        done += 1
        if steps and done == WARM:
            jax.block_until_ready(values)
            jax.profiler.start_trace(str(folder))
            running = True
        elif running and done == WARM + steps:
            jax.block_until_ready(values)
            stop()

    try:
        yield after
    finally:
        if running:  # the stage ended before
            stop()
