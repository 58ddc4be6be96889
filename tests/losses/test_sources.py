"""Values and gradients against rax, sentence-transformers and torch."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
import torch
from sentence_transformers.cross_encoder import CrossEncoder, losses

from ranker.losses import distillation, listwise, pairwise, pointwise, schemes

SHAPE = (4, 6)


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def _batch(*, ties=True):
    """Scores, teacher scores, labels and mask; every list has an ordered pair."""
    generator = np.random.default_rng(0)
    scores, targets = np.float32(generator.normal(size=(2, *SHAPE)))
    labels = generator.integers(0, 4, SHAPE)
    if not ties:
        labels = np.argsort(generator.random(SHAPE), axis=1)
    where = generator.random(SHAPE) < 0.8
    where[:, :2] = True
    labels[:, 0], labels[:, 1] = 7, 1
    return scores, targets, np.float32(labels), where


def _ours(loss, scores, second, where, **options):
    def total(s):
        result = loss(s, jnp.array(second), where=jnp.array(where), **options)
        return result.total, result.weight

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, weight), slope = run(jnp.array(scores))
    return float(value), float(weight), np.asarray(slope)


# --- rax ---


def _rax(loss, scores, labels, where):
    def total(s):
        return loss(s, jnp.array(labels), where=jnp.array(where), reduce_fn=jnp.sum)

    value, slope = jax.jit(jax.value_and_grad(total))(jnp.array(scores))
    return float(value), np.asarray(slope)


def _lambda_ndcg(*args, **kwargs):
    weights = rax.dcg_lambdaweight(*args, **kwargs, normalize=True)
    return weights / SHAPE[1]  # rax multiplies by the length of the list


def _normalised_softmax(scores, labels, *, where, **kwargs):
    shares = labels / jnp.sum(labels, where=where, axis=-1, keepdims=True)
    return rax.softmax_loss(scores, shares, where=where, **kwargs)


RAX = {
    "mse": (pointwise.mse, rax.pointwise_mse_loss),
    "sigmoid": (
        lambda s, y, **kw: pointwise.sigmoid_cross_entropy(s, y, highest=7.0, **kw),
        lambda s, y, **kw: rax.pointwise_sigmoid_loss(s, y / 7, **kw),
    ),
    "ranknet": (pairwise.ranknet, rax.pairwise_logistic_loss),
    "ranknet, grades": (
        lambda s, y, **kw: pairwise.ranknet(
            s, y, pair_weights=pairwise.grade_difference, **kw
        ),
        lambda s, y, **kw: rax.pairwise_logistic_loss(
            s, y, lambdaweight_fn=rax.labeldiff_lambdaweight, **kw
        ),
    ),
    "ranknet, NDCG": (
        lambda s, y, **kw: pairwise.ranknet(
            s, y, pair_weights=pairwise.delta_ndcg, **kw
        ),
        lambda s, y, **kw: rax.pairwise_logistic_loss(
            s, y, lambdaweight_fn=_lambda_ndcg, **kw
        ),
    ),
    "hinge": (pairwise.hinge, rax.pairwise_hinge_loss),
    "softmax": (listwise.softmax, _normalised_softmax),
    "point_mse": (distillation.point_mse, rax.pointwise_mse_loss),
    "ranknet on teacher": (
        distillation.ranknet_on_teacher_order,
        rax.pairwise_logistic_loss,
    ),
    # rax counts each pair in both orders.
    "margin_mse": (
        distillation.margin_mse,
        lambda s, t, **kw: rax.pairwise_mse_loss(s, t, **kw) / 2,
    ),
}


@pytest.mark.parametrize("name", RAX)
def test_equals_rax(name):
    ours, theirs = RAX[name]
    scores, _, labels, where = _batch()
    value, _, slope = _ours(ours, scores, labels, where)
    expected, gradient = _rax(theirs, scores, labels, where)
    _close(value, expected)
    _close(slope, gradient)


def test_list_mle_without_ties_equals_rax():
    scores, _, labels, where = _batch(ties=False)
    labels[:, 0] = 9
    labels[:, 1] = 0.5
    value, _, slope = _ours(listwise.list_mle, scores, labels, where)
    expected, gradient = _rax(rax.listmle_loss, scores, labels, where)
    _close(value, expected)
    _close(slope, gradient)


def test_approx_ndcg_equals_rax(monkeypatch):
    # rax 0.4 needs a function that jax has dropped; it only copies a docstring.
    shim = types.SimpleNamespace(wraps=lambda *args, **kwargs: lambda f: f)
    monkeypatch.setattr(jax, "util", shim, raising=False)
    theirs = rax.approx_t12n(rax.ndcg_metric, temperature=0.3)
    scores, _, labels, where = _batch()
    value, weight, slope = _ours(
        listwise.approx_ndcg, scores, labels, where, temperature=0.3
    )
    expected, gradient = _rax(theirs, scores, labels, where)
    _close(value, expected + weight)
    _close(slope, gradient)


# --- sentence-transformers ---


class Given(CrossEncoder):
    """A cross-encoder whose "text" is the place of a score that it is given."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        torch.nn.Module.__init__(self)
        self.scores = torch.nn.Parameter(torch.tensor(scores))

    def preprocess(self, pairs, **kwargs):
        return {"places": torch.tensor([[int(q), int(d)] for q, d in pairs])}

    def forward(self, features):
        rows, columns = features["places"].T
        return {"scores": self.scores[rows, columns]}


