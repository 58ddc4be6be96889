"""One scorer, three runtimes: JAX, onnxruntime and OpenVINO score rows of tokens.

A score is a function of its pair alone, whatever else is in a batch. So a row never
holds two pairs, rows are padded to a length that the pair's own length decides, and on
a CPU, where a batch gains nothing, each row runs alone.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jaxtyping import Float

from ranker import config
from ranker.batch import Rows
from ranker.data.text import Segment
from ranker.errors import ModelError
from ranker.models.huggingface import open_checkpoint
from ranker.serving import onnx_graph, packed

Name = Literal["jax", "onnxruntime", "openvino"]
Precision = Literal["float32", "bfloat16", "int8", "int8_dynamic", "int8_mixed"]
RUNTIMES: tuple[Name, ...] = ("jax", "onnxruntime", "openvino")
EXTRA = {"onnxruntime": "export", "openvino": "openvino"}

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
_FLAGS += ("amx_bf16", "asimddp", "bf16", "i8mm")
_STEP = 32  # tokens: rows of JAX are padded to multiples, so that few are compiled
_OPENVINO_STEP = 16  # tokens: OpenVINO prepares each new length, which takes as long
_BATCH_TOKENS = 16384  # a batch of JAX on a GPU or TPU


class Runtime(Protocol):
    """Scores rows of one padded length."""

    name: Name
    precision: Precision
    vocab_size: int

    def padded(self, tokens: int) -> int:
        """Tokens of the row that a pair of so many is put into."""
        ...

    def rows(self, padded: int) -> int:
        """Rows that one run takes, at most."""
        ...

    def warm(self, length: int) -> None:
        """Prepares every row length up to `length`: nothing is compiled afterwards."""
        ...

    def run(
        self, segments: Sequence[Segment], padded: int
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores of at most `rows(padded)` pairs of one padded length."""
        ...


def score_pairs(
    runtime: Runtime, segments: Sequence[Segment]
) -> Float[np.ndarray, " pairs"]:
    """Raw scores of pairs, in their order: what a server answers, bit for bit."""
    scores = np.zeros(len(segments), np.float32)
    packed.check_tokens(segments, runtime.vocab_size)
    for padded, places in grouped(runtime, segments):
        found = runtime.run([segments[i] for i in places], padded)
        scores[places] = found
    return scores


def grouped(
    runtime: Runtime, segments: Sequence[Segment]
) -> list[tuple[int, list[int]]]:
    """Runs that score all segments: padded length, and places of the segments."""
    by_length: dict[int, list[int]] = {}
    for place, segment in enumerate(segments):
        by_length.setdefault(runtime.padded(len(segment.tokens)), []).append(place)
    runs = []
    for padded, places in sorted(by_length.items(), reverse=True):
        rows = runtime.rows(padded)
        runs += [(padded, places[i : i + rows]) for i in range(0, len(places), rows)]
    return runs


def arrays(segments: Sequence[Segment], rows: int, padded: int) -> list[np.ndarray]:
    """Ids, mask and types [rows, padded], int64; id 0 pads, and is not attended to."""
    shape = (rows, padded)
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    for i, segment in enumerate(segments):
        n = len(segment.tokens)
        ids[i, :n], types[i, :n], mask[i, :n] = segment.tokens, segment.types, 1
    return [ids, mask, types]


