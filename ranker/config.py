"""Every setting of ranker, as one tree of frozen dataclasses, and how to load it.

A config file is Python and defines ``get_config(variant="")``; it imports this module
and nothing else of ranker. `load` runs it and applies typed overrides from the command
line. The comment behind a field is its help text and gives its unit.
"""

import dataclasses
import difflib
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args


class ConfigError(ValueError):
    """A setting that cannot work; the message names field, values and a way out."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            value > 0,
            f"{type(config).__name__}.{name} must be above 0, found {value}",
        )


# --- where the numbers live -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices lie along each axis of the mesh."""

    slices: int = -1  # TPU slices; batches are split over them; -1: as many as are here
    data: int = -1  # devices; batches are split over it; -1: all that the others leave
    fsdp: int = 1  # devices; batches, parameters and optimiser state are split over it
    tensor: int = 1  # devices; heads, MLP width and vocabulary are split over it

    def __post_init__(self):
        _require(
            self.data == -1 or self.data > 0,
            f"mesh.data must be -1 (all devices left) or above 0, found {self.data}",
        )
        _require(
            self.slices == -1 or self.slices > 0,
            f"mesh.slices must be -1 (all that are here) or above 0, found "
            f"{self.slices}",
        )
        _positive(self, "fsdp", "tensor")


# --- data -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class World:
    """The made search world: a deterministic function of (seed, index)."""

    seed: int = 0  # every document, query and click follows from it
    num_topics: int = 64  # topics; each has its own words for titles and for queries
    num_aspects: int = 12  # aspects a document or a query can be about
    documents_per_topic: int = 32  # documents
    labelled_queries: int = 300  # queries with grades, for supervised fine-tuning
    unlabelled_queries: int = 4000  # queries without grades, for the teacher to score
    dev_queries: int = 200  # queries with grades, for choosing settings
    test_queries: int = 600  # queries with grades, held out
    clicks: int = 30000  # rows of the click log
    candidates: int = 12  # documents a query

    def __post_init__(self):
        _positive(
            self,
            "num_topics",
            "num_aspects",
            "documents_per_topic",
            "labelled_queries",
            "test_queries",
            "candidates",
        )


