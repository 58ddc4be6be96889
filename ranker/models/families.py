"""Hugging Face architectures: their config.json and tensors, and ours, both ways.

A family is what its config.json becomes, how that is written, and a table: source
tensor -> (our path, transform), read in both directions. `{i}` in a source is the
layer, which we stack in front.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker import config
from ranker.errors import ModelError

Json = dict[str, Any]
Index = tuple[slice, ...]  # part of an array, every start and stop given
Read = Callable[[Index], np.ndarray]  # part of a source tensor


# --- tensors ---


@dataclass(frozen=True)
class Transform:
    """Our array of one layer to the source's, and a part of the source's to ours."""

    to_source: Callable[[np.ndarray], np.ndarray]
    from_source: Callable[[Read, Index, tuple[int, ...]], np.ndarray]  # our shape


def _scaled(part: slice, by: int) -> slice:
    return slice(part.start * by, part.stop * by)


def _size(part: slice) -> int:
    return part.stop - part.start


def _read_heads_out(read: Read, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    d, n, h = index
    found = read((_scaled(n, shape[2]), d))  # [n * H, d]
    return found.T.reshape(_size(d), _size(n), shape[2])[:, :, h]


def _read_heads_in(read: Read, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    n, h, d = index
    found = read((d, _scaled(n, shape[1])))  # [d, n * H]
    return found.T.reshape(_size(n), shape[1], _size(d))[:, h]


def _read_flat(read: Read, index: Index, shape: tuple[int, ...]) -> np.ndarray:
    n, h = index
    return read((_scaled(n, shape[1]),)).reshape(_size(n), shape[1])[:, h]


SAME = Transform(lambda x: x, lambda read, index, shape: read(index))
# [in, out] to torch's [out, in].
DENSE = Transform(lambda x: x.T, lambda read, index, shape: read(index[::-1]).T)
# [D, N, H] to [N * H, D].
HEADS_OUT = Transform(lambda x: x.reshape(x.shape[0], -1).T, _read_heads_out)
# [N, H, D] to [D, N * H].
HEADS_IN = Transform(lambda x: x.reshape(-1, x.shape[-1]).T, _read_heads_in)
# [N, H] to [N * H].
FLAT = Transform(lambda x: x.reshape(-1), _read_flat)
# A vector or a scalar with one output in front: [D] to [1, D], [] to [1].
ROW = Transform(
    lambda x: x.reshape((1, *x.shape)),
    lambda read, index, shape: read((slice(0, 1), *index))[0],
)
# Gemma stores the scales of its norms less 1.
LESS_ONE = Transform(lambda x: x - 1, lambda read, index, shape: read(index) + 1)


def skip_rows(count: int) -> Transform:
    """RoBERTa's positions begin behind its padding token; the rows before are unused.

    They are written as zeros.
    """
    return Transform(
        lambda x: np.concatenate([np.zeros((count, x.shape[1]), x.dtype), x]),
        lambda read, index, shape: read(
            (slice(index[0].start + count, index[0].stop + count), *index[1:])
        ),
    )


@dataclass(frozen=True)
class Entry:
    """One parameter of ours, and the source tensor that holds it."""

    source: str  # Hugging Face name, `{i}` for the layer
    ours: str  # dotted path in our parameters
    transform: Transform
    shape: tuple[int, ...]  # ours, of one layer
    part: int = 0  # which part of the source's rows this is
    parts: int = 1  # in how many equal parts the source's rows are

    @property
    def stacked(self) -> bool:
        """Whether the source has one tensor for each layer."""
        return "{i}" in self.source

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the source tensor."""
        empty = np.broadcast_to(np.float32(0), self.shape)  # takes no memory
        rows, *rest = self.transform.to_source(empty).shape
        return (rows * self.parts, *rest)

    def read(self, read: Read, index: Index) -> np.ndarray:
        """The part `index` of ours, from a source tensor."""
        rows = self.source_shape[0] // self.parts * self.part

        def shifted(where: Index) -> np.ndarray:
            first = slice(where[0].start + rows, where[0].stop + rows)
            return read((first, *where[1:]))

        return self.transform.from_source(shifted, index, self.shape)


Table = list[Entry]


