"""What a training step changes, as one pytree, and how it is made on a mesh."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from ranker import config, sharding
from ranker.models import build
from ranker.models.build import Head


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and returns."""

    step: Int[Array, ""]  # optimiser steps done
    params: Any  # nnx.State of parameters, float32
    opt_state: Any  # optax state
    key: Array  # PRNG key; each step folds its number in


@dataclass(frozen=True)
class Network:
    """A model without its numbers: how it computes, what its parameters look like."""

    graphdef: nnx.GraphDef
    abstract: Any  # nnx.State of jax.ShapeDtypeStruct
    shardings: Any  # nnx.State of NamedSharding
    mesh: Mesh


def make_network(
    model: config.Decoder | config.Encoder, vocab_size: int, head: Head, mesh: Mesh
) -> Network:
    """Describes the model on the mesh; computes nothing."""
    graphdef, abstract = nnx.split(build.abstract(model, vocab_size, head), nnx.Param)
    return Network(
        graphdef, abstract, sharding.parameter_shardings(abstract, mesh), mesh
    )


def init_state(
    network: Network, params: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
    """State at step 0 around `params`; moments lie like their parameters."""
    shardings = sharding.optimizer_shardings(
        tx, network.abstract, network.shardings, network.mesh
    )
    everywhere = NamedSharding(network.mesh, PartitionSpec())
    with jax.set_mesh(network.mesh):
        opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), everywhere),
        params=params,
        opt_state=opt_state,
        key=jax.device_put(jax.random.key(seed), everywhere),
    )


def abstract_like(state: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, to restore one like it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
