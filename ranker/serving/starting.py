"""From a folder to a model that is served: which runtime, and is it still right."""

import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from ranker.data.backends import load_tokenizer
from ranker.data.text import Segment
from ranker.errors import ContractError, ModelError, shown
from ranker.metrics import calibration
from ranker.serving import contract, runtimes
from ranker.serving.batching import Batcher, Limits
from ranker.serving.contract import Contract
from ranker.serving.frame import PairEncoder, contract_frame
from ranker.serving.precision import folder_digest
from ranker.serving.runtimes import Name, Precision, Runtime
from ranker.serving.server import Served
from ranker.serving.texts import TextEncoder

_TOLERANCE = 1e-2  # standard deviations of the scores, float32; as ranker.check
_SMALLEST = 1e-5  # of the largest score: what float32 can tell apart


def choose_runtime(
    folder: pathlib.Path, promise: Contract, name: str, precision: str
) -> tuple[Name, Precision]:
    """The runtime and the precision, where they are left open ("auto").

    JAX on a GPU or TPU. On a CPU another runtime, where the folder has a graph and it
    is installed; else JAX. Of precisions the fastest that the contract has accepted on
    such a device or CPU, and that beat float32 there.

    Raises:
      ModelError: for a precision that the contract has not accepted.
      ContractError: when what it says of one cannot be read.
    """
    accepted, device = _precisions(promise), runtimes.device()
    if precision not in ("auto", "float32"):
        return _accepted(folder, accepted, name, precision)
    if name == "auto" and device != "cpu":
        name = "jax"
    if precision == "auto":
        # What was accepted may be slower than float32, on a CPU without its units.
        faster = [one for one in accepted.items() if one[1].get("speedup", 1.0) >= 1.0]
        fast = sorted(faster, key=lambda one: -one[1]["speed"])
        flags = set(runtimes.cpu_flags())
        for key, one in fast:
            runtime = one["runtime"]
            fits = name in ("auto", runtime) and runtimes.installed(runtime)
            where = "cpu" if runtime != "jax" else device
            same = one.get("device", "cpu") == where and set(one["cpu_flags"]) <= flags
            if fits and same:
                return _accepted(folder, accepted, name, key)
    if name != "auto":
        return name, "float32"  # type: ignore[return-value]
    graph = (folder / runtimes.FILES["float32"]).is_file()
    for runtime in ("onnxruntime", "openvino"):
        if graph and runtimes.installed(runtime):
            return runtime, "float32"
    return "jax", "float32"


def _precisions(promise: Contract) -> dict[str, dict[str, Any]]:
    """What the contract has accepted, by precision."""
    for key, one in promise.precisions.items():
        fits = isinstance(one, dict) and isinstance(one.get("speed", 0), int | float)
        fits = fits and isinstance(one.get("cpu_flags", []), list)
        known = runtimes.RUNTIMES
        if key not in runtimes.FILES or not fits or one.get("runtime") not in known:
            raise ContractError(
                f"the contract's precisions: {key!r} is {shown(one)}; expected one of "
                f"{', '.join(runtimes.FILES)} with a runtime of {', '.join(known)}; "
                "export the stage again"
            )
    nothing = {"speed": 0.0, "cpu_flags": []}
    return {
        key: nothing | one
        for key, one in promise.precisions.items()
        if one.get("accepted")
    }


def _accepted(
    folder: pathlib.Path,
    accepted: dict[str, dict[str, Any]],
    name: str,
    precision: Any,
) -> tuple[Name, Precision]:
    one = accepted.get(precision)
    if not one:
        known = list(accepted)
        raise ModelError(
            f"{folder}: the contract has not accepted the precision {precision}"
            f"{f' (accepted: {known})' if known else ''}; export the stage with "
            f"--config.onnx.precision={runtimes.asked(precision)}, which measures what "
            "it costs"
        )
    if name not in ("auto", one["runtime"]):
        raise ModelError(
            f"{folder}: {precision} was accepted in {one['runtime']}, not in {name}"
        )
    if folder_digest(folder, one["runtime"], precision) != one.get("digest"):
        on_jax = one["runtime"] == "jax"
        kept = "model.safetensors" if on_jax else runtimes.FILES[precision]
        raise ModelError(
            f"{folder / kept} is not the file that was accepted; export the stage again"
        )
    return one["runtime"], precision


