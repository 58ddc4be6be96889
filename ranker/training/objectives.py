"""What each stage minimises: a coefficient times a loss, for one or several losses.

A loss is (total, weight), and the step divides the total by the weight of the whole
batch. A weight depends on the batch alone, so it is found by giving the loss scores of
zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ranker import config
from ranker.batch import PackedBatch
from ranker.losses import (
    distillation,
    language,
    lists,
    listwise,
    margins,
    pairwise,
    pointwise,
    schemes,
)
from ranker.losses.reduction import WeightedSum
from ranker.models.build import POSITION_BIAS, HeadKind
from ranker.models.heads import over_passages

Parts = dict[str, WeightedSum]
Scores = Float[Array, "B L"]


@dataclass(frozen=True)
class Objective:
    """Named losses of a batch, and how much each counts."""

    parts: Callable[[nnx.Module, PackedBatch, Array | None], Parts]
    weights: Callable[[PackedBatch], dict[str, Float[Array, ""]]]
    coefficients: dict[str, float]
    head: HeadKind  # head that the model needs: "language" or "score"
    position_bias: int = 0  # positions of a results page that have a logit


# Logits that a data shard holds at a time, in the language loss: 64 MiB of float32.
_LOGITS = 1 << 24


def _language(settings: config.Language, groups: int) -> Objective:
    del settings

    def parts(model, batch: PackedBatch, key) -> Parts:
        hidden = model.body(batch.rows, key=key)
        table = model.table()
        rows, length = batch.rows.tokens.shape
        chunks = num_chunks(rows // groups, length, table.shape[0])
        return {
            "language": language.next_token_by_chunks(
                hidden,
                lambda part: model.logits(part, table),
                batch.rows.tokens,
                where=batch.loss_mask,
                chunks=chunks,
            )
        }

    def weights(batch: PackedBatch) -> dict[str, Array]:
        # The first token of a row has nothing before it to be predicted from.
        return {"language": jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32)}

    return Objective(parts, weights, {"language": 1.0}, "language")


def num_chunks(rows: int, length: int, vocab_size: int) -> int:
    """Parts that rows are cut into so that a part has at most 2^24 logits, if it can.

    Args:
      rows: of a data shard.
      length: tokens a row; the parts divide it.
      vocab_size: logits a token.
    """
    enough = (
        parts
        for parts in range(1, length)
        if length % parts == 0 and rows * (length // parts) * vocab_size <= _LOGITS
    )
    return next(enough, length)


def _ranking(
    losses: Callable[[Scores, PackedBatch], Parts],
    coefficients: dict[str, float],
    groups: int,
    position_bias: int = 0,
) -> Objective:
    def parts(model, batch: PackedBatch, key) -> Parts:
        scores = model(batch.rows, batch.score_index, groups=groups, key=key)
        if not position_bias:
            return watched(scores, batch)
        assert batch.impressions is not None
        bias = getattr(model, POSITION_BIAS)[...]
        return watched(scores, batch, at_positions(bias, batch.impressions.positions))

    def watched(
        scores: Scores, batch: PackedBatch, bias: Scores | None = None
    ) -> Parts:
        """The losses, and whether the scores order nothing, which is not minimised."""
        still = lists.collapsed(jax.lax.stop_gradient(scores), batch.where)
        longer = jnp.sum(jnp.sum(batch.where, axis=-1) > 1, dtype=jnp.float32)
        return {
            **losses(scores if bias is None else scores + bias, batch),
            "collapsed": WeightedSum(still * longer, longer),  # share of the lists
        }

    def weights(batch: PackedBatch) -> dict[str, Array]:
        parts = watched(jnp.zeros_like(batch.labels), batch)
        return {name: part.weight for name, part in parts.items()}

    coefficients = {**coefficients, "collapsed": 0.0}
    return Objective(parts, weights, coefficients, "score", position_bias)


def at_positions(
    bias: Float[Array, " K"], positions: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Each position's logit; 0 at position 0, and the last one's beyond the last.

    A click is a look and a liking: with softmax or sigmoid a click's logit is the
    document's score and the position's logit (two towers; Yan et al., 2022,
    "Revisiting two-tower models for unbiased learning to rank").

    >>> import jax.numpy as jnp
    >>> at_positions(jnp.array([5.0, 3.0]), jnp.array([[0, 1, 2, 3]])).tolist()
    [[0.0, 5.0, 3.0, 3.0]]
    """
    padded = jnp.concatenate([jnp.zeros(1), bias])
    return padded[jnp.minimum(positions, bias.shape[0])]