@dataclass(frozen=True, kw_only=True)
class ClickRules:
    """Which rows of a click log become continued pre-training examples."""

    min_dwell: float = 10.0  # seconds; clicks known to be shorter are dropped
    max_per_query: int = 20  # documents; the most clicked of a query are kept
    dev_fraction: float = 0.02  # of the queries; held out to watch the loss

    def __post_init__(self):
        _positive(self, "max_per_query")
        _require(
            0 <= self.dev_fraction < 1,
            f"clicks.dev_fraction must be in [0, 1), found {self.dev_fraction}",
        )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where queries, documents, judgements, candidates and clicks come from."""

    path: str = ""  # folder in the BEIR layout; empty: the made world
    world: World = field(default_factory=World)
    test: str = "test"  # name of the split that is held out: qrels/NAME.tsv
    runs: str = "runs/*.{split}.*"  # run files below path; none: BM25
    candidates: int = 50  # documents a query, the first of the run
    click_log: str = ""  # .jsonl, .tsv or .parquet; empty: positives of train
    click_rules: ClickRules = field(default_factory=ClickRules)
    labelled_queries: int = 0  # train queries whose grades may be used; 0: all
    max_queries: int = 0  # queries read of each split, for a short run; 0: all
    # at a malformed record; skipped are counted
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self):
        _positive(self, "candidates")


Role = Literal["teacher", "student"]
TEMPLATES = ("prompt", "pair", "qwen3_reranker", "bge_reranker_gemma")
TEMPLATE_BAR = "|||"  # between the parts of a template that is written out
Template = str  # one of TEMPLATES, or "QUERY ||| DOCUMENT ||| END"; see data/text.py


@dataclass(frozen=True, kw_only=True)
class Text:
    """How teacher and student read text; they never share a vocabulary."""

    teacher_tokenizer: str = ""  # Hugging Face folder or hub name; empty: trained
    student_tokenizer: str = ""  # Hugging Face folder or hub name; empty: trained
    teacher_template: Template = "prompt"  # pair for an encoder; see data/text.py
    student_template: Template = "pair"  # words around query and document
    teacher_vocab_size: int = 2048  # tokens, of a tokenizer that prepare trains
    student_vocab_size: int = 2048  # tokens, of a tokenizer that prepare trains
    teacher_length: int = 64  # tokens a row, the end token included
    student_length: int = 64  # tokens a row, the special tokens included

    def __post_init__(self):
        for name in ("teacher_length", "student_length"):
            _require(
                getattr(self, name) >= 8,
                f"text.{name} must be at least 8 tokens, found {getattr(self, name)}",
            )
        for name in ("teacher_template", "student_template"):
            _check_template(f"text.{name}", getattr(self, name))

    def of(self, role: Role, name: str) -> Any:
        """The field `name` of the teacher or the student, such as "length"."""
        return getattr(self, f"{role}_{name}")


def _check_template(name: str, template: str) -> None:
    if template in TEMPLATES:
        return
    parts = template.split(TEMPLATE_BAR)
    _require(
        len(parts) == 3,
        f"{name} is {template!r}; it takes {', '.join(TEMPLATES)}, or words of "
        f"your own as 'QUERY {TEMPLATE_BAR} DOCUMENT {TEMPLATE_BAR} END', such as "
        f"'query: {{query}} {TEMPLATE_BAR}document: {{title}} {{text}}{TEMPLATE_BAR}'",
    )
    empty = {"query": {"query": ""}, "document": dict(title="", text="", both="")}
    for part, (place, fields) in zip(parts, empty.items(), strict=False):
        names = " or ".join(f"{{{field}}}" for field in fields)
        try:
            changed = part.format(**fields) != part
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"{name}: its {place} {part!r} may hold {names} in braces, and no "
                f"others ({error!r})"
            ) from error
        _require(changed, f"{name}: its {place} {part!r} must hold {names}")


# --- models ---------------------------------------------------------------------------

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
        _positive(self, "theta", "factor", "attention_factor")
        _require(
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
        _positive(self, "num_layers", "embed_dim", "num_heads", "num_kv_heads")
        _positive(self, "head_dim", "mlp_dim", "norm_eps")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads "
            f"{self.num_kv_heads}",
        )
        _require(
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
        _positive(self, "num_layers", "embed_dim", "num_heads", "mlp_dim")
        _positive(self, "norm_eps")
        _require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads "
            f"{self.num_heads}",
        )
        _require(
            0 <= self.dropout < 1,
            f"model.dropout must be in [0, 1), found {self.dropout}",
        )
        _check_local(self)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


def _check_local(model: Decoder | Encoder) -> None:
    _require(
        not model.local_layers or model.window > 0,
        "model.local_layers names layers that see a window, and model.window is "
        f"{model.window}; set it to a number of tokens",
    )
    wrong = [i for i in model.local_layers if not 0 <= i < model.num_layers]
    _require(
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
        _require(bool(self.path), "model.path is empty; name a folder or a hub name")
        _require(
            len(self.score_tokens) <= 2,
            f"model.score_tokens takes one or two tokens, found {self.score_tokens}",
        )
        _require(
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
            _require(
                parts[2:] != [0], f"model.keep_layers {self.keep_layers} has the step 0"
            )
            layers = tuple(range(num_layers))[slice(*parts)]
        else:
            layers = tuple(int(part) for part in self.keep_layers.split(","))
        _require(
            bool(layers)
            and list(layers) == sorted(set(layers))
            and layers[-1] < num_layers,
            f"model.keep_layers {self.keep_layers} names the layers {list(layers)}, "
            f"and the checkpoint's {num_layers} layers are 0 to {num_layers - 1}; "
            "name some of them, in rising order",
        )
        return layers


Model = Decoder | Encoder | Pretrained


# --- training -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float  # at the peak
    warmup: int  # steps
    final_fraction: float = 0.1  # of learning_rate, at the last step
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.98  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.01  # not applied to norms and biases
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    # The second moment is float32: bfloat16 would lose what b2 lets in at each step.
    mu_dtype: DType = "float32"  # of the first moment as it is kept; bfloat16 halves it

    def __post_init__(self):
        _positive(self, "learning_rate", "eps")
        _require(
            self.warmup >= 0, f"optim.warmup must be 0 or more, found {self.warmup}"
        )
        _require(
            self.clip_norm >= 0,
            f"optim.clip_norm must be 0 (off) or more, found {self.clip_norm}",
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one optimiser step sees, over all devices.

    A step has `size` rows (cpt), or `size * list_size` rows (sft, distill), of the text
    length. Shorter texts share a row, so that a step sees more than `size` of them.
    """

    size: int  # texts (cpt) or lists (sft, distill) of full length that a step holds
    list_size: int = 8  # documents drawn from each list (sft, distill)
    accumulate: int = 1  # micro-batches that a step is cut into; divides size

    def __post_init__(self):
        _positive(self, "size", "list_size", "accumulate")
        _require(
            self.size % self.accumulate == 0,
            f"batch.size {self.size} is not divisible by batch.accumulate "
            f"{self.accumulate}",
        )