def _theirs(make, scores, labels, where):
    """Value and gradient of a list loss over the real documents."""
    model = Given(scores)
    queries = [str(row) for row in range(len(scores))]
    documents = [[str(d) for d in np.flatnonzero(w)] for w in where]
    values = [torch.tensor(y[w]) for y, w in zip(labels, where, strict=True)]
    loss = make(model)((queries, documents), values)
    loss.backward()
    return float(loss.detach()), model.scores.grad.numpy()


LISTS = {
    "list_net": (listwise.list_net, losses.ListNetLoss),
    "list_mle": (
        listwise.list_mle,
        lambda m: losses.ListMLELoss(m, respect_input_order=False),
    ),
    "position_aware_list_mle": (
        listwise.position_aware_list_mle,
        lambda m: losses.PListMLELoss(m, respect_input_order=False),
    ),
    "lambda_loss": (listwise.lambda_loss, losses.LambdaLoss),
    "ranknet": (pairwise.ranknet, losses.RankNetLoss),
    "adr_mse": (distillation.adr_mse, losses.ADRMSELoss),
}


def _ordered(labels, where):
    higher = labels[:, :, None] > labels[:, None, :]
    return (higher & where[:, :, None] & where[:, None, :]).sum()


@pytest.mark.parametrize("name", LISTS)
def test_equals_sentence_transformers(name):
    ours, make = LISTS[name]
    scores, _, labels, where = _batch(
        ties=name in ("list_net", "lambda_loss", "ranknet", "adr_mse")
    )
    if name.endswith("list_mle"):  # theirs has no rule for ties
        labels[:, 0], labels[:, 1] = 9, 0.5
    value, weight, slope = _ours(ours, scores, labels, where)
    expected, gradient = _theirs(make, scores, labels, where)
    # Ours is a sum over documents, pairs or lists; theirs a mean, of these:
    items = weight
    if name == "lambda_loss":
        items = _ordered(labels, where)
    if name == "ranknet":
        items = _ordered(labels, where) * np.log(2)  # theirs is in bits
    _close(value, expected * items)
    _close(slope, gradient * items)


SCHEMES = {
    "ndcg_loss_1": (schemes.ndcg_loss_1, losses.NDCGLoss1Scheme()),
    "lambda_rank": (schemes.lambda_rank, losses.LambdaRankScheme()),
    "ndcg_loss_2": (schemes.ndcg_loss_2, losses.NDCGLoss2Scheme()),
    "ndcg_loss_2pp": (
        partial(schemes.ndcg_loss_2pp, mu=3.0),
        losses.NDCGLoss2PPScheme(mu=3.0),
    ),
}


@pytest.mark.parametrize(("cutoff", "sigma"), [(0, 1.0), (2, 0.5)])
@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_of_lambda_loss_equal_sentence_transformers(name, cutoff, sigma):
    ours, theirs = SCHEMES[name]
    scores, _, labels, where = _batch()
    value, weight, slope = _ours(
        listwise.lambda_loss,
        scores,
        labels,
        where,
        scheme=lambda gains, ranks, mu: ours(gains, ranks, mu=3.0),
        sigma=sigma,
        cutoff=cutoff,
    )
    expected, gradient = _theirs(
        lambda m: losses.LambdaLoss(m, theirs, k=cutoff or None, sigma=sigma),
        scores,
        labels,
        where,
    )
    # Theirs is a mean over pairs; the first scheme counts i = j there, a constant.
    place = np.where(where, scores, -np.inf).argsort(1)[:, ::-1].argsort(1)
    high = place < (cutoff or scores.shape[1])
    pairs = (high[:, :, None] | high[:, None, :]) & where[:, :, None] & where[:, None]
    constant = 0.0
    if name == "ndcg_loss_1":
        items = pairs.sum()
        y = np.where(where, labels, 0)
        best = np.sort(2.0**y - 1)[:, ::-1] / np.log2(2 + np.arange(y.shape[1]))
        ideal = best[:, : cutoff or None].sum(1, keepdims=True)
        constant = np.sum(((2.0**y - 1) / ideal / np.log2(2 + place))[high])
    else:
        items = (pairs & (labels[:, :, None] > labels[:, None, :])).sum()
    _close(value + constant, expected * items)
    _close(slope, gradient * items)
    assert weight == len(scores)


