"""A step whose numbers went wrong, written down so that it can be looked at again."""

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from ranker import processes, storage
from ranker.batch import PackedBatch

FOLDER = "failures"


def write_failure(
    folder: pathlib.Path, step: int, batch: PackedBatch, facts: dict[str, Any]
) -> pathlib.Path:
    """Writes WORKDIR/NAME/failures/step_N: the batch's arrays and what is known of it.

    Args:
      folder: of the stage.
      step: number of the step.
      batch: this process's part of the batch that it took, numpy.
      facts: what report_PROCESS.json is to say; NaN becomes a word.
    """
    target = folder / FOLDER / f"step_{step}"
    target.mkdir(parents=True, exist_ok=True)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]
    }
    index = processes.index()
    with storage.writing(target / f"batch_{index}.npz") as file:
        np.savez_compressed(file, **leaves)
    report = _readable({"step": step, **facts})
    storage.write_json(target / f"report_{index}.json", report)
    return target


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _readable(one) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    return value


def load_failure(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_failure` wrote: the first report, and the arrays of the whole batch.

    Args:
      folder: WORKDIR/NAME/failures/step_N.
    """
    report = json.loads((folder / "report_0.json").read_text())
    parts = []
    for number in range(len(list(folder.glob("batch_*.npz")))):
        with np.load(folder / f"batch_{number}.npz", allow_pickle=False) as part:
            parts.append(dict(part))
    # Leaves are [micro-batches, rows, ...], and each process has some of the rows.
    return report, {
        name: np.concatenate([part[name] for part in parts], axis=1)
        for name in parts[0]
    }
