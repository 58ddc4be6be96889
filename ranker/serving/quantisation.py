"""Graphs of less precision, made of the float32 one: bfloat16, static, dynamic int8."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ranker.data.text import Segment
from ranker.serving import runtimes


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
    """Weights in 8 bits, activations by each run's own range: one pair a run."""
    del rows
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=_reduced(),
            weight_type=QuantType.QInt8,
        )


def _inputs(path: pathlib.Path) -> list[str]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [one.name for one in model.graph.input]
