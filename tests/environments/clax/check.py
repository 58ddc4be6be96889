"""Perplexity of held-out pages by clax-models and by ours: within 1 % at each rank.

Both fit the pages that users of the true model left: ours by expectation maximisation,
clax by gradient steps on the same likelihood.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clax.models import (
    DependentClickModel,
    DynamicBayesianNetwork,
    PositionBasedModel,
    UserBrowsingModel,
)
from flax import nnx

from ranker.online import clickmodels as ours

PAIRS, DEPTH, PAGES, STEPS = 40, 6, 6000, 600
TOLERANCE = 0.01

r = np.random.default_rng(7)
ATTRACTION = r.uniform(0.1, 0.8, PAIRS)
SATISFACTION = r.uniform(0.2, 0.8, PAIRS)
LOOK = 1 / np.arange(1, DEPTH + 1) ** 0.7
LOOK_AFTER = np.concatenate([LOOK[None], r.uniform(0.4, 0.9, (DEPTH, DEPTH))])
ON_AFTER_CLICK = r.uniform(0.4, 0.8, DEPTH)

THEIRS = {
    "pbm": lambda rngs: PositionBasedModel(DEPTH, PAIRS, rngs=rngs),
    "ubm": lambda rngs: UserBrowsingModel(DEPTH, PAIRS, rngs=rngs),
    # clax's own cascade takes the chance of a click given the clicks above for the one
    # given nothing; its DBN of users who are always satisfied is the cascade.
    "cascade": lambda rngs: DynamicBayesianNetwork(
        PAIRS, fix_continuation=True, rngs=rngs
    ),
    "dcm": lambda rngs: DependentClickModel(DEPTH, PAIRS, rngs=rngs),
    "dbn": lambda rngs: DynamicBayesianNetwork(PAIRS, rngs=rngs),
}


def draw(name: str, seed: int) -> ours.ClickedPages:
    """Pages of users who look and click by the model."""
    r = np.random.default_rng(seed)
    pairs = np.argsort(r.random((PAGES, PAIRS)), axis=1)[:, :DEPTH]
    clicks = np.zeros(pairs.shape, bool)
    reads, last = np.ones(PAGES, bool), np.zeros(PAGES, int)
    for k in range(DEPTH):
        likes = r.random(PAGES) < ATTRACTION[pairs[:, k]]
        chance = r.random(PAGES)
        if name in ("pbm", "ubm"):
            looks = LOOK[k] if name == "pbm" else LOOK_AFTER[last, k]
            clicks[:, k] = likes & (chance < looks)
            last = np.where(clicks[:, k], k + 1, last)
            continue
        clicks[:, k] = click = likes & reads
        if name == "cascade":
            reads &= ~click
        elif name == "dcm":
            reads &= ~click | (chance < ON_AFTER_CLICK[k])
        else:
            happy = click & (r.random(PAGES) < SATISFACTION[pairs[:, k]])
            reads &= ~happy & (chance < 0.85)
    return ours.ClickedPages(pairs.astype(np.int32), clicks, PAIRS)


def as_batch(data: ours.ClickedPages) -> dict[str, jax.Array]:
    """The same pages as clax reads them; id 0 is padding."""
    positions = np.broadcast_to(np.arange(1, DEPTH + 1), data.pairs.shape)
    return {
        "query_doc_ids": jnp.asarray(data.pairs + 1),
        "positions": jnp.asarray(positions),
        "clicks": jnp.asarray(data.clicks, jnp.int32),
        "mask": jnp.asarray(data.real),
    }


def fit_theirs(
    name: str, train: ours.ClickedPages, test: ours.ClickedPages
) -> list[np.ndarray]:
    """Marginal and conditional chances of a click in the pages of `test`."""
    graph, state, rest = nnx.split(THEIRS[name](nnx.Rngs(0)), nnx.Param, ...)
    batch, tx = as_batch(train), optax.adam(0.05)

    def loss(state):
        return nnx.merge(graph, state, rest).compute_loss(batch).mean()

    @jax.jit
    def run(state):
        def step(carry, _):
            state, moments = carry
            updates, moments = tx.update(jax.grad(loss)(state), moments)
            return (optax.apply_updates(state, updates), moments), None

        return jax.lax.scan(step, (state, tx.init(state)), length=STEPS)[0][0]

    model, pages = nnx.merge(graph, run(state), rest), as_batch(test)
    logs = model.predict_clicks(pages), model.predict_conditional_clicks(pages)
    return [np.exp(np.asarray(one, np.float64)) for one in logs]


def main() -> None:
    """Compares all five models."""
    worst = 0.0
    for name in ours.MODELS:
        train, test = draw(name, 0), draw(name, 1)
        model = ours.fit_clicks(train, name)
        chances = model.marginal(test), model.conditional(test)
        for kind, a, b in zip(
            ("marginal", "conditional"),
            chances,
            fit_theirs(name, train, test),
            strict=True,
        ):
            mine, by_rank = ours.perplexity(a, test)
            other, their_ranks = ours.perplexity(b, test)
            off = float(np.max(np.abs(by_rank / their_ranks - 1)))
            worst = max(worst, off)
            print(
                f"{name:8} {kind:12} ours {mine:.4f}  clax {other:.4f}  "
                f"at most {off:.2%} apart at a rank"
            )
    if worst > TOLERANCE:
        raise SystemExit(f"error: perplexities differ by {worst:.2%}")


if __name__ == "__main__":
    main()
