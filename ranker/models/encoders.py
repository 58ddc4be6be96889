"""Encoder families: their config.json, read and written, and their tensors."""

from collections.abc import Callable
from typing import Any

from ranker import config
from ranker.errors import ModelError
from ranker.models.fields import Fields, Json, expect, layer_types, pattern
from ranker.models.tables import (
    HEADS_IN,
    HEADS_OUT,
    SAME,
    Builder,
    Table,
    skip_rows,
)

Encoder = config.Encoder
UNUSED_POSITIONS = 2  # RoBERTa's padding token is 1, and positions begin at 2
_ROBERTAS = ("roberta", "xlm-roberta", "camembert", "data2vec-text")
_SHIFTED = (*_ROBERTAS, "mpnet")  # whose positions begin there
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}


# --- config.json, read ---


def _read_bert(c: Fields) -> Encoder:
    c.expect(position_embedding_type="absolute", is_decoder=False)
    c.expect(add_cross_attention=False)
    positions = c["max_position_embeddings"]
    if c.kind in _ROBERTAS:
        c.expect(pad_token_id=UNUSED_POSITIONS - 1)
        positions -= UNUSED_POSITIONS
    narrow = c.get("embedding_size", c["hidden_size"])
    return Encoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        family=c.kind,  # type: ignore[arg-type]
        max_positions=positions,
        num_types=c["type_vocab_size"],
        norm_eps=c["layer_norm_eps"],
        dropout=c["hidden_dropout_prob"],
        activation=c.among("hidden_act", _ACTIVATIONS),
        table_dim=narrow if narrow != c["hidden_size"] else 0,
        head_activation="gelu" if c.kind == "electra" else "tanh",
    )


def _read_mpnet(c: Fields) -> Encoder:
    # transformers' own model has 32 buckets whatever the field says.
    c.expect(pad_token_id=UNUSED_POSITIONS - 1, relative_attention_num_buckets=32)
    return Encoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        family="mpnet",
        max_positions=c["max_position_embeddings"] - UNUSED_POSITIONS,
        num_types=0,
        norm_eps=c["layer_norm_eps"],
        dropout=c["hidden_dropout_prob"],
        activation=c.among("hidden_act", _ACTIVATIONS),
        distance_buckets=32,
    )


def _read_electra(c: Fields) -> Encoder:
    _unused_summary(c)
    return _read_bert(c)


def _unused_summary(c: Fields) -> None:
    """ELECTRA's summary fields are of other heads than the one that scores."""
    for name in ("summary_type", "summary_use_proj", "summary_activation"):
        c.get(name)
    c.get("summary_last_dropout")


def _read_distilbert(c: Fields) -> Encoder:
    c.get("sinusoidal_pos_embds")  # how positions were initialised; the file has them
    return Encoder(
        num_layers=c["n_layers"],
        embed_dim=c["dim"],
        num_heads=c["n_heads"],
        mlp_dim=c["hidden_dim"],
        family="distilbert",
        max_positions=c["max_position_embeddings"],
        num_types=0,
        norm_eps=1e-12,
        dropout=c["dropout"],
        activation=c.among("activation", _ACTIVATIONS),
        head_activation="relu",
    )


_POOLINGS = {"cls": "cls", "mean": "mean"}
_HEADS = {"gelu": "gelu", "relu": "relu"}


