"""Losses by their names in a config, mixed with weights."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranker import config
from ranker.batch import PackedBatch, Rows
from ranker.losses import (
    distillation,
    listwise,
    margins,
    pairwise,
    pointwise,
    schemes,
)
from ranker.training import objectives

_LISTS, _SIZE = 4, 5


def _batch():
    """Lists of 5, 4, 3 and 2 graded documents that a teacher has scored."""
    generator = np.random.default_rng(0)
    shape = (_LISTS, _SIZE)
    nothing = jnp.zeros((1, 1), jnp.int32)
    return PackedBatch(
        rows=Rows(nothing, nothing, nothing, nothing),
        loss_mask=nothing > 0,
        score_index=jnp.zeros(shape, jnp.int32),
        labels=jnp.asarray(generator.integers(0, 4, shape), jnp.float32),
        targets=jnp.asarray(generator.normal(size=shape) * 3, jnp.float32),
        where=jnp.asarray(np.arange(_SIZE) < _SIZE - np.arange(_LISTS)[:, None]),
    )


SCORES = jnp.asarray(np.random.default_rng(1).normal(size=(_LISTS, _SIZE)), jnp.float32)


def _parts(settings, batch):
    made = objectives.make_objective(settings, groups=1)
    return made, made.parts(lambda *_, **__: SCORES, batch, None)


def _settings(name):
    if name in typing.get_args(config.RankLoss):
        return config.Rank(
            loss=(name,), thresholds=(0.5, 1.5), highest_grade=3.0, relevance=2.0
        )
    if name == "point_mse":
        return config.Distillation(alpha=1, beta=0)
    if name == "margin_mse":
        return config.Distillation(alpha=0, beta=1)
    return config.Distillation(
        alpha=0, beta=0, loss=(name,), temperature=2.0, target_scale="raw"
    )


ALL = [*objectives.RANK_LOSSES, *objectives.DISTILLATION_LOSSES]


def test_the_config_names_the_losses_there_are():
    assert list(typing.get_args(config.RankLoss)) == list(objectives.RANK_LOSSES)
    assert {"point_mse", *typing.get_args(config.DistillationLoss)} == (
        set(objectives.DISTILLATION_LOSSES)
    )
    assert {*typing.get_args(config.MarginLoss)} == (
        {*objectives.MARGINS, "margin_mse_reference"}
    )
    assert list(typing.get_args(config.LambdaScheme)) == list(objectives.SCHEMES)
    [pair_weights] = [
        one.type
        for one in dataclasses.fields(config.Rank)
        if one.name == "pair_weights"
    ]
    assert list(typing.get_args(pair_weights)) == list(objectives.PAIR_WEIGHTS)


@pytest.mark.parametrize("name", ALL)
def test_a_named_loss_has_a_gradient_and_a_weight_of_the_batch_alone(name):
    batch = _batch()
    made, parts = _parts(_settings(name), batch)
    assert list(parts) == list(made.coefficients) == [name, "collapsed"]
    assert float(parts[name].weight) == float(made.weights(batch)[name]) > 0

    def mean(scores):
        return made.parts(lambda *_, **__: scores, batch, None)[name].mean()

    gradient = jax.grad(mean)(SCORES)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4
    assert (np.asarray(gradient)[~np.asarray(batch.where)] == 0).all()


@pytest.mark.parametrize(
    ("settings", "direct"),
    [
        (
            config.Rank(loss=("ranknet",), pair_weights="delta_ndcg"),
            lambda b: pairwise.ranknet(
                SCORES, b.labels, where=b.where, pair_weights=pairwise.delta_ndcg
            ),
        ),
        (
            config.Rank(loss=("hinge",), margin=2.5, pair_weights="grade_difference"),
            lambda b: pairwise.hinge(
                SCORES,
                b.labels,
                where=b.where,
                margin=2.5,
                pair_weights=pairwise.grade_difference,
            ),
        ),
        (
            config.Rank(loss=("approx_ndcg",), temperature=0.5),
            lambda b: listwise.approx_ndcg(
                SCORES, b.labels, where=b.where, temperature=0.5
            ),
        ),
        (
            config.Rank(loss=("lambda_loss",), mu=3.0),
            lambda b: listwise.lambda_loss(SCORES, b.labels, where=b.where, mu=3.0),
        ),
        (
            config.Rank(loss=("ordinal",), thresholds=(0.0, 2.0)),
            lambda b: pointwise.ordinal(
                SCORES, b.labels, where=b.where, thresholds=(0.0, 2.0)
            ),
        ),
        (
            config.Rank(loss=("sigmoid_cross_entropy",), highest_grade=3.0),
            lambda b: pointwise.sigmoid_cross_entropy(
                SCORES, b.labels, where=b.where, highest=3.0
            ),
        ),
        (
            config.Distillation(
                alpha=0, beta=0, loss=("listwise_kl",), temperature=4.0
            ),
            lambda b: distillation.listwise_kl(
                SCORES, b.targets, where=b.where, temperature=4.0
            ),
        ),
        (
            config.Distillation(
                alpha=0, beta=0, loss=("margin_mse_positive_negative",)
            ),
            lambda b: distillation.margin_mse_positive_negative(
                SCORES, b.targets, where=b.where, labels=b.labels
            ),
        ),
        (
            config.Distillation(alpha=0, beta=0, loss=("margin_mse_reference",)),
            lambda b: distillation.margin_mse_reference(
                SCORES,
                b.targets,
                where=b.where,
                reference=jnp.zeros(_LISTS, jnp.int32),
            ),
        ),
        (
            config.Distillation(alpha=1, beta=0, target_scale="list", target_floor=0.5),
            lambda b: distillation.point_mse(
                SCORES,
                distillation.standardise(
                    b.targets, where=b.where, data_std=1.0, floor=0.5
                ),
                where=b.where,
            ),
        ),
        (
            config.Rank(
                loss=("lambda_loss",), scheme="ndcg_loss_1", sigma=2.0, cutoff=1
            ),
            lambda b: listwise.lambda_loss(
                SCORES,
                b.labels,
                where=b.where,
                scheme=schemes.ndcg_loss_1,
                sigma=2.0,
                cutoff=1,
            ),
        ),
        (
            config.Rank(loss=("info_nce",), relevance=2.0, softmax_temperature=0.3),
            lambda b: listwise.info_nce(
                SCORES, b.labels, where=b.where, relevance=2.0, temperature=0.3
            ),
        ),
        (
            config.Rank(loss=("softmax",), softmax_temperature=0.3),
            lambda b: listwise.softmax(
                SCORES, b.labels, where=b.where, temperature=0.3
            ),
        ),
        (
            config.Rank(loss=("ranknet",), unit="list"),
            lambda b: pairwise.ranknet(SCORES, b.labels, where=b.where, unit="list"),
        ),
        (
            config.Distillation(alpha=1, beta=0, unit="list"),
            lambda b: distillation.point_mse(
                SCORES, b.targets, where=b.where, unit="list"
            ),
        ),
        (
            config.Distillation(
                alpha=0, margin_loss="margin_mse_teacher_top", top=2, unit="list"
            ),
            lambda b: distillation.margin_mse(
                SCORES,
                b.targets,
                where=b.where,
                pairs=margins.of_top(b.targets, b.where, top=2),
                unit="list",
            ),
        ),
        (
            config.Distillation(alpha=0, margin_loss="margin_mse_gap"),
            lambda b: distillation.margin_mse(
                SCORES,
                b.targets,
                where=b.where,
                pairs=margins.by_gap(margins.every(b.where), b.targets, b.where),
            ),
        ),
        (
            config.Distillation(
                alpha=0,
                beta=0,
                loss=("soft_cross_entropy",),
                target_scale="raw",
                temperature=3.0,
            ),
            lambda b: distillation.soft_cross_entropy(
                SCORES, 1 / (1 + jnp.exp(-b.targets / 3)), where=b.where
            ),
        ),
        (
            config.Distillation(
                alpha=0, beta=0, loss=("info_nce_on_teacher_top",), top=2
            ),
            lambda b: listwise.info_nce(
                SCORES,
                jnp.float32(jnp.any(margins.of_top(b.targets, b.where, top=2), -1)),
                where=b.where,
            ),
        ),
    ],
    ids=lambda one: ",".join(one.loss) if isinstance(one, config.Rank) else "",
)
def test_settings_reach_the_loss(settings, direct):
    batch = _batch()
    _, parts = _parts(settings, batch)
    part, collapsed = parts.values()
    assert float(collapsed.mean()) == 0
    expected = direct(batch)
    np.testing.assert_allclose(part.total, expected.total, rtol=1e-6)
    np.testing.assert_allclose(part.weight, expected.weight, rtol=1e-6)


def test_a_teacher_may_give_probabilities():
    settings = config.Distillation(
        alpha=0,
        beta=0,
        loss=("soft_cross_entropy",),
        target_scale="raw",
        teacher_scores="probabilities",
    )
    batch = _batch()
    probabilities = jax.nn.sigmoid(batch.targets)
    batch = dataclasses.replace(batch, targets=probabilities)
    _, parts = _parts(settings, batch)
    expected = distillation.soft_cross_entropy(SCORES, probabilities, where=batch.where)
    np.testing.assert_allclose(parts["soft_cross_entropy"].total, expected.total)


@pytest.mark.parametrize("name", typing.get_args(config.MarginLoss))
def test_the_second_term_of_the_hybrid_by_name(name):
    settings = config.Distillation(alpha=0.5, beta=2.0, margin_loss=name)
    made, parts = _parts(settings, _batch())
    assert made.coefficients == {"point_mse": 0.5, name: 2.0, "collapsed": 0.0}
    assert list(parts) == list(made.coefficients)


def test_losses_mix_with_weights():
    settings = config.Rank(loss=("softmax", "ranknet"), loss_weights=(0.5, 2.0))
    made, parts = _parts(settings, _batch())
    alone = {"collapsed": 0.0}  # watched, not minimised
    assert made.coefficients == {"softmax": 0.5, "ranknet": 2.0, **alone}
    assert list(parts) == ["softmax", "ranknet", "collapsed"]
    hybrid = config.Distillation(alpha=0.3, beta=0.7, loss=("listwise_kl",))
    made, parts = _parts(hybrid, _batch())
    mixture = {"point_mse": 0.3, "margin_mse": 0.7, "listwise_kl": 1}
    assert made.coefficients == {**mixture, **alone}
    assert list(parts) == list(made.coefficients)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config.Rank(loss=()), "names no loss"),
        (lambda: config.Rank(loss=("mse", "mse")), "names a loss twice"),
        (
            lambda: config.Rank(loss=("mse",), loss_weights=(1.0, 2.0)),
            "2 weights for the 1 losses",
        ),
        (lambda: config.Rank(loss_weights=(0.0,)), "must be above 0"),
        (lambda: config.Rank(thresholds=(1.0, 0.5)), "must rise"),
        (lambda: config.Distillation(alpha=0, beta=0), "nothing to minimise"),
        (lambda: config.Distillation(alpha=-1), "must be 0 or more"),
        (lambda: config.Distillation(temperature=0), "must be above 0"),
        (lambda: config.Distillation(top=0), "must be above 0"),
        (lambda: config.Rank(sigma=float("inf")), "above 0 and finite"),
        (lambda: config.Rank(cutoff=-1), "must be 0 or more"),
        (lambda: config.Rank(loss_weights=(float("nan"),)), "must be above 0"),
        (lambda: config.Distillation(loss=("margin_mse",)), "leave one out"),
        (
            lambda: config.Distillation(loss=("soft_cross_entropy",)),
            "target_scale=raw",
        ),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(make, message):
    with pytest.raises(config.ConfigError, match=message):
        make()
