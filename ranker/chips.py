"""TPU and GPU chips, as their makers publish them."""

import math
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one chip can do at best; a device is a chip, or one of its cores."""

    name: str  # as in a topology
    hbm: float  # bytes
    usable: float  # bytes of it that a device's program may use
    flops: float  # bfloat16 operations a second
    hbm_bandwidth: float  # bytes a second
    ici: float  # bytes a second that a chip sends to its neighbours, over all links
    dcn: float  # bytes a second that a chip sends to other slices
    devices: int = 1  # a chip, as jax counts them
    dimensions: int = 1  # of a topology
    wraps: int = 0  # sides of this many chips, or multiples, close to a ring; 0: none
    options: tuple[tuple[str, Any], ...] = ()  # that the compiler wants for it
    gpu: bool = False

    def share(self, quantity: float) -> float:
        """A device's part of what a chip has."""
        return quantity / self.devices

    def ici_of(self, shape: tuple[int, ...]) -> float:
        """Bytes a second that a chip of a slice sends, over the links it has there.

        A side that closes to a ring has two links a chip. A side that does not has one
        that counts: what all chips exchange must pass through those at its ends.
        """
        if self.gpu:
            return self.ici if math.prod(shape) > 1 else 0.0
        link = self.ici / (2 * self.dimensions)
        return link * sum(self._links(side, shape) for side in shape)

    def _links(self, side: int, shape: tuple[int, ...]) -> int:
        if side == 1:
            return 0
        # Three dimensions: cubes of 4x4x4 are joined to rings, or nothing is.
        sides = shape if self.dimensions == 3 else (side,)
        rings = self.wraps and all(one % self.wraps == 0 for one in sides)
        return 2 if rings else 1


# HBM, peak and ICI: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, the tables
# of key specifications. They give ICI in both directions together; half of it is sent.
# v4's ICI: six links of 50 GB/s (Jouppi et al., 2023, arXiv 2304.01433, table 4).
# Wrapping: the same pages; v5e and v6e close sides of 16, the others cubes of 4x4x4.
# Usable: what libtpu 0.0.42.1 says in its message that a program is too large.
# v4: programs run on both cores of a chip as one device ("megacore"), as Cloud TPU VMs
# have it; the compiler takes single cores unless told.
# DCN: the same pages, v5e 6.4 and v6e 25.6 Tb/s for a pod of 256, v5p 50 Gb/s and tpu7x
# 100 Gb/s a chip; v4's is taken to be v5p's.
_TPUS = (
    Chip(
        *("v4", 32 * GIB, 30.75 * GIB, 275e12, 1.2e12, 300e9, 6.25e9, 1, 3, 4),
        options=(("chip_config_name", "megacore"),),
    ),
    Chip("v5e", 16 * GIB, 15.75 * GIB, 197e12, 0.82e12, 200e9, 3.125e9, 1, 2, 16),
    Chip("v5p", 95 * GIB, 95.74 * GIB, 459e12, 2.765e12, 600e9, 6.25e9, 1, 3, 4),
    Chip("v6e", 32 * GIB, 31.25 * GIB, 918e12, 1.638e12, 400e9, 12.5e9, 1, 2, 16),
    Chip("tpu7x", 192 * GIB, 94.75 * GIB, 2307e12, 7.38e12, 600e9, 12.5e9, 2, 3, 4),
)
# NVIDIA's data sheets, dense bfloat16: H100 SXM, H200 SXM, A100 SXM 80 GB, L4. Between
# cards NVLink (900, 900 and 600 GB/s both ways) or PCIe 4.0 x16; between machines the
# network of DGX systems (400 and 200 Gb/s a card), for L4 100 Gb/s a machine of eight.
# Usable: the three quarters that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# otherwise.
_GPUS = tuple(
    Chip(name, size, 0.75 * size, flops, memory, near, far, gpu=True)
    for name, size, flops, memory, near, far in (
        ("h100", 80e9, 989e12, 3.35e12, 450e9, 50e9),
        ("h200", 141e9, 989e12, 4.8e12, 450e9, 50e9),
        ("a100", 80e9, 312e12, 2.039e12, 300e9, 25e9),
        ("l4", 24e9, 121e12, 0.3e12, 32e9, 1.5625e9),
    )
)
CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}

# What jax's `device_kind` begins with.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100": "a100",
    "NVIDIA L4": "l4",
}


def find(kind: str) -> Chip | None:
    """The chip of a device of this `device_kind`; None for one that is not listed."""
    for begin, name in _KINDS.items():
        if kind == begin or kind.startswith((f"{begin} ", f"{begin}-", f"{begin}p")):
            return CHIPS[name]
    return None