def _decoder_table(c: config.Decoder, vocab_size: int, head: str) -> Table:
    D, N, K, H, F = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim, c.mlp_dim
    gemma = c.family.startswith("gemma")
    norm = LESS_ONE if gemma else SAME
    layer, body = "model.layers.{i}.", "body.layers."
    table = [
        Entry("model.embed_tokens.weight", "body.embedding", SAME, (vocab_size, D)),
        Entry("model.norm.weight", "body.norm", norm, (D,)),
    ]

    def add(source: str, ours: str, transform: Transform, shape: tuple) -> None:
        table.append(Entry(layer + source, body + ours, transform, shape))

    add("input_layernorm.weight", "attention_norm", norm, (D,))
    for name, heads in (("q", N), ("k", K), ("v", K)):
        source = f"self_attn.{name}_proj"
        add(f"{source}.weight", name, HEADS_OUT, (D, heads, H))
        if c.qkv_bias:
            add(f"{source}.bias", f"{name}_bias", FLAT, (heads, H))
        if c.qk_norm and name != "v":
            add(f"self_attn.{name}_norm.weight", f"{name}_norm", norm, (H,))
    add("self_attn.o_proj.weight", "o", HEADS_IN, (N, H, D))
    after = "post_attention_layernorm.weight"
    if c.post_norms:
        add(after, "attention_post_norm", norm, (D,))
        add("pre_feedforward_layernorm.weight", "mlp_norm", norm, (D,))
        add("post_feedforward_layernorm.weight", "mlp_post_norm", norm, (D,))
    else:
        add(after, "mlp_norm", norm, (D,))
    add("mlp.gate_proj.weight", "gate", DENSE, (D, F))
    add("mlp.up_proj.weight", "up", DENSE, (D, F))
    add("mlp.down_proj.weight", "down", DENSE, (F, D))
    if head == "score":
        table.append(Entry("score.weight", "head.dense", ROW, (D,)))
        if c.head_bias:
            table.append(Entry("score.bias", "head.bias", ROW, ()))
    elif not c.tie_embeddings:
        table.append(Entry("lm_head.weight", "head", SAME, (vocab_size, D)))
    return table


def _encoder_table(c: config.Encoder, vocab_size: int, head: str) -> Table:
    if c.family == "modernbert":
        return _modernbert_table(c, vocab_size, head)
    D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
    E = c.table_dim or D
    root = PREFIXES[c.family]
    table: Table = []

    def dense(source, ours, transform, shape, out, flat=SAME):
        table.append(Entry(f"{source}.weight", ours, transform, shape))
        table.append(Entry(f"{source}.bias", f"{ours}_bias", flat, out))

    embeddings = f"{root}embeddings."
    first = skip_rows(_UNUSED_POSITIONS) if "roberta" in c.family else SAME
    for source, ours, rows, transform in (
        ("word_embeddings", "embedding", vocab_size, SAME),
        ("position_embeddings", "positions", c.max_positions, first),
        ("token_type_embeddings", "types", c.num_types, SAME),
    ):
        name = f"{embeddings}{source}.weight"
        table.append(Entry(name, f"body.{ours}", transform, (rows, E)))
    dense(f"{embeddings}LayerNorm", "body.norm", SAME, (E,), (E,))
    if E != D:
        dense(f"{root}embeddings_project", "body.project", DENSE, (E, D), (D,))
    layer, body = f"{root}encoder.layer.{{i}}.", "body.layers."
    for source, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        name = f"{layer}attention.self.{source}"
        dense(name, body + ours, HEADS_OUT, (D, N, H), (N, H), FLAT)
    out = f"{layer}attention.output."
    dense(f"{out}dense", f"{body}o", HEADS_IN, (N, H, D), (D,))
    dense(f"{out}LayerNorm", f"{body}attention_norm", SAME, (D,), (D,))
    dense(f"{layer}intermediate.dense", f"{body}up", DENSE, (D, F), (F,))
    dense(f"{layer}output.dense", f"{body}down", DENSE, (F, D), (D,))
    dense(f"{layer}output.LayerNorm", f"{body}mlp_norm", SAME, (D,), (D,))
    if head == "score":
        bert = c.family == "bert"
        pooler = "bert.pooler.dense" if bert else "classifier.dense"
        score = "classifier" if bert else "classifier.out_proj"
        dense(pooler, "head.pooler", DENSE, (D, D), (D,))
        table.append(Entry(f"{score}.weight", "head.dense", ROW, (D,)))
        table.append(Entry(f"{score}.bias", "head.bias", ROW, ()))
    return table


