"""A trained ranker scores every (query, document) pair of many lists."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from ranker import sharding
from ranker.batch import Batch
from ranker.data.pipeline import ListEncoder, Share, Source, pair_batches
from ranker.data.records import RankedList
from ranker.training.state import Network


def device_batch(batch: Batch, network: Network, *, leading: int) -> Batch:
    """Moves this process's part of a batch to the devices, as part of the global one.

    Args:
      batch: numpy leaves; their dimension number `leading` is the one that is split.
      network: holds the mesh.
      leading: dimensions before the split one.
    """
    split = sharding.batch_sharding(network.mesh, leading)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(split, leaf), batch
    )


def make_score(network: Network) -> Callable[[Any, Batch], jax.Array]:
    """Returns the compiled function (params, batch) -> scores [B, L] float32."""
    groups = sharding.num_shards(network.mesh)

    def score(params: Any, batch: Batch) -> jax.Array:
        model = nnx.merge(network.graphdef, params)
        return model(
            batch.tokens,
            batch.segments,
            batch.positions,
            batch.types,
            batch.score_index,
            groups=groups,
        )

    return jax.jit(score)


def score_lists(
    score: Callable[[Any, Batch], jax.Array],
    params: Any,
    network: Network,
    lists: Source[RankedList],
    encoder: ListEncoder,
    *,
    rows: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Scores of all candidates of all lists, in order, float32 [pairs].

    Args:
      score: from `make_score`.
      params: of the model, on the mesh.
      network: of the same model.
      lists: records of `RankedList`.
      encoder: makes segments of their documents.
      rows: pairs a batch, over all devices.
      progress: called with the pairs done and the real tokens of each batch.

    Raises:
      FloatingPointError: at the first batch with a score that is not finite.
    """
    shards = sharding.num_shards(network.mesh)
    rows = -(-rows // shards) * shards
    results: list[np.ndarray] = []
    waiting: tuple[jax.Array, int, int] | None = None
    done = 0

    def fetch(scores: jax.Array, real: int, tokens: int) -> None:
        nonlocal done
        if jax.process_count() > 1:
            values = multihost_utils.process_allgather(scores, tiled=True)
        else:
            values = jax.device_get(scores)
        values = np.asarray(values, np.float32)[:real, 0]
        if not np.isfinite(values).all():
            where = done + int(np.flatnonzero(~np.isfinite(values))[0])
            raise FloatingPointError(
                f"pair {where} has the score {values[where - done]}: the model's "
                "weights or its input are broken; nothing was written for this batch"
            )
        results.append(values)
        done += real
        if progress:
            progress(done, tokens)

    share = Share.of_this_process()
    with jax.set_mesh(network.mesh):
        for batch, real in pair_batches(lists, encoder, rows=rows, share=share):
            tokens = int((batch.segments > 0).sum()) * share.count
            result = score(params, device_batch(batch, network, leading=0))
            if waiting:  # one batch is computed while the one before is fetched
                fetch(*waiting)
            waiting = (result, real, tokens)
        if waiting:
            fetch(*waiting)
    return np.concatenate(results) if results else np.zeros(0, np.float32)
