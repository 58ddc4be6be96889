"""An encoder as an ONNX graph, built from our parameters; torch is not needed.

Inputs and outputs have the names that transformers gives them: `input_ids`,
`attention_mask` and, where the model has token types, `token_type_ids`, int64 [B, T];
`logits`, float32 [B, 1]. Both sizes are free. The file lies where stock tools look for
it: onnx/model.onnx.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from ranker import config, storage
from ranker.errors import ModelError
from ranker.models import distances

FILE = "onnx/model.onnx"
_OPSET = 20  # the first with Gelu
_IR = 10  # file format that onnxruntime 1.20 and OpenVINO 2025 read too
_MASKED = np.float32(-1e9)  # added to a logit: its share of a softmax is exactly 0
_ROTARY = 8192  # positions that rotary tables are written for, at least
# What the graph expresses, and what does not change a score.
_FIELDS = {
    *("num_layers", "embed_dim", "num_heads", "mlp_dim", "max_positions", "num_types"),
    *("norm_eps", "dropout", "attention_dropout", "family", "table_dim", "bias"),
    *("pre_norm", "first_norm"),
    *("gated", "head_activation", "head_norm", "pooling", "window", "local_layers"),
    *("rope_theta", "rope_factor", "local_rope_theta", "dtype", "remat"),
    "reduce_dtype",
    *("unbiased", "activation", "causal", "pooler_bias", "head_bias"),
    "distance_buckets",
}


class _Graph:
    """Nodes and weights, in the order that they are added."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, name: str, value: Any) -> str:
        """A constant; the same name is written once."""
        if name not in self.weights:
            found = np.asarray(value)
            # ascontiguousarray would make a vector of a scalar.
            self.weights[name] = found if found.flags.c_contiguous else found.copy("C")
        return name

    def __call__(self, op: str, *inputs: str, out: str = "", **fields: Any) -> str:
        """Adds a node; returns the name of its output."""
        from onnx import helper

        out = out or f"{op.lower()}_{len(self.nodes)}"
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=name, **fields)
        )
        return out

    def ints(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.weight(f"ints_{'_'.join(map(str, values))}", np.array(values))


def check_encoder(model: config.Decoder | config.Encoder) -> config.Encoder:
    """The model, if a graph can express it.

    Raises:
      ModelError: for a decoder, and for settings that the graph lacks, naming them.
    """
    if not isinstance(model, config.Encoder):
        raise ModelError(
            "ONNX files are written of encoders, and this is a decoder; serve it by "
            "--runtime jax, or by vLLM"
        )
    other = [
        f"{field.name}={getattr(model, field.name)!r}"
        for field in dataclasses.fields(model)
        if field.name not in _FIELDS and getattr(model, field.name) != field.default
    ]
    if other:
        raise ModelError(
            f"the ONNX graph has nothing for {', '.join(other)} of this "
            f"{model.family}; serve it by --runtime jax"
        )
    return model


def write_graph(
    path: pathlib.Path, model: config.Decoder | config.Encoder, params: dict[str, Any]
) -> None:
    """Writes the graph of a ranker, float32.

    Args:
      path: of the file; its folder is made.
      model: an encoder.
      params: by dotted path, as `huggingface.flat` gives them.

    Raises:
      ModelError: see `check_encoder`; and for weights over 2 GB, which one file of
        this format cannot hold.
    """
    encoder = check_encoder(model)
    found = {name: np.asarray(value, np.float32) for name, value in params.items()}
    if sum(value.nbytes for value in found.values()) > 2**31 - 2**20:
        raise ModelError("the weights are over 2 GB, more than an ONNX file can hold")
    proto = build_graph(encoder, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    import onnx

    with storage.replacing(path) as unfinished:
        onnx.save(proto, str(unfinished))


def build_graph(c: config.Encoder, p: dict[str, np.ndarray]) -> Any:
    """The `onnx.ModelProto` of a ranker.

    Args:
      c: its config.
      p: its parameters, float32, by dotted path.
    """
    from onnx import TensorProto, helper, numpy_helper

    g = _Graph()
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if c.num_types > 1 else []
    x = _embed(g, c, p)
    bias, near = _masks(g, c)
    if c.distance_buckets:
        learned = _distances(g, c, p)
        bias, near = (g("Add", one, learned) for one in (bias, near))
    angles = _angles(g, c)
    for i in range(c.num_layers):
        local = i in c.local_layers
        x = _layer(g, c, p, x, i, near if local else bias, angles[local])
    if c.pre_norm:
        x = _norm(g, c, x, p, "body.last_norm")
    _score(g, c, p, x)
    sizes = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, sizes) for n in names]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])]
    weights = [numpy_helper.from_array(v, name) for name, v in g.weights.items()]
    graph = helper.make_graph(g.nodes, "ranker", inputs, outputs, weights)
    opset = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(
        graph, opset_imports=opset, ir_version=_IR, producer_name="ranker"
    )