def _modernbert_table(c: config.Encoder, vocab_size: int, head: str) -> Table:
    D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
    layer, body = "model.layers.{i}.", "body.layers."
    table = [
        Entry(
            "model.embeddings.tok_embeddings.weight",
            "body.embedding",
            SAME,
            (vocab_size, D),
        ),
        Entry("model.embeddings.norm.weight", "body.norm", SAME, (D,)),
        Entry(f"{layer}attn_norm.weight", f"{body}attention_norm", SAME, (D,)),
        Entry(f"{layer}attn.Wo.weight", f"{body}o", HEADS_IN, (N, H, D)),
        Entry(f"{layer}mlp_norm.weight", f"{body}mlp_norm", SAME, (D,)),
        Entry(f"{layer}mlp.Wo.weight", f"{body}down", DENSE, (F, D)),
        Entry("model.final_norm.weight", "body.last_norm", SAME, (D,)),
    ]
    for part, name in enumerate(("q", "k", "v")):
        source = f"{layer}attn.Wqkv.weight"
        ours = body + name
        table.append(Entry(source, ours, HEADS_OUT, (D, N, H), part, 3))
    for part, name in enumerate(("gate", "up")):
        table.append(
            Entry(f"{layer}mlp.Wi.weight", body + name, DENSE, (D, F), part, 2)
        )
    if head == "score":
        table += [
            Entry("head.dense.weight", "head.pooler", DENSE, (D, D)),
            Entry("head.norm.weight", "head.norm", SAME, (D,)),
            Entry("classifier.weight", "head.dense", ROW, (D,)),
            Entry("classifier.bias", "head.bias", ROW, ()),
        ]
    return table


def table_of(
    model: config.Decoder | config.Encoder, vocab_size: int, head: str
) -> Table:
    """The table of a model with `head`, "language" or "score"."""
    if isinstance(model, config.Decoder):
        return _decoder_table(model, vocab_size, head)
    return _encoder_table(model, vocab_size, head)


# What stands before the names of the body's tensors.
PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "electra": "electra.",
}
_UNUSED_POSITIONS = 2  # RoBERTa's padding token is 1, and positions begin at 2

# ModernBERT has no norm before its first attention; ours is there, and not used.
ABSENT = ("model.layers.0.attn_norm.weight",)


def prefix_of(family: str) -> str:
    """What stands before the names of the body's tensors."""
    return PREFIXES.get(family, "model.")


# --- config.json ---


def read_config(path: str, c: Json) -> config.Decoder | config.Encoder:
    """The model that a config.json, with its defaults filled in, describes.

    Args:
      path: of the file, for messages.
      c: its fields.

    Raises:
      ModelError: for sizes that do not fit, or a setting that our models lack.
    """
    kind = c["model_type"]
    try:
        if kind in _DECODERS:
            return _read_decoder(path, c, kind)
        return _read_encoder(path, c, kind)
    except config.ConfigError as error:
        raise ModelError(
            f"{path}: {error}; config.json must describe the tensors beside it"
        ) from error


_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "modernbert")
KNOWN = (*_DECODERS, *_ENCODERS)


def _expect(path: str, c: Json, **wanted: Any) -> None:
    wrong = [
        f"{name} is {c[name]!r}, and only {value!r} can be read"
        for name, value in wanted.items()
        if c.get(name) not in (None, value)
    ]
    if wrong:
        raise ModelError(f"{path}: {'; '.join(wrong)}")


