"""Where arrays live: the device mesh, and one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ranker import config

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Logical axis of a parameter or an activation -> mesh axes that it is split over.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    "head_dim": None,
    "positions": None,
    "types": None,
    "rank": None,
    None: None,
}


def make_mesh(settings: config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of axes (data, fsdp, tensor) over `devices`, default all.

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    rest = settings.fsdp * settings.tensor
    data = len(devices) // rest if settings.data == -1 else settings.data
    if data * rest != len(devices):
        raise config.ConfigError(
            f"a mesh of data {settings.data} x fsdp {settings.fsdp} x tensor "
            f"{settings.tensor} does not use the {len(devices)} devices here exactly; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is "
            f"{len(devices)} (mesh.data=-1 takes what the others leave)"
        )
    shape = (data, settings.fsdp, settings.tensor)
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def num_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes.

    Raises:
      ValueError: for an unknown logical axis, or a mesh axis used twice.
    """
    entries = []
    used: list[str] = []
    for axis in axes:
        if axis not in RULES:
            raise ValueError(
                f"unknown logical axis {axis!r} of {tuple(axes)}; the table has "
                f"{', '.join(str(name) for name in RULES)}"
            )
        entry = RULES[axis]
        entries.append(entry)
        used += [entry] if isinstance(entry, str) else list(entry or ())
    if len(set(used)) < len(used):
        raise ValueError(
            f"logical axes {tuple(axes)} use a mesh axis twice: {', '.join(used)}"
        )
    return PartitionSpec(*entries)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def parameter_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of parameters, from the `axes` that each states.

    Args:
      abstract: `nnx.State` of parameters or of their shapes.
      mesh: from `make_mesh`.

    Raises:
      ConfigError: listing every dimension that its mesh axis does not divide.
    """
    problems: list[str] = []

    def one(path, variable: nnx.Variable) -> nnx.Variable:
        axes, value = variable.get_metadata("axes"), variable.get_value()
        partition = spec(axes)
        for size, axis, entry in zip(value.shape, axes, partition, strict=True):
            parts = mesh.shape[entry] if isinstance(entry, str) else 1
            if size % parts:
                problems.append(
                    f"{jax.tree_util.keystr(path)}: {axis} {size} is not divisible by "
                    f"mesh.{entry} {parts}"
                )
        return variable.replace(NamedSharding(mesh, partition))

    result = jax.tree_util.tree_map_with_path(one, abstract, is_leaf=_is_variable)
    if problems:
        raise config.ConfigError(
            "parameters do not divide over the mesh: "
            + "; ".join(problems)
            + "; change mesh.fsdp, mesh.tensor or the model's sizes"
        )
    return result


def optimizer_shardings(
    tx: optax.GradientTransformation, abstract: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of `tx`'s state: moments like their parameters, the rest everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, abstract),
        shardings,
        transform_non_params=lambda _: everywhere,
    )


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch's leaves: dimension number `leading` is split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH))


def constrain(x: Array, *axes: str | None) -> Array:
    """Keeps an activation split as its logical axes say, on the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))