def _read_modernbert(c: Fields) -> Encoder:
    causal = c.kind == "modernbert-decoder"
    c.expect(norm_bias=False, attention_bias=False, mlp_bias=False)
    rope = c["rope_parameters"]
    near, far = rope["sliding_attention"], rope["full_attention"]
    for name, one in (("sliding_attention", near), ("full_attention", far)):
        if one.get("rope_type", "default") != "default":
            raise ModelError(
                f"{c.path}: rope_parameters.{name} has the rope_type "
                f"{one['rope_type']!r}, and only 'default' can be read"
            )
    types = c["layer_types"]
    local = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
    # The decoder's window counts the token itself, and is as wide to one side.
    window = c["local_attention"] // 2 if local else 0
    biased = bool(c.get("classifier_bias"))
    return Encoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        family=c.kind,  # type: ignore[arg-type]
        max_positions=0,
        num_types=0,
        norm_eps=c["norm_eps"],
        dropout=c.get("mlp_dropout", 0.0),
        bias=False,
        causal=causal,
        activation=c.among("hidden_activation", _ACTIVATIONS),
        pre_norm=True,
        first_norm=False,
        gated=True,
        head_activation=c.among("classifier_activation", _HEADS),
        head_norm=True,
        pooler_bias=biased,
        head_bias=biased or not causal,
        pooling="last" if causal else c.among("classifier_pooling", _POOLINGS),
        window=window,
        local_layers=local,
        rope_theta=float(far["rope_theta"]),
        local_rope_theta=float(near["rope_theta"]),
    )


