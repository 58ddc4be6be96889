"""Hugging Face architectures: one record a family, and what all families share.

A new family is one entry of FAMILIES: how its config.json is read and written, and its
table, source tensor -> (our path, transform), which is read in both directions.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ranker import config
from ranker.errors import ModelError
from ranker.models import decoders, encoders
from ranker.models.fields import Fields, Json
from ranker.models.tables import HeadNames, Table, Transformer, head_table

_DECODER_HEAD = HeadNames(dense="score")
_BERT_HEAD = HeadNames(pooler="{root}pooler.dense", dense="classifier")
_ROBERTA_HEAD = HeadNames(pooler="classifier.dense", dense="classifier.out_proj")
_MODERN_HEAD = HeadNames(pooler="head.dense", norm="head.norm", dense="classifier")

# Heads that rank nothing, by their first words. The family's own is read by its table.
_OTHERS = (
    "score|lm_head|classifier|cls|head|decoder|pre_classifier|vocab_transform"
    "|vocab_layer_norm|vocab_projector|qa_outputs|discriminator_predictions"
    "|generator_predictions|generator_lm_head"
)
_BUFFERS = r".*(position_ids|token_type_ids|rotary_emb\.(original_)?inv_freq)$"
_IMAGES = r"^(model\.)?(vision_tower|multi_modal_projector|visual|vision_model)\."


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one `model_type` is, here and on disk."""

    name: str  # model_type
    architecture: str  # transformers' classes: NAMEForSequenceClassification, ...
    read: Callable[[Any], Transformer]  # config.json, in today's spelling, to the model
    write: Callable[[Any, int], Json]  # model and length to config.json
    # What transformers 4 and servers read in its place, and what they cannot be told;
    # given the model and its whole config.json.
    old: Callable[[Any, Json], tuple[Json, list[str]]]
    body: Callable[[Any, int], Table]  # model and rows of its embeddings
    head: HeadNames  # of a score
    root: str = "model."  # before the names of the body's tensors
    text: str = ""  # in the name of the class that scores, behind `architecture`
    scorer: bool = True  # transformers has a class of it that scores
    absent: tuple[str, ...] = ()  # tensors that the family leaves out; ones here
    harmless: str = ""  # pattern of fields that change neither states nor scores
    # Names of other releases: a pattern and its replacement. Several replacements share
    # the tensor's rows.
    renames: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether it predicts words from left to right, so that it can be a teacher."""
        return self.name in decoders.READ and self.name != "eurobert"

    def ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer, of another head, or of what reads images."""
        others = rf"^({_OTHERS})\.|^{re.escape(self.root)}pooler\."
        return re.match(rf"{_BUFFERS}|{others}|{_IMAGES}", name) is not None

    def is_head(self, name: str) -> bool:
        """Whether a tensor belongs to a head, which has no root before its name."""
        own = self.head.pooler.split(".")[0]
        own = "" if own.startswith("{") else own
        return re.match(rf"^({_OTHERS}{'|' if own else ''}{own})\.", name) is not None


def _decoder(name: str, architecture: str, **more: Any) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        read=decoders.READ[name],
        write=decoders.write,
        old=decoders.old_spelling,
        body=decoders.table,
        **{"head": _DECODER_HEAD, **more},
    )


def _encoder(name: str, architecture: str, root: str, head: HeadNames, **more: Any):
    return Family(
        name=name,
        architecture=architecture,
        read=encoders.READ[name],
        write=encoders.write,
        old=encoders.old_spelling,
        body=encoders.TABLES[name],
        root=root,
        head=HeadNames(*(one.format(root=root) for one in head)),
        **more,
    )


