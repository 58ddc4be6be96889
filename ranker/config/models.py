"""Settings that describe a network, or name a checkpoint that does."""

import re
from dataclasses import dataclass, field
from typing import Literal

from ranker.config.checks import positive, rate, require

DType = Literal["float32", "bfloat16"]
# What the backward pass recomputes to save memory, from nothing to all: "dots" keeps
# the results of products with weights and of attention, "attention" the latter alone.
Remat = Literal["none", "dots", "attention", "full"]
# In what gradients of weights are summed over devices; auto: float32 beyond 16 data
# shards, else what the model computes in.
ReduceDType = Literal["auto", "float32", "bfloat16"]
DecoderFamily = Literal[
    "llama",
    "mistral",
    "ministral",
    "ministral3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "smollm3",
    "olmo2",
    "olmo3",
    "phi3",
    "seed_oss",
    "eurobert",
]
EncoderFamily = Literal[
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "data2vec-text",
    "electra",
    "distilbert",
    "modernbert",
    "modernbert-decoder",
    "gte",
    "nomic_bert",
    "mpnet",
]
# What a text is scored by: the first token, the last, the mean over all, or the mean
# over all of what the head makes of each (late).
Pooling = Literal["cls", "last", "mean", "late"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
# Between the head's two dense layers; none: it has one alone.
HeadActivation = Literal["none", "tanh", "gelu", "relu"]
RopeScaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions, and how a model that saw short texts reads longer ones."""

    theta: float = 10000.0  # base of the wavelengths
    scaling: RopeScaling = "none"  # of the wavelengths
    factor: float = 1.0  # by which texts may be longer than those trained on
    original_length: int = 0  # tokens, of the texts trained on; not for linear
    low_frequency: float = 1.0  # waves a text; those below are stretched (llama3)
    high_frequency: float = 4.0  # waves a text; those above are left alone (llama3)
    beta_fast: float = 32.0  # waves a text; those above are left alone (yarn)
    beta_slow: float = 1.0  # waves a text; those below are stretched (yarn)
    attention_factor: float = 1.0  # on queries and keys (yarn, longrope)
    # Of each wavelength, in texts up to original_length (longrope).
    short_factors: tuple[float, ...] = ()
    # Of each wavelength, in longer texts (longrope).
    long_factors: tuple[float, ...] = ()

    def __post_init__(self):
        positive(self, "theta", "factor", "attention_factor")
        require(
            (self.scaling == "longrope")
            == bool(self.short_factors)
            == bool(self.long_factors)
            and len(self.short_factors) == len(self.long_factors),
            f"rope.scaling {self.scaling!r} has {len(self.short_factors)} "
            f"short_factors and {len(self.long_factors)} long_factors; longrope needs "
            "as many of both, and the others none",
        )
        require(
            self.scaling in ("none", "linear") or self.original_length > 0,
            f"rope.scaling {self.scaling!r} needs rope.original_length, in tokens",
        )


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal transformer: RMSNorm, rotary positions, grouped heads, gated MLP.

    With the defaults it is Llama's; the other fields are what other families do
    differently. With `causal=False` it is an encoder of the same build (EuroBERT).
    """

    num_layers: int  # layers
    embed_dim: int  # width of the residual stream
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads; divides num_heads
    head_dim: int  # width of a head
    mlp_dim: int  # width of the gated MLP
    rope: Rope = field(default_factory=Rope)
    norm_eps: float = 1e-5  # added to the mean square
    tie_embeddings: bool = True  # the language-model head is the embedding, transposed
    family: DecoderFamily = "llama"  # architecture that an export is written as
    qkv_bias: bool = False  # biases of queries, keys and values
    o_bias: bool = False  # a bias of what attention gives
    mlp_bias: bool = False  # biases of the MLP
    qk_norm: bool = False  # each query and key head is normalised
    wide_qk_norm: bool = False  # with qk_norm: all heads of a token together
    pre_norms: bool = True  # attention and MLP read the normalised stream
    post_norms: bool = False  # what attention and MLP give is normalised too
    activation: Activation = "silu"  # of the MLP's gate
    causal: bool = True  # a token sees those before it alone
    pooling: Pooling = "last"  # what a text is scored by
    # Between pooler and score; none: no pooler.
    head_activation: HeadActivation = "none"
    grades: int = 0  # tokens whose expected grade is the score; 0: one dense layer
    residual_scale: float = 1.0  # factor on what attention and MLP add to the stream
    logit_scale: float = 1.0  # factor on language-model logits
    query_growth: float = 0.0  # of queries, by ln(1 + position // rope.original_length)
    rotary_dim: int = 0  # of each head, that turns; 0: all of it
    unrotated_layers: tuple[int, ...] = ()  # layers, from 0, without positions
    embed_scale: float = 1.0  # factor on the embeddings
    attention_scale: float = 0.0  # factor on attention logits; 0: head_dim ** -0.5
    attention_cap: float = 0.0  # bound on attention logits, by tanh; 0: none
    logit_cap: float = 0.0  # bound on language-model logits, by tanh; 0: none
    head_bias: bool = False  # the score has a bias
    window: int = 0  # tokens that a local layer sees, the current one included
    local_layers: tuple[int, ...] = ()  # layers, from 0, that see a window only
    local_rope_theta: float = 0.0  # of local layers, unscaled; 0: as the others
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"  # of a layer: what the backward pass recomputes
    reduce_dtype: ReduceDType = "auto"  # of gradients that are summed over devices

    def __post_init__(self):
        positive(self, "num_layers", "embed_dim", "num_heads", "num_kv_heads")
        positive(self, "head_dim", "mlp_dim", "norm_eps")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads "
            f"{self.num_kv_heads}",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.head_dim must be even for rotary positions, found {self.head_dim}",
        )
        require(
            self.rotary_dim % 2 == 0 and 0 <= self.rotary_dim <= self.head_dim,
            f"model.rotary_dim {self.rotary_dim} must be even and at most "
            f"model.head_dim {self.head_dim}",
        )
        require(
            self.pre_norms or self.post_norms,
            "model.pre_norms and model.post_norms are both off; set one of them",
        )
        require(
            not self.grades or (self.grades > 1 and self.head_activation == "none"),
            f"model.grades is {self.grades}; two or more grades are needed, and "
            "model.head_activation 'none'",
        )
        _check_local(self)
        _check_reduce(self)


