"""What only a GPU can show. Elsewhere these tests are skipped; on one they run with

RANKER_TEST_PLATFORM=cuda,cpu pytest -n 0 tests/test_gpu.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.batch import PackedBatch, Rows
from ranker.models import attention
from ranker.models.masks import Rule, make_mask
from ranker.training import objectives, optim, state, step, weights
from ranker.training.scorer import device_batch, make_score

pytestmark = pytest.mark.skipif(
    "cuda" not in jax.config.jax_platforms,
    reason="no GPU asked for: set RANKER_TEST_PLATFORM=cuda,cpu",
)

T, V = 256, 64
CASES = {  # what is seen; query heads, key heads and their width
    "bert": (dict(causal=False, window=0), (12, 12, 64)),
    "minilm": (dict(causal=False, window=0), (12, 12, 32)),
    "modernbert": (dict(causal=False, window=20), (12, 12, 64)),
    "llama": (dict(causal=True, window=0), (8, 2, 128)),
    "gemma": (dict(causal=True, window=20), (8, 2, 128)),
}
DECODER = config.Decoder(
    num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128
)
ENCODER = config.Encoder(num_layers=2, embed_dim=64, num_heads=2, mlp_dim=128)


def segments_of(ends):
    """Segments that end where `ends` [R][...] says, and padding behind the last."""
    found = np.zeros((len(ends), T), np.int32)
    for row, places in zip(found, ends, strict=True):
        first = 0
        for number, end in enumerate(places):
            row[first:end] = number + 1
            first = end
    return jnp.asarray(found)


SEGMENTS = [[70, 71, 200], [256], [5, 128, 250]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_in_bfloat16_equals_the_reference(case):
    seen, (N, K, H) = case
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((3, T, heads, H) for heads in (N, K, K, N))
    q, k, v, up = (
        jax.random.normal(key, shape).astype(jnp.bfloat16)
        for key, shape in zip(keys, shapes, strict=True)
    )
    segments, rule = segments_of(SEGMENTS), Rule(**seen, scale=H**-0.5)
    real = (segments > 0)[:, :, None, None]
    assert attention.choose_kernel("gpu", q.shape, q.dtype, 0.0) == "cudnn"

    def ours(q, k, v):
        out = attention.attend(q, k, v, segments, rule, local=True)
        return jnp.sum(jnp.where(real, out * up, 0).astype(jnp.float32)), out

    def wanted(q, k, v):
        mask = make_mask(segments, rule)
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        with jax.default_matmul_precision("highest"):
            out = attention.reference(*wide, mask, rule)
        return jnp.sum(jnp.where(real, out * up, 0)), out

    results = []
    with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices("cuda")[:1])):
        for function in (ours, wanted):
            run = jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))
            results.append(run(q, k, v))
    ((_, out), grads), ((_, expected), slopes) = results
    assert np.isfinite(out.astype(np.float32)).all()
    for found, true in zip((out, *grads), (expected, *slopes), strict=True):
        found, true = (jnp.where(real, x, 0).astype(jnp.float32) for x in (found, true))
        assert jnp.linalg.norm(found - true) < 0.01 * jnp.linalg.norm(true)


def test_the_kernel_is_that_of_cudnn():
    q = jnp.zeros((2, T, 4, 64), jnp.bfloat16)
    with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices("cuda")[:1])):
        attend = partial(attention.attend, rule=Rule(causal=True))
        lowered = jax.jit(attend).lower(q, q, q, segments_of([[256], [9]]))
        text = lowered.compile().as_text()
    assert "cudnn$fmha" in text


def batch_of(packed):
    """Three texts in one row, or in a row each."""
    generator = np.random.default_rng(0)
    lengths, first = (70, 90, 50), (0, 70, 160)
    rows = 1 if packed else 3
    arrays = {name: np.zeros((rows, T), np.int32) for name in ("tokens", "segments")}
    positions, ends = np.zeros((rows, T), np.int32), []
    for number, (length, start) in enumerate(zip(lengths, first, strict=True)):
        row, start = (0, start) if packed else (number, 0)
        part = slice(start, start + length)
        arrays["tokens"][row, part] = generator.integers(1, V, length)
        arrays["segments"][row, part] = number + 1 if packed else 1
        positions[row, part] = np.arange(length)
        ends.append(row * T + (start + length - 1))
    grades = np.array([[1.0, 0.0, 2.0]], np.float32)
    return PackedBatch(
        rows=Rows(**arrays, positions=positions, types=np.zeros((rows, T), np.int32)),
        loss_mask=arrays["segments"] > 0,
        score_index=np.array([ends], np.int32),
        labels=grades,
        targets=grades,
        where=np.ones((1, 3), bool),
    )


def on(platform, model):
    mesh = sharding.make_mesh(config.Mesh(), jax.devices(platform)[:1])
    network = state.make_network(model, V, "score", mesh)
    # The random numbers of both platforms are the same.
    return network, weights.complete_params({}, network, model, V, "score", seed=0)


@pytest.mark.parametrize("model", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_packed_scores_equal_unpacked_ones_and_those_of_a_cpu(model):
    scores = []
    for platform, packed in (("cuda", True), ("cuda", False), ("cpu", True)):
        network, params = on(platform, model)
        batch = device_batch(batch_of(packed), network, leading=0)
        with (
            jax.set_mesh(network.mesh),
            jax.default_matmul_precision("highest"),
        ):
            scores.append(np.asarray(make_score(network)(params, batch)))
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-5)


@pytest.mark.parametrize("model", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_training_steps_equal_those_of_a_cpu(model):
    found = []
    for platform in ("cuda", "cpu"):
        network, params = on(platform, model)
        objective = objectives.make_objective(config.Rank(), groups=1)
        settings = config.Optim(learning_rate=1e-3, warmup=1)
        tx = optim.make_optimizer(settings, 10, network.abstract)
        current = state.init_state(network, params, tx, 0)
        run = step.make_step(network, objective, tx, current)
        batch = jax.tree.map(lambda leaf: leaf[None], batch_of(packed=True))
        with (
            jax.set_mesh(network.mesh),
            jax.default_matmul_precision("highest"),
        ):
            for _ in range(3):
                placed = device_batch(batch, network, leading=1)
                current, metrics = run(current, placed)
        found.append((float(metrics["loss"]), jax.device_get(current.params)))
    (loss, params), (expected, same) = found
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(params), nnx.to_flat_state(same), strict=True
    ):
        a, b = a.get_value(), b.get_value()
        # Adam's step is the learning rate where gradients are rounding errors alone.
        assert np.mean(np.abs(a - b)) < 1e-5, path
