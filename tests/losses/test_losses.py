"""One table of all ranking losses, and the properties that each must have."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ranker.losses import (
    distillation,
    listwise,
    margins,
    pairwise,
    pointwise,
    schemes,
)
from ranker.losses.reduction import WeightedSum

LN2 = math.log(2)
LEAD = 1 - 1 / math.log2(3)  # what rank 1 is discounted less than rank 2


@pytest.fixture(autouse=True, scope="module")
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


# --- each loss again, in float64, from its formula, for one list without padding ---


def _documents(loss):
    def reference(s, y):
        return sum(map(loss, s, y)), len(s)

    return reference


def _softplus(x):
    return np.logaddexp(0, x)


def _binary(s, y):
    p = min(y / 3, 1)
    return -(p * -_softplus(-s) + (1 - p) * -_softplus(s))


def _ordinal(s, y):
    return sum(
        _softplus(-(s - t)) if y >= k else _softplus(s - t)
        for k, t in enumerate((0.5, 1.5, 2.5), start=1)
    )


def _ordered_pairs(y):
    return [(i, j) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j]]


def _pairs(loss, factor=lambda s, y, i, j: 1.0):
    def reference(s, y):
        chosen = _ordered_pairs(y)
        return sum(factor(s, y, i, j) * loss(s[i] - s[j]) for i, j in chosen), len(
            chosen
        )

    return reference


def _order(s):
    return np.argsort(-np.asarray(s), kind="stable")


def _dcg(y, order):
    return sum((2.0 ** y[d] - 1) / math.log2(2 + k) for k, d in enumerate(order))


def _ndcg_change(s, y, i, j):
    """Literally swaps two documents and measures NDCG again."""
    order = _order(s)
    swapped = [{i: j, j: i}.get(d, d) for d in order]
    return abs(_dcg(y, order) - _dcg(y, swapped)) / _dcg(y, _order(y))


def _softmax(s, y, temperature=1.0):
    if y.sum() <= 0 or len(s) < 2:
        return 0.0, 0
    s = s / temperature
    log_z = np.log(np.sum(np.exp(s - s.max()))) + s.max()
    return np.sum(y / y.sum() * (log_z - s)), 1


def _info_nce(s, y):
    positive, negative = s[y >= 2] / 0.5, s[y < 2] / 0.5
    if not len(positive) or not len(negative):
        return 0.0, 0
    lost = [np.logaddexp.reduce([one, *negative]) - one for one in positive]
    return np.mean(lost), 1


def _list_net(s, y):
    if not _ordered_pairs(y):
        return 0.0, 0
    log_z = np.log(np.sum(np.exp(s - s.max()))) + s.max()
    target = np.exp(y - y.max())
    return np.sum(target / target.sum() * (log_z - s)), 1


def _list_mle(decay):
    def reference(s, y):
        if not _ordered_pairs(y):
            return 0.0, 0
        total = 0.0
        for i in range(len(s)):
            rest = s[y <= y[i]]
            log_z = np.log(np.sum(np.exp(rest - rest.max()))) + rest.max()
            first, tie = np.sum(y > y[i]), np.sum(y == y[i])
            weights = [decay(k, len(s)) for k in range(first + 1, first + tie + 1)]
            total += np.mean(weights) * (log_z - s[i])
        return total, 1

    return reference


def _halved(rank, size):
    return (2.0 ** (size - rank) - 1) / sum(
        2.0 ** (size - k) - 1 for k in range(1, size)
    )


def _soft_ranks(s, temperature):
    ahead = -(s[:, None] - s[None, :]) / temperature
    sigmoid = np.exp(-np.logaddexp(0, -ahead))
    return 1 + sigmoid.sum(axis=1) - 0.5


def _approx_ndcg(s, y):
    if not _ordered_pairs(y):
        return 0.0, 0
    dcg = np.sum((2.0**y - 1) / np.log2(1 + _soft_ranks(s, 0.5)))
    return 1 - dcg / _dcg(y, _order(y)), 1


def _discount(rank):
    return 1 / math.log2(1 + rank)


def _ranks(s):
    rank = np.empty(len(s), int)
    rank[_order(s)] = 1 + np.arange(len(s))
    return rank


def _lambda_loss(s, y):
    if not _ordered_pairs(y):
        return 0.0, 0
    rank = _ranks(s)
    total = 0.0
    for i, j in _ordered_pairs(y):
        apart = abs(rank[i] - rank[j])
        rho = abs(_discount(rank[i]) - _discount(rank[j]))
        delta = abs(_discount(apart) - _discount(apart + 1))
        gain = abs(2.0 ** y[i] - 2.0 ** y[j]) / _dcg(y, _order(y))
        total += (rho + 10 * delta) * gain * _softplus(s[j] - s[i]) / LN2
    return total, 1


def _ndcg_loss_1_at_2(s, y):
    """Scheme 1 at a cutoff of 2 with sigma = 2, written out."""
    if not _ordered_pairs(y):
        return 0.0, 0
    rank, total = _ranks(s), 0.0
    for i in range(len(s)):
        gain = (2.0 ** y[i] - 1) / _dcg(y, _order(y)[:2])
        for j in range(len(s)):
            if i != j and min(rank[i], rank[j]) <= 2:
                total += gain * _discount(rank[i]) * _softplus(2 * (s[j] - s[i])) / LN2
    return total, 1


def _pairs_at_one(factor):
    """A scheme of ordered pairs at a cutoff of 1 with sigma = 0.5, written out."""

    def reference(s, y):
        if not _ordered_pairs(y):
            return 0.0, 0
        rank, total = _ranks(s), 0.0
        for i, j in _ordered_pairs(y):
            if min(rank[i], rank[j]) == 1:
                gain = (2.0 ** y[i] - 2.0 ** y[j]) / (2.0 ** y.max() - 1)
                bits = _softplus((s[j] - s[i]) / 2) / LN2
                total += factor(rank[i], rank[j]) * gain * bits
        return total, 1

    return reference


def _swapped(i, j):
    return abs(_discount(i) - _discount(j))


def _apart(i, j):
    return _discount(abs(i - j)) - _discount(abs(i - j) + 1)


def _per_list(reference):
    """Every list counts once, with the mean over its items."""

    def mean(s, y):
        total, weight = reference(s, y)
        return (total / weight, 1) if weight else (0.0, 0)

    return mean


def _margins(chosen):
    def reference(s, t):
        margins = [(s[i] - s[j], t[i] - t[j]) for i, j in chosen(t)]
        return sum((a - b) ** 2 for a, b in margins), len(margins)

    return reference


def _gaps(s, t):
    pairs = _all_pairs(t)
    gaps = [abs(t[i] - t[j]) for i, j in pairs]
    lost = [(s[i] - s[j] - t[i] + t[j]) ** 2 for i, j in pairs]
    return np.dot(gaps, lost), sum(gaps)


def _top_two(t):
    first, rest = _order(t)[:2], _order(t)[2:]
    return [(i, j) for i in first for j in rest]


def _soft(s, t):
    p = 1 / (1 + math.exp(-t))
    return p * _softplus(-s) + (1 - p) * _softplus(s)


def _all_pairs(t):
    return [(i, j) for i in range(len(t)) for j in range(i + 1, len(t))]


def _to_the_highest(t):
    top = int(np.argmax(t))
    return [(i, top) for i in range(len(t)) if i != top]


def _kl(s, t):
    if len(s) < 2:
        return 0.0, 0
    log_p, log_q = (x / 2 - np.logaddexp.reduce(x / 2) for x in (t, s))
    return 4 * np.sum(np.exp(log_p) * (log_p - log_q)), 1


def _adr(s, t):
    if len(s) < 2:
        return 0.0, 0
    rank = stats.rankdata(-t, method="average")
    return np.sum((rank - _soft_ranks(s, 1.0)) ** 2 / np.log2(1 + rank)), len(s)


def _by_sign(scores, targets, *, where):
    labels = (targets > 0).astype(jnp.float32)
    return distillation.margin_mse_positive_negative(
        scores, targets, where=where, labels=labels
    )


def _of_top_two(scores, targets, *, where):
    pairs = margins.of_top(targets, where, top=2)
    return distillation.margin_mse(scores, targets, where=where, pairs=pairs)


def _by_gap(scores, targets, *, where):
    pairs = margins.by_gap(margins.by_teacher(targets, where), targets, where)
    return distillation.margin_mse(scores, targets, where=where, pairs=pairs)


def _soft_cross_entropy(scores, targets, *, where):
    return distillation.soft_cross_entropy(
        scores, jax.nn.sigmoid(targets.astype(jnp.float32)), where=where
    )


def _to_highest(scores, targets, *, where):
    top = jnp.argmax(jnp.where(where, targets.astype(jnp.float32), -1e9), axis=-1)
    return distillation.margin_mse_reference(
        scores, targets, where=where, reference=top
    )


@dataclass(frozen=True)
class Case:
    loss: Callable[..., WeightedSum]
    reference: Callable[[np.ndarray, np.ndarray], tuple[float, float]]
    hand: tuple[list[float], list[float], float, float]  # scores, labels, total, weight
    shift_invariant: bool = True  # in the scores of a list
    teacher: bool = False  # the second argument is teacher scores


Target = partial(Case, teacher=True)

CASES = {
    "mse": Case(
        pointwise.mse,
        _documents(lambda s, y: (s - y) ** 2),
        ([1, 0], [3, 0], 4, 2),
        shift_invariant=False,
    ),
    "sigmoid": Case(
        partial(pointwise.sigmoid_cross_entropy, highest=3.0),
        _documents(_binary),
        ([0, 0], [2, 0], 2 * LN2, 2),
        shift_invariant=False,
    ),
    "ordinal": Case(
        partial(pointwise.ordinal, thresholds=(0.5, 1.5, 2.5)),
        _documents(_ordinal),
        ([0.5], [3], LN2 + math.log(1 + math.e) + math.log(1 + math.e**2), 1),
        shift_invariant=False,
    ),
    "ranknet": Case(
        pairwise.ranknet,
        _pairs(lambda d: _softplus(-d)),
        ([0, 0, 0], [2, 1, 1], 2 * LN2, 2),
    ),
    "ranknet, grades": Case(
        partial(pairwise.ranknet, pair_weights=pairwise.grade_difference),
        _pairs(lambda d: _softplus(-d), lambda s, y, i, j: y[i] - y[j]),
        ([0, 0, 0], [3, 1, 1], 4 * LN2, 2),
    ),
    "ranknet, NDCG": Case(
        partial(pairwise.ranknet, pair_weights=pairwise.delta_ndcg),
        _pairs(lambda d: _softplus(-d), _ndcg_change),
        ([0, 0], [1, 0], LEAD * LN2, 1),
    ),
    "hinge": Case(
        pairwise.hinge,
        _pairs(lambda d: max(0.0, 1 - d)),
        ([0.25, 0], [1, 0], 0.75, 1),
    ),
    "hinge, grades": Case(
        partial(pairwise.hinge, margin=0.5, pair_weights=pairwise.grade_difference),
        _pairs(lambda d: max(0.0, 0.5 - d), lambda s, y, i, j: y[i] - y[j]),
        ([0.25, 0], [2, 0], 0.5, 1),
    ),
    "mse, per list": Case(
        partial(pointwise.mse, unit="list"),
        _per_list(_documents(lambda s, y: (s - y) ** 2)),
        ([1, 0], [3, 0], 2, 1),
        shift_invariant=False,
    ),
    "ranknet, per list": Case(
        partial(pairwise.ranknet, unit="list"),
        _per_list(_pairs(lambda d: _softplus(-d))),
        ([0, 0, 0], [2, 1, 1], LN2, 1),
    ),
    "softmax": Case(listwise.softmax, _softmax, ([0, 0], [2, 0], LN2, 1)),
    "softmax, cold": Case(
        partial(listwise.softmax, temperature=0.5),
        partial(_softmax, temperature=0.5),
        ([LN2 / 2, 0], [2, 0], math.log(1.5), 1),
    ),
    "info_nce": Case(
        partial(listwise.info_nce, relevance=2.0, temperature=0.5),
        _info_nce,
        ([0, 0, 0], [2, 3, 0], LN2, 1),
    ),
    "list_net": Case(
        listwise.list_net,
        _list_net,
        ([1, 0], [math.log(3), 0], math.log(1 + math.e) - 0.75, 1),
    ),
    "list_mle": Case(
        listwise.list_mle,
        _list_mle(lambda k, n: 1.0),
        ([0, 0, 0], [2, 1, 0], math.log(6), 1),
    ),
    "position_aware_list_mle": Case(
        listwise.position_aware_list_mle,
        _list_mle(_halved),
        ([0, 0, 0], [2, 1, 0], 0.75 * math.log(3) + 0.25 * LN2, 1),
    ),
    "approx_ndcg": Case(
        partial(listwise.approx_ndcg, temperature=0.5),
        _approx_ndcg,
        ([0, 0], [1, 0], 1 - 1 / math.log2(2.5), 1),
    ),
    "lambda_loss": Case(
        listwise.lambda_loss, _lambda_loss, ([0, 0], [1, 0], 11 * LEAD, 1)
    ),
    "lambda_loss, loss 1": Case(
        partial(listwise.lambda_loss, scheme=schemes.ndcg_loss_1, sigma=2.0, cutoff=2),
        _ndcg_loss_1_at_2,
        ([0, 0, 0], [1, 0, 0], 2, 1),
    ),
    "lambda_loss, LambdaRank": Case(
        partial(listwise.lambda_loss, scheme=schemes.lambda_rank, sigma=0.5, cutoff=1),
        _pairs_at_one(_swapped),
        ([0, 0, 0], [1, 0, 0], LEAD + 0.5, 1),
    ),
    "lambda_loss, loss 2": Case(
        partial(listwise.lambda_loss, scheme=schemes.ndcg_loss_2, sigma=0.5, cutoff=1),
        _pairs_at_one(_apart),
        ([0, 0, 0], [1, 0, 0], 0.5, 1),
    ),
    "point_mse": Target(
        distillation.point_mse,
        _documents(lambda s, t: (s - t) ** 2),
        ([1, 0], [3, 0], 4, 2),
        shift_invariant=False,
    ),
    "margin_mse": Target(
        distillation.margin_mse, _margins(_all_pairs), ([1, 0], [3, 0], 4, 1)
    ),
    "margin_mse, per list": Target(
        partial(distillation.margin_mse, unit="list"),
        _per_list(_margins(_all_pairs)),
        ([1, 0, 0], [3, 0, 0], 8 / 3, 1),
    ),
    "margin_mse, top two": Target(
        _of_top_two, _margins(_top_two), ([0, 0, 0], [3, 1, 0], 10, 2)
    ),
    "margin_mse, gaps": Target(_by_gap, _gaps, ([0, 0, 0], [3, 1, 0], 36, 6)),
    "soft_cross_entropy": Target(
        _soft_cross_entropy,
        _documents(_soft),
        ([0, 0], [-1, 3], 2 * LN2, 2),
        shift_invariant=False,
    ),
    "margin_mse, labels": Target(
        _by_sign,
        _margins(lambda t: _ordered_pairs(t > 0)),
        ([1, 0, 0], [3, 0, 0], 8, 2),
    ),
    "margin_mse, reference": Target(
        _to_highest, _margins(_to_the_highest), ([1, 1, 0], [0, 1, 3], 25, 2)
    ),
    "listwise_kl": Target(
        partial(distillation.listwise_kl, temperature=2.0),
        _kl,
        (
            [0, 0],
            [2 * math.log(3), 0],
            4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
            1,
        ),
    ),
    "ranknet on teacher": Target(
        distillation.ranknet_on_teacher_order,
        _pairs(lambda d: _softplus(-d)),
        ([0, 0, 0], [3, 2, 2], 2 * LN2, 2),
    ),
    "adr_mse": Target(
        distillation.adr_mse, _adr, ([0, 0], [9, 5], 0.25 + 0.25 / math.log2(3), 2)
    ),
}
every = pytest.mark.parametrize("name", CASES)


@functools.cache
def _run(name):
    """Total, weight and mean of a loss, and gradients of total and mean; compiled."""
    loss = CASES[name].loss

    @jax.jit
    def run(scores, labels, where):
        def total(s):
            result = loss(s, labels, where=where)
            return result.total, (result.total, result.weight, result.mean())

        gradient, values = jax.grad(total, has_aux=True)(scores)
        of_mean = jax.grad(lambda s: loss(s, labels, where=where).mean())(scores)
        return *values, gradient, of_mean

    return run


def _lists(name, seed=0, shape=(3, 5)):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=shape)
    labels = generator.integers(0, 4, shape)
    if CASES[name].teacher:
        labels = generator.normal(size=shape) * 2
    where = generator.random(shape) < 0.7
    where[..., :2] = True
    labels[..., 0] = 3.0  # no list without anything to learn from
    labels[..., 1] = 0.0
    return jnp.float32(scores), jnp.float32(labels), jnp.array(where)


def _reference(name, scores, labels, where):
    """Total and weight over a batch: masked documents are cut out of their lists."""
    lists = zip(
        np.asarray(scores, np.float64),
        np.asarray(labels, np.float64),
        np.asarray(where),
        strict=True,
    )
    parts = [CASES[name].reference(s[w], y[w]) for s, y, w in lists if w.any()]
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def _close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Exact for a number of items; a weight may also be a sum of gaps.
_about = partial(pytest.approx, rel=1e-5, abs=1e-4)


@every
def test_value_worked_out_by_hand(name):
    scores, labels, total, weight = CASES[name].hand
    where = jnp.ones(len(scores), bool)
    result = jax.jit(CASES[name].loss)(
        jnp.float32(scores), jnp.float32(labels), where=where
    )
    _close(float(result.total), total)
    assert float(result.weight) == _about(weight)


@every
def test_equals_the_formula_with_the_masked_documents_removed(name):
    lists = _lists(name)
    assert 0 < lists[2].sum() < lists[2].size
    total, weight = _reference(name, *lists)
    result = _run(name)(*lists)
    _close(float(result[0]), total)
    assert weight > 0
    assert float(result[1]) == _about(weight)


@every
def test_gradient_equals_finite_differences_of_the_formula(name):
    scores, labels, where = _lists(name, seed=1)
    s = np.asarray(scores, np.float64)
    expected = np.zeros_like(s)
    for place in np.ndindex(*s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-6
        up, _ = _reference(name, s + step, labels, where)
        down, _ = _reference(name, s - step, labels, where)
        expected[place] = (up - down) / 2e-6
    assert np.abs(expected).max() > 1e-3
    _close(_run(name)(scores, labels, where)[3], expected, 1e-4)


@every
def test_all_masked_is_zero_with_zero_gradients(name):
    scores, labels, _ = _lists(name)
    total, weight, mean, gradient, of_mean = _run(name)(
        scores, labels, jnp.zeros(scores.shape, bool)
    )
    assert float(total) == float(weight) == float(mean) == 0
    assert not np.asarray(gradient).any() and not np.asarray(of_mean).any()


@every
def test_any_batch_dimensions(name):
    loss = jax.jit(CASES[name].loss)
    scores, labels, where = _lists(name, shape=(2, 3, 4))
    whole = loss(scores, labels, where=where)
    flat = loss(scores.reshape(6, 4), labels.reshape(6, 4), where=where.reshape(6, 4))
    _close(float(whole.total), float(flat.total))
    assert float(whole.weight) == _about(float(flat.weight))
    one = loss(scores[0, 0], labels[0, 0], where=where[0, 0])
    rows = tuple(x[0, :1] for x in (scores, labels, where))
    _close(float(one.total), _reference(name, *rows)[0])


@every
def test_document_order_does_not_count(name):
    scores, labels, where = _lists(name)
    order = np.array([3, 1, 4, 0, 2])
    a = _run(name)(scores, labels, where)
    b = _run(name)(scores[:, order], labels[:, order], where[:, order])
    _close(float(a[0]), float(b[0]))
    assert float(a[1]) == _about(float(b[1]))
    _close(a[3][:, order], b[3])


@every
def test_parts_of_a_batch_add_up(name):
    scores, labels, where = _lists(name)
    total, weight, mean, gradient, of_mean = _run(name)(scores, labels, where)
    alone = [
        _run(name)(scores, labels, where & (jnp.arange(3) == row)[:, None])
        for row in range(3)
    ]
    parts = sum(
        (WeightedSum(*part[:2]) for part in alone[1:]), WeightedSum(*alone[0][:2])
    )
    _close(float(parts.total), float(total))
    assert float(parts.weight) == _about(float(weight))
    _close(float(parts.mean()), float(mean))
    # What the step does: gradients of totals, added, over the weight of the batch.
    _close(sum(part[3] for part in alone) / weight, of_mean)


@every
def test_weight_does_not_depend_on_scores(name):
    scores, labels, where = _lists(name)
    weights = {
        float(_run(name)(s, labels, where)[1])
        for s in (scores, jnp.zeros_like(scores), scores[::-1] * jnp.float32(1e4))
    }
    assert len(weights) == 1


@every
def test_a_constant_added_to_the_scores_of_a_list(name):
    scores, labels, where = _lists(name)
    constants = jnp.array([[4.0], [-8.0], [2.0]]) * jnp.ones_like(scores)
    a = float(_run(name)(scores, labels, where)[0])
    b = float(_run(name)(scores + constants, labels, where)[0])
    assert (abs(a - b) < 1e-4 * (1 + abs(a))) == CASES[name].shift_invariant


@every
@pytest.mark.parametrize("scale", [0.0, 1e4, -1e4])
def test_equal_and_extreme_scores(name, scale):
    scores, labels, where = _lists(name)
    scores = scores * jnp.float32(scale)
    total, _, mean, gradient, of_mean = _run(name)(scores, labels, where)
    expected, _ = _reference(name, scores, labels, where)
    _close(float(total), expected, 1e-4)
    assert np.isfinite(mean)
    assert np.isfinite(gradient).all() and np.isfinite(of_mean).all()


@every
@pytest.mark.parametrize("wild", [np.nan, np.inf, -3e38])
def test_what_is_masked_may_be_anything(name, wild):
    scores, labels, where = _lists(name)
    clean = _run(name)(scores, labels, where)
    dirty = _run(name)(
        jnp.where(where, scores, jnp.float32(wild)),
        jnp.where(where, labels, jnp.float32(wild)),
        where,
    )
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)


@every
def test_a_broken_score_is_seen_in_the_total(name):
    scores, labels, where = _lists(name)
    total, weight, mean, *_ = _run(name)(scores.at[1, 0].set(jnp.nan), labels, where)
    assert np.isnan(total) and np.isnan(mean) and np.isfinite(weight)


@every
def test_bfloat16_is_computed_in_float32(name):
    scores, labels, where = _lists(name)
    low, low_labels = scores.astype(jnp.bfloat16), labels.astype(jnp.bfloat16)
    total, weight, _, gradient, of_mean = _run(name)(low, low_labels, where)
    assert total.dtype == weight.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert np.isfinite(np.float32(gradient)).all()
    assert np.isfinite(np.float32(of_mean)).all()
    exact = _run(name)(low.astype(jnp.float32), low_labels.astype(jnp.float32), where)
    _close(float(total), float(exact[0]))
    _close(np.float32(gradient), exact[3], 1e-2)  # a bfloat16 has 8 bits


@every
def test_one_document(name):
    scores, labels, _ = _lists(name)
    where = jnp.zeros(scores.shape, bool).at[:, 2].set(True)
    total, weight, _, gradient, of_mean = _run(name)(scores, labels, where)
    expected = _reference(name, scores, labels, where)
    _close(float(total), expected[0])
    assert float(weight) == _about(expected[1])
    assert np.isfinite(gradient).all() and np.isfinite(of_mean).all()


@every
@pytest.mark.parametrize("wrong", ["labels", "where"])
def test_shapes_that_differ_are_refused(name, wrong):
    scores, labels, where = _lists(name)
    cut = {"labels": labels, "where": where}
    cut[wrong] = cut[wrong][:, :1]
    with pytest.raises(AssertionError):
        CASES[name].loss(scores, cut["labels"], where=cut["where"])


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].teacher])
def test_no_gradient_flows_into_the_teacher(name):
    scores, targets, where = _lists(name)
    loss = CASES[name].loss
    gradient = jax.jit(jax.grad(lambda t: loss(scores, t, where=where).total))(targets)
    assert not np.asarray(gradient).any()


# --- counterexamples wanted ---

_lists_of_four = st.tuples(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)


@every
@settings(max_examples=30, deadline=None, derandomize=True)
@given(arrays=_lists_of_four)
def test_whatever_comes_is_finite_and_equals_the_formula(name, arrays):
    scores, labels, where = (np.array([x]) for x in arrays)
    total, weight, _, gradient, of_mean = _run(name)(
        jnp.float32(scores), jnp.float32(labels), jnp.array(where)
    )
    expected = _reference(name, np.float32(scores), labels, where)
    slack = 1e-5 + 1e-6 * np.abs(scores).max()  # a float32 has 24 bits
    np.testing.assert_allclose(total, expected[0], rtol=1e-4, atol=slack)
    assert float(weight) == _about(expected[1])
    assert float(total) >= -slack
    for slope in (np.asarray(gradient), np.asarray(of_mean)):
        assert np.isfinite(slope).all()
        assert not slope[~where].any()
