"""Where things are, how large they are, and what parts share."""

import argparse
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import lists
from lists import Collection
from sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Run:
    """The flags, the sizes, and what is read when it is first needed."""

    args: argparse.Namespace
    sizes: Sizes

    @property
    def out(self) -> pathlib.Path:
        """Folder of every result."""
        return self.args.out

    @functools.cached_property
    def nqqed(self) -> Collection:
        """The questions, split by the protocol."""
        return lists.read(self.args.data, self.sizes.nqqed)

    @functools.cached_property
    def tokens(self) -> dict[str, jax.Array]:
        """Their pairs as MiniLM reads them."""
        grid = self.sizes.nqqed
        found = lists.tokenise(self.nqqed, self.args.minilm, grid.length)
        return {name: jnp.asarray(one) for name, one in found.items()}

    def dtype(self) -> str:
        """What models compute in here."""
        return "bfloat16" if jax.default_backend() == "gpu" else "float32"