def _read_rotary(c: Fields) -> Encoder:
    """GTE's and Nomic's: BERT with rotary positions and gates."""
    rope = c["rope_parameters"]
    kind, factor = rope.get("rope_type", "default"), 1.0
    if kind == "linear":
        factor = float(rope["factor"])
    elif kind != "default":
        raise ModelError(
            f"{c.path}: rope_parameters has the rope_type {kind!r}, and only 'default' "
            "and 'linear' can be read"
        )
    heads = c["num_attention_heads"]
    if c.get("head_dim") not in (None, c["hidden_size"] // heads):
        raise ModelError(
            f"{c.path}: head_dim is {c['head_dim']}, and only hidden_size / "
            f"num_attention_heads, {c['hidden_size'] // heads}, can be read"
        )
    return Encoder(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        mlp_dim=c["intermediate_size"],
        family=c.kind,  # type: ignore[arg-type]
        max_positions=0,
        num_types=c["type_vocab_size"],
        norm_eps=c["layer_norm_eps"],
        dropout=c["hidden_dropout_prob"],
        unbiased=_UNBIASED[c.kind],
        activation=c.among("hidden_act", _ACTIVATIONS),
        gated=True,
        head_activation="tanh",
        rope_theta=float(rope["rope_theta"]),
        rope_factor=factor,
    )


_UNBIASED = {
    "gte": ("gate", "up"),
    "nomic_bert": ("q", "k", "v", "o", "gate", "up", "down"),
}

READ: dict[str, Callable[[Fields], Encoder]] = {
    **dict.fromkeys(("bert", *_ROBERTAS), _read_bert),
    "electra": _read_electra,
    "distilbert": _read_distilbert,
    "modernbert": _read_modernbert,
    "modernbert-decoder": _read_modernbert,
    "gte": _read_rotary,
    "nomic_bert": _read_rotary,
    "mpnet": _read_mpnet,
}


def today(path: str, fields: Json) -> Json:
    """Fields of releases that came with code of their own, as transformers has them.

    GTE was `new`, and Nomic's had GPT-2's names.

    Raises:
      ModelError: for what transformers' own model does not have.
    """
    if fields.get("model_type") == "new":
        return _gte_today(path, fields)
    if fields.get("model_type") == "nomic_bert" and "n_embd" in fields:
        return _nomic_today(path, fields)
    return fields


_GTE_CODE = (  # how it was computed, not what
    "pack_qkv",
    "unpad_inputs",
    "use_memory_efficient_attention",
    "position_embedding_type",
    "layer_norm_type",
    "logn_attention_clip1",
    "logn_attention_scale",
)


def _gte_today(path: str, fields: Json) -> Json:
    expect(
        path,
        fields,
        position_embedding_type="rope",
        layer_norm_type="layer_norm",
        logn_attention_scale=False,
    )
    found = {k: v for k, v in fields.items() if k not in (*_GTE_CODE, "rope_scaling")}
    theta = float(found.pop("rope_theta", 10000.0))
    rope: Json = {"rope_type": "default", "rope_theta": theta}
    scaling = fields.get("rope_scaling")
    if scaling:
        expect(path, scaling, type="ntk", mixed_b=None)
        factor = scaling["factor"]
        width = fields["hidden_size"] // fields["num_attention_heads"]
        # A larger base, and all wavelengths stretched (https://kexue.fm/archives/9706).
        rope = {
            "rope_type": "linear",
            "rope_theta": theta * factor,
            "factor": factor ** (2 / width),
        }
    return found | {"model_type": "gte", "rope_parameters": rope}


_NOMIC = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
_NOMIC_KEPT = "vocab_size type_vocab_size initializer_range architectures dtype".split()


def _nomic_today(path: str, fields: Json) -> Json:
    expect(
        path,
        fields,
        activation_function="swiglu",
        prenorm=False,
        qkv_proj_bias=False,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        rotary_scaling_factor=None,
        causal=False,
        parallel_block=False,
        use_rms_norm=False,
        num_experts=0,
    )
    found = {name: fields[name] for name in _NOMIC_KEPT if name in fields}
    found |= {new: fields[old] for old, new in _NOMIC.items() if fields.get(old)}
    rope = {"rope_type": "default", "rope_theta": float(fields["rotary_emb_base"])}
    return found | {"model_type": "nomic_bert", "rope_parameters": rope}


# --- config.json, written ---


def write(c: Encoder, length: int) -> Json:
    """Fields of a config.json, as transformers 5 spells them."""
    if c.family.startswith("modernbert"):
        return _write_modernbert(c, length)
    if c.family == "distilbert":
        return {
            "dim": c.embed_dim,
            "n_layers": c.num_layers,
            "n_heads": c.num_heads,
            "hidden_dim": c.mlp_dim,
            "max_position_embeddings": c.max_positions,
            "activation": _NAMES[c.activation],
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
            "seq_classif_dropout": c.dropout,
        }
    if c.family == "mpnet":
        return {
            "layer_norm_eps": c.norm_eps,
            "hidden_act": _NAMES[c.activation],
            "hidden_dropout_prob": c.dropout,
            "attention_probs_dropout_prob": c.attention_dropout,
            "max_position_embeddings": c.max_positions + UNUSED_POSITIONS,
            "pad_token_id": UNUSED_POSITIONS - 1,
            "relative_attention_num_buckets": c.distance_buckets,
        }
    described: Json = {
        "type_vocab_size": c.num_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": _NAMES[c.activation],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "classifier_dropout": c.dropout,
    }
    if c.family in _UNBIASED:
        rope: Json = {"rope_type": "default", "rope_theta": c.rope_theta}
        if c.rope_factor != 1:
            rope |= {"rope_type": "linear", "factor": c.rope_factor}
        return described | {
            "max_position_embeddings": max(length, 8192),
            "rope_parameters": rope,
        }
    positions: Json = {
        "max_position_embeddings": c.max_positions,
        "position_embedding_type": "absolute",
    }
    if c.family in _ROBERTAS:
        positions["max_position_embeddings"] += UNUSED_POSITIONS
        positions["pad_token_id"] = UNUSED_POSITIONS - 1
    if c.family == "electra":
        positions["embedding_size"] = c.table_dim or c.embed_dim
    return described | positions


def _write_modernbert(c: Encoder, length: int) -> Json:
    near, far = c.local_rope_theta or c.rope_theta, c.rope_theta
    described: Json = {
        "max_position_embeddings": max(length, 512),
        "norm_eps": c.norm_eps,
        "hidden_activation": _NAMES[c.activation],
        "attention_dropout": c.attention_dropout,
        "embedding_dropout": c.dropout,
        "mlp_dropout": c.dropout,
        "classifier_dropout": c.dropout,
        "classifier_activation": c.head_activation,
        "classifier_bias": c.pooler_bias,
        "local_attention": c.window * 2,
        "layer_types": layer_types(c),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": near},
            "full_attention": {"rope_type": "default", "rope_theta": far},
        },
    }
    if c.family == "modernbert":
        described["classifier_pooling"] = c.pooling
    return described


