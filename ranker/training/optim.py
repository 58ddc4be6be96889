"""The optimiser and its learning rate, by step and by parameter, from their config.

An update is -rate(step) * place * (direction + weight_decay * parameter): the direction
is the optimiser's, of clipped gradients, and the place is the factor of the parameter's
layer or head.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from ranker import config
from ranker.models.build import POSITION_BIAS

_CLIPPED = 1.0  # root mean square that Adafactor's update of a matrix is cut to
_EMBEDDINGS = ("embedding", "positions", "types")
_POSITION_RATE = 20.0  # of a position's logit over the others': it has far to go
_MUON_RMS = 0.2  # of Muon's update of a matrix, about what Adam's has


def make_schedule(settings: config.Optim, steps: int) -> optax.Schedule:
    """Learning rate by step, from 0 on: linear warm-up, then the schedule.

    Exact at both ends: step 0 has a rate above 0, the peak is reached by the step after
    the warm-up, and the last, number steps - 1, has `final_fraction` of the peak. A run
    that ends within the warm-up, or has one step, keeps the warm-up's rate.
    """
    warmup, last = settings.warmup_steps(steps), steps - 1
    begin = warmup
    if settings.schedule == "wsd":
        begin = max(warmup, last - max(1, round(settings.decay * steps)))
    least = 1.0 if settings.schedule == "constant" else settings.final_fraction

    def schedule(step: Any) -> Array:
        number = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((number + 1) / (warmup + 1), 1.0)
        done = jnp.clip((number - begin) / max(last - begin, 1), 0.0, 1.0)
        if settings.schedule == "cosine":
            done = (1 - jnp.cos(jnp.pi * done)) / 2
        return settings.learning_rate * rise * (1 + (least - 1) * done)

    return schedule


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _by_axes(change: Callable[[tuple[str, ...]], Any], params: Any) -> Any:
    """The tree with each parameter replaced by a function of its axes."""
    return jax.tree.map(
        lambda param: param.replace(change(param.get_metadata("axes"))),
        params,
        is_leaf=_is_variable,
    )


def _is_matrix(axes: Sequence[str | None]) -> bool:
    """Layers, the width of a head and biases by distance do not make a matrix."""
    return len(set(axes) - {"layers", "head_dim", "buckets"}) > 1


def decay_mask(params: Any) -> Any:
    """True for matrices: norm scales and biases are not pulled towards zero.

    Args:
      params: `nnx.State` of parameters, arrays or shapes, with their `axes`.
    """
    return _by_axes(_is_matrix, params)


# --- directions: (settings, abstract parameters) -> transformation ---


def _adamw(settings: config.Optim, params: Any) -> optax.GradientTransformation:
    del params
    return optax.scale_by_adam(
        b1=settings.b1, b2=settings.b2, eps=settings.eps, mu_dtype=settings.mu_dtype
    )


def _lion(settings: config.Optim, params: Any) -> optax.GradientTransformation:
    del params
    return optax.scale_by_lion(
        b1=settings.b1, b2=settings.b2, mu_dtype=jnp.dtype(settings.mu_dtype)
    )


def _adafactor(settings: config.Optim, params: Any) -> optax.GradientTransformation:
    """Second moments by row and column, updates cut to a size, momentum if b1.

    Shazeer and Stern, 2018 (arXiv 1804.04235), without the factor of the parameter's
    own size, and with momentum, as in Zhai et al., 2022 (arXiv 2106.04560).
    """
    del params
    factored = _as_matrices(
        optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate=0.8),
            optax.clip_by_block_rms(_CLIPPED),
        )
    )
    if not settings.b1:
        return factored
    return optax.chain(
        factored,
        optax.ema(settings.b1, debias=False, accumulator_dtype=settings.mu_dtype),
    )


def _muon(settings: config.Optim, params: Any) -> optax.GradientTransformation:
    """Orthogonal momentum for the matrices of layers, Adam for all others.

    Jordan et al., 2024, "Muon: an optimizer for hidden layers", with updates of Adam's
    size (Liu et al., 2025, arXiv 2502.16982), so that AdamW's rates serve.
    """
    del params

    def numbers(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        if axes[0:1] != ("layers",) or not _is_matrix(axes):
            return None
        cut = _cut(axes)
        return optax.contrib.MuonDimensionNumbers(
            tuple(range(1, cut)), tuple(range(cut, len(axes)))
        )

    return optax.contrib.muon(
        -1.0,  # a direction: the rate, and the sign, come after weight decay
        beta=settings.b1,
        eps=settings.eps,
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        mu_dtype=settings.mu_dtype,
        muon_weight_dimension_numbers=lambda params: _by_axes(numbers, params),
        consistent_rms=_MUON_RMS,
    )


Direction = Callable[[config.Optim, Any], optax.GradientTransformation]

OPTIMISERS: dict[str, Direction] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}


def make_optimizer(
    settings: config.Optim, steps: int, params: Any
) -> optax.GradientTransformation:
    """The optimiser; what its state has of each parameter lies like the parameter.

    Args:
      settings: of the optimiser.
      steps: of the whole run.
      params: `nnx.State` of what trains, arrays or shapes, with their `axes`.
    """
    parts = [
        _times(_trains(settings, params)),  # before the norm of all gradients is taken
        optax.clip_by_global_norm(settings.clip_norm)
        if settings.clip_norm
        else optax.identity(),
        OPTIMISERS[settings.optimiser](settings, params),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask(params)),
        _times(_places(settings, params)),
        optax.scale_by_learning_rate(make_schedule(settings, steps)),
    ]
    tx = optax.chain(*parts)
    return _averaged(tx, settings.ema) if settings.ema else tx


def gradient_params(opt_state: Any, params: Any) -> Any:
    """The weights that gradients are taken at: those that an average is made of."""
    return opt_state.fast if isinstance(opt_state, Averaged) else params


# --- what a parameter's place makes of its rate ---


def _places(settings: config.Optim, params: Any) -> Any:
    """Factor of each parameter's rate, None for 1; of stacked layers one a layer.

    From the top: what is above the layers, a head and the last norm, has 1, the top
    layer `layer_decay`, and the embeddings that to the power of layers + 1 (as in
    Bao et al., 2022, arXiv 2106.08254). A score head has `head_rate`, what is frozen 0,
    a logit of a position 20: it trains alone, and begins far from where it ends.
    """
    decay, depth = settings.layer_decay, _depth(params)

    def one(path: tuple[Any, ...], param: nnx.Variable) -> nnx.Variable:
        names = [getattr(key, "key", None) for key in path]
        factor: Any = None
        if _is_stacked(param):
            if decay != 1:
                powers = decay ** np.arange(depth, 0, -1, dtype=np.float32)
                factor = powers.reshape(-1, *(1,) * (len(param.get_value().shape) - 1))
        elif names[0] == "head" and len(names) > 1:
            factor = settings.head_rate
        elif names[0] == POSITION_BIAS:
            factor = _POSITION_RATE
        elif names[-1] in _EMBEDDINGS:
            frozen = settings.freeze_embeddings
            factor = 0.0 if frozen else decay ** (depth + 1)
        alone = isinstance(factor, float) and factor == 1
        return param.replace(None if alone else factor)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_variable)


def _trains(settings: config.Optim, params: Any) -> Any:
    """0 for what is frozen, None for what trains."""

    def one(path: tuple[Any, ...], param: nnx.Variable) -> nnx.Variable:
        frozen = getattr(path[-1], "key", None) in _EMBEDDINGS
        return param.replace(0.0 if frozen and settings.freeze_embeddings else None)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_variable)


def _is_stacked(param: nnx.Variable) -> bool:
    return param.get_metadata("axes")[0:1] == ("layers",)


def _depth(params: Any) -> int:
    leaves = jax.tree.leaves(params, is_leaf=_is_variable)
    return max(
        (leaf.get_value().shape[0] for leaf in leaves if _is_stacked(leaf)), default=0
    )


def _times(factors: Any) -> optax.GradientTransformation:
    """Updates times the factors of a tree like theirs, in which None is 1."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def one(factor: nnx.Variable, leaf: nnx.Variable) -> nnx.Variable:
            value = factor.get_value()
            return leaf if value is None else leaf.replace(leaf.get_value() * value)

        scaled = jax.tree.map(one, factors, updates, is_leaf=_is_variable)
        return scaled, state

    return optax.GradientTransformation(optax.init_empty_state, update)


