import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from ranker import config, sharding
from ranker.models import attention, dropout, tiles
from ranker.models.attention import attend, choose_kernel
from ranker.models.masks import Rule, make_mask, reach
from ranker.planning.flops import program_flops

SEEN = {
    "full": dict(causal=False, window=0),
    "causal": dict(causal=True, window=0),
    "window": dict(causal=False, window=20),
    "causal-window": dict(causal=True, window=20),
}
FULL = Rule(causal=False)
seen = pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN.keys())


def example(*, R=2, T=256, N=4, K=2, H=8, dtype=np.float32):
    """q, k, v, and segments that end within blocks of 128, padding behind them."""
    generator = np.random.default_rng(0)
    q = generator.normal(size=(R, T, N, H)).astype(dtype)
    k, v = (generator.normal(size=(R, T, K, H)).astype(dtype) for _ in range(2))
    ends = np.sort(generator.choice(np.arange(1, T - 4), (R, 3), replace=False))
    place = np.arange(T).reshape(1, -1)
    segments = 1 + sum((place >= ends[:, i : i + 1]).astype(np.int32) for i in (0, 1))
    segments = np.where(place >= ends[:, 2:], 0, segments).astype(np.int32)
    return tuple(map(jnp.asarray, (q, k, v, segments)))


def formula(q, k, v, segments, *, causal, window, scale, cap):
    """Attention in float64, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    R, T, N, H = q.shape
    k, v = (np.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    out = np.zeros_like(q)
    for r in range(R):
        for t in range(T):
            near = [
                s
                for s in range(T)
                if segments[r, s] == segments[r, t] > 0
                and (s <= t or not causal)
                and (not window or abs(t - s) < window + (not causal))
            ]
            if not near:
                continue
            logits = np.einsum("nh,snh->ns", q[r, t], k[r, near]) * scale
            logits = cap * np.tanh(logits / cap) if cap else logits
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[r, t] = np.einsum("ns,snh->nh", weights, v[r, near])
    return out


@seen
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_reference_is_the_formula(seen, cap):
    q, k, v, segments = example(T=48)
    mask = make_mask(segments, Rule(**seen))
    real = np.asarray(segments > 0)
    expected = formula(q, k, v, np.asarray(segments), **seen, scale=0.3, cap=cap)
    found = attention.reference(q, k, v, mask, Rule(**seen, scale=0.3, cap=cap))
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-5)


@seen
@pytest.mark.parametrize("kernel", ["tiles", "splash", "blocks", "xla"])
def test_kernels_equal_the_reference_forward_and_backward(kernel, seen, monkeypatch):
    monkeypatch.setattr(tiles, "_BLOCK", 128)  # several tiles a row
    q, k, v, segments = example(R=1, N=2, K=1)
    cap = 2.0 * (seen["window"] > 0 and kernel != "blocks")
    rule = Rule(**seen, scale=0.3, cap=cap)
    real = (segments > 0)[:, :, None, None]
    up = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def ours(q, k, v):
        compute = attention.KERNELS[kernel]
        more = dict(interpret=True) if kernel in ("tiles", "splash") else {}
        out = compute(q, k, v, segments, rule, **more)
        return jnp.sum(jnp.where(real, out * up, 0)), out

    def wanted(q, k, v):
        mask = make_mask(segments, rule)
        out = attention.reference(q, k, v, mask, rule)
        return jnp.sum(jnp.where(real, out * up, 0)), out

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        for f in (ours, wanted)
    ]
    ((_, a), grads), ((_, b), expected) = results
    assert np.isfinite(a).all()
    np.testing.assert_allclose(jnp.where(real, a - b, 0), 0, atol=2e-6)
    for grad, one in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, one, atol=5e-6)


@seen
@pytest.mark.parametrize(
    ("text", "begin"), [(100, 0), (512, 0), (512, 70), (700, 300), (8192, 0)]
)
def test_tiles_are_counted_as_the_texts_need(text, begin, seen):
    T, block = 8192, tiles.block_of(8192)
    segments = jnp.asarray(2 + (np.arange(T).reshape(1, -1) - begin) // text)
    found = reach(segments, Rule(**seen), block)
    assert int(found.sum()) == tiles.count_tiles(T, text, Rule(**seen), begin)


@seen
def test_no_tile_that_is_needed_is_left_out(seen):
    """And where texts share prefixes, those of the prefixes are there."""
    generator = np.random.default_rng(0)
    for _ in range(30):
        numbers = np.sort(generator.integers(1, 9, 64))
        real = numbers < generator.integers(3, 10)
        segments = np.where(real, numbers, 0).astype(np.int32)
        behind = generator.integers(0, 2, 10) * (np.arange(10) > 1)
        prefixes = (behind * (np.arange(10) // 2))[segments].astype(np.int32)
        rule = Rule(**seen)
        shared = None if rule.window or not rule.causal else jnp.asarray(prefixes[None])
        texts = jnp.asarray(segments[None])
        mask = np.asarray(make_mask(texts, rule, shared))[0, 0]
        needed = mask.reshape(8, 8, 8, 8).any((1, 3))
        found = np.asarray(reach(texts, rule, 8, shared))[0]
        assert found[needed].all() and found.diagonal().all()


def test_rows_of_many_texts_cost_what_texts_cost():
    """Of 8,192 tokens in texts of 512, a fifth and less of a row's products."""
    shape = (1, 8192, 1, 64)
    for causal in (False, True):
        rule = Rule(causal=causal, scale=0.1)

        def loss(x, rule=rule):
            segments = jnp.ones(shape[:2], jnp.int32)
            return jnp.sum(tiles.attend(x, x, x, segments, rule))

        jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones(shape))
        whole, short = (program_flops(jaxpr, text) for text in (0, 512))
        block, blocks = 512, 16
        # Two products forward, three for queries and four for keys and values.
        once = 2 * (2 + 3 + 4) * block * block * 64
        listed = blocks * (blocks + 1) // 2 if causal else blocks**2
        assert whole == listed * once
        assert blocks**2 * once >= 5 * short