def old_spelling(c: Encoder, full: Json) -> tuple[Json, list[str]]:
    """The fields that transformers 4 and servers read, and what they cannot say."""
    del full
    if c.family in _UNBIASED:
        return {}, [f"transformers 4 has no {c.family}"]
    if not c.family.startswith("modernbert"):
        return {}, []
    every, notes = pattern(c, 0), []
    if every is None:
        far = [i for i in range(c.num_layers) if i not in c.local_layers]
        notes.append(
            "transformers 4 and text-embeddings-inference read every how many layers "
            "see the whole text (global_attn_every_n_layers), and here layers "
            f"{', '.join(map(str, far)) or 'none'} of {c.num_layers} do; they read "
            "another model, so serve it with transformers 5"
        )
    if c.causal and c.local_layers and c.local_rope_theta not in (0, c.rope_theta):
        notes.append(
            "transformers 4 turns the local layers of modernbert-decoder by "
            f"global_rope_theta {c.rope_theta:g} as well, and here local_rope_theta is "
            f"{c.local_rope_theta:g}; it reads another model, so serve it with "
            "transformers 5"
        )
    fields = {
        "global_rope_theta": c.rope_theta,
        "local_rope_theta": c.local_rope_theta or c.rope_theta,
        "global_attn_every_n_layers": every or 1,
    }
    return fields, notes


# --- tensors ---


_BERT_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
}
_MPNET_PARTS = {name: f"attention.attn.{name}" for name in "qkvo"}
_MPNET_PARTS["norm"] = "attention.LayerNorm"


def _bert_table(
    root: str, parts: dict[str, str] = _BERT_PARTS
) -> Callable[[Encoder, int], Table]:
    def table(c: Encoder, vocab_size: int) -> Table:
        D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
        E, made = c.table_dim or D, Builder()
        embeddings = f"{root}embeddings."
        _embeddings(c, made, embeddings, vocab_size)
        if E != D:
            made.dense(f"{root}embeddings_project", "body.project", (E, D), bias=(D,))
        layer, body = f"{root}encoder.layer.{{i}}.", "body.layers."
        heads: dict[str, Any] = dict(transform=HEADS_OUT, bias=(N, H))
        for name in "qkv":
            made.dense(layer + parts[name], body + name, (D, N, H), **heads)
        inward: dict[str, Any] = dict(transform=HEADS_IN, bias=(D,))
        made.dense(layer + parts["o"], f"{body}o", (N, H, D), **inward)
        _norm(made, layer + parts["norm"], f"{body}attention_norm", D)
        made.dense(f"{layer}intermediate.dense", f"{body}up", (D, F), bias=(F,))
        made.dense(f"{layer}output.dense", f"{body}down", (F, D), bias=(D,))
        _norm(made, f"{layer}output.LayerNorm", f"{body}mlp_norm", D)
        if c.distance_buckets:
            name = f"{root}encoder.relative_attention_bias.weight"
            made.add(name, "body.distances", (c.distance_buckets, N))
        return made.table

    return table


def _norm(made: Builder, source: str, ours: str, width: int) -> None:
    made.dense(source, ours, (width,), transform=SAME, bias=(width,))


def _embeddings(c: Encoder, made: Builder, root: str, vocab_size: int) -> None:
    E = c.table_dim or c.embed_dim
    made.add(f"{root}word_embeddings.weight", "body.embedding", (vocab_size, E))
    if c.max_positions:
        first = skip_rows(UNUSED_POSITIONS) if c.family in _SHIFTED else SAME
        shape = (c.max_positions, E)
        made.add(f"{root}position_embeddings.weight", "body.positions", shape, first)
    if c.num_types:
        shape = (c.num_types, E)
        made.add(f"{root}token_type_embeddings.weight", "body.types", shape)
    _norm(made, f"{root}LayerNorm", "body.norm", E)


