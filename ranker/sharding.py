"""Where arrays live: the device mesh, and one table from logical axes to mesh axes.

slice   TPU slices, joined by the data-centre network: batches are split over them,
        parameters are replicated, so that gradients alone cross that network
data    batches are split, parameters replicated
fsdp    batches are split, and so are parameters and their moments, each gathered
        where a layer needs it
tensor  heads, MLP width and vocabulary are split
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ranker import config

AXES = ("slice", "data", "fsdp", "tensor")
BATCH = ("slice", "data", "fsdp")

# Logical axis of a parameter or an activation -> mesh axes that it is split over.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "embed": "fsdp",
    "vocab": "tensor",  # rows that hidden states are multiplied by
    "lookup": None,  # rows that are only looked up: split, each lookup would be summed
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,  # a vector's width: too small to be worth splitting
    "layers": None,
    "head_dim": None,
    "positions": None,
    "types": None,
    "buckets": None,
    "rank": None,
    None: None,
}


# Kept whole on every device where the mesh does not divide them: a checkpoint's
# vocabulary and key heads cannot be changed, and the rest of a layer divides. What is
# kept is then the same on every mesh; a step pads (`rounded`) or repeats what it needs.
REPEATED = ("vocab", "kv_heads")


def make_mesh(settings: config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the axes AXES over `devices`, default all.

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices, or slices
        are split otherwise than the devices are.
    """
    devices = jax.devices() if devices is None else list(devices)
    groups = _slices(settings, devices)
    count, rest = len(groups[0]), settings.fsdp * settings.tensor
    data = count // rest if settings.data == -1 else settings.data
    if data * rest != count:
        within = f" in each of the {len(groups)} slices" if len(groups) > 1 else ""
        raise config.ConfigError(
            f"a mesh of data {settings.data} x fsdp {settings.fsdp} x tensor "
            f"{settings.tensor} does not use the {count} devices here{within} exactly; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is "
            f"{count} (mesh.data=-1 takes what the others leave)"
        )
    # Within a slice the order follows the wires between the chips.
    shape = (data, settings.fsdp, settings.tensor)
    arranged = [
        mesh_utils.create_device_mesh(
            shape, devices=group, allow_split_physical_axes=True
        )
        for group in groups
    ]
    return Mesh(np.stack(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(settings: config.Mesh, devices: list[Any]) -> list[list[Any]]:
    """The devices by slice; without TPU slices, `settings.slices` equal parts."""
    # Not every platform's devices have the number of a slice.
    numbers = [getattr(device, "slice_index", 0) or 0 for device in devices]
    found = sorted(set(numbers))
    wanted = len(found) if settings.slices == -1 else settings.slices
    if len(found) > 1:
        if wanted != len(found):
            raise config.ConfigError(
                f"mesh.slices is {wanted}, but the {len(devices)} devices here are in "
                f"{len(found)} slices; set mesh.slices to {len(found)}, or to -1"
            )
        return [
            [d for d, number in zip(devices, numbers, strict=True) if number == one]
            for one in found
        ]
    if len(devices) % wanted:
        raise config.ConfigError(
            f"mesh.slices {wanted} does not divide the {len(devices)} devices here; "
            "set it to -1, or to a divisor"
        )
    size = len(devices) // wanted
    return [devices[i : i + size] for i in range(0, len(devices), size)]


def num_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def local_shards(mesh: Mesh) -> tuple[int, ...]:
    """Which data shards this process's devices hold, rising."""
    places = batch_sharding(mesh).addressable_devices_indices_map((num_shards(mesh),))
    return tuple(sorted({index[0].start or 0 for index in places.values() if index}))


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


def fitting(
    axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]
) -> PartitionSpec:
    """As `spec`, but axes of `REPEATED` are whole where the mesh does not divide them.

    Args:
      axes: logical axes of an array.
      shape: of the array.
      sizes: devices along each mesh axis.
    """
    entries = list(spec(axes))
    for place, (axis, size, entry) in enumerate(zip(axes, shape, entries, strict=True)):
        if axis in REPEATED and isinstance(entry, str) and size % sizes[entry]:
            entries[place] = None
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
        partition = fitting(axes, value.shape, mesh.shape)
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
    """Shardings of `tx`'s state: moments like their parameters, the rest everywhere.

    What is kept in another shape, as Adafactor's rows and columns, is small.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def is_masked(moment: Any) -> bool:
        """Whether this part of an optimiser leaves the parameter to another."""
        return isinstance(moment, optax.MaskedNode)

    def one(moment: Any, like: Any, where: NamedSharding) -> Any:
        if is_masked(moment):
            return moment
        return where if moment.shape == like.shape else everywhere

    return optax.tree.map_params(
        tx,
        one,
        jax.eval_shape(tx.init, abstract),
        abstract,
        shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_masked,
    )


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch's leaves: dimension number `leading` is split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH))


def platform() -> str:
    """Of the devices of the mesh that is set; empty without one (serving, export).

    They need not be here: plan compiles for a TPU in a process without one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return "" if mesh.empty else mesh.abstract_device.platform


def divides(axis: str, size: int) -> bool:
    """Whether the mesh that is set divides a logical axis of this size."""
    mesh = jax.sharding.get_abstract_mesh()
    entry = RULES[axis]
    return mesh.empty or not isinstance(entry, str) or size % mesh.shape[entry] == 0


def rounded(axis: str, size: int) -> int:
    """The size, or the next one that the mesh that is set divides the axis into."""
    mesh = jax.sharding.get_abstract_mesh()
    entry = RULES[axis]
    if mesh.empty or not isinstance(entry, str):
        return size
    return -(-size // mesh.shape[entry]) * mesh.shape[entry]


EXACT_BEYOND = 16  # data shards; with more, gradients are summed in float32


def sums_exactly(choice: config.ReduceDType, dtype: Any) -> bool:
    """Whether gradients of weights are summed over devices in float32.

    Args:
      choice: `reduce_dtype` of the model; auto: beyond `EXACT_BEYOND` data shards of
        the mesh that is set.
      dtype: of the computation; float32 gradients need no choice.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or np.dtype(dtype) == np.float32:
        return False
    if choice != "auto":
        return choice == "float32"
    return math.prod(mesh.shape[axis] for axis in BATCH) > EXACT_BEYOND


def constrain(x: Array, *axes: str | None) -> Array:
    """Keeps an activation split as its logical axes say, on the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(axes, x.shape, mesh.shape))


def gathered(x: Array, *axes: str | None) -> Array:
    """A parameter as a layer computes with it: whole along fsdp.

    Left to itself the partitioner may move activations instead, which are larger. The
    gradient is summed and split again in one operation.

    Args:
      x: the parameter, of the dtype that it is to be sent in.
      *axes: its logical axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    split = fitting(axes, x.shape, mesh.shape)
    whole = PartitionSpec(*(None if entry == "fsdp" else entry for entry in split))

    @jax.custom_vjp
    def gather(x):
        return jax.lax.with_sharding_constraint(x, whole)

    def backward(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, split),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(x)


def look_up(
    table: Float[Array, "V D"], ids: Int[Array, "R T"], *axes: str | None
) -> Float[Array, "R T D"]:
    """Rows of an embedding table, of the tokens of a batch.

    A table that is split along fsdp is gathered where that moves less than its rows do.
    Else each device looks up its part of the width, for the tokens of all devices that
    share the table, and parts change hands: neither the table nor its gradient is ever
    whole on a device.

    Args:
      table: the parameter.
      ids: of rows of the table; split as batches are.
      *axes: the table's logical axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jnp.take(table, ids, axis=0)
    split = fitting(axes, table.shape, mesh.shape)
    vocab, width = split
    mine = table.shape[0] // (mesh.shape[vocab] if isinstance(vocab, str) else 1)
    tokens = ids.size // math.prod(mesh.shape[axis] for axis in BATCH)
    if width is None or mesh.shape[width] == 1 or mine <= tokens:
        return jnp.take(gathered(table, *axes), ids, axis=0)

    def here(table: Array, ids: Array) -> Array:
        ids = jax.lax.all_gather(ids, width, tiled=True)  # [R, T] of all that share it
        if vocab is None:
            x = jnp.take(table, ids, axis=0)
        else:
            ids = ids - jax.lax.axis_index(vocab) * mine
            real = (ids >= 0) & (ids < mine)
            x = jnp.take(table, jnp.where(real, ids, 0), axis=0)
            x = jax.lax.psum(jnp.where(real[..., None], x, 0), vocab)
        # Own rows of all parts, for all rows of the own part.
        return jax.lax.all_to_all(x, width, split_axis=0, concat_axis=2, tiled=True)

    rows = spec(("batch", None))
    found = jax.shard_map(
        here,
        in_specs=(split, rows),
        out_specs=spec(("batch", None, None)),
        check_vma=False,
    )
    return found(table, ids)