# The layer's norm that ModernBERT does not have; ours is there, and not used.
_FIRST = ("model.layers.0.attn_norm.weight",)
_MODERN = (
    r"decoder_bias|reference_compile|repad_logits_with_grad|sparse_pred\w*|sliding_window"
    r"|deterministic_flash_attn|causal_mask|allow_embedding_resizing|classifier_pooling"
)
# Releases that came with code of their own, before transformers had the family.
_GTE_NAMES = (
    (r"^new\.", ("gte.",)),
    (r"\bencoder\.layer\.", ("layers.",)),
    (r"\battention\.o_proj\b", ("self_attn.o_proj",)),
    (r"\battn_ln\b", ("post_attention_layernorm",)),
    (r"\bmlp_ln\b", ("post_mlp_layernorm",)),
    (r"\battention\.qkv_proj\b", tuple(f"self_attn.{n}_proj" for n in "qkv")),
    (r"\bmlp\.up_gate_proj\b", ("mlp.up_proj", "mlp.gate_proj")),
)
_NOMIC_NAMES = (
    (r"\bencoder\.layers\.", ("layers.",)),
    (r"\bemb_ln\b", ("embeddings.LayerNorm",)),
    (r"\battn\.out_proj\b", ("self_attn.o_proj",)),
    (r"\bmlp\.fc11\b", ("mlp.up_proj",)),
    (r"\bmlp\.fc12\b", ("mlp.gate_proj",)),
    (r"\bmlp\.fc2\b", ("mlp.down_proj",)),
    (r"\bnorm1\b", ("post_attention_layernorm",)),
    (r"\bnorm2\b", ("post_mlp_layernorm",)),
    (r"\battn\.Wqkv\b", tuple(f"self_attn.{n}_proj" for n in "qkv")),
)
_BERT_FIELDS = "directionality|pooler_\\w+|type_sequence_label_size|is_causal"
_LIST = (
    _decoder("llama", "Llama", harmless="rope_interleaved"),
    _decoder("mistral", "Mistral"),
    _decoder("ministral", "Ministral"),
    _decoder("ministral3", "Ministral3"),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3"),
    _decoder("gemma", "Gemma", harmless="hidden_activation"),
    _decoder("gemma2", "Gemma2", harmless="hidden_act"),
    _decoder("gemma3_text", "Gemma3", text="Text", harmless="hidden_act"),
    _decoder("granite", "Granite", scorer=False),
    _decoder("smollm3", "SmolLM3"),
    _decoder("olmo2", "Olmo2"),
    _decoder("olmo3", "Olmo3"),
    _decoder("phi3", "Phi3"),
    _decoder("seed_oss", "SeedOss"),
    _decoder("eurobert", "EuroBert", head=HeadNames("dense", "", "classifier")),
    _encoder("bert", "Bert", "bert.", _BERT_HEAD, harmless=_BERT_FIELDS),
    _encoder("roberta", "Roberta", "roberta.", _ROBERTA_HEAD, harmless=_BERT_FIELDS),
    _encoder(
        "xlm-roberta", "XLMRoberta", "roberta.", _ROBERTA_HEAD, harmless=_BERT_FIELDS
    ),
    _encoder("camembert", "Camembert", "roberta.", _ROBERTA_HEAD),
    _encoder("data2vec-text", "Data2VecText", "data2vec_text.", _ROBERTA_HEAD),
    _encoder("electra", "Electra", "electra.", _ROBERTA_HEAD),
    _encoder(
        "distilbert",
        "DistilBert",
        "distilbert.",
        HeadNames(pooler="pre_classifier", dense="classifier"),
        harmless="tie_weights_|intermediate_size",
    ),
    _encoder(
        "modernbert",
        "ModernBert",
        "model.",
        _MODERN_HEAD,
        absent=_FIRST,
        harmless=_MODERN,
    ),
    _encoder(
        "modernbert-decoder",
        "ModernBertDecoder",
        "model.",
        _MODERN_HEAD,
        absent=_FIRST,
        harmless=_MODERN,
    ),
    _encoder("gte", "Gte", "gte.", _BERT_HEAD, renames=_GTE_NAMES),
    _encoder(
        "nomic_bert", "NomicBert", "nomic_bert.", _BERT_HEAD, renames=_NOMIC_NAMES
    ),
    _encoder("mpnet", "MPNet", "mpnet.", _ROBERTA_HEAD),
)
FAMILIES = {family.name: family for family in _LIST}

