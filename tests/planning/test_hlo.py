"""What a program moves, against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ranker import config, sharding
from ranker.planning import hlo
from ranker.planning.estimate import totals


def program(function, *arrays, mesh=None):
    """The compiled text of a function on 8 devices."""
    compiled = jax.jit(function).lower(*arrays).compile()
    return hlo.Program(compiled.as_text())


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    mesh = sharding.make_mesh(config.Mesh(fsdp=8))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    weights = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct(
        (8, 16), jnp.float32, sharding=NamedSharding(mesh, split.spec)
    )

    def function(x, weights):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(
                w, NamedSharding(mesh, PartitionSpec())
            )
            return jnp.tanh(jnp.einsum("RD,DE->RE", x, w)), None

        rows = NamedSharding(mesh, PartitionSpec("fsdp", None))
        x = jax.lax.with_sharding_constraint(x, rows)
        return jax.lax.scan(body, x, weights)[0]

    found = program(function, x, weights).traffic(8, 1)
    gathers = [one for one in found.collectives if one.kind == "all-gather"]
    assert not found.unknown_loops
    # Each of 5 layers gathers 16 x 16 float32, of which 7/8 come from others.
    inside = [one for one in gathers if one.count == 5]
    assert [one.bytes for one in inside] == [16 * 16 * 4]
    assert [one.ici for one in inside] == [16 * 16 * 4 * 7 / 8]
    assert totals(found.collectives)["all-gather"]["dcn_bytes"] == 0
    # As two slices of four devices each, half of it crosses between them.
    apart = program(function, x, weights).traffic(8, 2)
    [one] = [c for c in apart.collectives if c.count == 5 and c.kind == "all-gather"]
    assert (one.ici, one.dcn) == (1024 * 3 / 4, 1024 / 4 / 2)


def test_memory_traffic_of_a_loop_over_slices():
    """A scan reads one layer's weights each time, not all of them."""
    weights = jax.ShapeDtypeStruct((50, 64, 64), jnp.float32)
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def function(x, weights):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, weights)[0]

    moved = program(function, x, weights).traffic(1, 1).hbm
    once = 64 * 64 * 4
    assert 50 * 3 * once < moved < 50 * 12 * once


# Cut from a program for two slices of v5e:2x2: loops say no trip count, kernels bring
# settings of several lines, results may lie on the chip, and the host sends.
TPU = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[8,256], bf16[8,256])) -> (s32[], bf16[8,256], bf16[8,256]) {
  %p = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,256]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = bf16[8,256]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %y = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=2
  %start = (bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[8,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done = bf16[8,256]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  %kernel = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%y), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {
    "body": "x"
}
}
  ROOT %out = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, bf16[8,256]{1,0:T(8,128)(2,1)S(1)}) tuple(%next, %done, %kernel)
}

%condition (q: (s32[], bf16[8,256], bf16[8,256])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,256]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %eight = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%j, %eight), direction=LT
}

ENTRY %main (a: bf16[8,256]) -> bf16[8,256] {
  %a = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copied = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} copy(%a)
  %loop = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,256]{1,0:T(8,128)(2,1)S(1)}) while(%init), condition=%condition, body=%body
  %init = (s32[]{:T(128)}, bf16[8,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,256]{1,0:T(8,128)(2,1)S(1)}) tuple(%zero, %a, %copied)
  %r = bf16[8,256]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  %token = token[] after-all()
  %send = (bf16[8,256]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%r, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %sum = bf16[8,256]{1,0:T(8,128)(2,1)} all-reduce(%r), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
}
"""  # noqa: E501


def test_a_program_for_tpus():
    parsed = hlo.Program(TPU)
    assert set(parsed.computations) == {"body", "condition", "main"}
    found = parsed.traffic(8, 2)
    size = 8 * 256 * 2
    moved = {
        one.kind + (" between slices" if one.dcn else ""): one
        for one in found.collectives
    }
    assert moved["collective-permute"].count == 4  # 0, 2, 4, 6
    assert moved["collective-permute"].ici == size
    assert moved["all-reduce"].ici == 2 * size * 3 / 4
    assert moved["all-reduce between slices"].dcn == 2 * size / 2
    assert not found.unknown_loops
    # The kernel works on the chip's own memory; the copy reads HBM and writes to it.
    assert parsed.computations["body"].instructions["kernel"].shapes == (
        hlo.Shape(size, hbm=False),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
    ],
)
def test_groups_as_the_compiler_writes_them(text, expected):
    assert hlo.groups(text, 4) == expected


def test_iota_groups_equal_numpy():
    order = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).reshape(4, 6)
    text = "replica_groups=[4,6]<=[2,3,4]T(2,0,1)"
    assert hlo.groups(text, 24) == order.tolist()
