"""Click models: planted parameters come back; chances by enumerating all users."""

import itertools

import numpy as np
import pytest

from ranker.online import clickmodels as cm

PAIRS, DEPTH = 12, 4
_planted = np.random.default_rng(99)
ATTRACTION = _planted.uniform(0.15, 0.7, PAIRS)
SATISFACTION = _planted.uniform(0.2, 0.8, PAIRS)
LOOK = 1 / np.arange(1, DEPTH + 1) ** 0.7
# UBM's, by last click and rank; the first is 1, as only products are known.
LOOK_AFTER = _planted.uniform(0.4, 0.9, (DEPTH + 1, DEPTH))
LOOK_AFTER[0, 0] = 1.0
GO_ON = np.array([0.8, 0.5, 0.6, 0.5])
CONTINUE = 0.85


def _model(name):
    if name in ("pbm", "ubm"):
        return cm.Positional(
            name, ATTRACTION, LOOK[None] if name == "pbm" else LOOK_AFTER
        )
    return cm.Chain(name, ATTRACTION, SATISFACTION, GO_ON, CONTINUE)


def _draw(name, pages, seed):
    """Users simulated one choice after the other, apart from the models' code."""
    r = np.random.default_rng(seed)
    pairs = np.argsort(r.random((pages, PAIRS)), axis=1)[:, :DEPTH]
    clicks = np.zeros((pages, DEPTH), bool)
    reads, last = np.ones(pages, bool), np.zeros(pages, int)
    for k in range(DEPTH):
        likes = r.random(pages) < ATTRACTION[pairs[:, k]]
        if name == "pbm":
            clicks[:, k] = likes & (r.random(pages) < LOOK[k])
        elif name == "ubm":
            clicks[:, k] = likes & (r.random(pages) < LOOK_AFTER[last, k])
            last = np.where(clicks[:, k], k + 1, last)
        else:
            clicks[:, k] = likes & reads
            if name == "cascade":
                reads &= ~clicks[:, k]
            elif name == "dcm":
                reads &= ~clicks[:, k] | (r.random(pages) < GO_ON[k])
            else:
                happy = r.random(pages) < SATISFACTION[pairs[:, k]]
                reads &= ~(clicks[:, k] & happy) & (r.random(pages) < CONTINUE)
    return cm.ClickedPages(pairs.astype(np.int32), clicks, PAIRS)


def _parameters(model):
    found = [model.attraction]
    if model.name == "pbm":
        found.append(model.look[0, 1:])
    if model.name == "ubm":
        found.append(np.array([model.look[r, k] for r, k in _places()]))
    if model.name == "dcm":
        found.append(model.after_click[: DEPTH - 1])
    if model.name == "dbn":
        found += [model.satisfaction, [model.go_on]]
    return np.concatenate(found)


def _places():
    """(last click, rank) that can be."""
    return [(r, k) for k in range(1, DEPTH) for r in range(k + 1)]


@pytest.mark.parametrize("name", cm.MODELS)
def test_planted_parameters_come_back_within_three_standard_errors(name):
    weak = cm.Prior(1e-3)
    runs = [
        cm.fit_clicks(_draw(name, 4000, seed), name, prior=weak) for seed in range(24)
    ]
    found = np.array([_parameters(one) for one in runs])
    error = found.std(0, ddof=1) / len(found) ** 0.5
    planted = _parameters(_model(name))
    t = np.abs(found.mean(0) - planted) / error
    # Of 21 parameters one may pass 3 by chance; none does so by far.
    assert (t < 3).sum() >= len(t) - 1 and t.max() < 4.5, (name, t)
    single = np.abs(found - planted) / found.std(0, ddof=1)
    assert np.mean(single < 3) > 0.985


@pytest.mark.parametrize("name", cm.MODELS)
def test_chances_add_up_over_all_clicks(name):
    """Products of conditional chances sum to 1, and give the marginal ones."""
    model = _model(name)
    pairs = np.array([[3, 1, 7, 5]], np.int32)
    total, marginal = 0.0, np.zeros(DEPTH)
    for clicks in itertools.product([False, True], repeat=DEPTH):
        data = cm.ClickedPages(pairs, np.array([clicks]), PAIRS)
        p = model.conditional(data)[0]
        chance = np.prod(np.where(clicks, p, 1 - p))
        total += chance
        marginal += chance * np.array(clicks)
    assert total == pytest.approx(1)
    np.testing.assert_allclose(model.marginal(data)[0], marginal, atol=1e-7)


@pytest.mark.parametrize("name", ["dcm", "dbn"])
def test_the_likelihood_is_that_of_the_conditional_chances(name):
    model, data = _model(name), _draw(name, 300, 0)
    p = np.clip(model.conditional(data), 1e-12, 1)
    expected = np.log(np.where(data.clicks, p, 1 - p)).sum()
    assert cm.infer(model, data).log_likelihood == pytest.approx(expected)


@pytest.mark.parametrize("name", cm.MODELS)
def test_the_right_model_fits_best(name):
    train, test = _draw(name, 4000, 0), _draw(name, 4000, 1)
    right = cm.perplexity(cm.fit_clicks(train, name).conditional(test), test)[0]
    truth = cm.perplexity(_model(name).conditional(test), test)[0]
    assert right == pytest.approx(truth, rel=5e-3)
    for other in cm.MODELS:
        model = cm.fit_clicks(train, other, tolerance=1e-5)
        assert cm.perplexity(model.conditional(test), test)[0] > right - 3e-3


def test_a_cascade_by_hand():
    """Closed form: clicks over times shown down to the first click."""
    data = cm.ClickedPages(
        np.array([[0, 1], [0, 1], [1, 0]], np.int32),
        np.array([[False, True], [True, False], [False, False]]),
        2,
    )
    model = cm.fit_clicks(data, "cascade", prior=cm.Prior(0.0))
    np.testing.assert_allclose(model.attraction, [1 / 3, 1 / 2], atol=1e-6)


def test_short_pages_and_unseen_pairs():
    data = _draw("dbn", 500, 0)
    short = cm.ClickedPages(
        np.where(np.arange(DEPTH) < 2, data.pairs, -1).astype(np.int32),
        data.clicks & (np.arange(DEPTH) < 2),
        PAIRS + 5,
    )
    for name in cm.MODELS:
        model = cm.fit_clicks(short, name, iterations=5)
        assert np.isfinite(model.attraction).all() and len(model.attraction) == 17
        assert (model.marginal(short)[:, 2:] == 0).all()
        assert np.isfinite(cm.perplexity(model.marginal(short), short)[0])
        assert cm.propensities(model, short)[0] == 1.0
    with pytest.raises(ValueError, match="pbm, ubm, cascade, dcm, dbn"):
        cm.fit_clicks(short, "ccm")