# Why no model here computes what these do. Their scores can be had from outside.
_DEBERTA = "its attention tells content and position apart, which no kernel here does"
_EXPERTS = "its MLP is a mixture of experts, which no model here has"
_RECURRENT = "some of its layers are recurrent, which no model here has"
UNFIT = {
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "albert": "all its layers share one set of weights, which no model here does",
    "qwen3_next": _RECURRENT,
    "qwen3_5": _RECURRENT,
    "qwen3_5_text": _RECURRENT,
    "qwen3_5_moe": _RECURRENT,
    "lfm2": _RECURRENT,
    "granitemoehybrid": _RECURRENT,
    "gemma3n": "its layers have inputs of their own, which no model here has",
    "gemma4": "its layers have inputs of their own, which no model here has",
    "gemma4_text": "its layers have inputs of their own, which no model here has",
    **dict.fromkeys(
        (
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "granitemoe",
            "olmoe",
            "gpt_oss",
            "llama4",
            "llama4_text",
            "phimoe",
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe",
        ),
        _EXPERTS,
    ),
}


def family_of(path: str, kind: Any) -> Family:
    """The family of a model_type.

    Raises:
      ModelError: for one that is not known, saying which way there is.
    """
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    way = (
        "to distil such a model, score with the tools that it comes with and name the "
        "file (given_scores)"
    )
    if isinstance(kind, str) and kind in UNFIT:
        raise ModelError(
            f"{path}: model_type {kind!r} cannot be read: {UNFIT[kind]}; {way}"
        )
    raise ModelError(
        f"{path}: model_type {kind!r} is unknown; known are {', '.join(FAMILIES)}; "
        f"{way}"
    )


def read_config(path: str, c: Json) -> tuple[Transformer, Fields]:
    """The model that a config.json, with its defaults filled in, describes.

    Args:
      path: of the file, for messages.
      c: its fields.

    Returns:
      The model, and the fields, of which those are marked that were looked at.

    Raises:
      ModelError: for sizes that do not fit, or a setting that our models lack.
    """
    family, fields = family_of(path, c["model_type"]), Fields(path, c)
    try:
        return family.read(fields), fields
    except config.ConfigError as error:
        raise ModelError(
            f"{path}: {error}; config.json must describe the tensors beside it"
        ) from error


def table_of(
    model: Transformer, vocab_size: int, head: str, names: HeadNames | None = None
) -> Table:
    """The table of a model with `head`, "language" or "score".

    Args:
      model: its config.
      vocab_size: rows of its embeddings.
      head: which head it has; "" for the body alone.
      names: of a score's tensors, where they are not the family's.
    """
    family = FAMILIES[model.family]
    table = family.body(model, vocab_size)
    if head == "score":
        return table + head_table(model, names or family.head)
    if (
        head == "language"
        and isinstance(model, config.Decoder)
        and not model.tie_embeddings
    ):
        shape = (vocab_size, model.embed_dim)
        table = [*table, decoders.language_head(shape)]
    return table


def architecture(family: Family, head: str) -> str:
    """Name of the transformers class; with "" for the head, of the body."""
    kind = {
        "language": "ForCausalLM",
        "score": f"{family.text}ForSequenceClassification",
        "": f"{family.text}Model",
    }[head]
    return f"{family.architecture}{kind}"


def write_config(c: Transformer, vocab_size: int, length: int, head: str) -> Json:
    """The config.json of a model, as transformers 5 spells what its family needs.

    Args:
      c: the model.
      vocab_size: rows of the embeddings.
      length: tokens that it reads.
      head: "language", "score", or "" for the body alone.
    """
    family = FAMILIES[c.family]
    return {
        "architectures": [architecture(family, head)],
        "model_type": c.family,
        "hidden_size": c.embed_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "vocab_size": vocab_size,
        **family.write(c, length),
    }