def check_golden(promise: Contract, runtime: Runtime, segments: list[Segment]) -> None:
    """The golden pairs score as the contract says, in this runtime.

    Raises:
      ContractError: with the first pair that does not.
    """
    golden = np.array([one.score for one in promise.golden], np.float32)
    for one, segment in zip(promise.golden, segments, strict=True):
        if one.tokens != segment.tokens:
            raise ContractError(
                f"the golden pair {one.query[:60]!r} has other tokens than the "
                "contract says: the tokenizer has changed; run python -m ranker.check"
            )
    found = runtimes.score_pairs(runtime, segments)
    if runtime.precision == "float32":
        floor = _SMALLEST * float(np.abs(golden).max())
        allowed = max(_TOLERANCE * promise.scores["std"], floor)
    else:
        # Rounding moves scores; what was accepted says by how much.
        recorded = promise.precisions.get(runtime.precision, {})
        allowed = recorded.get("largest_difference", 0.1 * promise.scores["std"]) * 1.5
    wrong = ~(np.abs(found - golden) <= allowed)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ContractError(
            f"{int(wrong.sum())} of {len(golden)} golden pairs score otherwise in "
            f"{runtime.name} ({runtime.precision}): pair {i} is {found[i]:.5f}, and "
            f"the contract says {golden[i]:.5f}. This folder is not served; run "
            "python -m ranker.check on it for the cause"
        )


def start(
    folder: pathlib.Path,
    *,
    runtime: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    limits: Limits,
) -> tuple[Served, Batcher]:
    """Loads, compiles and checks a folder.

    Raises:
      UserError: when it cannot be served.
    """
    promise = contract.load_contract(folder)
    contract.need_one_passage(promise, folder, "ranker.serve")
    name, chosen = choose_runtime(folder, promise, runtime, precision)
    loaded: Any = load_tokenizer(folder)
    encoder = PairEncoder(contract_frame(promise), loaded.backend_tokenizer)
    opened = runtimes.open_runtime(folder, name, chosen)
    begun = time.monotonic()
    opened.warm(promise.length)
    warmed = time.monotonic() - begun
    pairs = [(one.query, (one.title, one.text)) for one in promise.golden]
    segments = encoder.pairs(pairs)
    check_golden(promise, opened, segments)
    on_device = name == "jax" and jax.default_backend() != "cpu"
    count = workers or (1 if on_device else len(os.sched_getaffinity(0)))
    batcher = Batcher(opened, limits, workers=count)
    begun = time.monotonic()
    runtimes.score_pairs(opened, segments)
    tokens = sum(len(one.tokens) for one in segments)
    batcher.measured(tokens * count, time.monotonic() - begun)
    print(
        f"[serve] {folder}: {name}, {chosen}, {count} workers, {len(pairs)} golden "
        f"pairs are right; warmed in {warmed:.1f} s, about "
        f"{batcher.tokens_per_second:,.0f} tokens/s",
        flush=True,
    )
    made = Served(promise, opened, TextEncoder(encoder), _calibration(promise))
    return made, batcher


def start_cascade(
    folder: pathlib.Path, first: pathlib.Path, keep: int, **how: Any
) -> tuple[Served, Batcher]:
    """Starts two folders: `first` sees all candidates, `folder` the `keep` best.

    Raises:
      UserError: when one of them cannot be served.
    """
    cheap, waiting = start(first, **how)
    good, batcher = start(folder, **how)
    cheap = dataclasses.replace(cheap, batcher=waiting)
    return dataclasses.replace(good, first=cheap, keep=keep), batcher


def _calibration(promise: Contract) -> Any:
    if not promise.calibration:
        return None
    try:
        return calibration.from_json(promise.calibration)
    except (ValueError, TypeError, KeyError) as error:
        raise ContractError(f"the contract's calibration: {error}") from error