def _dense(g: _Graph, x: str, name: str, weight: np.ndarray, bias: Any) -> str:
    x = g("MatMul", x, g.weight(name, weight))
    return x if bias is None else g("Add", x, g.weight(f"{name}_bias", bias))


def _norm(
    g: _Graph, c: config.Encoder, x: str, p: dict, name: str, layer: int | None = None
) -> str:
    scale, bias = p[name], p.get(f"{name}_bias")
    if layer is not None:
        scale, bias = scale[layer], None if bias is None else bias[layer]
        name = f"{name}.{layer}"
    bias = np.zeros_like(scale) if bias is None else bias
    weights = (g.weight(name, scale), g.weight(f"{name}_bias", bias))
    return g("LayerNormalization", x, *weights, axis=-1, epsilon=c.norm_eps)


def _tokens(g: _Graph) -> str:
    """The number of tokens a row, as a vector of one."""
    return g("Shape", "input_ids", start=1, end=2, out=f"tokens_{len(g.nodes)}")


def _embed(g: _Graph, c: config.Encoder, p: dict) -> str:
    x = g("Gather", g.weight("body.embedding", p["body.embedding"]), "input_ids")
    if c.max_positions:
        table = g.weight("body.positions", p["body.positions"])
        first = g("Slice", table, g.ints(0), _tokens(g), g.ints(0))  # [T, D]
        x = g("Add", x, first)
    if c.num_types > 1:
        types = g.weight("body.types", p["body.types"])
        last = g.weight("last_type", np.array(c.num_types - 1))
        x = g("Add", x, g("Gather", types, g("Min", "token_type_ids", last)))
    elif c.num_types:
        x = g("Add", x, g.weight("body.types", p["body.types"][:1]))
    x = _norm(g, c, x, p, "body.norm")
    if c.table_dim not in (0, c.embed_dim):
        name = "body.project"
        x = _dense(g, x, name, p[name], p[f"{name}_bias"])
    return x


def _masks(g: _Graph, c: config.Encoder) -> tuple[str, str]:
    """What is added to logits [B, N, T, T]: of all layers, and of local ones."""
    from onnx import TensorProto

    real = g("Cast", "attention_mask", to=TensorProto.FLOAT)
    real = g("Unsqueeze", real, g.ints(1, 2))  # [B, 1, 1, T]
    masked = g.weight("masked", _MASKED)
    bias = g("Mul", g("Sub", g.weight("one", np.float32(1)), real), masked)
    if not c.local_layers and not c.causal:
        return bias, bias
    back = _back(g, c)
    if c.causal:  # `back` is above 0 where the key comes after the query
        later = g("Greater", back, g.weight("zero", np.float32(0)))
        later = g("Cast", later, to=TensorProto.FLOAT)
        bias = g("Min", bias, g("Mul", later, masked))
    if not c.local_layers:
        return bias, bias
    # A causal window counts the query's own token, see attention.make_mask.
    window = g.weight("window", np.float32(c.window - c.causal))
    far = g("Cast", g("Greater", g("Abs", back), window), to=TensorProto.FLOAT)
    # The lower of both: their sum would differ between a masked and a far token.
    return bias, g("Min", bias, g("Mul", far, masked))


