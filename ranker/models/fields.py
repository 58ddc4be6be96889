"""The fields of a config.json, and which of them have been looked at."""

import math
import re
from typing import Any

from ranker import config
from ranker.errors import ModelError

Json = dict[str, Any]

# What no model computes its states or scores by: how it was initialised and trained,
# how text is generated with it, which tool wrote it, and what its labels are called.
_HARMLESS = re.compile(
    r"_.*|architectures|model_type|(torch_)?dtype|torchscript|transformers_version"
    r"|(id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params)"
    r"|(vocab_size|tokenizer_class|prefix|name_or_path|sentence_transformers)"
    r"|use_cache|(use_)?return_dict|output_(hidden_states|attentions|scores|past)"
    r"|initializer_(range|factor|cutoff_factor)|gradient_checkpointing|pretraining_tp"
    r"|use_(bfloat16|flash_attn\w*|xla\w*)|tf_legacy_loss|keys_to_ignore_at_inference"
    r"|\w+_token_id|forced_\w+|suppress_tokens|begin_suppress_tokens"
    r"|\w*dropout(_rate|_prob)?|\w+_pdrop|\w*_dropout_\w+|chunk_size_feed_forward"
    r"|(max|min)_(new_tokens|length)|num_(beams|beam_groups|return_sequences)"
    r"|do_sample|early_stopping|temperature|top_[kp]|typical_p|length_penalty"
    r"|(repetition|diversity|encoder_repetition)_penalty|(encoder_)?no_repeat_ngram_size"
    r"|bad_words_ids|exponential_decay_length_penalty|remove_invalid_values"
    r"|is_encoder_decoder|cross_attention_hidden_size|max_position_embeddings"
    r"|cache_implementation|unsloth_\w+|tie_encoder_decoder|use_sliding_window"
)
# Spellings of older releases, which transformers turns into those of today.
_OLD = frozenset(
    "rope_theta rope_scaling global_rope_theta local_rope_theta rope_local_base_freq "
    "sliding_window_pattern global_attn_every_n_layers max_window_layers "
    "no_rope_layer_interval partial_rotary_factor hidden_size num_hidden_layers "
    "num_attention_heads original_max_position_embeddings".split()
)


