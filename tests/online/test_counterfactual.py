"""Counterfactual estimates against a logger whose chances are known."""

import itertools

import numpy as np
import pytest

from ranker.online import counterfactual as cf
from ranker.online.results import Shown

QUERIES, DOCUMENTS, DEPTH = 5, 4, 3
ORDERS = np.array(list(itertools.permutations(range(DOCUMENTS))))
LOOK = np.array([1.0, 0.6, 0.4])
_planted = np.random.default_rng(1)
ATTRACTION = _planted.uniform(0.1, 0.8, (QUERIES, DOCUMENTS))
POLICY = _planted.dirichlet(np.full(len(ORDERS), 2.0), QUERIES)
TARGET = {q: np.argsort(-ATTRACTION[q]) for q in range(QUERIES)}
RUN = {f"q{q}": [f"d{d}" for d in order] for q, order in TARGET.items()}
TRUTH = float(
    np.mean([(ATTRACTION[q, TARGET[q][:DEPTH]] * LOOK).sum() for q in TARGET])
)


def _propensity():
    chance = np.zeros((QUERIES, DOCUMENTS, DEPTH))
    for q, d, k in np.ndindex(chance.shape):
        chance[q, d, k] = POLICY[q][ORDERS[:, k] == d].sum()
    return chance


def _log(seed, pages=1500):
    r = np.random.default_rng(seed)
    q = r.integers(0, QUERIES, pages)
    order = (r.random(pages)[:, None] > np.cumsum(POLICY, axis=1)[q]).sum(1)
    shown = ORDERS[order][:, :DEPTH]
    return Shown(
        (q[:, None] * DOCUMENTS + shown).astype(np.int32),
        r.random(shown.shape) < ATTRACTION[q[:, None], shown] * LOOK,
        _propensity()[q[:, None], shown, np.arange(DEPTH)],
        r.integers(0, 400, pages).astype(np.uint64),
        q,
        [f"q{one}" for one in range(QUERIES)],
        np.repeat(np.arange(QUERIES), DOCUMENTS),
        [f"d{one}" for one in range(DOCUMENTS)] * QUERIES,
    )


@pytest.fixture(scope="module")
def estimates():
    return [cf.estimate(_log(seed), RUN) for seed in range(200)]


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_estimates_are_unbiased_and_as_sure_as_they_say(estimates, name):
    values = np.array([one[name]["value"] for one in estimates])
    assert abs(values.mean() - TRUTH) < 3 * values.std() / len(values) ** 0.5
    said = np.mean([one[name]["standard_error"] for one in estimates])
    assert said == pytest.approx(values.std(ddof=1), rel=0.15)
    ends = [one[name]["interval"] for one in estimates]
    covered = np.mean([low < TRUTH < high for low, high in ends])
    assert 0.9 < covered < 0.985


@pytest.mark.slow
def test_a_thousand_logs_have_no_bias():
    found = [cf.estimate(_log(seed, 700), RUN) for seed in range(1000, 2000)]
    for name in ("ips", "dr"):
        values = np.array([one[name]["value"] for one in found])
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - TRUTH) < 3 * error, (name, values.mean(), error)
        assert error < 0.01 * TRUTH  # a bias of three per cent would be seen


def test_the_logger_itself_is_not_the_truth(estimates):
    logged = np.mean([one["logged"]["value"] for one in estimates])
    assert abs(logged - TRUTH) > 0.05


def test_doubly_robust_and_snips_vary_less(estimates):
    spread = {
        name: np.std([one[name]["value"] for one in estimates])
        for name in ("ips", "snips", "dr")
    }
    assert spread["dr"] < spread["ips"] and spread["snips"] < spread["ips"]


def test_clipping_takes_off_weight():
    one = cf.estimate(_log(0), RUN, clip=2.0)
    assert one["clipped"]["value"] < one["ips"]["value"]
    same = cf.estimate(_log(0), RUN, clip=1e6)
    assert same["clipped"] == same["ips"]


def test_by_looking_chances():
    """Whole pages shuffled evenly: clicks are moved by the ratio of the looks."""
    r = np.random.default_rng(0)
    pages = 20_000
    shown = np.argsort(r.random((pages, DEPTH)), axis=1)
    zeros = np.zeros(pages, int)
    log = Shown(
        shown.astype(np.int32),
        r.random(shown.shape) < ATTRACTION[0, shown] * LOOK,
        np.full(shown.shape, np.nan),
        np.arange(pages, dtype=np.uint64),
        zeros,
        ["q"],
        np.zeros(DEPTH, int),
        ["d0", "d1", "d2"],
    )
    order = [2, 0, 1]
    truth = (ATTRACTION[0, order] * LOOK).sum()
    found = cf.estimate(log, {"q": [f"d{d}" for d in order]}, looks=LOOK.tolist())
    assert found["ips"]["value"] == pytest.approx(
        truth, abs=4 * found["ips"]["standard_error"]
    )
    assert found["coverage"] == 1.0 and "dr" not in found


def test_effective_size():
    assert cf.effective_size(np.array([[1.0, 1.0], [0.0, 2.0]])) == pytest.approx(
        16 / 6
    )
    assert cf.effective_size(np.zeros((2, 2))) == 0.0