def _read_decoder(path: str, c: Json, kind: str) -> config.Decoder:
    gemma = kind.startswith("gemma")
    _expect(path, c, attention_bias=False, mlp_bias=False)
    if gemma:
        _expect(path, c, hidden_activation="gelu_pytorch_tanh")
        _expect(path, c, use_bidirectional_attention=False)
    else:
        _expect(path, c, hidden_act="silu")
    rope = c.get("rope_parameters") or {}
    near = rope.get("sliding_attention")
    heads, head_dim = c["num_attention_heads"], c.get("head_dim")
    if not head_dim:
        head_dim, rest = divmod(c["hidden_size"], heads)
        if rest:
            raise config.ConfigError(
                f"hidden_size {c['hidden_size']} is not divisible by "
                f"num_attention_heads {heads}"
            )
    window, local = _local(c, kind)
    fields: Json = {}
    if kind in ("gemma2", "gemma3_text"):
        fields = dict(
            post_norms=True,
            attention_scale=c["query_pre_attn_scalar"] ** -0.5,
            attention_cap=c.get("attn_logit_softcapping") or 0.0,
            logit_cap=c.get("final_logit_softcapping") or 0.0,
        )
    if near:
        if near.get("rope_type", "default") != "default":
            raise ModelError(
                f"{path}: rotary positions of sliding_attention layers are scaled "
                f"({near['rope_type']}), and only those of full_attention can be"
            )
        fields["local_rope_theta"] = near["rope_theta"]
    return config.Decoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=c["intermediate_size"],
        rope=_read_rope(path, rope.get("full_attention", rope), c),
        norm_eps=c["rms_norm_eps"],
        tie_embeddings=bool(c.get("tie_word_embeddings")),
        family=kind,  # type: ignore[arg-type]
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "gemma3_text"),
        activation="gelu_tanh" if gemma else "silu",
        embed_scale=c["hidden_size"] ** 0.5 if gemma else 1.0,
        window=window,
        local_layers=local,
        **fields,
    )


def _local(c: Json, kind: str) -> tuple[int, tuple[int, ...]]:
    """The window, and the layers that see no more."""
    window = c.get("sliding_window") or 0
    count = c["num_hidden_layers"]
    if kind == "mistral":
        return window, tuple(range(count)) if window else ()
    types = c.get("layer_types") or []
    local = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
    return (window, local) if window and local else (0, ())


def _read_rope(path: str, rope: Json, c: Json) -> config.Rope:
    kind = rope.get("rope_type", "default")
    theta = float(rope.get("rope_theta", 10000.0))
    original = rope.get("original_max_position_embeddings")
    original = original or c.get("max_position_embeddings") or 0
    factor = rope.get("factor") or 1.0
    _expect(path, rope, partial_rotary_factor=1.0)
    if kind == "default":
        return config.Rope(theta=theta)
    if kind == "linear":
        return config.Rope(theta=theta, scaling="linear", factor=factor)
    if kind == "dynamic":
        return config.Rope(
            theta=theta,
            scaling="dynamic",
            factor=factor,
            original_length=c["max_position_embeddings"],
        )
    if kind == "llama3":
        return config.Rope(
            theta=theta,
            scaling="llama3",
            factor=factor,
            original_length=original,
            low_frequency=rope["low_freq_factor"],
            high_frequency=rope["high_freq_factor"],
        )
    if kind == "yarn":
        _expect(path, rope, truncate=True, mscale=None, mscale_all_dim=None)
        given = rope.get("attention_factor")
        default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        return config.Rope(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_length=original,
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            attention_factor=default if given is None else given,
        )
    raise ModelError(
        f"{path}: rotary scaling {kind!r} cannot be read; known are default, linear, "
        "dynamic, llama3 and yarn"
    )


def _write_rope(rope: config.Rope) -> Json:
    base: Json = {"rope_theta": rope.theta}
    if rope.scaling == "none":
        return {"rope_type": "default", **base}
    base |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        base["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        base["low_freq_factor"] = rope.low_frequency
        base["high_freq_factor"] = rope.high_frequency
    if rope.scaling == "yarn":
        base |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "attention_factor": rope.attention_factor,
        }
    return base


def _read_encoder(path: str, c: Json, kind: str) -> config.Encoder:
    common: Json = dict(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        family=kind,
    )
    if kind == "modernbert":
        _expect(
            path,
            c,
            hidden_activation="gelu",
            classifier_activation="gelu",
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
            classifier_bias=False,
        )
        rope = c["rope_parameters"]
        near, far = rope["sliding_attention"], rope["full_attention"]
        for one in (near, far):
            _expect(path, one, rope_type="default")
        types = c["layer_types"]
        local = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
        return config.Encoder(
            **common,
            max_positions=0,
            num_types=0,
            norm_eps=c["norm_eps"],
            dropout=c.get("mlp_dropout", 0.0),
            bias=False,
            pre_norm=True,
            first_norm=False,
            gated=True,
            head_activation="gelu",
            head_norm=True,
            pooling=c.get("classifier_pooling", "cls"),
            window=c["local_attention"] // 2 if local else 0,
            local_layers=local,
            rope_theta=float(far["rope_theta"]),
            local_rope_theta=float(near["rope_theta"]),
        )
    _expect(path, c, hidden_act="gelu", position_embedding_type="absolute")
    positions = c["max_position_embeddings"]
    if "roberta" in kind:
        _expect(path, c, pad_token_id=_UNUSED_POSITIONS - 1)
        positions -= _UNUSED_POSITIONS
    narrow = c.get("embedding_size", c["hidden_size"])
    return config.Encoder(
        **common,
        max_positions=positions,
        num_types=c["type_vocab_size"],
        norm_eps=c["layer_norm_eps"],
        dropout=c["hidden_dropout_prob"],
        table_dim=narrow if narrow != c["hidden_size"] else 0,
        head_activation="gelu" if kind == "electra" else "tanh",
    )