def _distilbert_table(c: Encoder, vocab_size: int) -> Table:
    D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
    made = Builder()
    _embeddings(c, made, "distilbert.embeddings.", vocab_size)
    layer, body = "distilbert.transformer.layer.{i}.", "body.layers."
    for name in ("q", "k", "v"):
        source, shape = f"{layer}attention.{name}_lin", (D, N, H)
        made.dense(source, body + name, shape, transform=HEADS_OUT, bias=(N, H))
    source = f"{layer}attention.out_lin"
    made.dense(source, f"{body}o", (N, H, D), transform=HEADS_IN, bias=(D,))
    _norm(made, f"{layer}sa_layer_norm", f"{body}attention_norm", D)
    made.dense(f"{layer}ffn.lin1", f"{body}up", (D, F), bias=(F,))
    made.dense(f"{layer}ffn.lin2", f"{body}down", (F, D), bias=(D,))
    _norm(made, f"{layer}output_layer_norm", f"{body}mlp_norm", D)
    return made.table


def _rotary_table(root: str) -> Callable[[Encoder, int], Table]:
    def table(c: Encoder, vocab_size: int) -> Table:
        D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
        made = Builder()
        _embeddings(c, made, f"{root}embeddings.", vocab_size)
        layer, body = f"{root}layers.{{i}}.", "body.layers."

        def dense(source, name, shape, bias, **how):
            bias = None if name in c.unbiased else bias
            made.dense(layer + source, body + name, shape, bias=bias, **how)

        for name in ("q", "k", "v"):
            source, how = f"self_attn.{name}_proj", dict(transform=HEADS_OUT)
            dense(source, name, (D, N, H), (N, H), **how)
        dense("self_attn.o_proj", "o", (N, H, D), (D,), transform=HEADS_IN)
        _norm(made, f"{layer}post_attention_layernorm", f"{body}attention_norm", D)
        for name in ("gate", "up"):
            dense(f"mlp.{name}_proj", name, (D, F), (F,))
        dense("mlp.down_proj", "down", (F, D), (D,))
        _norm(made, f"{layer}post_mlp_layernorm", f"{body}mlp_norm", D)
        return made.table

    return table


def _modernbert_table(c: Encoder, vocab_size: int) -> Table:
    D, N, H, F = c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
    layer, body, made = "model.layers.{i}.", "body.layers.", Builder()
    name = "model.embeddings.tok_embeddings.weight"
    made.add(name, "body.embedding", (vocab_size, D))
    made.add("model.embeddings.norm.weight", "body.norm", (D,))
    made.add("model.final_norm.weight", "body.last_norm", (D,))
    made.add(f"{layer}attn_norm.weight", f"{body}attention_norm", (D,))
    made.add(f"{layer}mlp_norm.weight", f"{body}mlp_norm", (D,))
    made.dense(f"{layer}attn.Wo", f"{body}o", (N, H, D), transform=HEADS_IN)
    made.dense(f"{layer}mlp.Wo", f"{body}down", (F, D))
    heads = [(body + name, (D, N, H)) for name in ("q", "k", "v")]
    if c.causal:
        for name, (ours, shape) in zip("qkv", heads, strict=True):
            source = f"{layer}attn.{name}_proj"
            made.dense(source, ours, shape, transform=HEADS_OUT)
    else:
        made.fused(f"{layer}attn.Wqkv.weight", heads, HEADS_OUT)
    halves = [(body + name, (D, F)) for name in ("gate", "up")]
    made.fused(f"{layer}mlp.Wi.weight", halves)
    return made.table


TABLES: dict[str, Callable[[Encoder, int], Table]] = {
    "bert": _bert_table("bert."),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _bert_table("roberta.")),
    "data2vec-text": _bert_table("data2vec_text."),
    "electra": _bert_table("electra."),
    "distilbert": _distilbert_table,
    "modernbert": _modernbert_table,
    "modernbert-decoder": _modernbert_table,
    "gte": _rotary_table("gte."),
    "nomic_bert": _rotary_table("nomic_bert."),
    "mpnet": _bert_table("mpnet.", _MPNET_PARTS),
}