DevMetric = Literal["none", "dev_ndcg@5", "dev_language"]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long to train, and what to do on the way."""

    steps: int  # optimiser steps; 0: the weights are taken over as they are
    log_every: int = 50  # steps
    eval_every: int = 0  # steps between evaluations on dev; 0: at the end only
    save_every: int = 1000  # steps between checkpoints; one is always saved at the end
    keep: int = 2  # checkpoints kept, the newest
    best_metric: DevMetric = "none"  # the checkpoint with its best value is kept too
    result: Literal["last", "best"] = "last"  # checkpoint that later stages read
    idle_steps: int = 100  # steps in a row without a pair or with equal scores; 0: any

    def __post_init__(self):
        _require(self.steps >= 0, f"Loop.steps must be 0 or more, found {self.steps}")
        _positive(self, "log_every", "save_every", "keep")
        for name in ("eval_every", "idle_steps"):
            _require(
                getattr(self, name) >= 0,
                f"Loop.{name} must be 0 or more, found {getattr(self, name)}",
            )
        _require(
            self.best_metric == "none" or self.eval_every > 0,
            f"loop.best_metric {self.best_metric!r} is measured every loop.eval_every "
            "steps, and that is 0; set it to a number of steps",
        )
        _require(
            self.result == "last" or self.best_metric != "none",
            "loop.result is 'best', and loop.best_metric is 'none'; name the metric of "
            "dev that decides",
        )


@dataclass(frozen=True, kw_only=True)
class Language:
    """Next-token cross-entropy on the clicked title and summary."""


RankLoss = Literal[
    "softmax",
    "list_net",
    "list_mle",
    "position_aware_list_mle",
    "approx_ndcg",
    "lambda_loss",
    "ranknet",
    "hinge",
    "mse",
    "sigmoid_cross_entropy",
    "ordinal",
]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank losses over the judged documents of a query, each times its weight."""

    loss: tuple[RankLoss, ...] = ("softmax",)  # several are added up
    loss_weights: tuple[float, ...] = ()  # of each loss; empty: 1 each
    # of ranknet's and hinge's pairs; delta_ndcg makes ranknet LambdaRank
    pair_weights: Literal["equal", "grade_difference", "delta_ndcg"] = "equal"
    margin: float = 1.0  # score units, of hinge
    temperature: float = 0.1  # score units, of approx_ndcg
    mu: float = 10.0  # weight of lambda_loss's second term
    highest_grade: float = 1.0  # certainly relevant, of sigmoid_cross_entropy
    thresholds: tuple[float, ...] = (0.5, 1.5, 2.5, 3.5)  # between grades, of ordinal

    def __post_init__(self):
        _check_mixture(self.loss, self.loss_weights, "objective.loss")
        _require(bool(self.loss), "objective.loss names no loss; name at least one")
        _positive(self, "temperature", "highest_grade")
        _require(
            list(self.thresholds) == sorted(self.thresholds) and bool(self.thresholds),
            f"objective.thresholds must rise, found {self.thresholds}",
        )