def test_more_tiles_than_the_kernel_can_list():
    shape = jax.ShapeDtypeStruct((1024, 8192, 1, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct(shape.shape[:2], jnp.int32)
    with pytest.raises(config.ConfigError, match="1024 rows of 8192 tokens.*262,144"):
        jax.eval_shape(partial(tiles.attend, rule=FULL), shape, shape, shape, ids)


def test_a_scanned_layer_is_local_or_not():
    q, k, v, segments = example(T=48)

    @jax.jit
    def both(q):
        rule = Rule(causal=True, window=5)
        found = jax.lax.map(
            lambda local: attend(q, k, v, segments, rule, local=local),
            jnp.array([True, False]),
        )
        known = [attend(q, k, v, segments, rule, local=x) for x in (True, False)]
        return found, jnp.stack(known)

    found, known = both(q)
    np.testing.assert_allclose(found, known, atol=1e-6)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_masks_of_blocks_are_not_kept_beyond_their_block():
    """A scan over layers would compute those of all branches before it, for itself."""
    q, _, _, segments = example(R=4, T=512, N=4, K=4)

    def loss(q):
        def layer(x, _):
            return attend(x, x, x, segments, FULL), None

        return jnp.sum(jax.lax.scan(layer, q, None, length=3)[0])

    with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices()[:1])):
        compiled = jax.jit(jax.grad(loss)).lower(q).compile()
    masks = sum(4 * 8 * 4 * 64 * n * 64 for n in range(1, 9))  # bytes, of all branches
    assert compiled.memory_analysis().temp_size_in_bytes < masks / 2


