"""A trained ranker scores every (query, document) pair of many lists."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from ranker import processes, sharding
from ranker.batch import PackedBatch
from ranker.data.pairs import (
    Indexed,
    ListEncoder,
    Shards,
    ahead,
    no_pairs,
    pair_batches,
)
from ranker.data.passages import pool_scores
from ranker.data.records import RankedList
from ranker.training.state import Network

Tree = TypeVar("Tree")


def shards_of(network: Network) -> Shards:
    """The data shards of the network's mesh, and this process's among them."""
    mesh = network.mesh
    return Shards(sharding.num_shards(mesh), sharding.local_shards(mesh))


def device_batch(batch: Tree, network: Network, *, leading: int) -> Tree:
    """Moves this process's part of a batch to the devices, as part of the global one.

    Args:
      batch: numpy leaves, such as a `PackedBatch` of them; their dimension number
        `leading` is the one that is split.
      network: holds the mesh.
      leading: dimensions before the split one.
    """
    split = sharding.batch_sharding(network.mesh, leading)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(split, leaf), batch
    )


def make_score(network: Network) -> Callable[[Any, PackedBatch], jax.Array]:
    """Returns the compiled function (params, batch) -> scores [B, L] float32."""
    groups = sharding.num_shards(network.mesh)

    def score(params: Any, batch: PackedBatch) -> jax.Array:
        model = nnx.merge(network.graphdef, params)
        return model(batch.rows, batch.score_index, groups=groups)

    return jax.jit(score)


def in_step(batches: Iterator[Tree], nothing: Tree) -> Iterator[Tree]:
    """What this process makes, and `nothing` while other processes still make some."""
    if jax.process_count() == 1:
        yield from batches
        return
    while True:
        found = next(batches, None)
        if not np.any(multihost_utils.process_allgather(np.array(found is not None))):
            return
        yield nothing if found is None else found


def _gathered(values: jax.Array) -> np.ndarray:
    """A global array, whole, on every process of its mesh."""
    if not values.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(values, tiled=True))
    return np.asarray(jax.device_get(values))


NumberedBatches = Iterator[tuple[PackedBatch, np.ndarray]]


def _divisible(rows: int, shards: Shards) -> int:
    return -(-rows // shards.count) * shards.count


def begin_batches(
    network: Network, lists: Indexed[RankedList], encoder: ListEncoder, *, rows: int
) -> NumberedBatches:
    """What `score_lists` scores; threads make the first batches from now on.

    So that the devices need not wait for them when their turn comes.
    """
    shards = shards_of(network)
    rows = _divisible(rows, shards)
    records = (lists[i] for i in range(len(lists)))
    return ahead(pair_batches(records, encoder, rows=rows, shards=shards))


class Idle:
    """How long the devices may have had nothing to do, at most.

    They are known to work while a result is not ready. From when that was last seen
    until they are sent the next batch, they may have been idle.
    """

    def __init__(self):
        """The clock starts when the first batch has been sent, and so compiled."""
        self.start = self._since = self._idle = 0.0  # seconds
        self._last: Any = None  # an array, or none yet
        self._had_work = True

    @property
    def seconds(self) -> float:
        """Since the first batch."""
        return time.perf_counter() - self.start if self.start else 0.0

    @property
    def busy_share(self) -> float:
        """Of these, in which the devices had work, at least."""
        last = 0.0 if self._works() else time.perf_counter() - self._since
        return 1 - (self._idle + last) / self.seconds if self.start else 1.0

    def _works(self) -> bool:
        return self._last is None or not self._last.is_ready()

    def begins(self) -> None:
        """Just before the devices are sent a batch."""
        self._had_work = self._works()

    def sent(self, result: jax.Array) -> None:
        """Just after; `result` is what they are to compute."""
        now = time.perf_counter()
        if not self._had_work:
            self._idle += now - self._since
        self._last, self._since, self.start = result, now, self.start or now

    def look(self, *, wait: bool = False) -> None:
        """Some time later: devices that still compute were not idle until now.

        With `wait` until they are done.
        """
        if self._works():
            if wait:
                jax.block_until_ready(self._last)
            self._since = time.perf_counter()


def score_lists(
    score: Callable[[Any, PackedBatch], jax.Array],
    params: Any,
    network: Network,
    lists: Indexed[RankedList],
    encoder: ListEncoder,
    *,
    rows: int,
    progress: Callable[[int, int], None] | None = None,
    finite: bool = True,
    waits: list[float] | None = None,
    batches: NumberedBatches | None = None,
    idle: Idle | None = None,
) -> np.ndarray:
    """Scores of all candidates of all lists, in order, float32 [pairs].

    Pairs are packed into rows of one static shape. The scores are the same on every
    process.

    Args:
      score: from `make_score`.
      params: of the model, on the mesh.
      network: of the same model.
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      rows: rows a batch, over all devices; each holds one pair of full length, or
        several that are shorter.
      progress: called with the pairs done and the real tokens of each batch.
      finite: stop at a score that is not finite; else the caller looks for them.
      waits: takes the seconds that each batch was waited for.
      batches: those of `begin_batches` for the same lists, encoder and rows; None: they
        are begun now.
      idle: takes note of when the devices have work.

    Raises:
      FloatingPointError: at the first batch with a score that is not finite.
    """
    shards, idle = shards_of(network), idle or Idle()
    results: list[tuple[np.ndarray, np.ndarray]] = []
    several, seen = encoder.passages.most > 1, set()  # of a document; pairs begun
    done = 0

    def fetch(scores: jax.Array, numbers: jax.Array, tokens: int) -> None:
        nonlocal done
        pairs, values = _gathered(numbers), _gathered(scores)[:, 0]
        pairs, values = pairs[pairs >= 0], values[pairs >= 0]
        if finite and not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise FloatingPointError(
                f"pair {pairs[bad]} has the score {values[bad]}: the model's weights "
                "or its input are broken; nothing was written for this batch"
            )
        results.append((pairs, values))
        if several:
            seen.update(pairs.tolist())
        done = len(seen) if several else done + len(pairs)
        if progress:
            progress(done, tokens)

    waiting: tuple[jax.Array, jax.Array, int] | None = None
    batches = batches or begin_batches(network, lists, encoder, rows=rows)
    if network.mesh.is_multi_process:
        processes.meet()  # what they compute together begins in all at once
        nothing = no_pairs(encoder, rows=_divisible(rows, shards), shards=shards)
        batches = in_step(batches, nothing)
    with jax.set_mesh(network.mesh):
        while True:
            start = time.perf_counter()
            found = next(batches, None)
            if waits is not None:
                waits.append(time.perf_counter() - start)
            if found is None:
                break
            batch, numbers = found
            # Exact where one process holds all shards, an estimate elsewhere.
            tokens = int((batch.rows.segments > 0).sum())
            tokens = tokens * shards.count // len(shards.local)
            placed: Any = device_batch((batch, numbers), network, leading=0)
            idle.begins()
            result = score(params, placed[0])
            idle.sent(result)
            if waiting:  # one batch is computed while the one before is fetched
                fetch(*waiting)
                idle.look()
            waiting = (result, placed[1], tokens)
        if waiting:
            idle.look(wait=True)
            fetch(*waiting)
    if several and results:
        pairs, values = (np.concatenate(x) for x in zip(*results, strict=True))
        return pool_scores(values, pairs, encoder.passages.score)
    scores = np.zeros(done, np.float32)
    for pairs, values in results:
        scores[pairs] = values
    return scores
