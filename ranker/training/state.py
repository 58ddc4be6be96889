"""What a training step changes, as one pytree, and how it is made on a mesh."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from ranker import config, sharding
from ranker.models import build
from ranker.models.adapters import Factor
from ranker.models.build import HeadKind
from ranker.models.params import dotted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and returns."""

    step: Int[Array, ""]  # optimiser steps done
    params: Any  # nnx.State of parameters, float32
    opt_state: Any  # optax state
    key: Array  # PRNG key; each step folds its number in
    sound: Bool[Array, ""]  # False: a loss or gradient was not finite; all is as before


@dataclass(frozen=True)
class Network:
    """A model without its numbers: how it computes, what its parameters look like."""

    graphdef: nnx.GraphDef
    abstract: Any  # nnx.State of jax.ShapeDtypeStruct, of what trains
    shardings: Any  # nnx.State of NamedSharding
    mesh: Mesh
    frozen: Any  # as `abstract`, of what does not train; empty without adapters
    frozen_shardings: Any
    model: config.Decoder | config.Encoder

    @property
    def scoring(self) -> Any:
        """`abstract` of who only scores: matrices of layers in the model's own dtype.

        They are taken to it before each product, so scores are the same to the bit.
        With bfloat16 a large teacher takes half the memory, and none for moments.
        """

        def kept(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            name = dotted(path)
            matrix = name.startswith("body.layers.") and not re.search(
                "norm|bias", name
            )
            dtype = self.model.dtype if matrix else leaf.dtype
            return jax.ShapeDtypeStruct(leaf.shape, dtype)

        return jax.tree_util.tree_map_with_path(kept, self.abstract)


def make_network(
    model: config.Decoder | config.Encoder,
    vocab_size: int,
    head: HeadKind,
    mesh: Mesh,
    lora: config.Lora = config.NO_LORA,
    *,
    position_bias: int = 0,
) -> Network:
    """Describes the model on the mesh; computes nothing.

    With adapters, they and a score head train, and a bias of positions.
    """

    def trains(path: tuple, variable: nnx.Variable) -> bool:
        in_head = head == "score" and path[0] in ("head", build.POSITION_BIAS)
        return not lora.rank or in_head or issubclass(variable.type, Factor)

    whole = build.abstract(model, vocab_size, head, lora, position_bias)
    graphdef, abstract, frozen = nnx.split(whole, trains, nnx.Param)
    frozen = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, lora.base_dtype), frozen
    )
    return Network(
        graphdef,
        abstract,
        sharding.parameter_shardings(abstract, mesh),
        mesh,
        frozen,
        sharding.parameter_shardings(frozen, mesh),
        model,
    )


def init_state(
    network: Network, params: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
    """State at step 0 around `params`; moments lie like their parameters."""
    shardings = sharding.optimizer_shardings(
        tx, network.abstract, network.shardings, network.mesh
    )
    everywhere = NamedSharding(network.mesh, PartitionSpec())

    def scalars() -> tuple[Array, Array, Array]:
        return jnp.zeros((), jnp.int32), jax.random.key(seed), jnp.ones((), bool)

    # Compiled, since another process's devices take no array that is put there.
    with jax.set_mesh(network.mesh):
        opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
        step, key, sound = jax.jit(scalars, out_shardings=everywhere)()
    return TrainState(
        step=step, params=params, opt_state=opt_state, key=key, sound=sound
    )


def abstract_state(network: Network, tx: optax.GradientTransformation) -> TrainState:
    """What `init_state` returns, by shapes, dtypes and shardings alone."""
    everywhere = NamedSharding(network.mesh, PartitionSpec())
    opt_state = jax.eval_shape(tx.init, network.abstract)
    opt_shardings = sharding.optimizer_shardings(
        tx, network.abstract, network.shardings, network.mesh
    )

    def scalar(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=everywhere)

    return TrainState(
        step=scalar(jnp.int32),  # type: ignore[arg-type]
        params=placed(network.abstract, network.shardings),
        opt_state=placed(opt_state, opt_shardings),
        key=scalar(jax.eval_shape(lambda: jax.random.key(0)).dtype),  # type: ignore[arg-type]
        sound=scalar(jnp.bool_),  # type: ignore[arg-type]
    )


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes, with the shardings of a tree like theirs."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings,
    )


def abstract_like(state: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, to restore one like it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
