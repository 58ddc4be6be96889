"""The step's gradient is that of the whole batch, however it is cut."""

import helpers
import jax
import numpy as np
import pytest

from ranker import config
from ranker.batch import PackedBatch
from ranker.training import objectives


def cut(batch, parts):
    """The same batch as `parts` micro-batches."""

    def reshape(x):
        return x.reshape((parts, x.shape[1] // parts, *x.shape[2:]))

    pieces = jax.tree.map(reshape, batch)
    rows = pieces.rows.tokens.shape[1]
    first = np.arange(parts)[:, None, None] * rows * helpers.T
    return PackedBatch(
        **{
            **{name: getattr(pieces, name) for name in vars(batch)},
            "score_index": (pieces.score_index - first).astype(np.int32),
        }
    )


@pytest.mark.parametrize("name", helpers.OBJECTIVES)
def test_accumulation_changes_nothing(name):
    """Lists are uneven: a mean of micro-batch means would be another number."""
    settings, objective = helpers.OBJECTIVES[name]
    batch = helpers.batch_of()
    params, metrics = helpers.train(settings, objective, "one", [batch])
    others, values = helpers.train(settings, objective, "one", [cut(batch, 4)])
    for key in metrics[0]:
        np.testing.assert_allclose(
            metrics[0][key], values[0][key], rtol=1e-4, err_msg=key
        )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_hybrid_is_the_weighted_sum_of_its_terms():
    batch = jax.tree.map(lambda x: x[0], helpers.batch_of())
    scores = np.float32(np.random.default_rng(0).normal(size=batch.labels.shape))

    class Fixed:
        def __call__(self, *_, **__):
            return scores

    def loss(alpha, beta):
        made = objectives.make_objective(
            config.Distillation(alpha=alpha, beta=beta, target_scale="raw"), groups=1
        )
        parts = made.parts(Fixed(), batch, None)
        return sum(
            made.coefficients[name] * part.mean() for name, part in parts.items()
        )

    point, margin = float(loss(1, 0)), float(loss(0, 1))
    np.testing.assert_allclose(
        float(loss(0.3, 0.7)), 0.3 * point + 0.7 * margin, rtol=1e-5
    )
    made = objectives.make_objective(config.Distillation(beta=0), groups=1)
    assert set(made.coefficients) == {"point_mse", "collapsed"}


@pytest.mark.parametrize("loss", ["softmax", "ranknet", "hinge"])
def test_every_rank_loss_learns(loss):
    objective = config.Rank(loss=(loss,))
    batch = helpers.batch_of()
    _, metrics = helpers.train(helpers.DECODER, objective, "one", [batch] * 8)
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def test_weight_decay_spares_norms_and_biases():
    from flax import nnx

    from ranker.training.optim import decay_mask

    for settings in (helpers.DECODER, helpers.ENCODER, helpers.BIASED):
        network = helpers.network_of(settings, "one")
        mask = {
            ".".join(map(str, path)): leaf.get_value()
            for path, leaf in nnx.to_flat_state(decay_mask(network.abstract))
        }
        assert mask["body.layers.q"] and mask["body.embedding"]
        spared = ("norm", "bias", "distances")
        assert not any(v for k, v in mask.items() if any(one in k for one in spared))