DistillationLoss = Literal[
    "margin_mse_positive_negative",
    "margin_mse_reference",
    "listwise_kl",
    "ranknet_on_teacher_order",
    "adr_mse",
]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """alpha * point-wise MSE + beta * margin MSE, against the teacher's scores."""

    alpha: float = 1.0  # weight of the point-wise term; 0: without it
    beta: float = 1.0  # weight of the margin term over all pairs; 0: without it
    loss: tuple[DistillationLoss, ...] = ()  # further losses, added to the two
    loss_weights: tuple[float, ...] = ()  # of each further loss; empty: 1 each
    temperature: float = 1.0  # score units, of listwise_kl and adr_mse
    # standardised per list or set, or fitted to the grades of train
    target_scale: Literal["raw", "list", "data", "labels"] = "data"

    def __post_init__(self):
        _check_mixture(self.loss, self.loss_weights, "objective.loss")
        _require(
            self.alpha >= 0 and self.beta >= 0,
            "objective.alpha and objective.beta must be 0 or more, found "
            f"{self.alpha} and {self.beta}",
        )
        _require(
            self.alpha + self.beta > 0 or bool(self.loss),
            "objective.alpha and objective.beta are both 0 and objective.loss names no "
            "other loss: there is nothing to minimise",
        )
        _positive(self, "temperature")


def _check_mixture(
    losses: tuple[str, ...], weights: tuple[float, ...], name: str
) -> None:
    _require(
        len(set(losses)) == len(losses),
        f"{name} names a loss twice, found {losses}; give it one weight",
    )
    _require(
        not weights or len(weights) == len(losses),
        f"{name}_weights has {len(weights)} weights for the {len(losses)} losses of "
        f"{name}; give one each, or none for 1 each",
    )
    _require(
        all(weight > 0 for weight in weights),
        f"{name}_weights must be above 0, found {weights}",
    )


Objective = Language | Rank | Distillation

LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters: they and a score head train, all other weights are frozen."""

    rank: int = 0  # numbers between the two factors of an adapter; 0: all weights train
    alpha: float = 32.0  # what an adapter adds counts alpha / rank
    targets: tuple[LoraTarget, ...] = ()  # adapted matrices; empty: all of a layer
    base_dtype: DType = "bfloat16"  # that the frozen weights are kept in

    def __post_init__(self):
        _require(self.rank >= 0, f"lora.rank must be 0 or more, found {self.rank}")
        _positive(self, "alpha")
        _require(
            len(set(self.targets)) == len(self.targets),
            f"lora.targets names a matrix twice, found {self.targets}",
        )

    @property
    def scale(self) -> float:
        """Factor on what an adapter adds."""
        return self.alpha / self.rank


NO_LORA = Lora()


# --- stages ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage needs: data, text, devices."""

    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """One training stage; `objective` and `model` say which."""

    name: str  # folder of this stage in the workdir
    parent: str = ""  # stage folder that the weights come from; empty: fresh weights
    model: Model
    objective: Objective
    # whose tokenizer and template; auto: decoders are teachers
    role: Literal["auto", "teacher", "student"] = "auto"
    scores: str = ""  # folder of teacher scores in the workdir (distillation)
    lora: Lora = NO_LORA
    optim: Optim
    batch: Batch
    loop: Loop
    seed: int = 0  # of initial weights, data order and dropout

    def __post_init__(self):
        distils = isinstance(self.objective, Distillation)
        _require(
            distils == bool(self.scores),
            f"stage {self.name!r}: scores is {self.scores!r}; a distillation needs the "
            "folder of teacher scores there, and no other stage reads one",
        )
        if isinstance(self.objective, Language):
            _require(
                not isinstance(self.model, Encoder),
                f"stage {self.name!r}: the language objective needs a decoder, found "
                "an encoder",
            )
        _require(
            not self.lora.rank
            or bool(self.parent)
            or isinstance(self.model, Pretrained),
            f"stage {self.name!r}: lora.rank is {self.lora.rank}, and there are no "
            "weights to adapt; name a parent or a checkpoint (model.path), or set "
            "lora.rank to 0",
        )
        _require(
            self.optim.warmup <= self.loop.steps,
            f"optim.warmup {self.optim.warmup} is over loop.steps {self.loop.steps}",
        )
        language = isinstance(self.objective, Language)
        measured = "dev_language" if language else "dev_ndcg@5"
        _require(
            self.loop.best_metric in ("none", measured),
            f"stage {self.name!r} measures {measured} on dev, and loop.best_metric is "
            f"{self.loop.best_metric!r}",
        )


