"""Click models by expectation maximisation: who looks where, and what attracts.

All say P(click) = P(looked at) * P(attracts), the second by query and document. They
differ in who looks: in `pbm` it depends on the rank alone (Craswell et al., 2008), in
`ubm` on the rank and on that of the last click (Dupret and Piwowarski, 2008). In the
others the user reads from the top: until the first click in `cascade` (Craswell et al.,
2008), further with a chance by rank in `dcm` (Guo et al., 2009), and with one that
depends on how satisfying the result was in `dbn` (Chapelle and Zhang, 2009).

Chances that follow each other are kept as logarithms; every parameter has a Beta prior
(`Prior`), so that one seen once is not taken for certain.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

_TINY = 1e-9  # no chance is nearer to 0 or 1


@dataclass(frozen=True)
class ClickedPages:
    """Pages of up to K results."""

    pairs: Int[np.ndarray, "P K"]  # of query and document; -1 where there is no result
    clicks: Bool[np.ndarray, "P K"]
    num_pairs: int

    @property
    def real(self) -> Bool[np.ndarray, "P K"]:
        """Where there is a result."""
        return self.pairs >= 0


@dataclass(frozen=True)
class Prior:
    """Beta prior of every parameter, as trials seen before the data.

    Their share of successes is that of all parameters of the kind together (empirical
    Bayes): with a fixed one, pairs shown a few times would pull the looking chances.
    """

    trials: float = 2.0

    def mean(self, successes: Any, trials: Any) -> np.ndarray:
        """The posterior means, kept off 0 and 1."""
        successes, trials = np.asarray(successes, float), np.asarray(trials, float)
        share = (successes.sum() + 1) / (trials.sum() + 2)
        found = (successes + share * self.trials) / (trials + self.trials)
        return np.clip(found, _TINY, 1 - _TINY)


class ClickModel(Protocol):
    """A fitted model."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    @property
    def attraction(self) -> np.ndarray:
        """By pair, [num_pairs]."""
        ...

    def marginal(self, data: ClickedPages) -> Float[np.ndarray, "P K"]:
        """P(click) of each place, other clicks unknown."""
        ...

    def conditional(self, data: ClickedPages) -> Float[np.ndarray, "P K"]:
        """P(click) of each place, given the clicks above it."""
        ...

    def examination(self, data: ClickedPages) -> Float[np.ndarray, " K"]:
        """Mean chance that a rank is looked at."""
        ...

    def parameters(self) -> dict[str, Any]:
        """All but the attraction, for JSON."""
        ...


def _attraction(model: ClickModel, data: ClickedPages) -> np.ndarray:
    return np.where(data.real, model.attraction[np.maximum(data.pairs, 0)], 0.0)


def _sum_pairs(data: ClickedPages, values: np.ndarray) -> np.ndarray:
    """Sums over the places of each pair."""
    real = data.real
    return np.bincount(data.pairs[real], values[real], data.num_pairs)


# --- rank alone, or rank and last click ---


def _last_click(clicks: Bool[np.ndarray, "P K"]) -> Int[np.ndarray, "P K"]:
    """Rank (from 1) of the click above each place, 0 where there is none."""
    ranks = np.where(clicks, np.arange(1, clicks.shape[1] + 1), 0)
    seen = np.maximum.accumulate(ranks, axis=1)
    return np.concatenate([np.zeros((len(clicks), 1), np.int64), seen[:, :-1]], axis=1)


