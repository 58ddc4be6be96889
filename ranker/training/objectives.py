"""What each stage minimises: a coefficient times a loss, for one or several losses.

A loss is (total, weight), and the step divides the total by the weight of the whole
batch. A weight depends on the batch alone, so it is found by giving the loss scores of
zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ranker import config
from ranker.batch import Batch
from ranker.losses import distillation, language, listwise, pairwise
from ranker.losses.reduction import WeightedSum
from ranker.models.build import Head

Parts = dict[str, WeightedSum]


@dataclass(frozen=True)
class Objective:
    """Named losses of a batch, and how much each counts."""

    parts: Callable[[nnx.Module, Batch, Array | None], Parts]
    weights: Callable[[Batch], dict[str, Float[Array, ""]]]
    coefficients: dict[str, float]
    head: Head  # head that the model needs: "language" or "score"


def _language(settings: config.Language, groups: int) -> Objective:
    del settings, groups

    def parts(model, batch: Batch, key) -> Parts:
        logits = model(
            batch.tokens, batch.segments, batch.positions, batch.types, key=key
        )
        return {
            "language": language.next_token(logits, batch.tokens, where=batch.loss_mask)
        }

    def weights(batch: Batch) -> dict[str, Array]:
        # The first token of a row has nothing before it to be predicted from.
        return {"language": jnp.sum(batch.loss_mask[..., 1:], dtype=jnp.float32)}

    return Objective(parts, weights, {"language": 1.0}, "language")


def _ranking(
    losses: Callable[[Float[Array, "B L"], Batch], Parts],
    coefficients: dict[str, float],
    groups: int,
) -> Objective:
    def parts(model, batch: Batch, key) -> Parts:
        scores = model(
            batch.tokens,
            batch.segments,
            batch.positions,
            batch.types,
            batch.score_index,
            groups=groups,
            key=key,
        )
        return losses(scores, batch)

    def weights(batch: Batch) -> dict[str, Array]:
        return {
            name: part.weight
            for name, part in losses(jnp.zeros_like(batch.labels), batch).items()
        }

    return Objective(parts, weights, coefficients, "score")


def _rank(settings: config.Rank, groups: int) -> Objective:
    loss = {
        "softmax": listwise.softmax,
        "ranknet": pairwise.ranknet,
        "hinge": partial(pairwise.hinge, margin=settings.margin),
    }[settings.loss]

    def losses(scores, batch: Batch) -> Parts:
        return {settings.loss: loss(scores, batch.labels, where=batch.where)}

    return _ranking(losses, {settings.loss: 1.0}, groups)


def _distillation(settings: config.Distillation, groups: int) -> Objective:
    coefficients = {"point_mse": settings.alpha, "margin_mse": settings.beta}
    functions = {
        "point_mse": distillation.point_mse,
        "margin_mse": distillation.margin_mse,
    }

    def losses(scores, batch: Batch) -> Parts:
        targets = batch.targets
        if settings.target_scale == "list":
            targets = distillation.standardise(targets, where=batch.where)
        return {
            name: function(scores, targets, where=batch.where)
            for name, function in functions.items()
            if coefficients[name]
        }

    used = {name: value for name, value in coefficients.items() if value}
    return _ranking(losses, used, groups)


OBJECTIVES: dict[type, Callable[..., Objective]] = {
    config.Language: _language,
    config.Rank: _rank,
    config.Distillation: _distillation,
}


def make_objective(settings: config.Objective, *, groups: int) -> Objective:
    """The objective that `settings` describes, for batches of `groups` data shards."""
    return OBJECTIVES[type(settings)](settings, groups)
