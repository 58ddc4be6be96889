"""Graphs of less precision, made of the float32 one: bfloat16, static, dynamic int8."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ranker.data.text import Segment
from ranker.serving import runtimes

_TRIED = 3  # products with the noisiest inputs, of which one may stay in float32
_ROWS = 96  # of train, that are scored to choose them: few pairs have large errors
_WORTH = 0.75  # of the error: less must be left, or nothing more stays in float32
_MOST = 2  # products that stay in float32


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Leaves out a warning that advises what our graphs need not: constant folding."""

    def other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logging.getLogger().addFilter(other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(other)


def to_bfloat16(
    source: pathlib.Path, target: pathlib.Path, rows: Sequence[Segment] = ()
) -> None:
    """Matrices in bfloat16, half as large, cast to float32 where they are read."""
    del rows
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    casts, kept = [], []
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.dtype != np.float32 or value.ndim < 2:
            kept.append(weight)
            continue
        narrow = value.astype(ml_dtypes.bfloat16)
        name = f"{weight.name}_bfloat16"
        kept.append(
            helper.make_tensor(
                name, TensorProto.BFLOAT16, value.shape, narrow.tobytes(), raw=True
            )
        )
        casts.append(
            helper.make_node("Cast", [name], [weight.name], to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, str(target))


def _reduced() -> bool:
    """Whether weights take 7 bits: without VNNI, products of 8 bits saturate."""
    flags = runtimes.cpu_flags()
    return bool(flags) and not any("vnni" in one or "i8mm" in one for one in flags)


def to_static_int8(
    source: pathlib.Path, target: pathlib.Path, rows: Sequence[Segment]
) -> None:
    """Weights and activations in 8 bits, by ranges that `rows` show (QDQ)."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    types = len(_inputs(source)) > 2

    class Reader(CalibrationDataReader):
        """Feeds the rows one by one."""

        def __init__(self):
            self._left = iter(rows)

        def get_next(self) -> Any:
            """The next row's arrays; None at the end."""
            row = next(self._left, None)
            if row is None:
                return None
            ids, mask, kinds = runtimes.arrays([row], 1, len(row.tokens))
            fields = {"input_ids": ids, "attention_mask": mask}
            return fields | ({"token_type_ids": kinds} if types else {})

    with _without_advice():
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=_reduced(),
        )


def to_dynamic_int8(
    source: pathlib.Path, target: pathlib.Path, rows: Sequence[Segment] = ()
) -> None:
    """Weights in 8 bits, activations by each run's own range: one pair a run.

    A product whose input has outliers loses most of its bits to them (Bondarenko et
    al., 2021, arXiv:2109.12948). So up to two stay in float32, one after the other:
    of the three with the noisiest inputs that without which the scores of `rows` are
    nearest to float32's, as long as it takes a quarter off their error.
    """
    kept: list[str] = []
    _dynamic_int8(source, target, kept)
    if not rows:
        return
    rows = list(rows)[:: max(len(rows) // _ROWS, 1)][:_ROWS]
    expected = _scores(source, rows)
    error = _distance(target, rows, expected)
    tried = _noisiest(source, rows)
    trial = target.with_suffix(".trial")
    while tried and len(kept) < _MOST:
        found = {}
        for name in tried:
            _dynamic_int8(source, trial, [*kept, name])
            found[name] = _distance(trial, rows, expected)
        best = min(found, key=lambda name: found[name])
        if found[best] > _WORTH * error:
            break
        kept, error = [*kept, best], found[best]
        tried.remove(best)
    trial.unlink(missing_ok=True)
    if kept:
        _dynamic_int8(source, target, kept)


def _dynamic_int8(
    source: pathlib.Path, target: pathlib.Path, kept: Sequence[str]
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=_reduced(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
        )


def _scores(path: pathlib.Path, rows: Sequence[Segment]) -> np.ndarray:
    runtime = runtimes.OnnxRuntime(path, "float32", 0)
    return np.concatenate([runtime.run([row], len(row.tokens)) for row in rows])


def _distance(
    path: pathlib.Path, rows: Sequence[Segment], expected: np.ndarray
) -> float:
    """Root mean square of the differences of scores."""
    return float(np.sqrt(np.mean((_scores(path, rows) - expected) ** 2)))


def _noisiest(path: pathlib.Path, rows: Sequence[Segment]) -> list[str]:
    """Products with weights, those first whose inputs 8 bits hold worst."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    weights = {one.name for one in model.graph.initializer}
    products = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }
    inputs = sorted(set(products.values()))
    for name in inputs:
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    noise = dict.fromkeys(inputs, 0.0)
    for row in rows:
        ids, mask, types = runtimes.arrays([row], 1, len(row.tokens))
        fields = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        given = {one.name: fields[one.name] for one in session.get_inputs()}
        values: Any = session.run(inputs, given)
        for name, x in zip(inputs, values, strict=True):
            # A step of 8 bits, to the size of what it is added to.
            noise[name] += float(np.ptp(x) / np.sqrt(np.mean(np.square(x)) + 1e-30))
    found = sorted(products, key=lambda name: -noise[products[name]])
    return found[:_TRIED]


def _inputs(path: pathlib.Path) -> list[str]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [one.name for one in model.graph.input]
