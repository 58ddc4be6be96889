"""One optimiser step: the exact gradient of the whole batch, in micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from ranker.batch import PackedBatch
from ranker.training.objectives import Objective
from ranker.training.optim import gradient_params
from ranker.training.state import Network, TrainState

StepMetrics = dict[str, Array]
NOTHING = nnx.State({})


def make_step(
    network: Network,
    objective: Objective,
    tx: optax.GradientTransformation,
    state: TrainState,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Returns the compiled step; it consumes (donates) the state it is given.

    The step takes a state, a batch and the parameters that do not train, if there are
    any, and returns the new state and metrics.

    The new state lies on the devices like `state`, so that the second step is not
    compiled anew.

    A loss or gradient that is not finite changes nothing but `sound`, and no later step
    changes anything either: the state stays the one that the wrong step began from.

    The batch's leaves have a leading dimension of micro-batches. Each part of the loss
    is divided by its weight over the whole batch, never by that of a micro-batch, so
    that cutting a batch differently leaves the gradient what it is.
    """

    def loss(params, frozen, batch: PackedBatch, weights: StepMetrics, key):
        model = nnx.merge(network.graphdef, params, frozen)
        parts = objective.parts(model, batch, key)
        means = {
            name: part.total / jnp.maximum(weights[name], 1e-6)
            for name, part in parts.items()
        }
        total = sum(objective.coefficients[name] * mean for name, mean in means.items())
        return total, means

    def step(
        state: TrainState, batch: PackedBatch, frozen: Any = NOTHING
    ) -> tuple[TrainState, StepMetrics]:
        weights = jax.tree.map(jnp.sum, jax.vmap(objective.weights)(batch))
        key = jax.random.fold_in(state.key, state.step)
        num_micro = batch.rows.tokens.shape[0]
        trained = gradient_params(state.opt_state, state.params)

        def accumulate(carry, micro):
            batch, key = micro
            (total, means), grads = jax.value_and_grad(loss, has_aux=True)(
                trained, frozen, batch, weights, key
            )
            return jax.tree.map(jnp.add, carry, (total, means, grads)), None

        zeros = jax.tree.map(
            jnp.zeros_like,
            (jnp.zeros(()), {name: jnp.zeros(()) for name in weights}, state.params),
        )
        (total, means, grads), _ = jax.lax.scan(
            accumulate, zeros, (batch, jax.random.split(key, num_micro))
        )
        l2_grads = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        sound = state.sound & jnp.isfinite(total) & jnp.isfinite(l2_grads)
        number, params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (state.step + 1, params, opt_state),
            (state.step, state.params, state.opt_state),
        )
        metrics = {
            "loss": total,
            **means,
            **{f"weight_{name}": weight for name, weight in weights.items()},
            "tokens": jnp.sum(batch.rows.segments > 0),
            "padding": jnp.mean(batch.rows.segments == 0),
            "l2_grads": l2_grads,
            "l2_params": optax.tree.norm(params),
            "l2_updates": optax.tree.norm(updates),
        }
        return TrainState(number, params, opt_state, state.key, sound), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
