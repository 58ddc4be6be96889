"""One table of all ranking losses, and the properties that each must have."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.losses import distillation, language, listwise, pairwise
from ranker.losses.reduction import WeightedSum


@dataclass(frozen=True)
class Case:
    loss: Callable[..., WeightedSum]
    reference: Callable[[np.ndarray, np.ndarray], tuple[float, float]]  # one full list
    shift_invariant: bool = True  # in the scores of a list


def _softmax(s, y):
    if y.sum() <= 0:
        return 0.0, 0.0
    shares = y / y.sum()
    log_z = np.log(np.sum(np.exp(s - s.max()))) + s.max()
    return float(np.sum(shares * (log_z - s))), 1.0


def _pairs(loss):
    def reference(s, y):
        total = weight = 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if y[i] > y[j]:
                    total += loss(s[i] - s[j])
                    weight += 1
        return total, weight

    return reference


def _point(s, t):
    return float(np.sum((s - t) ** 2)), float(len(s))


def _margin(s, t):
    total = weight = 0.0
    for i in range(len(s)):
        for j in range(i + 1, len(s)):
            total += ((s[i] - s[j]) - (t[i] - t[j])) ** 2
            weight += 1
    return total, weight


CASES = {
    "softmax": Case(listwise.softmax, _softmax),
    "ranknet": Case(pairwise.ranknet, _pairs(lambda d: np.logaddexp(0, -d))),
    "hinge": Case(pairwise.hinge, _pairs(lambda d: max(0.0, 1 - d))),
    "point_mse": Case(distillation.point_mse, _point, shift_invariant=False),
    "margin_mse": Case(distillation.margin_mse, _margin),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def _lists(seed=0, shape=(3, 5)):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=shape).astype(np.float32)
    labels = generator.integers(0, 4, shape).astype(np.float32)
    where = generator.random(shape) < 0.7
    where[..., 0] = True
    return jnp.asarray(scores), jnp.asarray(labels), jnp.asarray(where)


def _close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@every
def test_equals_the_formula_with_the_masked_documents_removed(case):
    scores, labels, where = _lists()
    result = case.loss(scores, labels, where=where)
    parts = [
        case.reference(np.float64(s[w]), np.float64(y[w]))
        for s, y, w in zip(*map(np.asarray, (scores, labels, where)), strict=True)
    ]
    _close(float(result.total), sum(total for total, _ in parts))
    _close(float(result.weight), sum(weight for _, weight in parts))


@every
def test_gradient_equals_finite_differences(case):
    scores, labels, where = _lists(seed=1)

    def total(s):
        parts = [
            case.reference(row[w], y[w])[0]
            for row, y, w in zip(
                s, np.float64(labels), np.asarray(where), strict=True
            )
        ]
        return sum(parts)

    gradient = jax.grad(lambda s: case.loss(s, labels, where=where).total)(scores)
    s = np.float64(scores)
    expected = np.zeros_like(s)
    for place in np.ndindex(*s.shape):
        step = np.zeros_like(s)
        step[place] = 1e-5
        expected[place] = (total(s + step) - total(s - step)) / 2e-5
    _close(gradient, expected, 1e-3)


@every
def test_all_masked_is_zero_with_finite_gradients(case):
    scores, labels, _ = _lists()
    where = jnp.zeros(scores.shape, bool)
    result = case.loss(scores, labels, where=where)
    assert float(result.total) == 0 and float(result.weight) == 0
    assert float(result.mean()) == 0
    gradient = jax.grad(lambda s: case.loss(s, labels, where=where).mean())(scores)
    _close(gradient, np.zeros(scores.shape))


@every
def test_any_batch_dimensions(case):
    scores, labels, where = _lists(shape=(2, 3, 4))
    whole = case.loss(scores, labels, where=where)
    flat = case.loss(*(x.reshape(6, 4) for x in (scores, labels)), where=where.reshape(6, 4))
    _close(float(whole.total), float(flat.total))
    one = case.loss(scores[0, 0], labels[0, 0], where=where[0, 0])
    assert one.total.shape == ()


@every
def test_document_order_does_not_count(case):
    scores, labels, where = _lists()
    order = np.array([3, 1, 4, 0, 2])
    a = case.loss(scores, labels, where=where)
    b = case.loss(scores[:, order], labels[:, order], where=where[:, order])
    _close(float(a.total), float(b.total))
    assert float(a.weight) == float(b.weight)


@every
def test_parts_of_a_batch_add_up(case):
    scores, labels, where = _lists()
    whole = case.loss(scores, labels, where=where)
    parts = case.loss(scores[:1], labels[:1], where=where[:1]) + case.loss(
        scores[1:], labels[1:], where=where[1:]
    )
    _close(float(whole.mean()), float(parts.mean()))


@every
def test_weight_does_not_depend_on_scores(case):
    scores, labels, where = _lists()
    a = case.loss(scores, labels, where=where).weight
    b = case.loss(jnp.zeros_like(scores), labels, where=where).weight
    assert float(a) == float(b)


@every
def test_a_constant_added_to_a_list(case):
    scores, labels, where = _lists()
    moved = scores + jnp.float32(3.0)
    a = float(case.loss(scores, labels, where=where).total)
    b = float(case.loss(moved, labels, where=where).total)
    assert (abs(a - b) < 1e-3) == case.shift_invariant


@every
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_and_equal_scores_stay_finite(case, scale):
    scores, labels, where = _lists()
    scores = scores * jnp.float32(scale)
    value, gradient = jax.value_and_grad(
        lambda s: case.loss(s, labels, where=where).mean()
    )(scores)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every
def test_what_is_masked_may_be_anything(case):
    scores, labels, where = _lists()
    wild = jnp.where(where, scores, jnp.nan)
    gradient = jax.grad(lambda s: case.loss(s, labels, where=where).total)(wild)
    clean = jax.grad(lambda s: case.loss(s, labels, where=where).total)(scores)
    _close(gradient, clean)


@every
def test_bfloat16_scores_are_summed_in_float32(case):
    scores, labels, where = _lists()
    low = scores.astype(jnp.bfloat16)
    result = case.loss(low, labels, where=where)
    assert result.total.dtype == jnp.float32
    exact = case.loss(low.astype(jnp.float32), labels, where=where)
    _close(float(result.total), float(exact.total))


@every
def test_one_document(case):
    one = jnp.ones((1, 1))
    result = case.loss(one * 2, one, where=jnp.ones((1, 1), bool))
    total, weight = case.reference(np.array([2.0]), np.array([1.0]))
    _close(float(result.total), total)
    assert float(result.weight) == weight


@every
def test_shapes_that_differ_are_refused(case):
    scores, labels, where = _lists()
    with pytest.raises(AssertionError):
        case.loss(scores, labels[:, :1], where=where)


@pytest.mark.parametrize("name", ["point_mse", "margin_mse"])
def test_no_gradient_flows_into_the_teacher(name):
    scores, targets, where = _lists()
    gradient = jax.grad(
        lambda t: CASES[name].loss(scores, t, where=where).total
    )(targets)
    assert not np.asarray(gradient).any()


def test_margin_mse_does_not_count_a_document_against_itself():
    # rax's and naive versions divide by L * L, which halves a list of two.
    result = distillation.margin_mse(
        jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]), where=jnp.ones(2, bool)
    )
    assert float(result.mean()) == 4.0


# --- sources outside this project ---


def test_softmax_and_ranknet_equal_rax():
    scores, labels, where = _lists(shape=(6, 5))
    labels = labels.at[:, 0].set(1.0)
    with jax.numpy_dtype_promotion("standard"):
        softmax = rax.softmax_loss(
            scores,
            labels / jnp.sum(jnp.where(where, labels, 0.0), -1, keepdims=True),
            where=where,
            reduce_fn=jnp.sum,
        )
        ranknet = rax.pairwise_logistic_loss(
            scores, labels, where=where, reduce_fn=jnp.sum
        )
        hinge = rax.pairwise_hinge_loss(scores, labels, where=where, reduce_fn=jnp.sum)
    _close(float(listwise.softmax(scores, labels, where=where).total), float(softmax))
    _close(float(pairwise.ranknet(scores, labels, where=where).total), float(ranknet))
    _close(float(pairwise.hinge(scores, labels, where=where).total), float(hinge))


def test_margin_mse_of_two_documents_equals_torch():
    scores, targets, _ = _lists(shape=(7, 2))
    s, t = (torch.tensor(np.asarray(x)) for x in (scores, targets))
    expected = torch.nn.MSELoss()(s[:, 0] - s[:, 1], t[:, 0] - t[:, 1])
    ours = distillation.margin_mse(scores, targets, where=jnp.ones((7, 2), bool))
    _close(float(ours.mean()), float(expected))


def test_next_token_equals_torch():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 6, 11)).astype(np.float32)
    tokens = generator.integers(0, 11, (3, 6))
    where = generator.random((3, 6)) < 0.6
    labels = torch.tensor(np.where(where, tokens, -100)[:, 1:])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits)[:, :-1].reshape(-1, 11), labels.reshape(-1), reduction="sum"
    )
    result = language.next_token(
        jnp.asarray(logits), jnp.asarray(tokens), where=jnp.asarray(where)
    )
    _close(float(result.total), float(expected))
    assert float(result.weight) == where[:, 1:].sum()


def test_next_token_never_counts_the_first_token():
    where = jnp.zeros((2, 4), bool).at[:, 0].set(True)
    result = language.next_token(jnp.ones((2, 4, 3)), jnp.ones((2, 4), int), where=where)
    assert float(result.weight) == 0 and float(result.mean()) == 0


def test_mean_lets_nan_through():
    broken = WeightedSum(jnp.float32(jnp.nan), jnp.float32(0))
    assert np.isnan(float(broken.mean()))


def test_standardise():
    targets = jnp.array([[1.0, 3.0, 100.0], [5.0, 5.0, 5.0], [7.0, 0.0, 0.0]])
    where = jnp.array([[True, True, False], [True] * 3, [True, False, False]])
    result = distillation.standardise(targets, where=where)
    _close(result, [[-1, 1, 0], [0, 0, 0], [0, 0, 0]])


# --- counterexamples wanted ---

_jitted = {
    name: jax.jit(
        jax.value_and_grad(lambda s, y, w, case=case: case.loss(s, y, where=w).mean())
    )
    for name, case in CASES.items()
}
_number = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(_number, min_size=4, max_size=4),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from(sorted(CASES)),
)
def test_finite_and_not_negative_whatever_comes(scores, labels, where, name):
    value, gradient = _jitted[name](
        jnp.array(scores, jnp.float32), jnp.array(labels, jnp.float32), jnp.array(where)
    )
    assert np.isfinite(value) and float(value) >= -1e-6
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~np.array(where)].any()
