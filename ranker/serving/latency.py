"""Latency of a request by runtime, precision and shape of the student."""

import dataclasses
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
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

_LEAST = 3  # requests timed, however long they take
_HEAD = 32  # width of a head, where this folder's does not fit


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """What is measured."""

    candidates: int = 100  # a request
    tokens: int = 128  # a pair
    budget: float = 0.010  # seconds a request
    repeats: int = 20  # requests timed
    seconds: float = 10.0  # for a row, after which it ends with fewer requests
    workers: int = 0  # threads; 0: one a core
    shapes: tuple[tuple[int, int], ...] = ()  # other students: layers, width

    def __post_init__(self):
        for name in ("candidates", "tokens", "budget", "repeats", "seconds"):
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
    requests: int  # timed


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


def time_requests(folder: pathlib.Path, trial: LatencySettings) -> Iterator[Measured]:
    """Times requests of random pairs; gives each row when it is measured.

    Raises:
      ContractError, ModelError: when the folder cannot be read.
      ConfigError: when the model has no position for so many tokens.
    """
    promise = contract.load_contract(folder)
    contract.need_one_passage(promise, folder, "ranker.latency")
    positions = promise.model.get("max_positions", 0)
    if positions and trial.tokens > positions:
        raise ConfigError(
            f"--tokens {trial.tokens} is over the {positions} positions of the model"
        )
    return _rows(folder, promise, trial)


def _rows(
    folder: pathlib.Path, promise: Contract, trial: LatencySettings
) -> Iterator[Measured]:
    workers = trial.workers or len(os.sched_getaffinity(0))
    name = ""
    for runtime in _of_folder(folder, promise):
        name = name or runtime.name
        yield _time("this one", runtime, trial, workers)
    for layers, width in trial.shapes:
        for runtime in _of_shape(promise, layers, width, name):
            yield _time(f"{layers} x {width}", runtime, trial, workers)


def note(folder: pathlib.Path, trial: LatencySettings) -> str:
    """What the folder's contract says of so many tokens; empty where they fit."""
    length = contract.load_contract(folder).length
    if trial.tokens <= length:
        return ""
    return (
        f"this folder was trained on, and cuts, pairs of {length} tokens: its own "
        f"requests are shorter than what was measured (--tokens {length})"
    )


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
        here = one.get("device", "cpu") in ("cpu", runtimes.device())
        if one.get("accepted") and here and runtimes.installed(one["runtime"]):
            yield runtimes.open_runtime(folder, one["runtime"], precision)  # type: ignore[arg-type]
    yield runtimes.open_runtime(folder, "jax", "float32")


def _of_shape(
    promise: Contract, layers: int, width: int, name: str
) -> Iterator[Runtime]:
    """A student of random weights, in the runtime that this folder is served by."""
    model = config.from_dict(promise.model)
    if not isinstance(model, config.Encoder):
        return
    head = model.embed_dim // model.num_heads  # as wide as here, where they fit
    head = head if width % head == 0 else _HEAD
    local = tuple(i for i in model.local_layers if i < layers)
    shaped = dataclasses.replace(
        model,
        num_layers=layers,
        embed_dim=width,
        num_heads=width // head,
        mlp_dim=width * model.mlp_dim // model.embed_dim,
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
        onnx_graph.write_graph(path, shaped, dict(flat(params)))
        kind = runtimes.OnnxRuntime if name == "onnxruntime" else runtimes.OpenVino
        try:
            yield kind(path, "float32", vocabulary)
        except ModelError:
            return


def _time(
    student: str, runtime: Runtime, trial: LatencySettings, workers: int
) -> Measured:
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
        end = time.perf_counter() + trial.seconds
        while len(times) < trial.repeats:
            begun = time.perf_counter()
            if begun > end and len(times) >= _LEAST:
                break
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
        requests=len(times),
    )


def heading(trial: LatencySettings) -> str:
    """What stands above the lines."""
    head = f"{'student':<10} {'runtime':<12} {'precision':<13}"
    return (
        f"{trial.candidates} candidates of {trial.tokens} tokens, one request at a "
        "time\n"
        f"{head} {'p50':>9} {'p95':>9} {'p99':>9} {'pairs/s':>9} {'requests':>9}  "
        f"within {trial.budget * 1e3:g} ms"
    )


def line(row: Measured) -> str:
    """A row as it is printed."""
    times = " ".join(f"{x * 1e3:>6.1f} ms" for x in (row.p50, row.p95, row.p99))
    return (
        f"{row.student:<10} {row.runtime:<12} {row.precision:<13} {times} "
        f"{row.pairs_per_second:>9,.0f} {row.requests:>9}  {row.fit}"
    )