# --- matrices that layers stack and heads split ---


def _cut(axes: Sequence[str | None]) -> int:
    """The first dimension that a stacked matrix writes: those before it are read."""
    return 3 if axes[1] in ("heads", "kv_heads") and axes[2] == "head_dim" else 2


def _as_matrices(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets `tx` see a stacked matrix as [layers, numbers read, numbers written]."""

    def fold(leaf: Any) -> Any:
        if not _is_variable(leaf):
            return leaf
        axes = leaf.get_metadata("axes")
        if not _is_stacked(leaf) or not _is_matrix(axes):
            return leaf
        value, cut = leaf.get_value(), _cut(axes)
        read, written = math.prod(value.shape[1:cut]), math.prod(value.shape[cut:])
        return leaf.replace(jnp.reshape(value, (value.shape[0], read, written)))

    def folded(tree: Any) -> Any:
        return jax.tree.map(fold, tree, is_leaf=_is_variable)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed, state = tx.update(folded(updates), state, folded(params))
        changed = jax.tree.map(lambda a, b: a.reshape(b.shape), changed, updates)
        return changed, state

    return optax.GradientTransformation(lambda params: tx.init(folded(params)), update)


# --- averages of weights ---


class Averaged(NamedTuple):
    """State of an optimiser whose parameters are an average of the weights it moves."""

    count: Any  # updates so far
    fast: Any  # the weights that gradients are taken at, like the parameters
    inner: Any  # state of what moves them


def _averaged(
    tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """Makes the parameters an exponential moving average of the weights `tx` moves.

    Of the first updates the average forgets faster, min(decay, (1 + n) / (10 + n)), so
    that it does not stay at the weights training began from.
    """

    def init(params: Any) -> Averaged:
        # Copies: the same buffer cannot be given to the step twice.
        fast = jax.tree.map(lambda x: jnp.copy(x) if hasattr(x, "dtype") else x, params)
        return Averaged(jnp.zeros((), jnp.int32), fast, tx.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Averaged]:
        updates, inner = tx.update(updates, state.inner, state.fast)
        fast = optax.apply_updates(state.fast, updates)
        number = state.count.astype(jnp.float32)
        keep = jnp.minimum(decay, (1 + number) / (10 + number))
        moved = jax.tree.map(lambda new, old: (1 - keep) * (new - old), fast, params)
        return moved, Averaged(state.count + 1, fast, inner)

    return optax.GradientTransformation(init, update)
