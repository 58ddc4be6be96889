"""What losses are made of, language modelling, and how losses relate to each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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
from ranker.losses.reduction import WeightedSum, weighted_sum

EPS = float(np.finfo(np.float32).eps)


def _close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# --- WeightedSum ---


def test_mean_is_zero_at_weight_zero_and_lets_nan_through():
    empty, broken = (WeightedSum(jnp.float32(x), jnp.float32(0)) for x in (0, np.nan))
    assert float(empty.mean()) == 0
    assert np.isnan(float(broken.mean()))
    gradient = jax.grad(lambda x: WeightedSum(x, jnp.float32(0)).mean())
    assert float(gradient(jnp.float32(3))) == 0


def test_a_mean_of_parts_is_not_a_mean_of_means():
    a = weighted_sum(jnp.array([4.0, 0.0]), jnp.array([True, False]))
    b = weighted_sum(jnp.array([1.0, 1.0]), jnp.array([True, True]))
    assert float((a + b).mean()) == 2.0
    assert float((a.mean() + b.mean()) / 2) == 2.5


def test_a_weighted_sum_crosses_jit_and_scan():
    values = jnp.arange(6.0).reshape(3, 2)

    @jax.jit
    def accumulate(values):
        zero = WeightedSum(jnp.float32(0), jnp.float32(0))

        def add(carry, x):
            return carry + weighted_sum(x, x > 0), None

        return jax.lax.scan(add, zero, values)[0]

    assert float(accumulate(values).mean()) == 3.0


# --- lists ---


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-3, 3), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_ranks_equal_scipy(scores, where):
    s, w = np.float32(scores), np.array(where)
    for method, ours in (("ordinal", lists.ranks), ("average", lists.average_ranks)):
        result = np.asarray(ours(jnp.array(s), jnp.array(w)))[w]
        np.testing.assert_array_equal(result, stats.rankdata(-s[w], method=method))


def test_gains_add_up_to_ndcg():
    generator = np.random.default_rng(0)
    scores = jnp.float32(generator.normal(size=(4, 6)))
    labels = jnp.float32(generator.integers(0, 5, (4, 6)))
    where = jnp.array(generator.random((4, 6)) < 0.8)
    ours = jnp.sum(
        lists.gains(labels, where) * lists.discounts(lists.ranks(scores, where)), -1
    )
    _close(ours, rax.ndcg_metric(scores, labels, where=where, reduce_fn=None))


def test_gains_of_large_and_negative_labels():
    gains = lists.gains(jnp.array([2000.0, 1999.0, -1.0]), jnp.ones(3, bool))
    ideal = 1 + 0.5 / np.log2(3)
    _close(gains, [1 / ideal, 0.5 / ideal, 0])
    assert not np.asarray(lists.gains(jnp.array([-1.0, 0.0]), jnp.ones(2, bool))).any()


def test_negative_labels_have_no_share():
    where = jnp.ones(2, bool)
    loss = listwise.softmax(jnp.zeros(2), jnp.array([1.0, -2.0]), where=where)
    _close(float(loss.mean()), np.log(2))
    loss = listwise.softmax(jnp.zeros(2), jnp.array([0.0, -2.0]), where=where)
    assert float(loss.weight) == 0


@pytest.mark.parametrize(
    ("scores", "where", "expected"),
    [
        ([[1, 1, 1], [5, 5, 5]], None, True),
        ([[1, 1, 1], [5, 5, 6]], None, False),
        ([[1, 1, 9], [5, 5, 6]], [[1, 1, 0], [1, 1, 0]], True),
        ([[1, 9, 2], [5, 6, 7]], [[1, 0, 0], [0, 0, 1]], False),  # no pair to judge by
        ([[1, 9, 2], [5, 6, 7]], [[0, 0, 0], [0, 0, 0]], False),
        ([[np.nan, 1, 2], [5, 6, 7]], None, True),
        ([[-np.inf, 1, 2], [5, 6, 7]], None, True),
        ([[np.nan, 1, 2], [5, 6, 7]], [[0, 1, 1], [1, 1, 1]], False),
        ([[1e6, 1e6 + 0.1, 1e6], [0, 0, 0]], None, True),  # rounding alone
        ([[8, 8 + 4 * EPS * 8, 8], [0, 0, 0]], None, True),
        ([[8, 8 + 5 * EPS * 8, 8], [0, 0, 0]], None, False),
        ([[0, 1e-6, 0], [0, 0, 0]], None, False),
        ([[1e30, -1e30, 0], [0, 0, 0]], None, False),
    ],
)
def test_scores_that_order_nothing_are_collapsed(scores, where, expected):
    scores = jnp.float32(scores)
    real = jnp.ones(scores.shape, bool) if where is None else jnp.bool_(where)
    assert bool(jax.jit(lists.collapsed)(scores, real)) == expected
    low = scores.astype(jnp.bfloat16)
    assert lists.collapsed(low, real).dtype == bool


# --- language modelling ---


def _text():
    generator = np.random.default_rng(0)
    logits = np.float32(generator.normal(size=(3, 6, 11)) * 3)
    tokens = generator.integers(0, 11, (3, 6))
    where = generator.random((3, 6)) < 0.6
    where[0, 0] = where[0, -1] = True
    return logits, tokens, where


def _torch_next_token(logits, tokens, where):
    logits = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(where, tokens, -100)[:, 1:]).reshape(-1)
    total = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 11), labels, reduction="sum"
    )
    total.backward()
    return float(total.detach()), logits.grad.numpy()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_next_token_equals_torch(scale):
    logits, tokens, where = _text()
    logits = logits * np.float32(scale)
    total, slope = _torch_next_token(logits, tokens, where)

    def loss(x):
        result = language.next_token(x, jnp.array(tokens), where=jnp.array(where))
        return result.total, result.weight

    with jax.numpy_dtype_promotion("strict"):
        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, weight), gradient = run(jnp.array(logits))
    _close(float(value), total)
    assert float(weight) == where[:, 1:].sum()
    _close(gradient, slope)


def test_next_token_of_bfloat16_is_computed_in_float32():
    logits, tokens, where = _text()
    low = jnp.array(logits, jnp.bfloat16)
    result = language.next_token(low, jnp.array(tokens), where=jnp.array(where))
    expected, _ = _torch_next_token(np.asarray(low, np.float32), tokens, where)
    assert result.total.dtype == jnp.float32
    _close(float(result.total), expected)


def test_next_token_of_parts_adds_up_with_any_batch_dimensions():
    logits, tokens, where = map(jnp.array, _text())
    whole = language.next_token(logits[None], tokens[None], where=where[None])
    rows = [
        language.next_token(*row[:2], where=row[2])
        for row in zip(logits, tokens, where, strict=True)
    ]
    parts = rows[0] + rows[1] + rows[2]
    _close(float(whole.total), float(parts.total))
    assert float(whole.weight) == float(parts.weight)


def test_next_token_never_counts_the_first_token():
    where = jnp.zeros((2, 4), bool).at[:, 0].set(True)

    def loss(logits):
        return language.next_token(logits, jnp.ones((2, 4), int), where=where)

    result = loss(jnp.ones((2, 4, 3)))
    assert float(result.weight) == float(result.total) == float(result.mean()) == 0
    gradient = jax.grad(lambda x: loss(x).mean())(jnp.ones((2, 4, 3)))
    assert not np.asarray(gradient).any()


def test_next_token_refuses_shapes_that_differ():
    logits, tokens, where = map(jnp.array, _text())
    with pytest.raises(AssertionError):
        language.next_token(logits, tokens, where=where[:, 1:])
    with pytest.raises(AssertionError):
        language.next_token(logits[:, 1:], tokens, where=where)


# --- one loss in terms of another ---


def _batch(seed=0, shape=(3, 5)):
    generator = np.random.default_rng(seed)
    scores, targets = generator.normal(size=(2, *shape))
    labels = generator.integers(0, 4, shape)
    where = generator.random(shape) < 0.8
    return *map(jnp.float32, (scores, targets, labels)), jnp.array(where)


def test_ordinal_with_one_threshold_at_zero_is_logistic_regression():
    scores, _, labels, where = _batch()
    a = pointwise.ordinal(scores, labels, where=where, thresholds=(0.0,))
    b = pointwise.sigmoid_cross_entropy(scores, labels, where=where)
    _close(float(a.total), float(b.total))


def test_thresholds_of_grades_0_to_4_lie_where_a_score_rounds_to_the_next():
    labels, where = jnp.arange(5.0), jnp.ones(5, bool)
    halves = (0.5, 1.5, 2.5, 3.5)
    for scores in (labels, labels[::-1] * 1.5):
        a = pointwise.ordinal(scores, labels, where=where)
        b = pointwise.ordinal(scores, labels, where=where, thresholds=halves)
        _close(float(a.total), float(b.total))


def test_info_nce_of_one_positive_is_softmax():
    scores, _, _, _ = _batch()
    labels, where = jnp.zeros(scores.shape).at[:, 3].set(1.0), scores < 9
    a = listwise.info_nce(scores, labels, where=where)
    b = listwise.softmax(scores, labels, where=where)
    _close([float(a.total), float(a.weight)], [float(b.total), float(b.weight)])


def test_lambda_loss_without_mu_is_lambda_rank_in_bits():
    scores, _, labels, where = _batch()
    a = listwise.lambda_loss(scores, labels, where=where, mu=0.0)
    b = pairwise.ranknet(scores, labels, where=where, pair_weights=pairwise.delta_ndcg)
    _close(float(a.total) * np.log(2), float(b.total))


def test_losses_of_a_list_that_bound_its_ndcg():
    # Wang et al., 2018: NDCG-Loss2 is an upper bound of 1 - NDCG, in bits.
    scores, _, labels, _ = _batch(shape=(20, 6))
    where = jnp.ones(6, bool)

    @jax.jit
    @jax.vmap
    def each(s, y):
        loss = partial(listwise.lambda_loss, s, y, where=where)
        bound = loss(scheme=schemes.ndcg_loss_2).total
        exact = listwise.approx_ndcg(s, y, where=where, temperature=1e-4).total
        return bound, exact

    bound, exact = each(scores, labels)
    ndcg = rax.ndcg_metric(scores, labels, reduce_fn=None)
    assert (np.asarray(bound) >= 1 - ndcg - 1e-5).all()
    _close(exact, 1 - ndcg, 1e-3)


def test_the_order_in_which_ties_are_stored_teaches_nothing():
    labels, where = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.ones(4, bool)
    for loss in (listwise.list_mle, listwise.position_aware_list_mle):
        gradient = jax.jit(jax.grad(lambda s, f=loss: f(s, labels, where=where).total))
        slopes = np.asarray(gradient(jnp.zeros(4)))
        assert slopes[0] < 0
        _close(slopes[1:], np.full(3, slopes[1]))


def test_position_aware_list_mle_of_a_long_list():
    labels, where = jnp.arange(1000.0), jnp.ones(1000, bool)
    loss = jax.jit(listwise.position_aware_list_mle)
    result = loss(jnp.zeros(1000), labels, where=where)
    expected = sum(np.log(1000 - k) / 2 ** (k + 1) for k in range(60))
    _close(float(result.mean()), expected)


def test_a_swap_still_counts_when_a_fresh_model_scores_all_alike():
    labels, where = jnp.array([0.0, 1.0]), jnp.ones(2, bool)
    for loss in (
        partial(pairwise.ranknet, pair_weights=pairwise.delta_ndcg),
        listwise.lambda_loss,
        listwise.approx_ndcg,
    ):
        slope = jax.jit(jax.grad(lambda s, f=loss: f(s, labels, where=where).total))
        assert float(slope(jnp.zeros(2))[1]) < -1e-2


def test_margin_mse_does_not_count_a_document_against_itself():
    # Dividing by L * L instead halves a list of two.
    result = distillation.margin_mse(
        jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]), where=jnp.ones(2, bool)
    )
    assert float(result.mean()) == 4.0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-9, 9, width=32), min_size=5, max_size=5),
    st.lists(st.floats(-9, 9, width=32), min_size=5, max_size=5),
    st.integers(2, 5),
)
def test_the_hybrid_is_one_family_in_the_weight_of_the_mean_error(scores, targets, n):
    # point = Var(e) + mean(e) ** 2 and margin = 2 n / (n - 1) Var(e), e = s - t.
    where = np.arange(5) < n
    errors = (np.float64(scores) - targets)[where]
    arrays = jnp.float32(scores), jnp.float32(targets)
    point = distillation.point_mse(*arrays, where=jnp.array(where)).mean()
    margin = distillation.margin_mse(*arrays, where=jnp.array(where)).mean()
    _close(float(point), errors.var() + errors.mean() ** 2, 1e-4)
    _close(float(margin), 2 * n / (n - 1) * errors.var(), 1e-4)


def test_a_drawn_pair_is_uniform_over_the_lower_documents():
    labels, where = jnp.array([2.0, 0.0, 1.0, 0.0, 3.0]), jnp.ones(5, bool)
    pairs = margins.by_label(labels, where.at[4].set(False))
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(jax.vmap(lambda key: margins.drawn(pairs, key))(keys))
    assert (drawn.sum(-1) == [1, 0, 1, 0, 0]).all()
    assert not drawn[:, ~np.asarray(pairs)].any()
    _close(drawn[:, 0].mean(0), [0, 1 / 3, 1 / 3, 1 / 3, 0], 0.03)
    _close(drawn[:, 2].mean(0), [0, 1 / 2, 0, 1 / 2, 0], 0.03)


def test_a_gap_counts_whatever_the_scale_of_the_teacher():
    scores, targets, labels, where = _batch()

    def mean(factor):
        pairs = margins.by_gap(margins.by_label(labels, where), factor * targets, where)
        loss = distillation.margin_mse(scores, targets, where=where, pairs=pairs)
        return float(loss.mean())

    _close(mean(1.0), mean(100.0))


def test_margin_mse_is_the_mean_over_references():
    scores, targets, _, _ = _batch()
    where = jnp.ones(scores.shape, bool)
    means = [
        distillation.margin_mse_reference(
            scores, targets, where=where, reference=jnp.full(3, r)
        ).mean()
        for r in range(5)
    ]
    whole = distillation.margin_mse(scores, targets, where=where)
    _close(float(np.mean(means)), float(whole.mean()))


def test_a_reference_that_is_no_document_weighs_nothing():
    scores, targets, _, _ = _batch()
    where = jnp.ones(scores.shape, bool).at[:, 2].set(False)
    for wrong in (2, 5, -1):
        result = distillation.margin_mse_reference(
            scores, targets, where=where, reference=jnp.full(3, wrong)
        )
        assert float(result.weight) == float(result.total) == 0


def test_a_reference_needs_the_shape_of_the_batch():
    scores, targets, _, where = _batch()
    with pytest.raises(AssertionError):
        distillation.margin_mse_reference(
            scores, targets, where=where, reference=jnp.zeros((3, 1), int)
        )


def test_the_teacher_only_gives_the_order():
    scores, targets, _, where = _batch()
    for loss in (distillation.ranknet_on_teacher_order, distillation.adr_mse):
        a = loss(scores, targets, where=where)
        b = loss(scores, jnp.exp(3 * targets), where=where)
        _close(float(a.total), float(b.total))


def test_a_temperature_above_one_keeps_the_size_of_the_gradient():
    # Hinton et al., 2015, section 2.1: in the limit it is the squared margin's.
    scores, targets, _, _ = _batch()
    where = jnp.ones(scores.shape, bool)
    hot = partial(distillation.listwise_kl, temperature=1000.0)
    kl = jax.jit(jax.grad(lambda s: hot(s, targets, where=where).total))(scores)
    centred = (scores - targets) - (scores - targets).mean(-1, keepdims=True)
    _close(kl, centred / 5, 1e-3)


# --- standardise ---


def test_standardise():
    targets = jnp.array([[1.0, 3.0, 100.0], [5.0, 5.0, 5.0], [7.0, 0.0, 0.0]])
    where = jnp.array([[True, True, False], [True] * 3, [True, False, False]])
    result = distillation.standardise(targets, where=where)
    _close(result, [[-1, 1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e4])
def test_standardise_equals_numpy_at_any_scale(scale, offset):
    generator = np.random.default_rng(0)
    targets = np.float32((generator.normal(size=(4, 7)) + offset) * scale)
    where = generator.random((4, 7)) < 0.7
    where[:, :2] = True
    result = distillation.standardise(jnp.array(targets), where=jnp.array(where))
    for row, t, w in zip(np.asarray(result), np.float64(targets), where, strict=True):
        assert not row[~w].any()
        _close(row[w], (t[w] - t[w].mean()) / t[w].std(), 1e-4)


@pytest.mark.parametrize("constant", [0.1, -3.3e-7, 12345.678, 1e30])
def test_standardise_of_a_constant_list_is_exactly_zero(constant):
    # A mean of equal float32 numbers is not always that number.
    targets = jnp.full((2, 7), constant, jnp.float32)
    where = jnp.ones((2, 7), bool).at[0, 3:].set(False)
    assert not np.asarray(distillation.standardise(targets, where=where)).any()


def test_standardise_with_masked_rubbish():
    targets = jnp.array([[1.0, 3.0, jnp.nan], [jnp.inf, jnp.nan, 2.0]])
    where = jnp.array([[True, True, False], [False, False, False]])
    result = distillation.standardise(targets, where=where)
    _close(result, [[-1, 1, 0], [0, 0, 0]])


def test_standardise_leaves_a_list_narrow_that_the_teacher_finds_indifferent():
    targets = jnp.array([[0.5, 0.500001, 0.5], [0.0, 3.0, 6.0]])
    where = jnp.ones((2, 3), bool)
    alike, apart = np.asarray(
        jax.jit(distillation.standardise)(targets, where=where, data_std=2.0)
    )
    _close(apart, (np.arange(3) * 3 - 3) / np.std([0, 3, 6]))
    expected = np.float64(np.float32([0.5, 0.500001, 0.5]))
    _close(alike, (expected - expected.mean()) / (0.1 * 2.0), 1e-8)
    assert 0 < np.abs(alike).max() < 1e-5