class Fields(dict):
    """The fields of a config.json, in today's spelling; those looked at are kept.

    Attributes:
      path: of the file, for messages.
      kind: model_type.
      seen: names that have been looked at.
    """

    def __init__(self, path: str, fields: Json):
        super().__init__(fields)
        self.path = path
        self.kind: str = fields["model_type"]
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As for a dict."""
        self.seen.add(name)
        return super().get(name, default)

    def expect(self, **wanted: Any) -> None:
        """Refuses another value than these; a field may also be null or missing.

        Raises:
          ModelError: naming each field that has another.
        """
        expect(self.path, self, **wanted)

    def among(self, name: str, known: dict[str, Any]) -> Any:
        """What `known` has for a field's value.

        Raises:
          ModelError: naming the field and what is known.
        """
        value = self[name]
        if value not in known:
            raise ModelError(
                f"{self.path}: {name} is {value!r}, and only {', '.join(known)} can "
                "be read"
            )
        return known[value]


def expect(path: str, fields: Json, **wanted: Any) -> None:
    """Refuses another value than these; a field may also be null or missing.

    Raises:
      ModelError: naming each field that has another.
    """
    wrong = [
        f"{name} is {fields[name]!r}, and only {value!r} can be read"
        for name, value in wanted.items()
        if fields.get(name) not in (None, value)
    ]
    if wrong:
        raise ModelError(f"{path}: {'; '.join(wrong)}")


def check_rest(
    fields: Fields, written: Json, defaults: Json, harmless: str
) -> list[str]:
    """Refuses a field that nobody has looked at and that is not at its default.

    Args:
      fields: after the family has read them.
      written: the file's own fields.
      defaults: those of transformers' class.
      harmless: a pattern of names that change nothing in this family.

    Returns:
      Notes on fields that transformers' own class does not have either.

    Raises:
      ModelError: naming each field, its value and the default.
    """
    wrong, unknown = [], []
    for name, value in written.items():
        if name in fields.seen or name in _OLD or _HARMLESS.fullmatch(name):
            continue
        if harmless and re.fullmatch(harmless, name):
            continue
        if name in ("auto_map", "quantization_config"):
            continue  # spoken of elsewhere
        if name not in defaults:
            unknown.append(name)
        elif value != defaults[name]:
            wrong.append(
                f"{name} is {value!r}, and only {defaults[name]!r} is computed"
            )
    if wrong:
        raise ModelError(
            f"{fields.path}: {'; '.join(wrong)}; a model of which this changes nothing "
            "can be read once the field is removed from the file"
        )
    if not unknown:
        return []
    return [
        f"config.json: {', '.join(sorted(unknown))}: no field of transformers' "
        f"{fields.kind} model, ignored"
    ]


# --- rotary positions ---


def read_rope(c: Fields, rope: Json) -> config.Rope:
    """Rotary positions as a config.json has them.

    Raises:
      ModelError: for a scaling that is not known.
    """
    kind = rope.get("rope_type", "default")
    base: Json = dict(theta=float(rope.get("rope_theta", 10000.0)))
    original = rope.get("original_max_position_embeddings")
    longest = c.get("max_position_embeddings") or 0
    original = original or longest
    factor = rope.get("factor")
    if factor is None and kind in ("yarn", "longrope"):
        factor = longest / original if original else 1.0
    base["factor"] = factor = float(factor or 1.0)
    if kind == "default":
        return config.Rope(theta=base["theta"])
    if kind == "linear":
        return config.Rope(**base, scaling="linear")
    if kind == "dynamic":
        return config.Rope(**base, scaling="dynamic", original_length=longest)
    base["original_length"] = original
    if kind == "llama3":
        return config.Rope(
            **base,
            scaling="llama3",
            low_frequency=rope["low_freq_factor"],
            high_frequency=rope["high_freq_factor"],
        )
    if kind == "yarn":
        expect(c.path, rope, truncate=True)
        return config.Rope(
            **base,
            scaling="yarn",
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            attention_factor=_attention_factor(rope, factor),
        )
    if kind == "longrope":
        grown = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        given = rope.get("attention_factor")
        return config.Rope(
            **base,
            scaling="longrope",
            short_factors=tuple(map(float, rope["short_factor"])),
            long_factors=tuple(map(float, rope["long_factor"])),
            attention_factor=grown if given is None else given,
        )
    raise ModelError(
        f"{c.path}: rotary scaling {kind!r} cannot be read; known are default, linear, "
        "dynamic, llama3, yarn and longrope"
    )


def _attention_factor(rope: Json, factor: float) -> float:
    """What yarn multiplies queries and keys by (arXiv 2309.00071, section 3.4)."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]

    def scale(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale()


def write_rope(rope: config.Rope) -> Json:
    """Rotary positions as transformers 5 writes them (rope_parameters)."""
    base: Json = {"rope_theta": rope.theta}
    if rope.scaling == "none":
        return {"rope_type": "default", **base}
    base |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn", "longrope"):
        base["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        base["low_freq_factor"] = rope.low_frequency
        base["high_freq_factor"] = rope.high_frequency
    if rope.scaling == "yarn":
        base |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if rope.scaling == "longrope":
        base["short_factor"] = list(rope.short_factors)
        base["long_factor"] = list(rope.long_factors)
    if rope.scaling in ("yarn", "longrope"):
        base["attention_factor"] = rope.attention_factor
    return base


def old_rope(rope: Json) -> Json:
    """The same as transformers 4 reads it: rope_theta, and rope_scaling or null."""
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if plain else scaling,
    }


# --- layers of a window ---


def read_local(c: Fields) -> tuple[int, tuple[int, ...]]:
    """The window, and the layers that see no more, by layer_types.

    Raises:
      ModelError: for a type that is not known, or another number of layers.
    """
    window, types = c.get("sliding_window") or 0, c.get("layer_types") or []
    known = {"sliding_attention", "full_attention"}
    strange = sorted(set(map(str, types)) - known)
    if strange:
        raise ModelError(
            f"{c.path}: layer_types has {', '.join(strange)}, and only "
            f"{' and '.join(sorted(known))} can be read"
        )
    if types and len(types) != c["num_hidden_layers"]:
        raise ModelError(
            f"{c.path}: layer_types has {len(types)} layers, and num_hidden_layers is "
            f"{c['num_hidden_layers']}"
        )
    local = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
    return (window, local) if window and local else (0, ())


def layer_types(c: config.Decoder | config.Encoder) -> list[str]:
    """As config.json has them."""
    return [
        "sliding_attention" if i in c.local_layers else "full_attention"
        for i in range(c.num_layers)
    ]


def pattern(c: config.Decoder | config.Encoder, at: int) -> int | None:
    """Every which layer sees all, as old releases say it; None if it is not a pattern.

    Args:
      c: the model.
      at: which of each group sees all: 0 the first, -1 the last.
    """
    far = [i for i in range(c.num_layers) if i not in c.local_layers]
    for every in range(1, c.num_layers + 1):
        if far == [i for i in range(c.num_layers) if i % every == at % every]:
            return every
    return None if far else c.num_layers + 1
