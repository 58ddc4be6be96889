import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import (
    DECODER,
    ENCODER,
    OBJECTIVES,
    V,
    batch_of,
    mesh_of,
    network_of,
    train,
)
from jax.sharding import NamedSharding, PartitionSpec

from ranker import config, sharding
from ranker.models import build
from ranker.planning import hlo
from ranker.training import optim, state, weights
from ranker.training.scorer import device_batch, make_score

EXPECTED = {
    "body.embedding": (None, "fsdp"),  # looked up only
    "body.layers.q": (None, "fsdp", "tensor", None),
    "body.layers.k": (None, "fsdp", "tensor", None),
    "body.layers.o": (None, "tensor", None, "fsdp"),
    "body.layers.up": (None, "fsdp", "tensor"),
    "body.layers.down": (None, "tensor", "fsdp"),
    "head.dense": (None,),
}


def test_specs_by_the_table():
    network = network_of(DECODER, "data2-fsdp2-tensor2")
    specs = {
        ".".join(map(str, path)): leaf.get_value().spec
        for path, leaf in nnx.to_flat_state(network.shardings)
    }
    for name, axes in EXPECTED.items():
        assert specs[name] == PartitionSpec(*axes), name
    params = weights.complete_params({}, network, DECODER, V, "score", seed=0)
    for path, leaf in nnx.to_flat_state(params):
        name = ".".join(map(str, path))
        assert leaf.get_value().sharding.spec == specs[name], name
    q = params["body"]["layers"]["q"].get_value()
    assert q.sharding.shard_shape(q.shape) == (2, 8, 2, 8)


@pytest.mark.parametrize("settings", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_every_parameter_axis_is_in_the_table(settings):
    model = build.abstract(settings, V, "score")
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert isinstance(sharding.spec(leaf.get_metadata("axes")), PartitionSpec), path


def test_moments_lie_like_their_parameters():
    network = network_of(DECODER, "data2-fsdp2-tensor2")
    tx = optim.make_optimizer(
        config.Optim(learning_rate=1e-3, warmup=1), 10, network.abstract
    )
    params = weights.complete_params({}, network, DECODER, V, "score", seed=0)
    fresh = state.init_state(network, params, tx, 0)
    moments = optax.tree.get(fresh.opt_state, "mu")
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(params), nnx.to_flat_state(moments), strict=True
    ):
        assert a.get_value().sharding == b.get_value().sharding, path


