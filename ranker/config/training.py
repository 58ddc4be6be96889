"""Settings of one training run: optimiser, batch, loop, objective, adapters."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from ranker.config.checks import not_negative, positive, rate, require, whole_or_share
from ranker.config.models import DType

Optimiser = Literal["adamw", "adafactor", "lion", "muon"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Optim:
    """An optimiser, and the learning rate of each step and of each parameter."""

    learning_rate: float  # at the peak
    warmup: int | float  # steps; below 1: share of all steps
    optimiser: Optimiser = "adamw"  # what turns gradients into updates
    schedule: Schedule = "cosine"  # after the warm-up; wsd: constant, then linear
    final_fraction: float = 0.1  # of learning_rate, at the last step; not of constant
    decay: float = 0.1  # share of the steps, at the end, over which wsd falls
    b1: float = 0.9  # decay of the first moment, or momentum; 0: none
    b2: float = 0.98  # decay of the second moment; lion: of its one moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.01  # not applied to norms and biases
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    # The second moment is float32: bfloat16 would lose what b2 lets in at each step.
    mu_dtype: DType = "float32"  # of the first moment as it is kept; bfloat16 halves it
    layer_decay: float = 1.0  # rate of a layer over that of the one above; 1: all alike
    head_rate: float = 1.0  # rate of a score head over the others'
    freeze_embeddings: bool = False  # of tokens, positions and types
    ema: float = 0.0  # decay of the average of weights that is the result; 0: none

    def __post_init__(self):
        positive(self, "learning_rate", "eps", "layer_decay", "head_rate")
        not_negative(self, "warmup", "weight_decay", "clip_norm")
        whole_or_share("optim.warmup", self.warmup)
        for name in ("b1", "b2", "ema"):
            value = getattr(self, name)
            require(
                0 <= value < 1,
                f"optim.{name} must be 0 or more and below 1, found {value}",
            )
        for name in ("final_fraction", "decay"):
            value = getattr(self, name)
            require(
                0 <= value <= 1,
                f"optim.{name} must be a share from 0 to 1, found {value}",
            )
        require(
            self.layer_decay <= 1,
            f"optim.layer_decay must be at most 1, found {self.layer_decay}",
        )

    def warmup_steps(self, steps: int) -> int:
        """Steps of the warm-up, of a run of so many."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)


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
        positive(self, "size", "list_size", "accumulate")
        require(
            self.size % self.accumulate == 0,
            f"batch.size {self.size} is not divisible by batch.accumulate "
            f"{self.accumulate}",
        )