def _back(g: _Graph, c: config.Encoder) -> str:
    """The place of each key (column) less that of each query (row), float32 [T, T]."""
    size = max(c.max_positions, _ROTARY)
    places = g.weight("places", np.arange(size, dtype=np.float32))
    places = g("Slice", places, g.ints(0), _tokens(g), g.ints(0))
    keys, queries = (g("Unsqueeze", places, g.ints(axis)) for axis in (0, 1))
    return g("Sub", keys, queries)


def _distances(g: _Graph, c: config.Encoder, p: dict) -> str:
    """The learned biases of all queries and keys, [1, N, T, T]."""
    from onnx import TensorProto

    reach = np.float32(distances.REACH)
    ends = (g.weight("nearest", -reach), g.weight("farthest", reach))
    index = g("Add", g("Clip", _back(g, c), *ends), ends[1])
    index = g("Cast", index, to=TensorProto.INT64)
    table = p["body.distances"][distances.buckets(c.distance_buckets)]
    found = g("Gather", g.weight("body.distances", table), index)  # [T, T, N]
    return g("Unsqueeze", g("Transpose", found, perm=(2, 0, 1)), g.ints(0))


def _angles(g: _Graph, c: config.Encoder) -> tuple[tuple[str, str] | None, ...]:
    """Cosine and sine [T, 1, H/2] of all layers, and of local ones."""
    if c.max_positions:
        return None, None

    def table(theta: float, name: str, factor: float) -> tuple[str, str]:
        H = c.head_dim
        radians = np.float32(theta) ** -(np.arange(0, H, 2, dtype=np.float32) / H)
        radians = radians / np.float32(factor)
        angles = np.arange(_ROTARY, dtype=np.float32)[:, None, None] * radians
        parts = (("cos", np.cos(angles)), ("sin", np.sin(angles)))
        cos, sin = (
            g(
                "Slice",
                g.weight(f"{name}_{what}", value.astype(np.float32)),
                g.ints(0),
                _tokens(g),
                g.ints(0),
            )
            for what, value in parts
        )
        return cos, sin

    far = table(c.rope_theta, "rope", c.rope_factor)
    if c.local_layers:
        theta = c.local_rope_theta or c.rope_theta
        return far, table(theta, "local_rope", 1.0)
    return far, far


def _rotate(g: _Graph, x: str, angles: tuple[str, str]) -> str:
    """Rotates the pairs (i, i + H/2) of x [B, T, N, H]."""
    cos, sin = angles
    first, second = f"first_{len(g.nodes)}", f"second_{len(g.nodes)}"
    from onnx import helper

    g.nodes.append(
        helper.make_node("Split", [x], [first, second], axis=-1, num_outputs=2)
    )
    a = g("Sub", g("Mul", first, cos), g("Mul", second, sin))
    b = g("Add", g("Mul", second, cos), g("Mul", first, sin))
    return g("Concat", a, b, axis=-1)


def _first(g: _Graph, x: str, axis: int) -> str:
    """The first place of an axis, which stays."""
    return g("Slice", x, g.ints(0), g.ints(1), g.ints(axis))


