"""Parameters by dotted path, such as body.layers.q."""

from typing import Any

import jax
from flax import nnx


def flat(params: Any) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of an `nnx.State`."""
    leaves = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params)).items()
    return [(".".join(map(str, path)), leaf) for path, leaf in leaves]


def unflat(params: dict[str, jax.Array], like: Any) -> Any:
    """The `nnx.State` of the structure of `like` with these parameters by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, variable: variable.replace(params[dotted(path)]),
        like,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def dotted(path: tuple) -> str:
    """A path of jax's tree functions as one name."""
    return ".".join(str(getattr(key, "key", key)) for key in path)
