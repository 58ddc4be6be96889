"""Graphs of less precision, made of the float32 one: bfloat16, static, dynamic int8.

In 8 bits, the inputs of a product share one scale. A few channels of an encoder's
hidden states are many times larger than the others, and would leave these few steps. So
such channels are divided by a number that the product's weights are multiplied by
(Xiao et al., SmoothQuant, 2023), and products that one token of a row meets stay in
float32, where they cost nothing.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ranker.data.text import Segment
from ranker.serving import runtimes

# Of a large channel's excess, the share that its weights take over. Weights get coarser
# by it: with 0.5 or 1 instead, the scores of MiniLM changed more.
_SMOOTHING = 0.75


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

    class Reader(CalibrationDataReader):
        """Feeds the rows one by one."""

        def __init__(self, names: Sequence[str]):
            self._left, self._names = iter(rows), names

        def get_next(self) -> Any:
            """The next row's arrays; None at the end."""
            row = next(self._left, None)
            return None if row is None else _fields(row, self._names)

    model, products = divided_graph(source, rows, ())
    with _without_advice():
        quantize_static(
            model,
            str(target),
            Reader([one.name for one in model.graph.input]),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            reduce_range=_reduced(),
            # What a product gives is added to hidden states, and loses most in 8 bits.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )


def to_dynamic_int8(
    source: pathlib.Path,
    target: pathlib.Path,
    rows: Sequence[Segment] = (),
    *,
    kept: Sequence[str] = (),
) -> None:
    """Weights in 8 bits, activations by each run's own range: one pair a run.

    Args:
      source: of the float32 graph.
      target: file that is written.
      rows: of train, that show which channels are large; empty: none is divided.
      kept: names of layers' products that stay in float32, such as "down".
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, products = divided_graph(source, rows, kept)
    with _without_advice():
        quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            reduce_range=_reduced(),
            weight_type=QuantType.QInt8,
        )


def to_mixed_int8(
    source: pathlib.Path, target: pathlib.Path, rows: Sequence[Segment] = ()
) -> None:
    """Dynamic int8, but the second products of feed-forward layers in float32.

    What an activation function leaves is the hardest to put in few steps.
    """
    to_dynamic_int8(source, target, rows, kept=("down",))


# --- large channels -------------------------------------------------------------------


def divided_graph(
    source: pathlib.Path, rows: Sequence[Segment], kept: Sequence[str]
) -> tuple[Any, list[str]]:
    """The graph with large channels divided, and its products for few bits.

    Of each product's input, a channel whose largest value is over the median channel's
    is divided by their quotient to the power of `_SMOOTHING`, and the row of weights
    that it meets is multiplied by it. In float32 the scores are the same.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    weights = {one.name: one for one in model.graph.initializer}
    products = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]
    products = [one for one in products if not _is_kept(one.input[1], kept)]
    largest = _largest(model, sorted({one.input[0] for one in products}), rows)
    if rows:
        products = [one for one in products if one.input[0] in largest]
    divided = {}
    for name, sizes in largest.items():
        typical = float(np.median(sizes[sizes > 0])) if sizes.any() else 1.0
        by = np.maximum((sizes / typical) ** _SMOOTHING, 1.0).astype(np.float32)
        share = numpy_helper.from_array(1 / by, f"{name}_share")
        model.graph.initializer.append(share)
        divided[name] = helper.make_node(
            "Mul", [name, share.name], [f"{name}_even"], name=f"{name}_even"
        )
        for product in (one for one in products if one.input[0] == name):
            weight = weights[product.input[1]]
            value = numpy_helper.to_array(weight) * by[:, None]
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
            product.input[0] = f"{name}_even"
    nodes = []
    for node in model.graph.node:
        nodes += [node, *(divided[one] for one in node.output if one in divided)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, [one.name for one in products]


def _is_kept(weight: str, kept: Sequence[str]) -> bool:
    """Whether a weight is a layer's product of one of these names."""
    return any(weight.startswith(f"body.layers.{name}.") for name in kept)


def _largest(
    model: Any, names: Sequence[str], rows: Sequence[Segment]
) -> dict[str, np.ndarray]:
    """Largest size of each channel, of tensors with more than a token a row."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    if not rows:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = [one.name for one in model.graph.input]
    found: dict[str, np.ndarray] = {}
    for row in rows:
        values: Any = session.run(list(names), _fields(row, inputs))
        for name, value in zip(names, values, strict=True):
            flat = np.abs(value).reshape(-1, value.shape[-1])
            if len(flat) > 1:
                found[name] = np.maximum(found.get(name, 0.0), flat.max(axis=0))
    return found


def _fields(row: Segment, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """A row as the inputs of a graph."""
    ids, mask, kinds = runtimes.arrays([row], 1, len(row.tokens))
    fields = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    return {name: fields[name] for name in inputs}