DEV_LANGUAGE = "dev_language"  # loss on dev; of the other metrics more is better


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long to train, and what to do on the way.

    One of `steps` and `epochs` says how long.
    """

    # Optimiser steps; 0: the weights are used unchanged; -1: as many as epochs are.
    steps: int = -1
    epochs: float = 0.0  # passes over the training records; 0: steps says how long
    log_every: int = 50  # steps
    # Steps between evaluations on dev; below 1: share of all; 0: at the end only.
    eval_every: int | float = 0
    # Steps between checkpoints; below 1: share of all. One is always saved at the end.
    save_every: int | float = 1000
    keep: int = 2  # checkpoints kept, the newest
    # The checkpoint with its best value on dev is kept too: dev_ before a measure as
    # `ranker.evaluate` takes it (dev_ndcg@5, dev_MRR@10); cpt: dev_language.
    best_metric: str = "none"
    result: Literal["last", "best"] = "last"  # checkpoint that later stages read
    patience: int = 0  # evaluations without a better best_metric, then ends; 0: never
    eval_queries: int = 0  # dev queries that an evaluation measures; 0: all
    idle_steps: int = 100  # steps in a row without a pair or with equal scores; 0: any

    def __post_init__(self):
        not_negative(self, "epochs", "eval_every", "idle_steps", "patience")
        not_negative(self, "eval_queries")
        positive(self, "log_every", "save_every", "keep")
        require(
            self.steps >= -1,
            f"loop.steps must be 0 or more, found {self.steps} (-1: loop.epochs says "
            "how long)",
        )
        require(
            not self.by_epochs or self.epochs > 0,
            "neither loop.steps nor loop.epochs is given; set one of them",
        )
        require(
            self.by_epochs or not self.epochs,
            f"loop.steps is {self.steps} and loop.epochs is {self.epochs:g}; give one "
            "of them: loop.steps=-1 with epochs, or loop.epochs=0 with steps",
        )
        for name in ("eval_every", "save_every"):
            whole_or_share(f"loop.{name}", getattr(self, name))
        require(
            self.best_metric == "none" or self.best_metric.startswith("dev_"),
            f"loop.best_metric is {self.best_metric!r}; expected none, dev_language, "
            "or dev_ before a measure, such as dev_ndcg@5",
        )
        require(
            self.best_metric == "none" or self.eval_every > 0,
            f"loop.best_metric {self.best_metric!r} is measured every loop.eval_every "
            "steps, and that is 0; set it to a number of steps",
        )
        require(
            not self.patience or self.best_metric != "none",
            f"loop.patience is {self.patience}, but loop.best_metric is 'none'; name "
            "the metric of dev that decides",
        )
        require(
            self.result == "last" or self.best_metric != "none",
            "loop.result is 'best', and loop.best_metric is 'none'; name the metric of "
            "dev that decides",
        )

    @property
    def by_epochs(self) -> bool:
        """Whether `epochs` says how long, and not `steps`."""
        return self.steps < 0

    @property
    def best_measure(self) -> str:
        """The measure of ranking that `best_metric` names; "": none."""
        name = self.best_metric.removeprefix("dev_")
        return "" if self.best_metric in ("none", DEV_LANGUAGE) else name

    def exact(self, steps: int) -> "Loop":
        """These settings of a run of so many steps: without epochs and shares."""

        def number(value: int | float) -> int:
            return max(1, round(value * steps)) if 0 < value < 1 else int(value)

        return dataclasses.replace(
            self,
            steps=steps,
            epochs=0.0,
            eval_every=number(self.eval_every),
            save_every=number(self.save_every),
        )


@dataclass(frozen=True, kw_only=True)
class Language:
    """Next-token cross-entropy on the clicked title and summary."""

    # how often an epoch reads an example: once, 1 + log2 of its count, rounded down, or
    # as often as its count; data.click_rules.count_by says what is counted
    repeat: Literal["once", "log_count", "count"] = "once"
    most: int = 20  # times that an epoch reads an example, at most

    def __post_init__(self):
        positive(self, "most")


RankLoss = Literal[
    "softmax",
    "list_net",
    "info_nce",
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


# Losses of each document on its own: a list of one teaches them too.
POINTWISE = ("mse", "sigmoid_cross_entropy", "ordinal", "soft_cross_entropy")
LambdaScheme = Literal["ndcg_loss_1", "lambda_rank", "ndcg_loss_2", "ndcg_loss_2pp"]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank losses over the judged documents of a query, each times its weight."""

    loss: tuple[RankLoss, ...] = ("softmax",)  # several are added up
    loss_weights: tuple[float, ...] = ()  # of each loss; empty: 1 each
    # what counts alike in losses over documents and pairs: each of them, or each list
    unit: Literal["item", "list"] = "item"
    # of ranknet's and hinge's pairs; delta_ndcg makes ranknet LambdaRank
    pair_weights: Literal["equal", "grade_difference", "delta_ndcg"] = "equal"
    margin: float = 1.0  # score units, of hinge
    temperature: float = 0.1  # score units, of approx_ndcg
    softmax_temperature: float = 1.0  # score units, of softmax, list_net and info_nce
    relevance: float = 1.0  # lowest label of a positive, of info_nce
    scheme: LambdaScheme = "ndcg_loss_2pp"  # of lambda_loss
    mu: float = 10.0  # weight of the second term of lambda_loss's ndcg_loss_2pp
    sigma: float = 1.0  # steepness of lambda_loss's logistic, per score unit
    cutoff: int = 0  # k of the NDCG@k that lambda_loss bounds; 0: the whole list
    highest_grade: float = 1.0  # certainly relevant, of sigmoid_cross_entropy
    thresholds: tuple[float, ...] = (0.5, 1.5, 2.5, 3.5)  # between grades, of ordinal
    # positions of a results page that have a logit of their own, added to the scores of
    # lists of clicks and dropped with the stage's end (two towers); 0: none
    position_bias: int = 0

    def __post_init__(self):
        _check_mixture(self.loss, self.loss_weights, "objective.loss")
        require(bool(self.loss), "objective.loss names no loss; name at least one")
        positive(self, "temperature", "highest_grade", "softmax_temperature", "sigma")
        not_negative(self, "margin", "mu", "cutoff", "position_bias")
        require(
            list(self.thresholds) == sorted(self.thresholds) and bool(self.thresholds),
            f"objective.thresholds must rise, found {self.thresholds}",
        )

    @property
    def comparing(self) -> tuple[str, ...]:
        """The losses in use to which a list of one document teaches nothing."""
        return tuple(name for name in self.loss if name not in POINTWISE)


MarginLoss = Literal[
    "margin_mse",
    "margin_mse_positive_negative",
    "margin_mse_positive_negative_gap",
    "margin_mse_sampled",
    "margin_mse_teacher_top",
    "margin_mse_teacher_sampled",
    "margin_mse_gap",
    "margin_mse_reference",
]