def _their_margins(scores, targets, place):
    """Margin MSE of the document at `place` to all others of its list."""
    model = Given(scores)
    queries = [str(row) for row in range(len(scores))]
    columns = [place, *(d for d in range(scores.shape[1]) if d != place)]
    texts = [[str(column)] * len(scores) for column in columns]
    loss = losses.MarginMSELoss(model)(
        [queries, *texts], torch.tensor(targets[:, columns])
    )
    loss.backward()
    return float(loss.detach()), model.scores.grad.numpy()


def test_margin_mse_to_one_document_equals_sentence_transformers():
    scores, targets, _, _ = _batch()
    where = np.ones(SHAPE, bool)
    expected, gradient = _their_margins(scores, targets, 2)
    value, weight, slope = _ours(
        distillation.margin_mse_reference,
        scores,
        targets,
        where,
        reference=jnp.full(SHAPE[0], 2),
    )
    _close(value / weight, expected)
    _close(slope / weight, gradient)
    # The same pairs, chosen by labels: document 2 is the one relevant of each list.
    labels = jnp.zeros(SHAPE).at[:, 2].set(1.0)
    value, weight, slope = _ours(
        distillation.margin_mse_positive_negative, scores, targets, where, labels=labels
    )
    _close(value / weight, expected)
    _close(slope / weight, gradient)


# --- torch ---


def _torch(loss, scores):
    s = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    total = loss(s)
    total.backward()
    return float(total.detach()), s.grad.numpy()


def test_ordinal_equals_one_logistic_regression_a_threshold():
    scores, _, labels, where = _batch()
    thresholds = (-1.0, 0.5, 2.0)

    def loss(s):
        return sum(
            torch.nn.functional.binary_cross_entropy_with_logits(
                s[where] - threshold,
                torch.tensor(labels >= grade, dtype=torch.float64)[where],
                reduction="sum",
            )
            for grade, threshold in enumerate(thresholds, start=1)
        )

    expected, gradient = _torch(loss, scores)
    value, weight, slope = _ours(
        pointwise.ordinal, scores, labels, where, thresholds=thresholds
    )
    _close(value, expected)
    _close(slope, gradient)
    assert weight == where.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_listwise_kl_equals_torch(temperature):
    scores, targets, _, where = _batch()
    t = torch.tensor(targets, dtype=torch.float64)

    def loss(s):
        return sum(
            torch.nn.functional.kl_div(
                torch.log_softmax(s[i][w] / temperature, -1),
                torch.log_softmax(t[i][w] / temperature, -1),
                reduction="sum",
                log_target=True,
            )
            * temperature**2
            for i, w in enumerate(torch.tensor(where))
        )

    expected, gradient = _torch(loss, scores)
    value, weight, slope = _ours(
        distillation.listwise_kl, scores, targets, where, temperature=temperature
    )
    _close(value, expected)
    _close(slope, gradient)
    assert weight == SHAPE[0]


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_softmax_losses_with_a_temperature_equal_torch(temperature):
    scores, _, labels, where = _batch()
    y = torch.tensor(labels, dtype=torch.float64)

    def cross_entropy(shares):
        def loss(s):
            rows = [(s[i][w], y[i][w]) for i, w in enumerate(torch.tensor(where))]
            return sum(
                torch.nn.functional.cross_entropy(one / temperature, shares(labels))
                for one, labels in rows
            )

        return loss

    for ours, shares in (
        (listwise.softmax, lambda y: y / y.sum()),
        (listwise.list_net, lambda y: torch.softmax(y, -1)),
    ):
        expected, gradient = _torch(cross_entropy(shares), scores)
        value, _, slope = _ours(ours, scores, labels, where, temperature=temperature)
        _close(value, expected)
        _close(slope, gradient)


def test_info_nce_equals_torch():
    scores, _, labels, where = _batch()
    labels[0, 2:] = 7  # several positives, and one negative

    def loss(s):
        total = 0.0
        for i, w in enumerate(torch.tensor(where)):
            y, one = torch.tensor(labels[i])[w], s[i][w] / 0.3
            rows = [torch.cat([p[None], one[y < 2]]) for p in one[y >= 2]]
            first = torch.zeros(len(rows), dtype=torch.long)
            total += torch.nn.functional.cross_entropy(torch.stack(rows), first)
        return total

    expected, gradient = _torch(loss, scores)
    value, weight, slope = _ours(
        listwise.info_nce, scores, labels, where, relevance=2.0, temperature=0.3
    )
    _close(value, expected)
    _close(slope, gradient)
    assert weight == SHAPE[0]


def test_soft_cross_entropy_equals_torch():
    scores, targets, _, where = _batch()
    soft = torch.sigmoid(torch.tensor(targets, dtype=torch.float64))

    def loss(s):
        return torch.nn.functional.binary_cross_entropy_with_logits(
            s[where], soft[where], reduction="sum"
        )

    expected, gradient = _torch(loss, scores)
    value, weight, slope = _ours(
        distillation.soft_cross_entropy, scores, soft.numpy(), where
    )
    _close(value, expected)
    _close(slope, gradient)
    assert weight == where.sum()
