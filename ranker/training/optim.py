"""AdamW with warm-up and cosine decay, from its config."""

import jax
import optax
from flax import nnx

from ranker import config


def make_schedule(settings: config.Optim, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine to `final_fraction` of it."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if settings.warmup else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup,
        decay_steps=max(steps, settings.warmup + 1),
        end_value=settings.learning_rate * settings.final_fraction,
    )


def decay_mask(params):
    """True for matrices: norm scales and biases are not pulled towards zero.

    Stacked layers and the width of a head do not make a vector a matrix.

    Args:
      params: `nnx.State` of parameters, arrays or shapes, with their `axes`.
    """

    def decays(param: nnx.Variable) -> nnx.Variable:
        axes = set(param.get_metadata("axes")) - {"layers", "head_dim"}
        return param.replace(len(axes) > 1)

    return jax.tree.map(decays, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def make_optimizer(
    settings: config.Optim, steps: int, params
) -> optax.GradientTransformation:
    """The optimiser; state mirrors the parameters, so it is sharded like them."""
    clip = (
        optax.clip_by_global_norm(settings.clip_norm)
        if settings.clip_norm
        else optax.identity()
    )
    return optax.chain(
        clip,
        optax.adamw(
            make_schedule(settings, steps),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            mu_dtype=settings.mu_dtype,
            weight_decay=settings.weight_decay,
            mask=decay_mask(params),
        ),
    )
