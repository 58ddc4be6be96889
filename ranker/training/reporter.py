"""What a run tells while it works: progress lines, metrics.jsonl, TensorBoard files."""

import contextlib
import importlib.util
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from ranker import storage


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


class Reporter:
    """Writes one stage's metrics; only the first process prints and writes."""

    def __init__(self, folder: pathlib.Path, name: str, *, total: int, unit: str):
        """Opens the stage's files.

        Args:
          folder: of the stage; `metrics.jsonl` is appended to, so that a resumed run
            goes on in the same file.
          name: of the stage, in front of each line.
          total: how many units make the whole stage.
          unit: what is counted, such as "step" or "pair".
        """
        self.name, self.total, self.unit = name, total, unit
        self.active = jax.process_index() == 0
        self._file = self._board = None
        if self.active:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(folder, resumed_at=None)
        self._folder = folder
        self._start = self._last = time.monotonic()
        self._first_count: int | None = None

    def _open(self, folder: pathlib.Path, resumed_at: int | None) -> None:
        self._file = (folder / "metrics.jsonl").open("a", buffering=1)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            # What a killed run drew beyond the checkpoint is not shown.
            purge = None if resumed_at is None else resumed_at + 1
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def resume(self, count: int) -> None:
        """Forgets what was written beyond `count` units: it is written again.

        A line that a killed run left half-written is dropped, too.
        """
        if not self.active:
            return
        self.close()
        path = self._folder / "metrics.jsonl"
        kept = []
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)[self.unit] <= count:
                    kept.append(line + b"\n")
        with storage.writing(path) as file:
            file.write(b"".join(kept))
        self._open(self._folder, resumed_at=count)

    def note(self, message: str) -> None:
        """Prints a line about the stage."""
        if self.active:
            print(f"[{self.name}] {message}", flush=True)

    def start(self, count: int) -> None:
        """Starts the clock: `count` units were done before this process began."""
        self._first_count = count
        self._start = self._last = time.monotonic()

    def progress(
        self,
        count: int,
        *,
        tokens: int,
        values: dict[str, float],
        shown: Sequence[str] = (),
    ) -> None:
        """Reports that `count` units are done.

        Args:
          count: units done since the stage began.
          tokens: real tokens seen since the last report.
          values: metrics to write.
          shown: names of those to print.
        """
        now = time.monotonic()
        if self._first_count is None:
            self.start(count)
        rate = tokens / max(now - self._last, 1e-9)
        done = count - (self._first_count or 0)
        eta = (now - self._start) / max(done, 1) * (self.total - count)
        self._last = now
        text = "".join(
            f"{name} {values[name]:.4g}  " for name in shown if name in values
        )
        self.note(
            f"{self.unit} {count}/{self.total}  {text}{rate:,.0f} tokens/s  "
            f"ETA {duration(eta)}"
        )
        self.record(count, {**values, "tokens_per_second": rate})

    def record(self, count: int, values: dict[str, Any]) -> None:
        """Writes metrics without printing them."""
        if not self.active:
            return
        assert self._file is not None
        line = {self.unit: count, "time": round(time.time(), 3), **values}
        # JSON has no NaN, and a line that no parser takes helps nobody.
        clean = {
            name: None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in line.items()
        }
        self._file.write(json.dumps(clean) + "\n")
        if self._board:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{self.name}/{name}", value, count)

    def close(self) -> None:
        """Closes the files."""
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()
