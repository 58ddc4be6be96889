"""What a run knows beside its state: metrics since the last report, and its alarms."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ranker.config import DEV_LANGUAGE
from ranker.errors import StageError

Values = dict[str, float]


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a metric of dev is better than the best so far; None: there is none."""
    if best is None:
        return True
    return value < best if metric == DEV_LANGUAGE else value > best


@dataclass
class Progress:
    """Saved with every checkpoint, so that a resumed run logs what it would have.

    The values are float32 of the step, which JSON keeps to the bit.
    """

    window: list[Values] = field(default_factory=list)  # a step each, not yet reported
    idle: dict[str, int] = field(default_factory=dict)  # steps in a row, by metric
    last: Values = field(default_factory=dict)  # what was reported last
    dev: Values = field(default_factory=dict)  # what was measured on dev last
    measured: int = 0  # step that it was measured at
    best: float | None = None  # value so far of the metric that decides
    stalled: int = 0  # measurements in a row without a better one

    def add(self, steps: list[Values]) -> None:
        """Takes the metrics of the steps just done."""
        self.window += steps
        for values in steps:
            for name, value in values.items():
                is_weight = name.startswith("weight_") and name != "weight_collapsed"
                if is_weight or name == "collapsed":
                    idle = value == 0 if is_weight else value == 1
                    self.idle[name] = self.idle.get(name, 0) + 1 if idle else 0

    def take_dev(self, step: int, values: Values, metric: str) -> None:
        """Takes what was measured on dev; `metric` decides what is best."""
        self.measured, self.dev = step, values
        if metric not in values:
            return
        value = values[metric]
        better = is_better(metric, value, self.best)
        self.best = value if better else self.best
        self.stalled = 0 if better else self.stalled + 1

    def has_stalled(self, patience: int) -> bool:
        """Whether training is to end early; never with a patience of 0."""
        return bool(patience) and self.stalled >= patience

    def report(self) -> Values:
        """Means over the window, which begins anew."""
        names = [name for name in self.window[0] if name != "tokens"]
        self.last = {
            name: float(np.mean([one[name] for one in self.window])) for name in names
        }
        self.window = []
        return self.last

    def check_idle(self, step: int, limit: int) -> None:
        """Stops a run that learns nothing, for `limit` steps in a row; 0: never.

        Raises:
          StageError: with the loss to which nothing contributes, or the collapse.
        """
        for name, steps in self.idle.items():
            if not limit or steps < limit:
                continue
            if name == "collapsed":
                reason = (
                    "the documents of each list have had one and the same score: the "
                    "model has collapsed; lower optim.learning_rate, or begin from "
                    "other weights"
                )
            else:
                reason = (
                    f"nothing has contributed to the loss {name[len('weight_') :]!r}: "
                    "no list has two documents that it compares, such as with "
                    "different grades, or no token is to be predicted; look at the "
                    "data, or leave that loss out"
                )
            raise StageError(
                f"for {steps} steps up to step {step} {reason}. "
                "--config.loop.idle_steps=0 continues to train"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def first_wrong(steps: list[Values]) -> int | None:
    """Place of the first step whose loss or gradient is not finite."""
    for place, values in enumerate(steps):
        if not (math.isfinite(values["loss"]) and math.isfinite(values["l2_grads"])):
            return place
    return None
