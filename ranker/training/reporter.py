"""What a run tells while it works: progress lines, metrics.jsonl, trackers."""

import contextlib
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ranker import processes, storage
from ranker.training.sinks import Sink, check_trackers, open_sinks

EVERY = 10.0  # seconds between reports of what has no steps


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


def memory_peak() -> float:
    """Most bytes so far in a device of this process; on a CPU, in the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return float(max(peaks))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


class Reporter:
    """Writes one stage's metrics; only the first process prints and writes."""

    def __init__(
        self,
        folder: pathlib.Path | None,
        name: str,
        *,
        total: int,
        unit: str,
        peak: float = 0.0,
    ):
        """Opens the stage's files.

        Args:
          folder: of the stage; `metrics.jsonl` is appended to, so that a resumed run
            continues in the same file. None: every process prints, and writes nothing.
          name: of the stage, in front of each line.
          total: how many units make the whole stage.
          unit: what is counted, such as "step" or "pair".
          peak: tokens a second at the devices' matrix peak, which mfu is a share of;
            0: not known.
        """
        self.name, self.total, self.unit, self.peak = name, total, unit, peak
        self.active = folder is None or processes.leads()
        self._file = None
        self._sinks: list[Sink] | None = None  # until there is a metric
        if folder is not None and self.active:
            folder.mkdir(parents=True, exist_ok=True)
            check_trackers()
            self._file = (folder / "metrics.jsonl").open("a", buffering=1)
        self._folder = folder
        self._resumed_at: int | None = None
        self._start = self._last = time.monotonic()
        self._first_count: int | None = None
        self._last_count = self._tokens = 0
        self._apart: dict[str, float] = {}  # seconds since the last report

    def resume(self, count: int, *, measured: int) -> None:
        """Forgets what was written beyond `count` units: it is written again.

        So is what was measured on dev after the step `measured`. A line that a killed
        run left half-written is dropped, too.
        """
        if self._folder is None or not self.active:
            return
        self.close()
        path = self._folder / "metrics.jsonl"
        kept = []
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found = json.loads(line)
                dev = any(name.startswith("dev_") for name in found)
                if found[self.unit] <= (min(count, measured) if dev else count):
                    kept.append(line + b"\n")
        with storage.writing(path) as file:
            file.write(b"".join(kept))
        self._file = path.open("a", buffering=1)
        self._sinks, self._resumed_at = None, count

    def note(self, message: str) -> None:
        """Prints a line about the stage."""
        if self.active:
            print(f"[{self.name}] {message}", flush=True)

    def start(self, count: int) -> None:
        """Starts the clock: `count` units were done before."""
        self._first_count = self._last_count = count
        self._start = self._last = time.monotonic()
        self._tokens = 0

    def count_tokens(self, tokens: int) -> None:
        """Takes in real tokens that have been seen since the last call."""
        self._tokens += tokens

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Time within it is a metric, seconds_NAME; but for "input" no rate counts it.

        The devices work on while batches are waited for, so input is a part of a step.
        """
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self._apart[name] = self._apart.get(name, 0.0) + spent
            if name != "input":
                self._start += spent
                self._last += spent

    def progress(
        self, count: int, *, values: dict[str, float], shown: Sequence[str] = ()
    ) -> None:
        """Reports that `count` units are done.

        Args:
          count: units done since the stage began.
          values: metrics to write.
          shown: names of those to print.
        """
        now = time.monotonic()
        if self._first_count is None:
            self.start(count)
        here = count - (self._first_count or 0)
        timed: dict[str, float] = {}
        text = "".join(
            f"{name} {values[name]:.4g}  " for name in shown if name in values
        )
        if here:  # else there was a step that was compiled, and no other
            rate = self._tokens / max(now - self._last, 1e-9)
            eta = (now - self._start) / here * (self.total - count)
            timed["tokens_per_second"] = rate
            if "input" in self._apart:
                spent = max(now - self._last, 1e-9)
                timed["input_share"] = self._apart["input"] / spent
            if self.peak:
                timed["mfu"] = rate / self.peak
            if self.unit != "step":
                speed = (count - self._last_count) / max(now - self._last, 1e-9)
                text += f"{speed:,.0f} {self.unit}s/s  "
            text += f"{rate:,.0f} tokens/s  ETA {duration(eta)}"
        timed |= {f"seconds_{name}": spent for name, spent in self._apart.items()}
        if self._file is not None:  # else nothing is written, nor a backend started
            timed["memory_peak"] = memory_peak()
        self._last, self._tokens, self._apart = now, 0, {}
        self._last_count = count
        self.note(f"{self.unit} {count:,}/{self.total:,}  {text}".rstrip())
        self.record(count, {**values, **timed})

    def now_and_then(self, count: int, tokens: int) -> None:
        """As `count_tokens` and `progress`, every `EVERY` seconds and at the end."""
        self.count_tokens(tokens)
        if time.monotonic() - self._last > EVERY or count == self.total:
            self.progress(count, values={})

    def record(self, count: int, values: dict[str, Any]) -> None:
        """Writes metrics without printing them."""
        if self._file is None:
            return
        line = {self.unit: count, "time": round(time.time(), 3), **values}
        # JSON has no NaN, and a line that no parser takes helps nobody.
        clean = {
            name: None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in line.items()
        }
        self._file.write(json.dumps(clean) + "\n")
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if self._sinks is None:
            assert self._folder is not None  # as there is a file
            self._sinks = open_sinks(
                self._folder, self.name, resumed_at=self._resumed_at
            )
        for sink in tuple(self._sinks):
            try:
                sink.write(numbers, count)
            except Exception as error:  # a server that is away stops no training
                self._sinks.remove(sink)
                self.note(
                    f"{sink.name} takes no more metrics ({type(error).__name__}: "
                    f"{error}); metrics.jsonl has them all"
                )

    def close(self) -> None:
        """Closes the files."""
        if self._file:
            self._file.close()
        for sink in self._sinks or ():
            try:
                sink.close()
            except Exception as error:
                self.note(f"{sink.name} was not closed: {error}")
