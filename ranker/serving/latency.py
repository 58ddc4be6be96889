"""Latency of a request by runtime, precision and shape of the student."""

import dataclasses
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from ranker import config
from ranker.data.text import Segment
from ranker.errors import ConfigError, ModelError
from ranker.models import build
from ranker.models.huggingface import flat
from ranker.serving import contract, onnx_graph, runtimes
from ranker.serving.contract import Contract
from ranker.serving.packed import PackedModel
from ranker.serving.runtimes import Runtime, grouped

_HEAD = 32  # or 64: width of a head of a student that is not there yet


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is measured."""

    candidates: int = 100  # a request
    tokens: int = 128  # a pair
    budget: float = 0.010  # seconds a request
    repeats: int = 20  # requests timed
    workers: int = 0  # threads; 0: one a core
    shapes: tuple[tuple[int, int], ...] = ()  # other students: layers, width

    def __post_init__(self):
        for name in ("candidates", "tokens", "budget", "repeats"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} must be above 0, found {getattr(self, name)}"
                )


@dataclass(frozen=True)
class Measured:
    """Seconds of requests in one runtime and precision."""

    student: str  # "this one", or its layers and width
    runtime: str
    precision: str
    p50: float  # seconds
    p95: float
    p99: float
    pairs_per_second: float
    fit: int  # candidates of a request within the budget, at p95


def parse_shape(text: str) -> tuple[int, int]:
    """Layers and width of LAYERSxWIDTH, such as 2x384.

    Raises:
      ConfigError: for anything else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not found or not int(found[1]) or int(found[2]) % _HEAD:
        raise ConfigError(
            f"shape {text!r}: expected LAYERSxWIDTH such as 2x384, the width a "
            f"multiple of {_HEAD}"
        )
    return int(found[1]), int(found[2])


def measure(folder: pathlib.Path, trial: Trial) -> list[Measured]:
    """Times requests of random pairs.

    Raises:
      ContractError, ModelError: when the folder cannot be read.
    """
    promise = contract.load(folder)
    contract.need_one_passage(promise, folder, "ranker.latency")
    if trial.tokens > promise.length:
        raise ConfigError(
            f"--tokens {trial.tokens} is over the contract's length, {promise.length}"
        )
    workers = trial.workers or len(os.sched_getaffinity(0))
    found = [
        _time("this one", runtime, trial, workers)
        for runtime in _of_folder(folder, promise)
    ]
    for layers, width in trial.shapes:
        for runtime in _of_shape(promise, layers, width, found[0].runtime):
            found.append(_time(f"{layers} x {width}", runtime, trial, workers))
    return found


def _of_folder(folder: pathlib.Path, promise: Contract) -> Iterator[Runtime]:
    """Every runtime and precision that the folder can be served by."""
    graph = (folder / runtimes.FILES["float32"]).is_file()
    onnx: tuple[runtimes.Name, ...] = ("onnxruntime", "openvino")
    names: list[runtimes.Name] = [
        name for name in onnx if graph and runtimes.installed(name)
    ]
    for name in names if jax.default_backend() == "cpu" else ():
        yield runtimes.open_runtime(folder, name, "float32")
    for precision, one in promise.precisions.items():
        if one.get("accepted") and runtimes.installed(one["runtime"]):
            yield runtimes.open_runtime(folder, one["runtime"], precision)  # type: ignore[arg-type]
    yield runtimes.open_runtime(folder, "jax", "float32")


def _of_shape(
    promise: Contract, layers: int, width: int, name: str
) -> Iterator[Runtime]:
    """A student of random weights, in the runtime that this folder is served by."""
    model = config.from_dict(promise.model)
    if not isinstance(model, config.Encoder):
        return
    heads = max(width // (2 * _HEAD), 1) if width % (2 * _HEAD) == 0 else width // _HEAD
    local = tuple(i for i in model.local_layers if i < layers)
    shaped = dataclasses.replace(
        model,
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        mlp_dim=4 * width,
        table_dim=0,
        local_layers=local,
        window=model.window if local else 0,
    )
    vocabulary = 1000  # of the embedding alone, which no time is spent in
    made = build.build(shaped, vocabulary, "score", key=jax.random.key(0))
    graphdef, params = nnx.split(made, nnx.Param)
    if name == "jax":
        packed = PackedModel.of(graphdef, params, shaped, vocabulary)
        yield runtimes.Jax(packed, "float32")
        return
    with tempfile.TemporaryDirectory() as kept:
        path = pathlib.Path(kept) / "model.onnx"
        onnx_graph.write(path, shaped, dict(flat(params)))
        kind = runtimes.Onnx if name == "onnxruntime" else runtimes.OpenVino
        try:
            yield kind(path, "float32", vocabulary)
        except ModelError:
            return


def _time(student: str, runtime: Runtime, trial: Trial, workers: int) -> Measured:
    draw = np.random.default_rng(0)
    top = min(runtime.vocab_size, 1000)
    rows = [
        Segment(draw.integers(0, top, trial.tokens).tolist(), (0, 1), 1, 0)
        for _ in range(trial.candidates)
    ]
    runs = [
        (padded, [rows[i] for i in places]) for padded, places in grouped(runtime, rows)
    ]
    times = []
    with ThreadPoolExecutor(workers) as pool:

        def request() -> None:
            list(pool.map(lambda run: runtime.run(run[1], run[0]), runs))

        request()  # compiles, and allocates
        for _ in range(trial.repeats):
            begun = time.perf_counter()
            request()
            times.append(time.perf_counter() - begun)
    p50, p95, p99 = np.quantile(times, (0.5, 0.95, 0.99))
    return Measured(
        student=student,
        runtime=runtime.name,
        precision=runtime.precision,
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        pairs_per_second=trial.candidates / float(np.mean(times)),
        fit=int(trial.budget / (float(p95) / trial.candidates)),
    )


def table(rows: Sequence[Measured], trial: Trial) -> str:
    """The table that is printed."""
    head = f"{'student':<10} {'runtime':<12} {'precision':<13}"
    lines = [
        f"{trial.candidates} candidates of {trial.tokens} tokens, {trial.repeats} "
        "requests, one at a time",
        f"{head} {'p50':>8} {'p95':>8} {'p99':>8} {'pairs/s':>9}  "
        f"within {trial.budget * 1e3:g} ms",
    ]
    for row in rows:
        times = " ".join(f"{x * 1e3:>5.1f} ms" for x in (row.p50, row.p95, row.p99))
        lines.append(
            f"{row.student:<10} {row.runtime:<12} {row.precision:<13} {times} "
            f"{row.pairs_per_second:>9,.0f}  {row.fit}"
        )
    return "\n".join(lines)