PAIR_WEIGHTS: dict[str, pairwise.PairWeights] = {
    "equal": pairwise.equal_weights,
    "grade_difference": pairwise.grade_difference,
    "delta_ndcg": pairwise.delta_ndcg,
}

SCHEMES: dict[str, schemes.Scheme] = {
    "ndcg_loss_1": schemes.ndcg_loss_1,
    "lambda_rank": schemes.lambda_rank,
    "ndcg_loss_2": schemes.ndcg_loss_2,
    "ndcg_loss_2pp": schemes.ndcg_loss_2pp,
}


def _lists(batch: PackedBatch) -> Any:
    """What every rank loss takes beside scores and labels."""
    seen = batch.impressions
    return {
        "where": batch.where,
        "document_weights": None if seen is None else seen.weights,
    }


def _documents(settings: config.Rank | config.Distillation, batch: PackedBatch) -> Any:
    """What a loss over documents takes beside scores and labels."""
    unit = "document" if settings.unit == "item" else "list"
    return {**_lists(batch), "unit": unit}


def _pairs(settings: config.Rank | config.Distillation, batch: PackedBatch) -> Any:
    """What a loss over pairs takes beside scores and labels."""
    unit = "pair" if settings.unit == "item" else "list"
    return {**_lists(batch), "unit": unit}


# A loss by its name in a config: (settings c, scores s, batch b) -> WeightedSum.
RANK_LOSSES: dict[str, Callable[[config.Rank, Scores, PackedBatch], WeightedSum]] = {
    "softmax": lambda c, s, b: listwise.softmax(
        s, b.labels, **_lists(b), temperature=c.softmax_temperature
    ),
    "list_net": lambda c, s, b: listwise.list_net(
        s, b.labels, **_lists(b), temperature=c.softmax_temperature
    ),
    "info_nce": lambda c, s, b: listwise.info_nce(
        s,
        b.labels,
        **_lists(b),
        relevance=c.relevance,
        temperature=c.softmax_temperature,
    ),
    "list_mle": lambda c, s, b: listwise.list_mle(s, b.labels, **_lists(b)),
    "position_aware_list_mle": lambda c, s, b: listwise.position_aware_list_mle(
        s, b.labels, **_lists(b)
    ),
    "approx_ndcg": lambda c, s, b: listwise.approx_ndcg(
        s, b.labels, **_lists(b), temperature=c.temperature
    ),
    "lambda_loss": lambda c, s, b: listwise.lambda_loss(
        s,
        b.labels,
        **_lists(b),
        scheme=SCHEMES[c.scheme],
        mu=c.mu,
        sigma=c.sigma,
        cutoff=c.cutoff,
    ),
    "ranknet": lambda c, s, b: pairwise.ranknet(
        s, b.labels, pair_weights=PAIR_WEIGHTS[c.pair_weights], **_pairs(c, b)
    ),
    "hinge": lambda c, s, b: pairwise.hinge(
        s,
        b.labels,
        margin=c.margin,
        pair_weights=PAIR_WEIGHTS[c.pair_weights],
        **_pairs(c, b),
    ),
    "mse": lambda c, s, b: pointwise.mse(s, b.labels, **_documents(c, b)),
    "sigmoid_cross_entropy": lambda c, s, b: pointwise.sigmoid_cross_entropy(
        s, b.labels, highest=c.highest_grade, **_documents(c, b)
    ),
    "ordinal": lambda c, s, b: pointwise.ordinal(
        s, b.labels, thresholds=c.thresholds, **_documents(c, b)
    ),
}

_Weighing = Callable[[config.Distillation, PackedBatch], Array]


def _drawn(pairs: Array) -> Array:
    # One key for all steps: lists come shuffled, so a place is a random document.
    return margins.drawn(pairs, jax.random.key(0))


# Which pairs each margin loss compares, and how much they count: see losses/margins.py.
MARGINS: dict[str, _Weighing] = {
    "margin_mse": lambda c, b: margins.every(b.where),
    "margin_mse_positive_negative": lambda c, b: margins.by_label(b.labels, b.where),
    "margin_mse_positive_negative_gap": lambda c, b: margins.by_gap(
        margins.by_label(b.labels, b.where), b.targets, b.where
    ),
    "margin_mse_sampled": lambda c, b: _drawn(margins.by_label(b.labels, b.where)),
    "margin_mse_teacher_top": lambda c, b: margins.of_top(
        b.targets, b.where, top=c.top
    ),
    "margin_mse_teacher_sampled": lambda c, b: _drawn(
        margins.by_teacher(b.targets, b.where)
    ),
    "margin_mse_gap": lambda c, b: margins.by_gap(
        margins.every(b.where), b.targets, b.where
    ),
}