def _layer(
    g: _Graph,
    c: config.Encoder,
    p: dict,
    x: str,
    i: int,
    bias: str,
    angles: tuple[str, str] | None,
) -> str:
    """A layer's [B, T, D]; the last one's [B, 1, D] where the first token is scored.

    The others' would not be read: only their keys and values are.
    """
    D, N, H = c.embed_dim, c.num_heads, c.head_dim
    root = "body.layers."
    alone = c.pooling == "cls" and i == c.num_layers - 1

    def dense(x: str, name: str, *shape: int) -> str:
        b = p.get(f"{root}{name}_bias")
        b = None if b is None else b[i].reshape(-1)
        weight = p[f"{root}{name}"][i].reshape(shape)
        return _dense(g, x, f"{root}{name}.{i}", weight, b)

    def norm(x: str, name: str) -> str:
        return _norm(g, c, x, p, root + name, i)

    y = x
    if c.pre_norm and (c.first_norm or i > 0):
        y = norm(x, "attention_norm")

    asking, places = y, angles  # of the queries
    if alone:
        x, asking, bias = _first(g, x, 1), _first(g, y, 1), _first(g, bias, 2)
        places = (_first(g, angles[0], 0), _first(g, angles[1], 0)) if angles else None

    def heads(name: str, order: tuple[int, ...]) -> str:
        read, rotary = (asking, places) if name == "q" else (y, angles)
        part = g("Reshape", dense(read, name, D, D), g.ints(0, 0, N, H))  # [B, T, N, H]
        if rotary is not None and name != "v":
            part = _rotate(g, part, rotary)
        return g("Transpose", part, perm=order)

    q, v = heads("q", (0, 2, 1, 3)), heads("v", (0, 2, 1, 3))  # [B, N, T, H]
    k = heads("k", (0, 2, 3, 1))  # [B, N, H, T]
    q = g("Mul", q, g.weight("scale", np.float32(H**-0.5)))
    shares = g("Softmax", g("Add", g("MatMul", q, k), bias), axis=-1)
    y = g("Transpose", g("MatMul", shares, v), perm=(0, 2, 1, 3))
    y = dense(g("Reshape", y, g.ints(0, 0, D)), "o", D, D)
    x = g("Add", x, y)
    x = x if c.pre_norm else norm(x, "attention_norm")
    y = norm(x, "mlp_norm") if c.pre_norm else x
    up = dense(y, "up", D, c.mlp_dim)
    if c.gated:
        up = g("Mul", _activate(g, dense(y, "gate", D, c.mlp_dim), c.activation), up)
    else:
        up = _activate(g, up, c.activation)
    x = g("Add", x, dense(up, "down", c.mlp_dim, D))
    return x if c.pre_norm else norm(x, "mlp_norm")


def _activate(g: _Graph, x: str, name: str) -> str:
    if name == "silu":
        return g("Mul", x, g("Sigmoid", x))
    if name == "gelu_tanh":
        return g("Gelu", x, approximate="tanh")
    return g({"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}[name], x)


def _score(g: _Graph, c: config.Encoder, p: dict, x: str) -> None:
    """Pools x [B, T, D] and scores it: `logits` [B, 1]."""
    if c.pooling == "late":  # every token is scored, and the mean is the score
        _mean(g, _head(g, c, p, x), out="logits")
        return
    if c.pooling == "mean":
        x = _mean(g, x)
    elif c.pooling == "last":
        count = g("ReduceSum", "attention_mask", g.ints(1), keepdims=1)  # [B, 1]
        last = g("Unsqueeze", g("Sub", count, g.ints(1)), g.ints(2))  # [B, 1, 1]
        width = g.weight("width", np.array([1, 1, c.embed_dim]))
        x = g("GatherElements", x, g("Expand", last, width), axis=1)
        x = g("Squeeze", x, g.ints(1))
    else:
        first = g("Slice", x, g.ints(0), g.ints(1), g.ints(1))
        x = g("Squeeze", first, g.ints(1))  # [B, D]
    _head(g, c, p, x, out="logits")


def _mean(g: _Graph, x: str, out: str = "") -> str:
    """Mean over the tokens that are attended to: [B, T, D] to [B, D]."""
    from onnx import TensorProto

    real = g("Cast", "attention_mask", to=TensorProto.FLOAT)
    real = g("Unsqueeze", real, g.ints(2))  # [B, T, 1]
    total = g("ReduceSum", g("Mul", x, real), g.ints(1), keepdims=0)
    count = g("ReduceSum", real, g.ints(1), keepdims=0)
    return g("Div", total, count, out=out)


def _head(g: _Graph, c: config.Encoder, p: dict, x: str, out: str = "") -> str:
    """Scores [*, 1] of hidden states [*, D]."""
    if c.head_activation != "none":
        x = _dense(g, x, "head.pooler", p["head.pooler"], p.get("head.pooler_bias"))
        x = _activate(g, x, c.head_activation)
    if c.head_norm:
        x = _norm(g, c, x, p, "head.norm")
    weight = g.weight("head.dense", p["head.dense"].reshape(-1, 1))
    if "head.bias" not in p:
        return g("MatMul", x, weight, out=out)
    bias = g.weight("head.bias", p["head.bias"].reshape(1))
    return g("Add", g("MatMul", x, weight), bias, out=out)
