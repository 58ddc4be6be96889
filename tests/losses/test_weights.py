"""What documents and lists count, in every loss that takes their weights."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranker.losses import (
    distillation,
    listwise,
    margins,
    pairwise,
    pointwise,
)


def _by_label(scores, labels, *, where, **options):
    return distillation.margin_mse_positive_negative(
        scores, 2 * labels, where=where, labels=labels, **options
    )


def _by_gap(scores, targets, *, where, **options):
    pairs = margins.by_gap(margins.every(where), targets, where)
    return distillation.margin_mse(scores, targets, where=where, pairs=pairs, **options)


def _to_first(scores, targets, *, where, **options):
    first = jnp.zeros(where.shape[:-1], int)
    return distillation.margin_mse_reference(
        scores, targets, where=where, reference=first, **options
    )


# A document of weight w is as good as w documents.
COPIES = {
    "mse": pointwise.mse,
    "sigmoid": partial(pointwise.sigmoid_cross_entropy, highest=3.0),
    "ordinal": pointwise.ordinal,
    "ranknet": pairwise.ranknet,
    "hinge": pairwise.hinge,
    "point_mse": distillation.point_mse,
    "soft_cross_entropy": lambda s, y, **options: distillation.soft_cross_entropy(
        s, y / 3, **options
    ),
    "ranknet on teacher": distillation.ranknet_on_teacher_order,
    "margin_mse, labels": _by_label,
    "margin_mse, gaps": _by_gap,
}
# The list counts by the mean weight of what it is about.
SHARES = {
    "softmax": listwise.softmax,
    "list_net": listwise.list_net,
    "info_nce": listwise.info_nce,
    "list_mle": listwise.list_mle,
    "position_aware_list_mle": listwise.position_aware_list_mle,
    "approx_ndcg": listwise.approx_ndcg,
    "lambda_loss": listwise.lambda_loss,
}
OTHERS = {
    "margin_mse": distillation.margin_mse,
    "margin_mse, first": _to_first,
    "adr_mse": distillation.adr_mse,
}
LISTS_ONLY = {"listwise_kl": distillation.listwise_kl}
ALL = COPIES | SHARES | OTHERS | LISTS_ONLY

SCORES = jnp.float32(np.random.default_rng(0).normal(size=(3, 5)))
LABELS = jnp.float32([[3, 0, 1, 2, 0], [0, 1, 0, 3, 0], [2, 2, 0, 0, 0]])
WHERE = jnp.array(np.arange(5) < [[5], [4], [3]])
COUNTS = np.array([[2, 1, 3, 0, 1], [1, 1, 2, 2, 7], [1, 0, 3, 7, 7]])


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def _value(loss, scores, labels, where, **options):
    def total(s):
        result = loss(s, labels, where=where, **options)
        return result.total, result.weight

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, weight), slope = run(scores)
    return float(value), float(weight), np.asarray(slope)


@pytest.mark.parametrize("name", ALL)
def test_a_list_of_weight_two_is_as_good_as_two(name):
    weights = jnp.float32([2, 1, 0])
    value, weight, slope = _value(
        ALL[name], SCORES, LABELS, WHERE, list_weights=weights
    )
    copied = [np.asarray(x)[[0, 0, 1]] for x in (SCORES, LABELS, WHERE)]
    expected, number, gradient = _value(ALL[name], *map(jnp.asarray, copied))
    _close([value, weight], [expected, number])
    _close(slope, [gradient[0] + gradient[1], gradient[2], 0 * gradient[0]])


@pytest.mark.parametrize("name", COPIES)
def test_a_document_of_weight_three_is_as_good_as_three(name):
    value, weight, slope = _value(
        COPIES[name], SCORES, LABELS, WHERE, document_weights=jnp.float32(COUNTS)
    )
    copied = [np.zeros((3, 9), x.dtype) for x in (SCORES, LABELS, WHERE)]
    for row in range(3):
        places = np.repeat(np.arange(5), np.where(WHERE, COUNTS, 0)[row])
        for new, old in zip(copied, (SCORES, LABELS, WHERE), strict=True):
            new[row, : len(places)] = np.asarray(old)[row, places]
    expected, number, gradient = _value(COPIES[name], *map(jnp.asarray, copied))
    _close([value, weight], [expected, number])
    _close(slope.sum(), gradient.sum())


@pytest.mark.parametrize("name", sorted(ALL - LISTS_ONLY.keys()))
def test_equal_weights_leave_the_mean(name):
    plain, number, _ = _value(ALL[name], SCORES, LABELS, WHERE)
    value, weight, _ = _value(
        ALL[name],
        SCORES,
        LABELS,
        WHERE,
        document_weights=jnp.where(WHERE, 3.0, jnp.nan),
        list_weights=jnp.full(3, 0.5),
    )
    assert number > 0
    _close(value / weight, plain / number)


def _worth(labels, weights):
    gains = 2.0**labels - 1
    return {
        "softmax": np.dot(labels, weights) / labels.sum(),
        "list_net": np.dot(np.exp(labels), weights) / np.exp(labels).sum(),
        "info_nce": weights[labels >= 1].mean(),
        "list_mle": weights.mean(),
        "approx_ndcg": np.dot(gains, weights) / gains.sum(),
        "lambda_loss": np.dot(gains, weights) / gains.sum(),
    }


def test_a_list_counts_by_the_mean_weight_of_what_it_is_about():
    y, w = np.float64([3, 0, 1, 2]), np.float64([1.5, 9, 4, 2])
    s, where = np.random.default_rng(1).normal(size=4), jnp.ones(4, bool)
    found = {
        name: SHARES[name](
            jnp.float32(s), jnp.float32(y), where=where, document_weights=jnp.float32(w)
        )
        for name in _worth(y, w)
    }
    for name, worth in _worth(y, w).items():
        _close(float(found[name].weight), worth)
    log_softmax = s - np.log(np.exp(s).sum())
    _close(float(found["softmax"].total), -np.dot(y * w, log_softmax) / y.sum())
    target = np.exp(y) / np.exp(y).sum()
    _close(float(found["list_net"].total), -np.dot(target * w, log_softmax))
    surprise = [np.log(np.exp(s[y <= one]).sum()) - s[y == one][0] for one in y]
    _close(float(found["list_mle"].total), np.dot(w, surprise))
    gains = w * (2.0**y - 1)
    ranks = [1 + sum(1 / (1 + np.exp((a - b) / 0.1)) for b in s) - 0.5 for a in s]
    ideal = np.sum(np.sort(gains)[::-1] / np.log2(2 + np.arange(4)))
    lost = 1 - np.sum(gains / np.log2(1 + np.array(ranks))) / ideal
    _close(float(found["approx_ndcg"].total), lost * np.dot(2.0**y - 1, w) / 11)


def test_inverse_propensities_undo_that_low_ranks_are_seen_less():
    # Two relevant documents of the same score, of which the second is seen, and so
    # clicked, half as often: with weights 1 and 2 the mean gradient treats them alike.
    scores, where = jnp.zeros(3), jnp.ones(3, bool)
    clicks = jnp.float32([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    weights = jnp.float32([1, 2, 1])

    def loss(s, **options):
        rows = jnp.broadcast_to(s, (3, 3)), clicks
        real = jnp.broadcast_to(where, (3, 3))
        return listwise.softmax(*rows, where=real, **options).mean()

    biased = jax.grad(loss)(scores)
    assert biased[0] < biased[1] - 0.2
    seen = jnp.broadcast_to(weights, (3, 3))
    corrected = jax.grad(partial(loss, document_weights=seen))(scores)
    _close(corrected[0], corrected[1])


@pytest.mark.parametrize("name", ALL)
def test_weights_of_another_shape_are_refused(name):
    options = {"list_weights": jnp.ones((3, 1))}, {"document_weights": jnp.ones((3, 1))}
    for option in options[: 1 if name in LISTS_ONLY else 2]:
        with pytest.raises((AssertionError, TypeError)):
            ALL[name](SCORES, LABELS, where=WHERE, **option)


def test_a_unit_that_a_loss_does_not_have_is_refused():
    for loss in (pairwise.ranknet, pointwise.mse):
        assert "unit" in inspect.signature(loss).parameters
        with pytest.raises(ValueError, match="choose .* or 'list'"):
            loss(SCORES, LABELS, where=WHERE, unit="query")
