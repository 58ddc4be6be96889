"""Settings that describe a network, or name a checkpoint that does."""

import re
from dataclasses import dataclass, field
from typing import Literal

from ranker.config.checks import positive, require

DType = Literal["float32", "bfloat16"]
# What the backward pass recomputes to save memory, from nothing to all: "dots" keeps
# the results of products with weights and of attention, "attention" the latter alone.
Remat = Literal["none", "dots", "attention", "full"]
DecoderFamily = Literal[
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"
]
EncoderFamily = Literal["bert", "roberta", "xlm-roberta", "electra", "modernbert"]


RopeScaling = Literal["none", "linear", "dynamic", "llama3", "yarn"]


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
    attention_factor: float = 1.0  # on queries and keys (yarn)

    def __post_init__(self):
        positive(self, "theta", "factor", "attention_factor")
        require(
            self.scaling in ("none", "linear") or self.original_length > 0,
            f"rope.scaling {self.scaling!r} needs rope.original_length, in tokens",
        )


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal transformer: RMSNorm, rotary positions, grouped heads, gated MLP.

    With the defaults it is Llama's; the other fields are what Mistral, Qwen and Gemma
    do differently.
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
    qk_norm: bool = False  # each query and key head is normalised
    post_norms: bool = False  # what attention and MLP give is normalised too
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
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
        _check_local(self)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A bidirectional transformer with a pooler and a score.

    With the defaults it is BERT; the other fields are what RoBERTa, ELECTRA and
    ModernBERT do differently.
    """

    num_layers: int  # layers
    embed_dim: int  # width of the residual stream
    num_heads: int  # heads; divides embed_dim
    mlp_dim: int  # width of the MLP
    max_positions: int = 512  # learned positions, at least text's length; 0: rotary
    num_types: int = 2  # token types: 0 query, 1 document; 1 or 0: not told apart
    norm_eps: float = 1e-12  # added to the variance
    dropout: float = 0.0  # rate, while training
    family: EncoderFamily = "bert"  # architecture that an export is written as
    table_dim: int = 0  # width of the embeddings, projected; 0: embed_dim
    bias: bool = True  # biases of dense layers and norms
    pre_norm: bool = False  # attention and MLP read the normalised stream
    first_norm: bool = True  # before the first attention too (pre_norm)
    gated: bool = False  # the MLP has a gate
    head_activation: Literal["tanh", "gelu"] = "tanh"  # between pooler and score
    head_norm: bool = False  # between pooler and score
    pooling: Literal["cls", "mean"] = "cls"  # first token, or mean over the text
    window: int = 0  # tokens to either side that a local layer sees
    local_layers: tuple[int, ...] = ()  # layers, from 0, that see a window only
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    local_rope_theta: float = 0.0  # of local layers; 0: as the others
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"  # of a layer: what the backward pass recomputes

    def __post_init__(self):
        positive(self, "num_layers", "embed_dim", "num_heads", "mlp_dim")
        positive(self, "norm_eps")
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads "
            f"{self.num_heads}",
        )
        require(
            0 <= self.dropout < 1,
            f"model.dropout must be in [0, 1), found {self.dropout}",
        )
        _check_local(self)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


def _check_local(model: Decoder | Encoder) -> None:
    require(
        not model.local_layers or model.window > 0,
        "model.local_layers names layers that see a window, and model.window is "
        f"{model.window}; set it to a number of tokens",
    )
    wrong = [i for i in model.local_layers if not 0 <= i < model.num_layers]
    require(
        not wrong,
        f"model.local_layers names {wrong}, and the {model.num_layers} layers are 0 to "
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
    dropout: float = -1.0  # rate of an encoder while training; -1: the checkpoint's
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: Remat = "none"  # of a layer: what the backward pass recomputes

    def __post_init__(self):
        require(bool(self.path), "model.path is empty; name a folder or a hub name")
        require(
            len(self.score_tokens) <= 2,
            f"model.score_tokens takes one or two tokens, found {self.score_tokens}",
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