_PARTS = ("q", "k", "v", "o", "gate", "up", "down")  # dense layers of an encoder


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A bidirectional transformer with a pooler and a score.

    With the defaults it is BERT; the other fields are what other families do
    differently.
    """

    num_layers: int  # layers
    embed_dim: int  # width of the residual stream
    num_heads: int  # heads; divides embed_dim
    mlp_dim: int  # width of the MLP
    max_positions: int = 512  # learned positions, at least text's length; 0: rotary
    num_types: int = 2  # token types: 0 query, 1 document; 1 or 0: not told apart
    norm_eps: float = 1e-12  # added to the variance
    dropout: float = 0.0  # rate, while training
    attention_dropout: float = 0.0  # rate on attention weights; needs the xla kernel
    family: EncoderFamily = "bert"  # architecture that an export is written as
    table_dim: int = 0  # width of the embeddings, projected; 0: embed_dim
    bias: bool = True  # biases of dense layers and norms
    unbiased: tuple[str, ...] = ()  # with bias: those of q k v o gate up down without
    activation: Activation = "gelu"  # of the MLP
    causal: bool = False  # a token sees those before it alone
    pre_norm: bool = False  # attention and MLP read the normalised stream
    first_norm: bool = True  # before the first attention too (pre_norm)
    gated: bool = False  # the MLP has a gate
    head_activation: HeadActivation = "tanh"  # between pooler and score
    head_norm: bool = False  # between pooler and score
    pooler_bias: bool = True  # of the pooler
    head_bias: bool = True  # of the score
    pooling: Pooling = "cls"  # what a text is scored by
    window: int = 0  # tokens to either side that a local layer sees
    local_layers: tuple[int, ...] = ()  # layers, from 0, that see a window only
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_factor: float = 1.0  # by which all rotary wavelengths are longer
    local_rope_theta: float = 0.0  # of local layers; 0: as the others
    distance_buckets: int = 0  # of distances, with a learned bias each; 0: no biases
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"  # of a layer: what the backward pass recomputes
    reduce_dtype: ReduceDType = "auto"  # of gradients that are summed over devices

    def __post_init__(self):
        positive(self, "num_layers", "embed_dim", "num_heads", "mlp_dim")
        positive(self, "norm_eps")
        require(
            self.distance_buckets in (0, *range(8, 257, 4)),
            "model.distance_buckets must be 0, or a multiple of 4 from 8 to 256, found "
            f"{self.distance_buckets}",
        )
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads "
            f"{self.num_heads}",
        )
        rate("model.dropout", self.dropout)
        rate("model.attention_dropout", self.attention_dropout)
        wrong = [name for name in self.unbiased if name not in _PARTS]
        require(
            not wrong,
            f"model.unbiased names {', '.join(wrong)}; known are {', '.join(_PARTS)}",
        )
        require(
            self.head_activation != "none" or not self.head_norm,
            "model.head_norm is of a pooler, and model.head_activation 'none' has none",
        )
        _check_local(self)
        _check_reduce(self)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


# Fields that say how a model trains and computes, not what it is.
FREE_FIELDS = ("dtype", "remat", "reduce_dtype", "dropout", "attention_dropout")


def _check_reduce(model: "Decoder | Encoder | Pretrained") -> None:
    require(
        model.reduce_dtype != "bfloat16" or model.dtype == "bfloat16",
        "model.reduce_dtype is 'bfloat16', and gradients are computed in model.dtype "
        f"{model.dtype!r}; leave model.reduce_dtype 'auto', or set "
        "model.dtype=bfloat16",
    )


def _check_local(model: Decoder | Encoder) -> None:
    require(
        not model.local_layers or model.window > 0,
        "model.local_layers names layers that see a window, and model.window is "
        f"{model.window}; set it to a number of tokens",
    )
    for name in ("local_layers", "unrotated_layers"):
        listed = getattr(model, name, ())
        wrong = [i for i in listed if not 0 <= i < model.num_layers]
        require(
            not wrong,
            f"model.{name} names {wrong}, but the {model.num_layers} layers are 0 to "
            f"{model.num_layers - 1}",
        )


_LAYERS = r"\d+(,\d+)*|(-?\d+)?:(-?\d+)?(:\d+)?"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A Hugging Face checkpoint: the model is what its config.json says."""

    path: str  # folder, or name on the hub
    revision: str = ""  # of a hub name: branch, tag or commit; empty: the newest
    keep_layers: str = ""  # "0,2,4", or a slice as "::2", "-6:"; empty: all layers
    fresh_head: bool = False  # the score begins anew, whatever the checkpoint has
    score_tokens: tuple[str, ...] = ()  # score: logit of the first less the second's
    grade_tokens: tuple[str, ...] = ()  # score: expected grade, of these from 0 on
    pooling: Literal["", "cls", "last", "mean"] = ""  # empty: as the checkpoint has it
    dropout: float = -1.0  # rate of an encoder while training; -1: the checkpoint's
    # Rate on an encoder's attention weights while training, whatever the checkpoint
    # has; it needs the xla kernel.
    attention_dropout: float = 0.0
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"  # of a layer: what the backward pass recomputes
    reduce_dtype: ReduceDType = "auto"  # of gradients that are summed over devices

    def __post_init__(self):
        _check_reduce(self)
        require(bool(self.path), "model.path is empty; name a folder or a hub name")
        rate("model.attention_dropout", self.attention_dropout)
        require(
            self.dropout == -1 or 0 <= self.dropout < 1,
            f"model.dropout must be in [0, 1), or -1 for the checkpoint's, found "
            f"{self.dropout}",
        )
        require(
            len(self.score_tokens) <= 2,
            f"model.score_tokens takes one or two tokens, found {self.score_tokens}",
        )
        require(
            len(self.grade_tokens) != 1
            and not (self.grade_tokens and self.score_tokens),
            f"model.grade_tokens takes two or more tokens, found {self.grade_tokens}, "
            f"and no model.score_tokens beside them, found {self.score_tokens}",
        )
        require(
            not self.keep_layers or re.fullmatch(_LAYERS, self.keep_layers) is not None,
            "model.keep_layers takes numbers from 0 such as 0,2,4, or a slice such as "
            f"::2 (every second), found {self.keep_layers!r}",
        )

    def kept(self, num_layers: int) -> tuple[int, ...]:
        """The layers kept of so many.

        Raises:
          ConfigError: when they are none, not there, or do not rise.
        """
        if not self.keep_layers:
            return tuple(range(num_layers))
        if ":" in self.keep_layers:
            parts = [
                int(part) if part else None for part in self.keep_layers.split(":")
            ]
            require(
                parts[2:] != [0], f"model.keep_layers {self.keep_layers} has the step 0"
            )
            layers = tuple(range(num_layers))[slice(*parts)]
        else:
            layers = tuple(int(part) for part in self.keep_layers.split(","))
        require(
            bool(layers)
            and list(layers) == sorted(set(layers))
            and layers[-1] < num_layers,
            f"model.keep_layers {self.keep_layers} names the layers {list(layers)}, "
            f"and the checkpoint's {num_layers} layers are 0 to {num_layers - 1}; "
            "name some of them, in rising order",
        )
        return layers


Model = Decoder | Encoder | Pretrained