ScoreFormat = Literal["parquet", "array_record"]


@dataclass(frozen=True, kw_only=True)
class Score(Stage):
    """The teacher scores the candidates of many queries, or pairs of any input."""

    name: str = "scores"  # folder of the scores in the workdir
    teacher: str = "sft"  # stage that scores; OWNER/NAME, ./FOLDER: as it is
    dtype: DType = "float32"  # of the computation, of a checkpoint as it is
    # Whose candidates are scored.
    splits: tuple[Literal["train", "unlabelled"], ...] = ("train", "unlabelled")
    input: str = ""  # pairs to score in place of splits; see data/pair_files.py
    pairs: str = "runs/*"  # files below a BEIR folder (input) that list the pairs
    output: str = ""  # folder of the shards, local or gs://; empty: that of the stage
    format: ScoreFormat = "parquet"  # of the shards
    shard_pairs: int = 32768  # pairs a shard: what a killed process loses at most
    quarantine: int = 0  # bad pairs a shard that are set aside; more stop the run
    rows: int = 128  # of the text length a batch, over all devices; CPU: 2,048 tokens
    # Whole teachers: one on each process's devices (local), or one on those of all.
    devices: Literal["local", "all"] = "local"
    process_index: int = -1  # of this process, from 0; -1: jax's
    process_count: int = 0  # processes that share the work; 0: jax's
    cache: str = ""  # local folder for texts of an input; empty: the system's

    def __post_init__(self):
        _positive(self, "rows", "shard_pairs")
        _require(
            self.quarantine >= 0,
            f"Score.quarantine must be 0 or more, found {self.quarantine}",
        )
        _require(
            (self.process_index < 0) == (self.process_count < 1)
            and self.process_index < max(self.process_count, 1),
            f"Score.process_index is {self.process_index} and Score.process_count is "
            f"{self.process_count}; give both, the index from 0 to process_count - 1, "
            "or neither",
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Measures systems on held-out queries, against each other and BM25."""

    systems: tuple[str, ...] = ("sft", "student_labels", "distill")  # stage folders
    reference: str = "distill"  # system that p-values compare the others with
    split: Literal["dev", "test"] = "test"  # queries
    # NAME or NAME@k: NDCG, NDCG-exp, MRR, MAP, P, R, Rprec, Success, ERR; PNR, OPA, ...
    measures: tuple[str, ...] = ("NDCG@5", "NDCG@10", "MRR@10", "MAP", "PNR")
    relevance: int = 1  # lowest grade that counts as relevant (MRR, MAP)
    permutations: int = 10000  # of the randomisation test; samples of the bootstrap
    rows: int = 128  # of the text length a batch, over all devices; CPU: 2,048 tokens
    seed: int = 0  # of the randomisation test and the bootstrap
    query_fields: str = ""  # TSV or JSON lines, a field of each query: slices by it

    def __post_init__(self):
        _positive(self, "permutations", "rows")
        _require(
            self.reference in (*self.systems, "bm25"),
            f"reference {self.reference!r} is none of the systems "
            f"{(*self.systems, 'bm25')}",
        )


@dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Writes a trained model as a Hugging Face folder."""

    stage: str = "distill"  # stage folder
    folder: str = "export"  # in the workdir


Variant = Literal[
    "sft_without_cpt",
    "sft_pointwise",
    "sft_pairwise",
    "sft_listwise",
    "student_labels",
    "student_point",
    "student_margin",
    "student_kl",
]

# Rank loss of each family of teachers that `Pipeline.compare` can add.
_FAMILIES: dict[str, tuple[RankLoss, ...]] = {
    "sft_pointwise": ("sigmoid_cross_entropy",),
    "sft_pairwise": ("ranknet",),
    "sft_listwise": ("softmax",),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one stage of a pipeline trains."""

    optim: Optim
    batch: Batch
    loop: Loop
    lora: Lora = NO_LORA


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The whole method: prepare, cpt, sft, score, distill, evaluate, export.

    `compare` adds systems to the table: the teacher without continued pre-training or
    with a loss of another family, and students trained on the labels alone, with one
    term of the distillation loss, or with the listwise KL divergence in its place. Each
    differs from the main line in what its name says and in nothing else.
    """

    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)
    teacher: Model
    student: Model
    cpt: Recipe
    sft: Recipe
    distill: Recipe
    labels: Recipe  # of the student that is trained on the labels alone
    rank: Rank = field(default_factory=Rank)
    distillation: Distillation = field(default_factory=Distillation)
    compare: tuple[Variant, ...] = ("student_labels",)
    measures: tuple[str, ...] = Evaluate.measures  # of the table
    query_fields: str = Evaluate.query_fields  # TSV or JSON lines: slices by them
    relevance: int = 1  # lowest grade that counts as relevant (MRR, MAP)
    rows: int = 128  # rows of the text length a batch, when scoring
    seed: int = 0  # of every stage

    @property
    def reading(self) -> Text:
        """`text`, with the tokenizers of pretrained models where none is named."""
        given: dict[str, Any] = {}
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            name = f"{role}_tokenizer"
            if isinstance(model, Pretrained) and not getattr(self.text, name):
                given[name] = model.path
        return dataclasses.replace(self.text, **given)

    def stages(self) -> dict[str, Stage]:
        """Every stage in the order it runs; without cpt where that has no steps."""
        shared: dict[str, Any] = dict(data=self.data, text=self.reading, mesh=self.mesh)

        def train(name: str, recipe: Recipe, **fields) -> Train:
            return Train(
                **shared,
                name=name,
                optim=recipe.optim,
                batch=recipe.batch,
                loop=recipe.loop,
                lora=recipe.lora,
                seed=self.seed,
                **fields,
            )

        def wanted(variants: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
            return ((k, v) for k, v in variants.items() if k in self.compare)

        alone: dict[str, Any] = dict(loss=(), loss_weights=())
        terms = {
            "student_point": dict(alpha=1.0, beta=0.0, **alone),
            "student_margin": dict(alpha=0.0, beta=1.0, **alone),
            "student_kl": dict(
                alpha=0.0, beta=0.0, loss=("listwise_kl",), loss_weights=()
            ),
        }
        teacher: dict[str, Any] = dict(model=self.teacher, role="teacher")
        student: dict[str, Any] = dict(model=self.student, role="student")
        distils: dict[str, Any] = dict(student, scores="scores")
        stages: dict[str, Stage] = {}
        if self.cpt.loop.steps:
            stages["cpt"] = train("cpt", self.cpt, objective=Language(), **teacher)
        parent = "".join(stages)
        ranks = dict(teacher, objective=self.rank)
        stages["sft"] = train("sft", self.sft, parent=parent, **ranks)
        if "sft_without_cpt" in self.compare:
            stages["sft_without_cpt"] = train("sft_without_cpt", self.sft, **ranks)
        for name, loss in wanted(_FAMILIES):
            rank = dataclasses.replace(self.rank, loss=loss, loss_weights=())
            stages[name] = train(
                name, self.sft, parent=parent, objective=rank, **teacher
            )
        stages["scores"] = Score(**shared, rows=self.rows)
        if "student_labels" in self.compare:
            stages["student_labels"] = train(
                "student_labels", self.labels, objective=self.rank, **student
            )
        for name, term in wanted(terms):
            objective = dataclasses.replace(self.distillation, **term)
            stages[name] = train(name, self.distill, objective=objective, **distils)
        stages["distill"] = train(
            "distill", self.distill, objective=self.distillation, **distils
        )
        systems = [
            name
            for name, stage in stages.items()
            if isinstance(stage, Train) and not isinstance(stage.objective, Language)
        ]
        stages["evaluate"] = Evaluate(
            **shared,
            systems=tuple(systems),
            measures=self.measures,
            query_fields=self.query_fields,
            relevance=self.relevance,
            rows=self.rows,
            seed=self.seed,
        )
        stages["export"] = Export(**shared)
        return stages


# --- loading --------------------------------------------------------------------------


def load(path: str, overrides: Sequence[str], *, of: type | tuple[type, ...]) -> Any:
    """Runs a config file's `get_config` and applies overrides.

    Args:
      path: a Python file that defines `get_config(variant="")`; a variant is written
        behind a colon, `configs/sft.py:smoke`, and is one of the file's `VARIANTS`
        where it has them.
      overrides: flags such as `--config.optim.learning_rate=3e-5`; `--help` prints
        every field with its value and unit and exits.
      of: config class that the entry takes.

    Raises:
      ConfigError: when the file is missing, lacks the variant, or makes a config for
        another entry.
      SystemExit: on `--help`, an unknown field or a value of the wrong type, after
        printing the nearest right field (from tyro).
    """
    import tyro  # here, so that importing a config stays instant

    path, _, variant = path.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            str(file), [str(other) for other in file.parent.glob("*.py")], n=3
        )
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"--config: no such file: {file}{hint}")
    defined = runpy.run_path(str(file))
    variants = defined.get("VARIANTS", (variant,))
    if variant and variant not in variants:
        known = f"its variants are {', '.join(variants)}" if variants else "it has none"
        raise ConfigError(f"--config: {path} has no variant {variant!r}; {known}")
    default = defined["get_config"](variant)
    if not isinstance(default, of):
        wanted = of if isinstance(of, tuple) else (of,)
        raise ConfigError(
            f"--config: {path} makes a {type(default).__name__} config, and this "
            f"command takes {' or '.join(one.__name__ for one in wanted)}"
        )
    # One field called "config" gives every flag its prefix, in --help as in use.
    flags = dataclasses.make_dataclass("Flags", [("config", type(default))])
    return tyro.cli(
        flags,
        default=flags(default),
        args=list(overrides),
        prog=f"python -m ranker.{pathlib.Path(sys.argv[0]).stem} --config {path}",
        description=type(default).__doc__,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    ).config


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars; dataclasses name their class."""
    if dataclasses.is_dataclass(config):
        fields = {
            one.name: to_dict(getattr(config, one.name))
            for one in dataclasses.fields(config)
        }
        return {"class": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]  # type: ignore[return-value]
    return config


def from_dict(fields: dict[str, Any]) -> Any:
    """The config of a model or of adapters that `to_dict` wrote.

    Raises:
      ConfigError: when the class or a field is unknown to this version.
    """
    classes = {one.__name__: one for one in (Decoder, Encoder, Rope, Pretrained, Lora)}

    def build(value: Any) -> Any:
        if isinstance(value, dict):
            rest = {name: build(one) for name, one in value.items()}
            return classes[rest.pop("class")](**rest)
        return tuple(value) if isinstance(value, list) else value

    try:
        return build(fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the saved config {fields} does not fit this version: {error}"
        ) from error