DistillationLoss = Literal[
    MarginLoss,
    "listwise_kl",
    "ranknet_on_teacher_order",
    "info_nce_on_teacher_top",
    "adr_mse",
    "soft_cross_entropy",
]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """alpha * point-wise MSE + beta * a margin MSE, against the teacher's scores."""

    # Parquet files of query, document and score, by a pattern: read as they are needed,
    # in place of lists that a score stage has scored; for point-wise losses
    triples: str = ""
    alpha: float = 1.0  # weight of the point-wise term; 0: without it
    beta: float = 1.0  # weight of the margin term; 0: without it
    margin_loss: MarginLoss = "margin_mse"  # the margin term: which pairs, how counted
    loss: tuple[DistillationLoss, ...] = ()  # further losses, added to the two
    loss_weights: tuple[float, ...] = ()  # of each further loss; empty: 1 each
    # what counts alike in losses over documents and pairs: each of them, or each list
    unit: Literal["item", "list"] = "item"
    top: int = 1  # documents that are the teacher's top, of the losses named so
    # score units, of listwise_kl, adr_mse, soft_cross_entropy, info_nce_on_teacher_top
    temperature: float = 1.0
    # standardised per list or set, or fitted to the grades of train
    target_scale: Literal["raw", "list", "data", "labels"] = "data"
    # "list": a list's deviation counts as at least this share of all scores', so that
    # one to which the teacher is indifferent is not blown up
    target_floor: float = 0.1
    # what soft_cross_entropy takes the teacher's raw scores for
    teacher_scores: Literal["log_odds", "probabilities"] = "log_odds"

    def __post_init__(self):
        _check_mixture(self.loss, self.loss_weights, "objective.loss")
        not_negative(self, "alpha", "beta", "target_floor")
        require(
            self.alpha + self.beta > 0 or bool(self.loss),
            "objective.alpha and objective.beta are both 0 and objective.loss names no "
            "other loss: there is nothing to minimise",
        )
        require(
            not (self.beta and self.margin_loss in self.loss),
            f"objective.loss names {self.margin_loss!r}, which is already objective."
            f"margin_loss, with the weight objective.beta {self.beta}; leave one out",
        )
        require(
            "soft_cross_entropy" not in self.loss or self.target_scale == "raw",
            "objective.loss soft_cross_entropy takes the teacher's scores for "
            f"{self.teacher_scores}, and objective.target_scale {self.target_scale!r} "
            "changes them; set objective.target_scale=raw",
        )
        positive(self, "temperature", "top")
        require(
            not self.triples or (not self.comparing and self.target_scale == "raw"),
            "objective.triples are pairs of their own, of raw scores: set objective."
            "target_scale=raw, and leave out what compares documents, "
            f"{', '.join(self.comparing) or 'nothing'} (objective.beta=0)",
        )

    @property
    def comparing(self) -> tuple[str, ...]:
        """The losses in use to which a list of one document teaches nothing."""
        used = (*((self.margin_loss,) if self.beta else ()), *self.loss)
        return tuple(name for name in used if name not in POINTWISE)


def _check_mixture(
    losses: tuple[str, ...], weights: tuple[float, ...], name: str
) -> None:
    require(
        len(set(losses)) == len(losses),
        f"{name} names a loss twice, found {losses}; give it one weight",
    )
    require(
        not weights or len(weights) == len(losses),
        f"{name}_weights has {len(weights)} weights for the {len(losses)} losses of "
        f"{name}; give one each, or none for 1 each",
    )
    require(
        all(0 < weight < math.inf for weight in weights),
        f"{name}_weights must be above 0 and finite, found {weights}",
    )


ObjectiveSettings = Language | Rank | Distillation

LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters: they and a score head train, all other weights are frozen."""

    rank: int = 0  # numbers between the two factors of an adapter; 0: all weights train
    alpha: float = 32.0  # what an adapter adds counts alpha / rank
    targets: tuple[LoraTarget, ...] = ()  # adapted matrices; empty: all of a layer
    dropout: float = 0.0  # rate on what an adapter reads, while training
    base_dtype: DType = "bfloat16"  # that the frozen weights are kept in

    def __post_init__(self):
        require(self.rank >= 0, f"lora.rank must be 0 or more, found {self.rank}")
        positive(self, "alpha")
        rate("lora.dropout", self.dropout)
        require(
            not self.dropout or self.rank > 0,
            f"lora.dropout is {self.dropout} and lora.rank 0, so there is no adapter; "
            "set lora.rank",
        )
        require(
            len(set(self.targets)) == len(self.targets),
            f"lora.targets names a matrix twice, found {self.targets}",
        )

    @property
    def adapters(self) -> tuple:
        """What two settings share where one trains the other's adapters further."""
        return self.rank, self.alpha, self.targets, self.base_dtype

    @property
    def scale(self) -> float:
        """Factor on what an adapter adds."""
        return self.alpha / self.rank


NO_LORA = Lora()