_ARCHITECTURES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "electra": "Electra",
    "modernbert": "ModernBert",
}


def architecture(family: str, head: str) -> str:
    """Name of the transformers class."""
    name = _ARCHITECTURES[family]
    if head == "language":
        return f"{name}ForCausalLM"
    text = "Text" if family == "gemma3_text" else ""
    return f"{name}{text}ForSequenceClassification"


def write_config(
    c: config.Decoder | config.Encoder, vocab_size: int, length: int, head: str
) -> Json:
    """The config.json of a model, as its family writes it.

    Args:
      c: the model.
      vocab_size: rows of the embeddings.
      length: tokens that it reads.
      head: "language" or "score".
    """
    described: Json = {
        "architectures": [architecture(c.family, head)],
        "model_type": c.family,
        "hidden_size": c.embed_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "vocab_size": vocab_size,
    }
    if isinstance(c, config.Decoder):
        return {**described, **_write_decoder(c, length)}
    return {**described, **_write_encoder(c, length)}


def _layer_types(c: config.Decoder | config.Encoder) -> list[str]:
    return [
        "sliding_attention" if i in c.local_layers else "full_attention"
        for i in range(c.num_layers)
    ]


def _write_decoder(c: config.Decoder, length: int) -> Json:
    rope = _write_rope(c.rope)
    longest = max(length, int(c.rope.original_length * c.rope.factor), 2048)
    if c.rope.scaling == "dynamic":
        longest = c.rope.original_length  # beyond it the wavelengths change
    described: Json = {
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": longest,
        "rope_parameters": rope,
        "sliding_window": c.window or None,
    }
    if c.family.startswith("gemma"):
        described["hidden_activation"] = "gelu_pytorch_tanh"
    if c.family.startswith("qwen"):
        described["use_sliding_window"] = bool(c.local_layers)
    if c.family not in ("llama", "mistral", "gemma"):
        described["layer_types"] = _layer_types(c)
    if c.family in ("gemma2", "gemma3_text"):
        described |= {
            "query_pre_attn_scalar": round(c.attention_scale**-2),  # an int there
            "attn_logit_softcapping": c.attention_cap or None,
            "final_logit_softcapping": c.logit_cap or None,
        }
    if c.family == "gemma3_text":
        near = {"rope_type": "default", "rope_theta": c.local_rope_theta}
        both = {"sliding_attention": near, "full_attention": rope}
        described["rope_parameters"] = both
    return described


def _write_encoder(c: config.Encoder, length: int) -> Json:
    if c.family == "modernbert":
        near, far = c.local_rope_theta, c.rope_theta
        return {
            "max_position_embeddings": max(length, 512),
            "norm_eps": c.norm_eps,
            "attention_dropout": 0.0,
            "embedding_dropout": c.dropout,
            "mlp_dropout": c.dropout,
            "classifier_dropout": c.dropout,
            "classifier_pooling": c.pooling,
            "local_attention": c.window * 2,
            "layer_types": _layer_types(c),
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": near},
                "full_attention": {"rope_type": "default", "rope_theta": far},
            },
        }
    described: Json = {
        "max_position_embeddings": c.max_positions,
        "type_vocab_size": c.num_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": c.dropout,
        "position_embedding_type": "absolute",
    }
    if "roberta" in c.family:
        described["max_position_embeddings"] += _UNUSED_POSITIONS
        described["pad_token_id"] = _UNUSED_POSITIONS - 1
    if c.family == "electra":
        described["embedding_size"] = c.table_dim or c.embed_dim
    return described
