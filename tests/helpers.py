"""Tiny models, meshes and batches, and a few steps on them, for several tests."""

import contextlib
import dataclasses

import jax
import numpy as np

from ranker import config, sharding
from ranker.batch import PackedBatch, Rows
from ranker.data.packing import Example, common_prefix
from ranker.data.text import Segment
from ranker.training import objectives, optim, state, step, weights
from ranker.training.scorer import device_batch

DECODER = config.Decoder(
    num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32
)
ENCODER = config.Encoder(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32)
BIASED = dataclasses.replace(ENCODER, distance_buckets=8)
MESHES = {
    "one": config.Mesh(data=1),
    "data8": config.Mesh(),
    "data2-fsdp2-tensor2": config.Mesh(fsdp=2, tensor=2),
    "slice2-fsdp4": config.Mesh(slices=2, fsdp=4),
}
V, T = 64, 12


def mesh_of(name):
    devices = jax.devices()[:1] if name == "one" else None
    return sharding.make_mesh(MESHES[name], devices)


def batch_of(lists=8, size=2, micro=1, seed=0):
    generator = np.random.default_rng(seed)
    rows = lists * size // micro
    shape = (micro, rows, T)
    lengths = generator.integers(3, T + 1, (micro, rows, 1))
    real = np.arange(T) < lengths
    ends = np.arange(rows) * T + lengths[..., 0] - 1
    where = generator.random((micro, lists // micro, size)) < 0.8
    return PackedBatch(
        rows=Rows(
            tokens=(generator.integers(1, V, shape) * real).astype(np.int32),
            segments=real.astype(np.int32),
            positions=(np.arange(T) * real).astype(np.int32),
            types=np.zeros(shape, np.int32),
        ),
        loss_mask=real & (np.arange(T) > 2),
        score_index=ends.reshape(micro, -1, size).astype(np.int32),
        labels=generator.integers(0, 3, where.shape).astype(np.float32),
        targets=generator.normal(size=where.shape).astype(np.float32),
        where=where,
    )


def tree(prefix, lengths, seed=0):
    """A list of documents behind one prefix."""
    generator = np.random.default_rng(seed)
    begin = generator.integers(1, V, prefix).tolist()
    texts = [begin + generator.integers(1, V, n).tolist() for n in lengths]
    segments = [Segment(text, (0, 1), prefix, len(text) - 1) for text in texts]
    labels = generator.normal(size=(2, len(lengths))).astype(np.float32)
    return Example(segments, *labels, shared=common_prefix(segments))


def network_of(settings, name, head="score"):
    return state.make_network(settings, V, head, mesh_of(name))


OBJECTIVES = {
    "language": (DECODER, config.Language()),
    "softmax": (DECODER, config.Rank()),
    "hinge": (ENCODER, config.Rank(loss=("hinge",))),
    "hybrid": (BIASED, config.Distillation(target_scale="list")),
}


@contextlib.contextmanager
def counting_compilations():
    """A list that grows by one with each XLA compilation."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


OPTIM = config.Optim(learning_rate=1e-2, warmup=1)


def train(settings, objective, mesh_name, batches, optimiser=OPTIM):
    mesh = mesh_of(mesh_name)
    made = objectives.make_objective(objective, groups=sharding.num_shards(mesh))
    network = state.make_network(settings, V, made.head, mesh)
    tx = optim.make_optimizer(optimiser, 10, network.abstract)
    params = weights.complete_params({}, network, settings, V, made.head, seed=0)
    current = state.init_state(network, params, tx, 0)
    compiled = step.make_step(network, made, tx, current)
    metrics = []
    with jax.set_mesh(mesh), counting_compilations() as compilations:
        for number, batch in enumerate(batches):
            current, values = compiled(current, device_batch(batch, network, leading=1))
            metrics.append(jax.device_get(values))
            # The state that comes out lies like the one that went in.
            assert number == 0 or not compilations
            compilations.clear()
    return jax.device_get(current.params), metrics
