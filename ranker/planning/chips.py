"""TPU chips and the slices that they come in, as their makers publish them."""

import math
import re
from dataclasses import dataclass
from typing import Any

from ranker import config

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one chip can do at best; a device is a chip, or one of its cores."""

    name: str  # as in a topology
    hbm: float  # bytes
    usable: float  # bytes of it that the compiler gives a device's program
    flops: float  # bfloat16 operations a second
    hbm_bandwidth: float  # bytes a second
    ici: float  # bytes a second that a chip sends to its neighbours, over all links
    dcn: float  # bytes a second that a chip sends to other slices
    devices: int  # a chip, as jax counts them
    dimensions: int  # of a topology

    def share(self, quantity: float) -> float:
        """A device's part of what a chip has."""
        return quantity / self.devices


# HBM, peak and ICI: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, the tables
# of key specifications. They give ICI in both directions together; half of it is sent.
# v4's ICI: six links of 50 GB/s (Jouppi et al., 2023, arXiv 2304.01433, table 4).
# Usable: what libtpu 0.0.52 says in its message that a program is too large.
# DCN: the same pages, v5e 6.4 and v6e 25.6 Tb/s for a pod of 256, v5p 50 Gb/s and tpu7x
# 100 Gb/s a chip; v4's is taken to be v5p's.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 15.25 * GIB, 275e12, 1.2e12, 300e9, 6.25e9, 2, 3),
        Chip("v5e", 16 * GIB, 15.75 * GIB, 197e12, 0.82e12, 200e9, 3.125e9, 1, 2),
        Chip("v5p", 95 * GIB, 95.73 * GIB, 459e12, 2.765e12, 600e9, 6.25e9, 1, 3),
        Chip("v6e", 32 * GIB, 31.24 * GIB, 918e12, 1.638e12, 400e9, 12.5e9, 1, 2),
        Chip("tpu7x", 192 * GIB, 94.74 * GIB, 2307e12, 7.38e12, 600e9, 12.5e9, 2, 3),
    )
}

_EXAMPLES = "v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:4x4 and tpu7x:2x2x1"


@dataclass(frozen=True)
class Slices:
    """One or several slices of the same shape."""

    chip: Chip
    topology: str  # such as v5e:4x4
    count: int  # slices
    devices: tuple[Any, ...]  # jax devices of all slices; none of them is here

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
            f"--topology {topology!r} is no chip and shape; write it like {_EXAMPLES}"
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


def describe(topology: str, num_slices: int) -> Slices:
    """The devices of slices that are not here, from the TPU compiler.

    Raises:
      ConfigError: when there is no such topology, or no compiler for it.
    """
    from jax.experimental import topologies

    chip, shape = parse(topology)
    if num_slices < 1:
        raise config.ConfigError(f"--num-slices must be 1 or more, found {num_slices}")
    options: dict[str, Any] = {}
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
            f"--topology {topology}: the TPU compiler knows no such slice ({reason}); "
            f"each side is 1, or a multiple of 2 up to the size of a pod, as in "
            f"{_EXAMPLES}"
        ) from error
    return Slices(chip, topology, num_slices, tuple(found.devices))
