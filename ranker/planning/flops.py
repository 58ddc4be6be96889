"""Floating-point operations that a program does.

A multiplication and an addition are two. Only matrix products count; all else is a few
per cent of a transformer.
"""

import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from ranker.models import tiles


def program_flops(jaxpr: Any, text: int = 0) -> float:
    """What a traced function does on all devices, recomputation included.

    What nothing reads is left out, as compilers leave it: gradients of frozen weights.
    Loops count as often as they run; a kernel counts its whole grid, with blocks that a
    mask lets it leave out. A grid that is as long as the texts need (`models.tiles`)
    counts for texts of `text` tokens, 0: of one text a row.
    """
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_equation(one, text) for one in jaxpr.eqns)


def _equation(one: Any, text: int) -> float:
    name, params = one.primitive.name, one.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = one.invars[0].aval.shape
        inner = math.prod(shape[i] for i in contracted)
        return 2.0 * inner * math.prod(one.outvars[0].aval.shape)
    if name == "scan":
        return params["length"] * program_flops(params["jaxpr"], text)
    if name == "cond":
        return max(program_flops(branch, text) for branch in params["branches"])
    if name == "shard_map":
        return params["mesh"].size * program_flops(params["jaxpr"], text)
    if name == "pallas_call":
        sizes = [one for one in params["grid_mapping"].grid if isinstance(one, int)]
        listed = tiles.steps(params["metadata"], text)
        count = math.prod(sizes) * (1 if listed is None else listed)
        return count * program_flops(params["jaxpr"], text)
    inner = [
        leaf
        for value in params.values()
        for leaf in jax.tree.leaves(value, is_leaf=_is_jaxpr)
        if _is_jaxpr(leaf)
    ]
    return sum(program_flops(leaf, text) for leaf in inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)
