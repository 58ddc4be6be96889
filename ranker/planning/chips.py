"""Slices of chips, as `--topology` names them."""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from ranker import config
from ranker.chips import CHIPS, Chip

_EXAMPLES = "v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x1 and h100:8"


@dataclass(frozen=True)
class Slices:
    """One or several slices of the same shape."""

    chip: Chip
    topology: str  # such as v5e:4x4
    count: int  # slices
    devices: tuple[Any, ...]  # jax devices of all slices; none of them is here

    @property
    def ici(self) -> float:
        """Bytes a second that a device sends within its slice."""
        return self.chip.share(self.chip.ici_of(parse(self.topology)[1]))

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return len(self.devices) // self.chip.devices


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape that a name such as v5e:4x4 means.

    Raises:
      ConfigError: for a name that means neither.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not found:
        raise config.ConfigError(
            f"--topology {topology!r} is not a valid chip and shape; "
            f"for example {_EXAMPLES}"
        )
    name, shape = found[1], tuple(map(int, found[2].split("x")))
    if name not in CHIPS:
        raise config.ConfigError(
            f"--topology {topology}: unknown chip {name!r}; known are "
            f"{', '.join(CHIPS)}, written like {_EXAMPLES}"
        )
    chip = CHIPS[name]
    if len(shape) != chip.dimensions:
        raise config.ConfigError(
            f"--topology {topology} has {len(shape)} dimensions, and a slice of {name} "
            f"has {chip.dimensions}; write it like {_EXAMPLES}"
        )
    return chip, shape


def find_slices(topology: str, num_slices: int) -> Slices:
    """The devices of slices that are not here: the TPU compiler's, or CPU devices.

    CPU devices stand in for GPUs, whose compiler needs a card. Before jax starts.

    Raises:
      ConfigError: when there is no such topology, or no compiler for it.
    """
    from jax.experimental import topologies

    chip, shape = parse(topology)
    if num_slices < 1:
        raise config.ConfigError(f"--num-slices must be 1 or more, found {num_slices}")
    if chip.gpu:
        return Slices(chip, topology, num_slices, _cpus(math.prod(shape) * num_slices))
    options: dict[str, Any] = dict(chip.options)
    if math.prod(shape) == 1:  # the compiler takes whole hosts unless told
        options["chips_per_host_bounds"] = (1, 1, 1)
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:  # its type differs between versions of jax
        reason = str(error).splitlines()[0]
        raise config.ConfigError(
            f"--topology {topology}: the TPU compiler does not know this slice "
            f"({reason}); each side is 1, or a multiple of 2 up to the size of a pod, "
            f"as in {_EXAMPLES}"
        ) from error
    return Slices(chip, topology, num_slices, tuple(found.devices))


def _cpus(count: int) -> tuple[Any, ...]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # jax has started; it may have enough of them
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise config.ConfigError(
            f"{count} GPUs are planned with as many CPU devices, and jax has started "
            f"with {len(devices)}; plan in a process of its own"
        )
    return tuple(devices[:count])
