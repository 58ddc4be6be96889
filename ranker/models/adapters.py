"""Low-rank adapters of stacked layers: LoRA (Hu et al., 2021, arXiv 2106.09685).

An adapted matrix W of a layer acts as W + alpha / rank * A B, where A takes what W
reads to `rank` numbers and B those to what W gives. W is frozen, A and B train. B
begins at zero, and so does what the adapter adds.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ranker import config, sharding
from ranker.models import dropout

_DROPOUT = 3  # what a layer's key is folded with; encoder.py has the others
_IN = {"o": 2}  # dimensions that a layer's matrix reads; of all others 1


class Factor(nnx.Param):
    """A or B of an adapter, with all layers stacked in front."""


def attach(model: Any, lora: config.Lora, *, rngs: nnx.Rngs) -> None:
    """Gives the matrices of `model`'s layers fresh adapters, float32.

    A is uniform in +-1 / sqrt(numbers read), as in the reference implementation.

    Args:
      model: a `LanguageModel` or `Ranker`; changed in place.
      lora: its `rank` must be above 0.
      rngs: its `params` draws A.

    Raises:
      ConfigError: for a target that the layers do not have.
    """
    stack = model.body.layers
    present = [name for name in config.LORA_TARGETS if hasattr(stack, name)]
    missing = [name for name in lora.targets if name not in present]
    if missing:
        raise config.ConfigError(
            f"lora.targets names {', '.join(missing)}, which this model's layers lack; "
            f"they have {', '.join(present)}"
        )
    for name in lora.targets or present:
        weight = getattr(stack, name)
        shape, axes = weight.get_value().shape, weight.get_metadata("axes")
        cut = 1 + _IN.get(name, 1)
        bound = math.prod(shape[1:cut]) ** -0.5
        a_shape = (*shape[:cut], lora.rank)
        a = jax.random.uniform(rngs.params(), a_shape, minval=-bound, maxval=bound)
        b = jnp.zeros((shape[0], lora.rank, *shape[cut:]))
        first = Factor(a, axes=(*axes[:cut], "rank"), dropout=lora.dropout)
        setattr(stack, f"{name}_a", first)
        factor = Factor(b, axes=(axes[0], "rank", *axes[cut:]), scale=lora.scale)
        setattr(stack, f"{name}_b", factor)


def stacked(layers: nnx.Module) -> dict[str, Array]:
    """The parameters of stacked layers by name; each B comes times alpha / rank."""
    found = cast(dict[str, nnx.Variable], dict(nnx.state(layers, nnx.Param)))
    return {
        name: one.get_value() * one.get_metadata("scale", 1.0)
        if isinstance(one, Factor)
        else one.get_value()
        for name, one in found.items()
    }


def make_adapter_drop(layers: nnx.Module, key: Array | None) -> dropout.Drop | None:
    """What adapters of stacked layers leave out of what they read; None: nothing."""
    found = nnx.state(layers, Factor)
    rates = [
        one.get_metadata("dropout", 0.0)
        for one in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, nnx.Variable))
    ]
    own = None if key is None else jax.random.fold_in(key, _DROPOUT)
    return dropout.make_drop(max(rates, default=0.0), own)


def project(
    x: Float[Array, "R T *I"],
    w: dict[str, Any],
    name: str,
    *,
    drop: dropout.Drop | None = None,
) -> Float[Array, "R T *O"]:
    """The product of x with the matrix `name` [*I, *O] of a layer, as adapted.

    Args:
      x: what the matrix reads: [R, T, N, H] for "o", else of one dimension a token.
      w: parameters of one layer by name, from `stacked`, an array or a `Master` each.
      name: of the matrix.
      drop: of what the adapter reads; the matrix reads all of it.
    """
    y = _product(x, w[name])
    if f"{name}_a" not in w:
        return y
    # (x A) B: neither A B nor a gradient of the frozen matrix is ever formed.
    if drop is not None:
        x = drop(x, 1 + config.LORA_TARGETS.index(name))  # type: ignore[arg-type]
    low = _product(x, w[f"{name}_a"])
    return y + _product(low, w[f"{name}_b"])


@dataclass(frozen=True)
class Master:
    """A float32 matrix, split as it is kept, that a product makes narrow and whole.

    So its gradient is float32 all the way. Were the matrix cast before the product, the
    compiler would cast gradients before it sums them over devices.
    """

    value: Array
    axes: tuple[str | None, ...]  # logical
    dtype: Any  # that is computed in

    def narrow(self, value: Array) -> Array:
        """`value` as the product reads it."""
        return sharding.gathered(value.astype(self.dtype), *self.axes)


def _product(x: Float[Array, "R T *I"], matrix: Any) -> Float[Array, "R T *O"]:
    """X by a matrix [*I, *O], all tokens in one dimension.

    So the gradient contracts one dimension. Of two, XLA's CPU compiler would first
    write out what it reads transposed, computing all that is fused with it once more.
    """
    R, T, *inner = x.shape
    master = isinstance(matrix, Master)
    outer = (matrix.value if master else matrix).shape[len(inner) :]
    rows = x.reshape(R * T, math.prod(inner))
    if master:
        y = _of_master(matrix, rows)
    else:
        y = rows @ matrix.reshape(math.prod(inner), math.prod(outer))
    return y.reshape(R, T, *outer)


def _of_master(matrix: Master, rows: Float[Array, "M I"]) -> Float[Array, "M O"]:
    """The product; the gradient of the matrix is float32, summed and split again."""
    shape = matrix.value.shape

    def narrow(value: Array) -> Array:
        return matrix.narrow(value).reshape(rows.shape[1], -1)

    @jax.custom_vjp
    def product(rows, value):
        return rows @ narrow(value)

    def backward(kept, slope):
        rows, value = kept
        of_matrix = jax.lax.dot_general(
            rows, slope, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        of_matrix = sharding.constrain(of_matrix.reshape(shape), *matrix.axes)
        return slope @ narrow(value).T, of_matrix.astype(value.dtype)

    product.defvjp(lambda rows, value: (product(rows, value), (rows, value)), backward)
    return product(rows, matrix.value)


def merge_adapters(params: dict[str, Array], lora: config.Lora) -> dict[str, Array]:
    """The parameters of the same function without adapters, float32.

    Args:
      params: by dotted path, those of the adapters among them.
      lora: the settings that they were attached with.
    """
    factors = {path for path in params if path[:-2] in params and path[-2:] == "_a"}
    merged = {}
    for path, value in params.items():
        value = value.astype(jnp.float32)
        if f"{path}_a" in factors:
            a, b = params[f"{path}_a"], params[f"{path}_b"]
            layers, rank = value.shape[0], lora.rank
            change = jnp.einsum(
                "LIr,LrO->LIO",
                a.reshape(layers, -1, rank),
                b.reshape(layers, rank, -1),
                precision=jax.lax.Precision.HIGHEST,
            )
            value = value + lora.scale * change.reshape(value.shape)
        if path not in factors and f"{path[:-2]}_a" not in factors:
            merged[path] = value
    return merged
