"""Work waits in one queue, bounded in tokens and in time, and threads score it.

A request is taken whole or not at all, and it is told so before its texts are
tokenised. Threads take runs off the oldest request, so several work at one; where a
run takes many rows, rows of other requests of the same length fill it.
"""

import asyncio
import collections
import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ranker.data.text import Segment
from ranker.serving.runtimes import Runtime, grouped

_FIRST_RATE = 2000.0  # tokens a second, before any is measured
_SMOOTH = 0.1  # share of the newest measurement


class Full(Exception):
    """There is no room; the message says of what.

    Attributes:
      retry_after: seconds until there is likely to be.
    """

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = max(math.ceil(retry_after), 1)


@dataclass(eq=False)
class Pending:
    """The rows of one request, and their scores as they come."""

    segments: Sequence[Segment]
    scores: np.ndarray
    done: "asyncio.Future[np.ndarray]"
    loop: asyncio.AbstractEventLoop
    left: int  # rows without a score
    deadline: float  # of the first row, by time.monotonic
    runs: collections.deque = field(default_factory=collections.deque)
    started: bool = False
    cancelled: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes."""

    queue_tokens: int = 1 << 18  # tokens that wait, at most
    wait_seconds: float = 10.0  # in the queue, at most
    body_bytes: int = 8 << 20  # of a request
    all_bytes: int = 64 << 20  # of all requests that are not answered yet
    documents: int = 10_000  # of a request


class Batcher:
    """Threads that score, and the queue before them."""

    def __init__(self, runtime: Runtime, limits: Limits, *, workers: int):
        self.runtime, self.limits = runtime, limits
        self.waiting_tokens = 0  # of requests taken, not yet scored
        self._usual = 0.0  # tokens of a request, of late
        self._rate = _FIRST_RATE * workers
        self._jobs: collections.deque[Pending] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"score-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def tokens_per_second(self) -> float:
        """What the threads do together, as measured of late."""
        return self._rate

    def measured(self, tokens: int, seconds: float) -> None:
        """Tells how fast the threads are, such as after the golden pairs."""
        if seconds > 0:
            self._rate = tokens / seconds

    def reserve(self, tokens: int) -> None:
        """Takes room in the queue for a request, before it is tokenised.

        A request that finds the queue empty always fits.

        Args:
          tokens: that it will have, as estimated.

        Raises:
          Full: when the queue is full, or its end is further off than the deadline.
        """
        with self._changed:
            self._usual += _SMOOTH * (tokens - self._usual)
            self._check(tokens)
            self.waiting_tokens += tokens

    def check(self) -> None:
        """Tells whether a request has room that is not read yet, so of unknown size.

        It is taken to have half as many tokens as usual: what is refused so would
        hardly have fitted, and under overload most requests are never read.

        Raises:
          Full: as `reserve` would.
        """
        self._check(self._usual / 2)

    def _check(self, tokens: float) -> None:
        before = self.waiting_tokens
        wait = before / self._rate
        if before and before + tokens > self.limits.queue_tokens:
            raise Full(
                f"{before} tokens wait, and at most {self.limits.queue_tokens} may",
                wait / 2,
            )
        if wait > self.limits.wait_seconds:
            raise Full(
                f"the queue is {wait:.1f} s long, and at most "
                f"{self.limits.wait_seconds:g} s may be waited",
                wait - self.limits.wait_seconds,
            )

    def release(self, tokens: int) -> None:
        """Gives room back that `reserve` took."""
        with self._changed:
            self.waiting_tokens -= tokens

    @contextlib.contextmanager
    def room(self, tokens: int) -> Iterator[None]:
        """Room that `reserve` takes, and `release` gives back at the end."""
        self.reserve(tokens)
        try:
            yield
        finally:
            self.release(tokens)

    async def score(self, segments: Sequence[Segment]) -> np.ndarray:
        """Raw scores of a request's rows; room for them was reserved.

        Cancelled while it waits, it leaves the queue at once.

        Raises:
          Full: when no row was begun before the deadline.
        """
        if not segments:
            return np.zeros(0, np.float32)
        loop = asyncio.get_running_loop()
        job = Pending(
            segments=segments,
            scores=np.zeros(len(segments), np.float32),
            done=loop.create_future(),
            loop=loop,
            left=len(segments),
            deadline=time.monotonic() + self.limits.wait_seconds,
            runs=collections.deque(grouped(self.runtime, segments)),
        )
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        try:
            return await job.done
        except asyncio.CancelledError:
            with self._changed:
                job.cancelled = True
                if job in self._jobs:
                    self._jobs.remove(job)
            raise

    def stop(self) -> None:
        """Ends the threads once the queue is empty."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return
                padded, taken = self._take()
            if taken:
                self._run(padded, taken)

    def _take(self) -> tuple[int, list[tuple[Pending, list[int]]]]:
        """The next run, of the oldest request first; the lock is held."""
        job = self._jobs[0]
        if not job.started and time.monotonic() > job.deadline:
            self._jobs.popleft()
            late = Full("the request waited too long in the queue", 1)
            job.loop.call_soon_threadsafe(_fail, job.done, late)
            return 0, []
        padded, places = job.runs.popleft()
        taken, room = [(job, places)], self.runtime.rows(padded) - len(places)
        job.started = True
        for other in list(self._jobs)[1:] if room else ():
            found = next(
                (r for r in other.runs if r[0] == padded and len(r[1]) <= room), None
            )
            if found:
                other.runs.remove(found)
                other.started = True
                taken.append((other, found[1]))
                room -= len(found[1])
        for one, _ in taken:
            if not one.runs:
                self._jobs.remove(one)
        return padded, taken

    def _run(self, padded: int, taken: list[tuple[Pending, list[int]]]) -> None:
        rows = [job.segments[place] for job, places in taken for place in places]
        begun = time.monotonic()
        try:
            found = self.runtime.run(rows, padded)
        except Exception as error:  # noqa: BLE001, whatever a runtime raises
            with self._changed:
                for job, _ in taken:
                    job.cancelled = True
                    if job in self._jobs:
                        self._jobs.remove(job)
            for job, _ in taken:
                job.loop.call_soon_threadsafe(_fail, job.done, error)
            return
        seconds = max(time.monotonic() - begun, 1e-6)
        tokens = sum(len(row.tokens) for row in rows)
        finished, at = [], 0
        with self._changed:
            rate = tokens / seconds * len(self._threads)
            self._rate += _SMOOTH * (rate - self._rate)
            for job, places in taken:
                job.scores[places] = found[at : at + len(places)]
                at += len(places)
                job.left -= len(places)
                if not job.left and not job.cancelled:
                    finished.append(job)
        for job in finished:
            job.loop.call_soon_threadsafe(_finish, job.done, job.scores)


def _finish(done: "asyncio.Future[np.ndarray]", scores: np.ndarray) -> None:
    if not done.done():
        done.set_result(scores)


def _fail(done: "asyncio.Future[np.ndarray]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
