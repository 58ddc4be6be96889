"""Decoder families: their config.json, read and written, and their tensors."""

from collections.abc import Callable
from typing import Any

from ranker import config
from ranker.errors import ModelError
from ranker.models.fields import (
    Fields,
    Json,
    layer_types,
    old_rope,
    pattern,
    read_local,
    read_rope,
    write_rope,
)
from ranker.models.tables import (
    FLAT,
    HEADS_IN,
    HEADS_OUT,
    LESS_ONE,
    SAME,
    Builder,
    Entry,
    Table,
    Transform,
)

Decoder = config.Decoder
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_NAMES = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}


# --- config.json, read ---


def _base(c: Fields, activation: str = "hidden_act") -> Json:
    """What all decoders say alike."""
    heads, head_dim = c["num_attention_heads"], c.get("head_dim")
    if not head_dim:
        head_dim, rest = divmod(c["hidden_size"], heads)
        if rest:
            raise config.ConfigError(
                f"hidden_size {c['hidden_size']} is not divisible by "
                f"num_attention_heads {heads}"
            )
    rope = c.get("rope_parameters") or {}
    far = rope.get("full_attention", rope)
    found: Json = dict(
        num_layers=c["num_hidden_layers"],
        embed_dim=c["hidden_size"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=c["intermediate_size"],
        rope=read_rope(c, far),
        norm_eps=c["rms_norm_eps"],
        tie_embeddings=bool(c.get("tie_word_embeddings")),
        family=c.kind,
        activation=c.among(activation, _ACTIVATIONS),
        causal=c.get("is_causal") is not False,
    )
    part = far.get("partial_rotary_factor")
    if part not in (None, 1, 1.0):
        found["rotary_dim"] = int(head_dim * part)
    window, local = read_local(c)
    return found | dict(window=window, local_layers=local)


def _read_llama(c: Fields) -> Decoder:
    biased, mlp = bool(c.get("attention_bias")), bool(c.get("mlp_bias"))
    c.get("sliding_window")  # of no meaning for these; windows come by layer_types
    return Decoder(**_base(c), qkv_bias=biased, o_bias=biased, mlp_bias=mlp)


def _read_mistral(c: Fields) -> Decoder:
    base, window = _base(c), c.get("sliding_window") or 0
    local = tuple(range(base["num_layers"])) if window else ()
    base |= dict(window=window, local_layers=local)
    return Decoder(**base)


def _read_ministral3(c: Fields) -> Decoder:
    beta = (c.get("rope_parameters") or {}).get("llama_4_scaling_beta") or 0.0
    base, window = _base(c), c.get("sliding_window") or 0
    local = tuple(range(base["num_layers"])) if window else ()
    base |= dict(window=window, local_layers=local, query_growth=beta)
    return Decoder(**base)


def _read_qwen(c: Fields) -> Decoder:
    qwen3 = c.kind == "qwen3"
    biased = bool(c.get("attention_bias")) if qwen3 else True
    return Decoder(**_base(c), qkv_bias=biased, o_bias=qwen3 and biased, qk_norm=qwen3)


def _read_gemma(c: Fields) -> Decoder:
    first = c.kind == "gemma"
    c.expect(use_bidirectional_attention=False)
    base = _base(c, "hidden_act" if first else "hidden_activation")
    biased = bool(c.get("attention_bias"))
    base |= dict(qkv_bias=biased, o_bias=biased, embed_scale=c["hidden_size"] ** 0.5)
    if first:
        return Decoder(**base)
    near = (c.get("rope_parameters") or {}).get("sliding_attention")
    if near:
        base["local_rope_theta"] = _unscaled(c, near)
    return Decoder(
        **base,
        post_norms=True,
        qk_norm=c.kind == "gemma3_text",
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        attention_cap=c.get("attn_logit_softcapping") or 0.0,
        logit_cap=c.get("final_logit_softcapping") or 0.0,
    )


def _unscaled(c: Fields, near: Json) -> float:
    if near.get("rope_type", "default") != "default":
        raise ModelError(
            f"{c.path}: rotary positions of sliding_attention layers are scaled "
            f"({near['rope_type']}), and only those of full_attention can be"
        )
    return near["rope_theta"]


def _read_granite(c: Fields) -> Decoder:
    biased, mlp = bool(c.get("attention_bias")), bool(c.get("mlp_bias"))
    return Decoder(
        **_base(c),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=mlp,
        embed_scale=float(c["embedding_multiplier"]),
        residual_scale=float(c["residual_multiplier"]),
        attention_scale=float(c["attention_multiplier"]),
        logit_scale=1 / float(c["logits_scaling"]),
    )


def _read_smollm3(c: Fields) -> Decoder:
    biased, mlp = bool(c.get("attention_bias")), bool(c.get("mlp_bias"))
    base = _base(c)
    if not c.get("use_sliding_window"):
        base |= dict(window=0, local_layers=())
    still = [i for i, turns in enumerate(c["no_rope_layers"]) if not turns]
    still = tuple(i for i in still if i < base["num_layers"])
    return Decoder(
        **base, qkv_bias=biased, o_bias=biased, mlp_bias=mlp, unrotated_layers=still
    )


def _read_olmo(c: Fields) -> Decoder:
    biased, base = bool(c.get("attention_bias")), _base(c)
    near = (c.get("rope_parameters") or {}).get("sliding_attention")
    if near and base["local_layers"]:
        base["local_rope_theta"] = _unscaled(c, near)
    return Decoder(
        **base,
        qkv_bias=biased,
        o_bias=biased,
        qk_norm=True,
        wide_qk_norm=True,
        pre_norms=False,
        post_norms=True,
    )


def _read_phi(c: Fields) -> Decoder:
    rope = dict(c["rope_parameters"])
    # The length trained on is a field of its own here.
    original = c.get("original_max_position_embeddings")
    if original and rope.get("rope_type") == "longrope":
        rope.setdefault("original_max_position_embeddings", original)
        dict.__setitem__(c, "rope_parameters", rope)
    base, window = _base(c), c.get("sliding_window") or 0
    local = tuple(range(base["num_layers"])) if window else ()
    base |= dict(window=window, local_layers=local)
    return Decoder(**base)


def _read_seed(c: Fields) -> Decoder:
    return Decoder(
        **_base(c),
        qkv_bias=bool(c.get("attention_bias")),
        o_bias=bool(c.get("attention_out_bias")),
        mlp_bias=bool(c.get("mlp_bias")),
    )


_EUROBERT = {"bos": "cls", "mean": "mean", "late": "late"}


def _read_eurobert(c: Fields) -> Decoder:
    biased, mlp = bool(c.get("attention_bias")), bool(c.get("mlp_bias"))
    base = _base(c)
    base |= dict(causal=False, tie_embeddings=True)
    return Decoder(
        **base,
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=mlp,
        pooling=c.among("classifier_pooling", _EUROBERT),
        head_activation="gelu",
        head_bias=True,
    )


READ: dict[str, Callable[[Fields], Decoder]] = {
    "llama": _read_llama,
    "mistral": _read_mistral,
    "ministral": lambda c: Decoder(**_base(c)),
    "ministral3": _read_ministral3,
    "qwen2": _read_qwen,
    "qwen3": _read_qwen,
    "gemma": _read_gemma,
    "gemma2": _read_gemma,
    "gemma3_text": _read_gemma,
    "granite": _read_granite,
    "smollm3": _read_smollm3,
    "olmo2": _read_olmo,
    "olmo3": _read_olmo,
    "phi3": _read_phi,
    "seed_oss": _read_seed,
    "eurobert": _read_eurobert,
}


# --- config.json, written ---


def write(c: Decoder, length: int) -> Json:
    """Fields of a config.json, as transformers 5 spells them."""
    rope = write_rope(c.rope)
    if c.rotary_dim:
        rope["partial_rotary_factor"] = c.rotary_dim / c.head_dim
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
    first = c.family not in ("gemma2", "gemma3_text")
    described["hidden_act" if first else "hidden_activation"] = _NAMES[c.activation]
    if not c.causal and c.family != "eurobert":
        described["is_causal"] = False
    return described | _MORE.get(c.family, _plain)(c, rope)


def _plain(c: Decoder, rope: Json) -> Json:
    del rope
    if c.family in ("llama", "granite", "smollm3", "eurobert"):
        return {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias}
    return {}


def _write_qwen(c: Decoder, rope: Json) -> Json:
    del rope
    found = {"use_sliding_window": bool(c.local_layers), "layer_types": layer_types(c)}
    return found | ({"attention_bias": c.o_bias} if c.family == "qwen3" else {})


def _write_gemma(c: Decoder, rope: Json) -> Json:
    if c.family == "gemma":
        return {"attention_bias": c.o_bias, "hidden_activation": _NAMES[c.activation]}
    found: Json = {
        "attention_bias": c.o_bias,
        "layer_types": layer_types(c),
        "query_pre_attn_scalar": round(c.attention_scale**-2)
        if c.attention_scale
        else 0,
        "attn_logit_softcapping": c.attention_cap or None,
        "final_logit_softcapping": c.logit_cap or None,
    }
    return found | (_both_ropes(c, rope) if c.family == "gemma3_text" else {})


def _both_ropes(c: Decoder, rope: Json) -> Json:
    theta = c.local_rope_theta or c.rope.theta
    near = {"rope_type": "default", "rope_theta": theta}
    return {"rope_parameters": {"sliding_attention": near, "full_attention": rope}}


def _write_granite(c: Decoder, rope: Json) -> Json:
    return _plain(c, rope) | {
        "embedding_multiplier": c.embed_scale,
        "residual_multiplier": c.residual_scale,
        "attention_multiplier": c.attention_scale or c.head_dim**-0.5,
        "logits_scaling": 1 / c.logit_scale,
    }


def _write_smollm3(c: Decoder, rope: Json) -> Json:
    still = set(c.unrotated_layers)
    return _plain(c, rope) | {
        "no_rope_layers": [int(i not in still) for i in range(c.num_layers)],
        "use_sliding_window": bool(c.local_layers),
        "layer_types": layer_types(c),
    }


def _write_olmo(c: Decoder, rope: Json) -> Json:
    found: Json = {"attention_bias": c.qkv_bias}
    if c.family == "olmo2":
        return found
    return found | {"layer_types": layer_types(c), **_both_ropes(c, rope)}


def _write_phi(c: Decoder, rope: Json) -> Json:
    del rope
    original = c.rope.original_length
    return {"original_max_position_embeddings": original} if original else {}


def _write_ministral3(c: Decoder, rope: Json) -> Json:
    original = c.rope.original_length or 16384  # of no effect without growth
    rope = {"original_max_position_embeddings": original} | rope
    return {"rope_parameters": rope | {"llama_4_scaling_beta": c.query_growth}}


def _write_eurobert(c: Decoder, rope: Json) -> Json:
    names = {ours: theirs for theirs, ours in _EUROBERT.items()}
    return _plain(c, rope) | {"classifier_pooling": names.get(c.pooling, "late")}


_MORE: dict[str, Callable[[Decoder, Json], Json]] = {
    "ministral": lambda c, rope: {"layer_types": layer_types(c)},
    "ministral3": _write_ministral3,
    "qwen2": _write_qwen,
    "qwen3": _write_qwen,
    "gemma": _write_gemma,
    "gemma2": _write_gemma,
    "gemma3_text": _write_gemma,
    "granite": _write_granite,
    "smollm3": _write_smollm3,
    "olmo2": _write_olmo,
    "olmo3": _write_olmo,
    "phi3": _write_phi,
    "seed_oss": lambda c, rope: {
        "attention_bias": c.qkv_bias,
        "attention_out_bias": c.o_bias,
        "mlp_bias": c.mlp_bias,
    },
    "eurobert": _write_eurobert,
}


def old_spelling(c: Decoder, full: Json) -> tuple[Json, list[str]]:
    """The fields that transformers 4 reads in place of today's, and what it cannot say.

    It takes rope_theta for 10,000 where only rope_parameters is there, without a word.
    Where both are there, transformers 5 takes rope_scaling, so that it must say all.
    """
    rope = full["rope_parameters"]
    fields = old_rope(rope.get("full_attention", rope))
    notes: list[str] = []
    if c.rotary_dim:
        fields["partial_rotary_factor"] = c.rotary_dim / c.head_dim
    if c.family == "gemma3_text":
        fields["rope_local_base_freq"] = c.local_rope_theta or c.rope.theta
        every = pattern(c, -1)
        fields["sliding_window_pattern"] = every
        if every is None:
            notes.append("transformers 4 before layer_types (4.52) and servers that")
            notes[-1] += " read sliding_window_pattern cannot tell its local layers"
    if c.family == "olmo3" and c.local_rope_theta not in (0.0, c.rope.theta):
        notes.append("transformers 4 reads one rope_theta for all layers of an olmo3")
    if c.query_growth or c.family == "ministral3":
        notes.append("transformers 4 has no ministral3")
    if not c.causal and c.family != "eurobert":
        notes.append("transformers 4 reads it as causal (is_causal is new in 5)")
    return fields, notes


# --- tensors ---


def table(c: Decoder, vocab_size: int) -> Table:
    """The body's tensors."""
    D, F = c.embed_dim, c.mlp_dim
    norm: Transform = LESS_ONE if c.family.startswith("gemma") else SAME
    layer, body, made = "model.layers.{i}.", "body.layers.", Builder()
    made.add("model.embed_tokens.weight", "body.embedding", (vocab_size, D))
    made.add("model.norm.weight", "body.norm", (D,), norm)

    def scale(name: str, ours: str) -> None:
        made.add(f"{layer}{name}.weight", body + ours, (D,), norm)

    _attention(c, made, norm)
    if c.pre_norms:
        scale("input_layernorm", "attention_norm")
        both = c.post_norms
        name = "pre_feedforward_layernorm" if both else "post_attention_layernorm"
        scale(name, "mlp_norm")
    if c.post_norms:
        scale("post_attention_layernorm", "attention_post_norm")
        scale("post_feedforward_layernorm", "mlp_post_norm")
    wide, narrow = ((F,), (D,)) if c.mlp_bias else (None, None)
    made.dense(f"{layer}mlp.down_proj", f"{body}down", (F, D), bias=narrow)
    if c.family == "phi3":
        halves = [(body + name, (D, F)) for name in ("gate", "up")]
        made.fused(f"{layer}mlp.gate_up_proj.weight", halves)
        return made.table
    for name in ("gate", "up"):
        made.dense(f"{layer}mlp.{name}_proj", body + name, (D, F), bias=wide)
    return made.table


def _attention(c: Decoder, made: Builder, norm: Transform) -> None:
    D, N, K, H = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
    layer, body = "model.layers.{i}.self_attn.", "body.layers."
    bias = (D,) if c.o_bias else None
    made.dense(f"{layer}o_proj", f"{body}o", (N, H, D), transform=HEADS_IN, bias=bias)
    parts: list[tuple[str, int]] = [("q", N), ("k", K), ("v", K)]
    if c.family == "phi3":
        fused: list[Any] = [(body + n, (D, heads, H)) for n, heads in parts]
        made.fused(f"{layer}qkv_proj.weight", fused, HEADS_OUT)
        return
    for name, heads in parts:
        made.dense(
            f"{layer}{name}_proj",
            body + name,
            (D, heads, H),
            transform=HEADS_OUT,
            bias=(heads, H) if c.qkv_bias else None,
        )
        if c.qk_norm and name != "v":
            wide = c.wide_qk_norm
            made.add(
                f"{layer}{name}_norm.weight",
                f"{body}{name}_norm",
                (heads, H) if wide else (H,),
                FLAT if wide else norm,
            )


def language_head(shape: tuple[int, int]) -> Entry:
    """The words' logits, where they have weights of their own."""
    return Entry("lm_head.weight", "head", SAME, shape)