def test_same_parameters_on_every_mesh():
    leaves = [
        jax.tree.leaves(
            jax.device_get(
                weights.complete_params(
                    {}, network_of(DECODER, n), DECODER, V, "score", seed=3
                )
            )
        )
        for n in ("one", "data2-fsdp2-tensor2")
    ]
    for other in leaves[1:]:
        for a, b in zip(leaves[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_eight_devices_give_the_numbers_of_one(name):
    settings, objective = OBJECTIVES[name]
    batches = [batch_of(seed=i) for i in range(3)]
    params, metrics = train(settings, objective, "one", batches)
    # The language objective also runs on two slices.
    meshes = ["data2-fsdp2-tensor2"] + ["slice2-fsdp4"] * (name == "language")
    for mesh in meshes:
        others, values = train(settings, objective, mesh, batches)
        for a, b in zip(metrics, values, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_allclose(a[key], b[key], rtol=2e-4, err_msg=key)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)


def test_scoring_moves_no_hidden_states_between_devices():
    network = network_of(ENCODER, "data8")
    params = weights.complete_params({}, network, ENCODER, V, "score", seed=0)
    batch = jax.tree.map(lambda x: x[0], batch_of())
    with jax.set_mesh(network.mesh):
        placed = device_batch(batch, network, leading=0)
        text = make_score(network).lower(params, placed).compile().as_text()
    collectives = re.findall(
        r"= \S+ (all-gather|all-to-all|collective-permute)\(", text
    )
    assert not collectives, collectives


@pytest.mark.parametrize("name", ["data2-fsdp2-tensor2", "slice2-fsdp4"])
def test_rows_of_a_split_table_are_moved_where_they_are_fewer(name):
    """Values and gradients of a lookup in the whole table, and what is sent for it."""
    mesh = mesh_of(name)
    generator = np.random.default_rng(0)
    up = generator.normal(size=(8, 16, 32)).astype(np.float32)
    for vocab, whole in ((16, True), (4096, False)):
        table = generator.normal(size=(vocab, 32)).astype(np.float32)
        ids = generator.integers(0, vocab, (8, 16)).astype(np.int32)

        def total(table, ids):
            x = sharding.look_up(table, ids, "vocab", "embed")
            return jnp.sum(x * up), x

        split = NamedSharding(mesh, sharding.spec(("vocab", "embed")))
        rows = sharding.batch_sharding(mesh)
        with jax.set_mesh(mesh):
            run = jax.jit(
                jax.value_and_grad(total, has_aux=True),
                in_shardings=(split, rows),
                out_shardings=((None, rows), split),
            )
            compiled = run.lower(table, ids).compile()
            (_, x), slope = run(jax.device_put(table, split), ids)
        np.testing.assert_array_equal(x, table[ids])
        expected = np.zeros_like(table)
        np.add.at(expected, ids, up)
        np.testing.assert_allclose(slope, expected, atol=1e-5)
        moved = hlo.Program(compiled.as_text()).traffic(8, 1).collectives
        most = max(one.bytes for one in moved if one.kind == "all-gather")
        its_part = 4 * table.size / mesh.shape["tensor"]  # bytes
        assert (most >= its_part) == whole


def test_rules_refuse_nonsense():
    with pytest.raises(ValueError, match="unknown logical axis 'width'"):
        sharding.spec(("width",))
    with pytest.raises(ValueError, match="twice: tensor, tensor"):
        sharding.spec(("heads", "mlp"))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (config.Mesh(data=3), "data 3 .* 8 devices"),
        (config.Mesh(data=16), "data 16 .* 8 devices"),
        (config.Mesh(fsdp=3), "fsdp 3 .* 8 devices"),
        (config.Mesh(slices=3), "slices 3 .* 8 devices"),
        (config.Mesh(slices=2, data=8), "data 8 .* 4 devices here in each of the 2"),
    ],
)
def test_meshes_that_do_not_fit(mesh, message):
    with pytest.raises(config.ConfigError, match=message):
        sharding.make_mesh(mesh)


def test_slices_hold_whole_copies_of_the_parameters():
    @dataclasses.dataclass(frozen=True)
    class Device:  # of the second slice of two, or the first
        id: int
        slice_index: int
        platform: str = "cpu"
        device_kind: str = "cpu"
        process_index: int = 0

    devices = [Device(i, slice_index=(i + 1) % 2) for i in range(8)]
    mesh = sharding.make_mesh(config.Mesh(fsdp=4), devices)  # type: ignore[arg-type]
    assert mesh.shape == {"slice": 2, "data": 1, "fsdp": 4, "tensor": 1}
    for index, slice_devices in enumerate(mesh.devices):
        assert {device.slice_index for device in slice_devices.flat} == {index}
    with pytest.raises(config.ConfigError, match="slices is 4, .* in 2 slices"):
        sharding.make_mesh(config.Mesh(slices=4), devices)
    for axis in sharding.RULES:
        used = sharding.RULES[axis]
        assert axis == "batch" or "slice" not in (used or ()), axis
    assert sharding.RULES["batch"] == ("slice", "data", "fsdp")


def test_sizes_that_do_not_divide_are_listed_together():
    settings = config.Decoder(
        num_layers=1, embed_dim=12, num_heads=3, num_kv_heads=3, head_dim=4, mlp_dim=32
    )
    with pytest.raises(config.ConfigError, match="heads 3 .*mesh.tensor 2.*heads 3"):
        state.make_network(settings, V, "score", mesh_of("data2-fsdp2-tensor2"))


def test_constrain_without_a_mesh_changes_nothing():
    x = jnp.ones((4, 2))
    assert sharding.constrain(x, "batch", None) is x
    mesh = mesh_of("data8")
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x * 1, "batch", None))(
            jnp.ones((8, 2))
        )
    assert y.sharding.is_equivalent_to(
        NamedSharding(mesh, PartitionSpec(("slice", "data", "fsdp"))), 2
    )
