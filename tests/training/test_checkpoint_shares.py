"""Four processes save one state: each writes and reads its share of the bytes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 4
NUMBERS = 1 << 22  # of each of two arrays, float32: 32 MiB together

PROGRAM = f"""
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
address, index, folder = sys.argv[1:]
jax.distributed.initialize(address, {COUNT}, int(index))

import pathlib
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ranker import config, processes, sharding
from ranker.training.checkpoint import Checkpoints
from ranker.training.state import TrainState

mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=8))
split = NamedSharding(mesh, PartitionSpec("fsdp"))
everywhere = NamedSharding(mesh, PartitionSpec())

def state(seed):
    def make():
        keys = jax.random.split(jax.random.key(seed))
        w, m = (jax.random.normal(key, ({NUMBERS},)) for key in keys)
        return jnp.int32(seed), {{"w": w}}, {{"m": m}}, jax.random.key(0), jnp.bool_(1)
    where = (everywhere, {{"w": split}}, {{"m": split}}, everywhere, everywhere)
    return TrainState(*jax.jit(make, out_shardings=where)())

def moved(call):
    def counts():
        lines = pathlib.Path("/proc/self/io").read_text().splitlines()
        found = dict(line.split(": ") for line in lines)
        return int(found["rchar"]), int(found["wchar"])
    processes.meet()
    before = counts()
    result = call()
    after = counts()
    return result, {{"read": after[0] - before[0], "written": after[1] - before[1]}}

checkpoints = Checkpoints(pathlib.Path(folder), keep=2)

def save(seed):
    checkpoints.save(state(seed), seed, {{"n": seed}}, {{}})
    checkpoints.wait()

save(1)  # what is imported and made once is read here
_, saved = moved(lambda: save(2))
fresh = state(3)
(restored, progress), loaded = moved(lambda: checkpoints.restore(fresh))
assert progress == {{"n": 2}} and int(restored.step) == 2
wanted = state(2)
for name in ("params", "opt_state"):
    for a, b in zip(*(jax.tree.leaves(getattr(x, name)) for x in (restored, wanted))):
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards):
            assert (mine.data == theirs.data).all()
checkpoints.close()
print(json.dumps({{"save": saved, "restore": loaded}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="Linux counts")
def test_no_process_moves_more_than_its_share(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(COUNT)
    ]
    outputs = [one.communicate(timeout=280) for one in started]
    assert [one.returncode for one in started] == [0] * COUNT, outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    print(json.dumps(found))
    share = 2 * 4 * NUMBERS / COUNT
    for one in found:
        # Written once, and read once for the digests; beside it, what tells of them.
        assert 0.8 * share < one["save"]["written"] < 1.1 * share + (1 << 20), found
        assert 0.8 * share < one["save"]["read"] < 1.1 * share + (1 << 20), found
        # Read once against the digests, and once for the devices.
        assert one["restore"]["read"] < 2.2 * share + (2 << 20), found
        assert one["restore"]["written"] < 1 << 20, found