def test_blocks_write_over_what_they_have_read():
    """Rows give way to their outputs, and in the backward pass to their gradients."""
    q, _, _, segments = example(R=8, T=512, N=4, K=4, H=32)

    def loss(q, k, v):
        for _ in range(3):
            q = attend(q, k, v, segments, FULL)
        return jnp.sum(q)

    with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices()[:1])):
        grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        compiled = grad.lower(q, q, q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 14 * q.nbytes


@pytest.mark.parametrize("kernel", ["tiles", "splash"])
def test_kernels_run_on_each_device_alone(kernel, monkeypatch):
    """Under shard_map, as on TPUs: batch and heads split, nothing moved."""
    q, k, v, segments = example(R=4)
    mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2))
    attend_by = partial(attend, rule=Rule(causal=True, scale=0.3))
    expected = jax.jit(attend_by)(q, k, v, segments)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: kernel)
    with jax.set_mesh(mesh):
        heads = NamedSharding(mesh, sharding.spec(("batch", None, "heads", None)))
        run = jax.jit(
            attend_by,
            in_shardings=(heads, heads, heads, None),
            out_shardings=heads,
        )
        text = run.lower(q, k, v, segments).compile().as_text()
        found = run(q, k, v, segments)
    real = (segments > 0)[:, :, None, None]
    np.testing.assert_allclose(jnp.where(real, found - expected, 0), 0, atol=2e-6)
    assert not re.findall("all-(gather|reduce|to-all)", text)


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "cap", "kernel"),
    [
        ("tpu", (2, 512, 4, 64), jnp.bfloat16, 0.0, "splash"),
        ("tpu", (2, 512, 4, 64), jnp.float32, 50.0, "splash"),
        ("tpu", (2, 1024, 4, 64), jnp.bfloat16, 0.0, "tiles"),
        ("tpu", (2, 32, 4, 64), jnp.bfloat16, 0.0, "xla"),
        ("gpu", (2, 512, 4, 64), jnp.bfloat16, 0.0, "cudnn"),
        ("gpu", (2, 512, 4, 64), jnp.float32, 0.0, "xla"),
        ("gpu", (2, 512, 4, 64), jnp.bfloat16, 50.0, "xla"),
        ("gpu", (2, 512, 4, 256), jnp.bfloat16, 0.0, "xla"),
        ("cpu", (2, 512, 4, 64), jnp.bfloat16, 0.0, "blocks"),
        ("cpu", (2, 512, 4, 64), jnp.float32, 50.0, "xla"),
        ("cpu", (2, 72, 4, 64), jnp.float32, 0.0, "xla"),
        ("", (2, 100, 4, 64), jnp.bfloat16, 0.0, "xla"),
    ],
)
def test_the_kernel_follows_platform_and_shape(platform, shape, dtype, cap, kernel):
    assert choose_kernel(platform, shape, dtype, cap) == kernel


def test_prefixes_need_a_kernel_that_knows_them():
    assert (
        choose_kernel("tpu", (2, 512, 4, 64), jnp.bfloat16, 0.0, shared=True) == "tiles"
    )


def test_a_length_that_the_kernel_cannot_take():
    with pytest.raises(config.ConfigError, match="200 tokens.*128.* 128 or 256 tokens"):
        choose_kernel("tpu", (2, 200, 4, 64), jnp.bfloat16, 0.0)


def test_mask_is_the_picture_of_its_docstring():
    segments = jnp.array([[1, 1, 2, 2, 0]])
    full = np.asarray(make_mask(segments, FULL))[0, 0].astype(int)
    assert full.tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    causal = np.asarray(make_mask(segments, Rule(causal=True)))[0, 0].astype(int)
    assert causal.tolist() == np.tril(full).tolist()


def test_dropped_weights_are_left_out_and_the_rest_scaled():
    """Against the formula, with the very draws; padding stays finite."""
    R, T, N, H = 2, 8, 2, 4
    q, k, v = (
        jax.random.normal(jax.random.key(i), (R, T, N, H), jnp.float32)
        for i in range(3)
    )
    segments = jnp.asarray([[1] * 4 + [2] * 3 + [0], [1] * 8])
    drop = dropout.Drop(0.5, jax.random.key(9))
    rule = Rule(causal=False)
    found = attend(q, k, v, segments, rule, drop=drop)
    kept = np.asarray(drop(jnp.ones((R, N, 1, T, T)), 0))[:, :, 0]  # 0 or 2
    assert 0.3 < (kept > 0).mean() < 0.7
    logits = np.einsum("rtnh,rsnh->rnts", q, k) * H**-0.5
    same = np.asarray(segments)
    seen = (same[:, :, None] == same[:, None]) & (same > 0)[:, :, None]
    weights = np.where(seen[:, None], np.exp(logits), 0)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30) * kept
    expected = np.einsum("rnts,rsnh->rtnh", weights, v)
    real = same > 0
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-5)
    assert np.isfinite(found).all()
    slope = jax.grad(lambda v: jnp.sum(attend(q, k, v, segments, rule, drop=drop)))(v)
    assert np.isfinite(slope).all() and float(jnp.abs(slope).max()) > 0
    without = attend(q, k, v, segments, rule)
    assert not np.allclose(found, without)