def _margin(pairs: _Weighing):
    return lambda c, s, b: distillation.margin_mse(
        s, b.targets, pairs=pairs(c, b), **_pairs(c, b)
    )


def _probabilities(settings: config.Distillation, batch: PackedBatch) -> Array:
    if settings.teacher_scores == "probabilities":
        return batch.targets
    return jax.nn.sigmoid(batch.targets / settings.temperature)


DISTILLATION_LOSSES: dict[
    str, Callable[[config.Distillation, Scores, PackedBatch], WeightedSum]
] = {
    "point_mse": lambda c, s, b: distillation.point_mse(
        s, b.targets, **_documents(c, b)
    ),
    **{name: _margin(pairs) for name, pairs in MARGINS.items()},
    "margin_mse_reference": lambda c, s, b: distillation.margin_mse_reference(
        # The first real document of a list is a random one: lists come shuffled.
        s,
        b.targets,
        reference=jnp.argmax(b.where, axis=-1),
        **_pairs(c, b),
    ),
    "listwise_kl": lambda c, s, b: distillation.listwise_kl(
        s, b.targets, where=b.where, temperature=c.temperature
    ),
    "ranknet_on_teacher_order": lambda c, s, b: distillation.ranknet_on_teacher_order(
        s, b.targets, **_pairs(c, b)
    ),
    "info_nce_on_teacher_top": lambda c, s, b: listwise.info_nce(
        s,
        jnp.float32(lists.ranks(b.targets, b.where) <= c.top),
        where=b.where,
        temperature=c.temperature,
    ),
    "adr_mse": lambda c, s, b: distillation.adr_mse(
        s, b.targets, temperature=c.temperature, **_documents(c, b)
    ),
    "soft_cross_entropy": lambda c, s, b: distillation.soft_cross_entropy(
        s, _probabilities(c, b), **_documents(c, b)
    ),
}


def _rank(settings: config.Rank, groups: int) -> Objective:
    def losses(scores: Scores, batch: PackedBatch) -> Parts:
        return {
            name: RANK_LOSSES[name](settings, scores, batch) for name in settings.loss
        }

    return _ranking(losses, _mixture(settings), groups, settings.position_bias)


def _distillation(settings: config.Distillation, groups: int) -> Objective:
    coefficients = {
        "point_mse": settings.alpha,
        settings.margin_loss: settings.beta,
    }
    used = {name: value for name, value in coefficients.items() if value}
    used |= _mixture(settings)

    def losses(scores: Scores, batch: PackedBatch) -> Parts:
        if settings.target_scale == "list":
            # All scores together have deviation 1 already (training/inputs.py).
            targets = distillation.standardise(
                batch.targets,
                where=batch.where,
                data_std=1.0,
                floor=settings.target_floor,
            )
            batch = replace(batch, targets=targets)
        return {
            name: DISTILLATION_LOSSES[name](settings, scores, batch) for name in used
        }

    return _ranking(losses, used, groups)


def _mixture(settings: config.Rank | config.Distillation) -> dict[str, float]:
    weights = settings.loss_weights or (1.0,) * len(settings.loss)
    return dict(zip(settings.loss, weights, strict=True))


OBJECTIVES: dict[type, Callable[..., Objective]] = {
    config.Language: _language,
    config.Rank: _rank,
    config.Distillation: _distillation,
}


def make_objective(
    settings: config.ObjectiveSettings,
    *,
    groups: int,
    passages: config.Passages = config.ONE_PASSAGE,
) -> Objective:
    """The objective that `settings` describes, for batches of `groups` data shards.

    With several `passages` a document's score is that of all of its passages.
    """
    made = OBJECTIVES[type(settings)](settings, groups)
    if passages.most == 1 or made.head == "language":
        return made

    def parts(model, batch: PackedBatch, key) -> Parts:
        whole: Any = _Whole(model, batch, passages.score)
        return made.parts(whole, batch, key)

    return replace(made, parts=parts)


@dataclass(frozen=True)
class _Whole:
    """A ranker that scores whole documents, from all of their passages."""

    model: Any
    batch: PackedBatch
    how: config.PassageScore

    def __call__(self, *arguments: Any, **keywords: Any) -> Scores:
        """Scores [B, L]; arguments as of the ranker."""
        scores = self.model(*arguments, **keywords)
        assert self.batch.passages is not None
        return over_passages(scores, self.batch.passages, self.how)

    def __getattr__(self, name: str) -> Any:
        """What else an objective reads of the model."""
        return getattr(self.model, name)