@dataclass
class Jax:
    """This package's model; every shape is compiled before it is asked for."""

    model: packed.PackedModel
    precision: Precision
    name: Name = "jax"

    def __post_init__(self):
        self.vocab_size = self.model.vocab_size
        self.on_cpu = jax.default_backend() == "cpu"
        self._compiled: dict[int, Callable] = {}

    def padded(self, tokens: int) -> int:
        """Tokens of the row that a pair of so many is put into."""
        return -(-tokens // _STEP) * _STEP

    def rows(self, padded: int) -> int:
        """Rows of the one shape of this length."""
        return 1 if self.on_cpu else max(_BATCH_TOKENS // padded, 1)

    def warm(self, length: int) -> None:
        """Compiles every row length up to `length`."""
        for padded in range(_STEP, self.padded(length) + 1, _STEP):
            self._function(padded)

    def _function(self, padded: int) -> Callable:
        if padded not in self._compiled:
            rows = self.rows(padded)
            one = jax.ShapeDtypeStruct((rows, padded), np.int32)
            last = jax.ShapeDtypeStruct((rows, 1), np.int32)
            shapes = (Rows(one, one, one, one), last)  # type: ignore[arg-type]
            with jax.default_matmul_precision(
                "highest" if self.precision == "float32" else "default"
            ):
                lowered = self.model.score.lower(self.model.params, *shapes)
            self._compiled[padded] = lowered.compile()
        return self._compiled[padded]

    def run(
        self, segments: Sequence[Segment], padded: int
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores."""
        rows = self.rows(padded)
        made = arrays(segments, rows, padded)
        ids, mask, types = (array.astype(np.int32) for array in made)
        positions = np.broadcast_to(np.arange(padded, dtype=np.int32), ids.shape) * mask
        first = np.arange(rows, dtype=np.int32)[:, None] * padded
        first[: len(segments), 0] += [one.score for one in segments]
        function = self._function(padded)
        given = Rows(ids, mask, positions, types)  # type: ignore[arg-type]
        found = function(self.model.params, given, first)
        return np.asarray(found, np.float32)[: len(segments), 0]


class OnnxRuntime:
    """onnxruntime on a CPU: a row a run, one thread a run."""

    name: Name = "onnxruntime"

    def __init__(self, path: pathlib.Path, precision: Precision, vocab_size: int):
        """Opens a file.

        Raises:
          ModelError: when it cannot be opened.
        """
        import onnxruntime

        self.precision: Precision = precision
        self.vocab_size = vocab_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                # Fused, sum and norm take 1.7 times as long in int8 graphs (1.32).
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        except Exception as error:  # onnxruntime raises many kinds
            raise ModelError(
                f"{path}: onnxruntime cannot open it: {' '.join(str(error).split())}; "
                "export the stage again with --config.onnx.precision=float32"
            ) from error
        self._types = len(self._session.get_inputs()) > 2

    def padded(self, tokens: int) -> int:
        """No padding."""
        return tokens

    def rows(self, padded: int) -> int:
        """One: a batch gains nothing on a CPU."""
        del padded
        return 1

    def warm(self, length: int) -> None:
        """Nothing is compiled; the first runs allocate memory."""
        for tokens in (8, length):
            ids = Segment([0] * tokens, (0, 0), 1, 0)
            self.run([ids], tokens)

    def run(
        self, segments: Sequence[Segment], padded: int
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores."""
        return self.feed(*arrays(segments, len(segments), padded))

    def feed(
        self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores of arrays [rows, tokens]."""
        fields = {"input_ids": ids, "attention_mask": mask}
        if self._types:
            fields["token_type_ids"] = types
        found: Any = self._session.run(["logits"], fields)
        return np.asarray(found[0], np.float32)[:, 0]


def _import_openvino() -> Any:
    """OpenVINO without its telemetry: a server calls nobody, and forks no process."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVino:
    """OpenVINO on a CPU: a row a run, of a length rounded up to 16."""

    name: Name = "openvino"

    def __init__(self, path: pathlib.Path, precision: Precision, vocab_size: int):
        """Reads and compiles a file.

        Raises:
          ModelError: when it cannot be compiled.
        """
        import threading

        openvino = _import_openvino()
        self.precision: Precision = precision
        self.vocab_size = vocab_size
        hint = "bf16" if precision == "bfloat16" else "f32"
        # A stream a core, of one thread each, for as many rows at once.
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": os.cpu_count() or 1,
            "INFERENCE_NUM_THREADS": os.cpu_count() or 1,
        }
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(str(path), "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own
            said = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: OpenVINO cannot compile it: {said}") from error
        self._types = len(self._compiled.inputs) > 2
        self._own = threading.local()  # a request belongs to one thread

    def padded(self, tokens: int) -> int:
        """A multiple of 16."""
        return -(-tokens // _OPENVINO_STEP) * _OPENVINO_STEP

    def rows(self, padded: int) -> int:
        """One: a batch gains nothing on a CPU."""
        del padded
        return 1

    def warm(self, length: int) -> None:
        """Runs every row length up to `length` once."""
        step = _OPENVINO_STEP
        for tokens in range(step, self.padded(length) + 1, step):
            self.run([Segment([0] * tokens, (0, 0), 1, 0)], tokens)

    def run(
        self, segments: Sequence[Segment], padded: int
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores."""
        return self.feed(*arrays(segments, len(segments), padded))

    def feed(
        self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray
    ) -> Float[np.ndarray, " rows"]:
        """Raw float32 scores of arrays [rows, tokens]."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        fields = {"input_ids": ids, "attention_mask": mask}
        if self._types:
            fields["token_type_ids"] = types
        found = self._own.request.infer(fields)
        return np.array(found["logits"], np.float32)[:, 0]


def cpu_flags() -> list[str]:
    """What makes a CPU fast in few bits, as Linux names it; empty elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    line = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    found = set(line.partition(":")[2].split())
    return [flag for flag in _FLAGS if flag in found]


def device() -> str:
    """What JAX computes on: "cpu", or the kind of GPU or TPU."""
    return "cpu" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


def installed(name: Name) -> bool:
    """Whether a runtime can be imported."""
    return name == "jax" or importlib.util.find_spec(name) is not None


FILES: dict[Precision, str] = {
    "float32": onnx_graph.FILE,
    "bfloat16": "onnx/model_bfloat16.onnx",
    "int8": "onnx/model_int8.onnx",
    "int8_dynamic": "onnx/model_int8_dynamic.onnx",
    "int8_mixed": "onnx/model_int8_mixed.onnx",
}


def asked(precision: str) -> str:
    """The setting onnx.precision that tries this precision."""
    return "int8" if precision.startswith("int8") else precision


def open_runtime(folder: pathlib.Path, name: Name, precision: Precision) -> Runtime:
    """Opens a folder's model in a runtime.

    Raises:
      ModelError: when the runtime is not installed, the folder has no file for it, or
        the file cannot be read.
    """
    if not installed(name):
        raise ModelError(
            f"the runtime {name} is not installed: pip install 'ranker[{EXTRA[name]}]'"
        )
    settings = config.Pretrained(
        path=str(folder),
        dtype="bfloat16" if precision == "bfloat16" and name == "jax" else "float32",
    )
    checkpoint = open_checkpoint(settings)
    if name == "jax":
        if precision not in ("float32", "bfloat16"):
            raise ModelError(
                f"the runtime jax computes in float32 or bfloat16, not in {precision}"
            )
        return Jax(packed.place_weights(checkpoint), precision)
    path = folder / FILES[precision]
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {FILES[precision]}; export the stage again with "
            f"--config.onnx.precision={asked(precision)}, or serve it by --runtime jax"
        )
    make = OnnxRuntime if name == "onnxruntime" else OpenVino
    return make(path, precision, checkpoint.vocab_size)