@dataclass(frozen=True)
class Positional:
    """`pbm` and `ubm`: looking depends on the rank (and on the last click)."""

    name: str
    attraction: np.ndarray
    look: Float[np.ndarray, "R K"]  # by last click (0 none; R = 1 in pbm) and rank

    def _index(self, clicks: np.ndarray) -> np.ndarray:
        ranks = np.arange(clicks.shape[1])
        if len(self.look) == 1:
            return np.broadcast_to(ranks, clicks.shape)
        return _last_click(clicks) * clicks.shape[1] + ranks

    def conditional(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        look = self.look.ravel()[self._index(data.clicks)]
        return _attraction(self, data) * look

    def _states(self, data: ClickedPages) -> tuple[np.ndarray, np.ndarray]:
        """Marginal chances of looking and of a click."""
        if len(self.look) == 1:
            look = np.broadcast_to(self.look, data.pairs.shape)
            return look, look * _attraction(self, data)
        attraction, (count, depth) = _attraction(self, data), data.pairs.shape
        state = np.zeros((count, depth + 1))  # of the last click so far
        state[:, 0] = 1
        looks, clicks = np.zeros((2, count, depth))
        for k in range(depth):
            click = state[:, : k + 1] * self.look[: k + 1, k] * attraction[:, k, None]
            looks[:, k] = state[:, : k + 1] @ self.look[: k + 1, k]
            clicks[:, k] = click.sum(1)
            state[:, : k + 1] -= click
            state[:, k + 1] = clicks[:, k]
        return looks, clicks

    def marginal(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        return self._states(data)[1]

    def examination(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        return _mean_by_rank(self._states(data)[0], data)

    def parameters(self) -> dict[str, Any]:
        """See `ClickModel`."""
        look = self.look[0] if len(self.look) == 1 else self.look
        return {"examination": look.tolist()}


def _mean_by_rank(values: np.ndarray, data: ClickedPages) -> np.ndarray:
    real = data.real
    return np.where(real, values, 0).sum(0) / np.maximum(real.sum(0), 1)


def _fit_positional(
    data: ClickedPages, name: str, prior: Prior, iterations: int, tolerance: float
) -> Positional:
    depth = data.pairs.shape[1]
    rows = 1 if name == "pbm" else depth + 1
    look = np.tile(1 / np.arange(1, depth + 1) ** 0.5, (rows, 1))
    model = Positional(name, np.full(data.num_pairs, 0.5), np.clip(look, 0.05, 0.95))
    index = model._index(data.clicks)
    real, clicked = data.real, data.clicks[data.real]
    places, pairs = index[real], data.pairs[real]
    trials_pair = np.bincount(pairs, minlength=data.num_pairs)
    trials_look = np.bincount(places, minlength=look.size)
    before = -math.inf
    for _ in range(iterations):
        a, g = model.attraction[pairs], model.look.ravel()[places]
        none = 1 - a * g
        attracted = np.where(clicked, 1.0, a * (1 - g) / none)
        looked = np.where(clicked, 1.0, g * (1 - a) / none)
        model = Positional(
            name,
            prior.mean(np.bincount(pairs, attracted, data.num_pairs), trials_pair),
            prior.mean(np.bincount(places, looked, look.size), trials_look).reshape(
                look.shape
            ),
        )
        now = float(np.log(np.where(clicked, a * g, none)).sum())
        if abs(now - before) <= tolerance * abs(now):
            break
        before = now
    # Only products are known: the first rank is taken to be always looked at.
    first = float(model.look[0, 0])
    attraction = np.clip(model.attraction * first, _TINY, 1 - _TINY)
    return Positional(name, attraction, model.look / first)


# --- reading from the top ---


@dataclass(frozen=True)
class Chain:
    """`cascade`, `dcm` and `dbn`: the user reads on, or stops for good."""

    name: str
    attraction: np.ndarray
    satisfaction: np.ndarray  # dbn: [num_pairs]
    after_click: np.ndarray  # dcm: [K]
    go_on: float  # dbn: chance of reading on when not satisfied

    def _steps(self, data: ClickedPages) -> tuple[np.ndarray, float]:
        """Chance of reading on after a click [P, K], and after none."""
        if self.name == "cascade":
            return np.full(data.pairs.shape, _TINY), 1 - _TINY
        if self.name == "dcm":
            return np.broadcast_to(self.after_click, data.pairs.shape), 1 - _TINY
        satisfied = self.satisfaction[np.maximum(data.pairs, 0)]
        return (1 - satisfied) * self.go_on, self.go_on

    def conditional(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        attraction, (after, on) = _attraction(self, data), self._steps(data)
        found, look = np.zeros(data.pairs.shape), np.ones(len(data.pairs))
        for k in range(data.pairs.shape[1]):
            a = attraction[:, k]
            found[:, k] = look * a
            unclicked = look * (1 - a) / np.maximum(1 - look * a, _TINY)
            look = np.where(data.clicks[:, k], after[:, k], unclicked * on)
        return found

    def _looks(self, data: ClickedPages) -> np.ndarray:
        attraction, (after, on) = _attraction(self, data), self._steps(data)
        looks = np.ones(data.pairs.shape)
        for k in range(data.pairs.shape[1] - 1):
            a = attraction[:, k]
            looks[:, k + 1] = looks[:, k] * (a * after[:, k] + (1 - a) * on)
        return looks

    def marginal(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        return self._looks(data) * _attraction(self, data)

    def examination(self, data: ClickedPages) -> np.ndarray:
        """See `ClickModel`."""
        return _mean_by_rank(self._looks(data), data)

    def parameters(self) -> dict[str, Any]:
        """See `ClickModel`."""
        if self.name == "dcm":
            return {"continuation_after_click": self.after_click.tolist()}
        return {"continuation": self.go_on} if self.name == "dbn" else {}


@dataclass(frozen=True)
class Posterior:
    """What is known of how far each user read, given all clicks."""

    looked: Float[np.ndarray, "P K"]  # chance of having looked
    went_on: Float[np.ndarray, "P K"]  # of having looked at the next result too
    satisfied: Float[np.ndarray, "P K"]  # dbn: by a clicked result
    log_likelihood: float


def infer(model: Chain, data: ClickedPages) -> Posterior:
    """Down to the last click the user has read; below it, it is inferred."""
    real, clicks = data.real, data.clicks
    count, depth = data.pairs.shape
    attraction, (after, on) = _attraction(model, data), model._steps(data)
    a = np.clip(attraction, _TINY, 1 - _TINY)
    log_on, log_off = math.log(on), math.log(max(1 - on, _TINY))
    # log P(no click from k on | looked at k); no result means no click.
    quiet = np.zeros((count, depth + 1))
    for k in range(depth - 1, -1, -1):
        rest = np.logaddexp(log_on + quiet[:, k + 1], log_off)
        quiet[:, k] = np.where(real[:, k], np.log1p(-a[:, k]) + rest, 0.0)
    last = depth - 1 - np.argmax(clicks[:, ::-1], axis=1)
    last = np.where(clicks.any(1), last, -1)
    looked, went_on, satisfied = np.zeros((3, count, depth))
    total, look = 0.0, np.ones(count)
    for k in range(depth):
        above, at = last > k, last == k
        looked[:, k] = np.where(last >= k, 1.0, look) * real[:, k]
        log_after = np.log(np.maximum(after[:, k], _TINY))
        log_stop = np.log(np.maximum(1 - after[:, k], _TINY))
        end = np.logaddexp(log_after + quiet[:, k + 1], log_stop)
        below = np.logaddexp(log_on + quiet[:, k + 1], log_off)
        clicked_on = np.exp(log_after + quiet[:, k + 1] - end)
        quiet_on = np.exp(log_on + quiet[:, k + 1] - below)
        went_on[:, k] = np.where(above, 1.0, np.where(at, clicked_on, look * quiet_on))
        if model.name == "dbn":
            happy = model.satisfaction[np.maximum(data.pairs[:, k], 0)]
            satisfied[:, k] = np.where(at, happy / np.exp(end), 0.0)
        look = np.where(above, 1.0, went_on[:, k])
        # What is seen down to the last click; `end` closes it.
        log_a, log_no = np.log(a[:, k]), np.log1p(-a[:, k])
        seen = np.where(clicks[:, k], log_a, log_no)
        step = np.where(clicks[:, k], log_after, log_on)
        total += float((np.where(above, seen + step, 0.0) * real[:, k]).sum())
        total += float(np.where(at, log_a + end, 0.0).sum())
    total += float(quiet[last < 0, 0].sum())
    return Posterior(looked, went_on, satisfied, total)


def _fit_chain(
    data: ClickedPages, name: str, prior: Prior, iterations: int, tolerance: float
) -> Chain:
    depth = data.pairs.shape[1]
    if name == "cascade":  # what lies below the first click says nothing
        first = np.cumsum(data.clicks, axis=1) - data.clicks == 0
        shown = np.where(first, data.pairs, -1)
        data = ClickedPages(shown, data.clicks & first, data.num_pairs)
    model = Chain(
        name,
        np.full(data.num_pairs, 0.5),
        np.full(data.num_pairs, 0.5),
        np.full(depth, 0.5),
        0.8,
    )
    # Below the last result of a page there is nothing to read on to.
    has_next = np.zeros(data.pairs.shape, bool)
    has_next[:, :-1] = data.real[:, 1:] & data.real[:, :-1]
    clicks_pair = _sum_pairs(data, data.clicks.astype(np.float64))
    before = -math.inf
    for _ in range(iterations):
        read = infer(model, data)
        clicked = data.clicks & has_next
        updated: dict[str, Any] = {
            "attraction": prior.mean(clicks_pair, _sum_pairs(data, read.looked))
        }
        if name == "dcm":
            updated["after_click"] = prior.mean(
                (read.went_on * clicked).sum(0), clicked.sum(0)
            )
        if name == "dbn":
            updated["satisfaction"] = prior.mean(
                _sum_pairs(data, read.satisfied * clicked),
                _sum_pairs(data, clicked.astype(np.float64)),
            )
            trials = (read.looked - read.satisfied) * has_next
            updated["go_on"] = float(
                prior.mean((read.went_on * has_next).sum(), trials.sum())
            )
        model = Chain(**{**vars(model), **updated})
        now = read.log_likelihood
        if abs(now - before) <= tolerance * abs(now):
            break
        before = now
    return model


_FITS: Mapping[str, Callable[..., ClickModel]] = {
    "pbm": _fit_positional,
    "ubm": _fit_positional,
    "cascade": _fit_chain,
    "dcm": _fit_chain,
    "dbn": _fit_chain,
}
MODELS = tuple(_FITS)


def fit_clicks(
    data: ClickedPages,
    name: str,
    *,
    prior: Prior | None = None,
    iterations: int = 200,
    tolerance: float = 1e-8,
) -> ClickModel:
    """Fits one of `MODELS` by expectation maximisation.

    Args:
      data: pages with their clicks.
      name: of the model.
      prior: of every parameter.
      iterations: at most so many.
      tolerance: relative gain of the log-likelihood at which it is enough.

    Raises:
      ValueError: for a name that is none.
    """
    if name not in _FITS:
        raise ValueError(f"no click model {name!r}; there are {', '.join(MODELS)}")
    return _FITS[name](data, name, prior or Prior(), iterations, tolerance)


def perplexity(
    chances: Float[np.ndarray, "P K"], data: ClickedPages
) -> tuple[float, Float[np.ndarray, " K"]]:
    """2 to the mean surprise in bits, over all places and by rank; 1 is best, 2 a coin.

    Args:
      chances: of a click at each place, marginal or conditional.
      data: what happened.

    >>> one = ClickedPages(np.zeros((1, 2), int), np.array([[True, False]]), 1)
    >>> perplexity(np.array([[0.5, 0.5]]), one)[0]
    2.0
    """
    p = np.clip(chances, 1e-6, 1 - 1e-6)
    bits = np.where(data.real, -np.log2(np.where(data.clicks, p, 1 - p)), 0.0)
    by_rank = 2 ** (bits.sum(0) / np.maximum(data.real.sum(0), 1))
    return float(2 ** (bits.sum() / max(data.real.sum(), 1))), by_rank


def propensities(model: ClickModel, data: ClickedPages) -> Float[np.ndarray, " K"]:
    """Chance of being looked at by rank, the first rank's being 1."""
    found = model.examination(data)
    return found / found[0]
