import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals

from ranker import config, sharding
from ranker.batch import Rows
from ranker.models import build, heads, layers
from ranker.models import dropout as dropouts
from ranker.planning.flops import program_flops

DECODER = config.Decoder(
    num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24
)
ENCODER = config.Encoder(
    num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, max_positions=32
)
both = pytest.mark.parametrize(
    "settings", [DECODER, ENCODER], ids=["decoder", "encoder"]
)
V = 50


def make(settings, head="score", seed=0):
    return build.build(settings, V, head, key=jax.random.key(seed))


def rows(lengths, T=12, seed=0):
    """One text a row."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, V, (len(lengths), T)).astype(np.int32)
    place = np.arange(T, dtype=np.int32)
    real = place[None] < np.array(lengths)[:, None]
    types = (place[None] >= 3) & real
    arrays = tokens * real, real, place[None] * real, types
    return Rows(
        *(jnp.asarray(np.broadcast_to(x, tokens.shape), jnp.int32) for x in arrays)
    )


def index_of(settings, lengths, T=12):
    end = np.array(lengths) - 1 if isinstance(settings, config.Decoder) else 0
    return jnp.asarray(np.arange(len(lengths)) * T + end, jnp.int32)[:, None]


@both
def test_shapes_and_dtypes(settings):
    model = make(settings)
    scores = model(rows([5, 9]), index_of(settings, [5, 9]))
    assert scores.shape == (2, 1) and scores.dtype == jnp.float32
    params = nnx.state(model, nnx.Param)
    for path, leaf in nnx.to_flat_state(params):
        assert leaf.get_value().dtype == jnp.float32, path
        assert len(leaf.get_metadata("axes")) == leaf.get_value().ndim, path


@both
def test_padding_does_not_count(settings):
    model, lengths = make(settings), [5, 9]
    index = index_of(settings, lengths)
    given = rows(lengths)
    a = model(given, index)
    noise = jnp.where(given.segments == 0, 7, given.tokens)
    b = model(dataclasses.replace(given, tokens=noise), index)
    np.testing.assert_allclose(a, b, atol=1e-6)


@both
def test_two_segments_in_a_row_score_as_in_rows_of_their_own(settings):
    model = make(settings)
    alone = rows([5, 6])
    separate = model(alone, index_of(settings, [5, 6]))

    def joined(array):
        row = np.zeros((1, 12), np.int32)
        row[0, :5], row[0, 5:11] = array[0, :5], array[1, :6]
        return row

    packed = jax.tree.map(joined, alone)
    packed.segments[0, 5:11] = 2  # the second segment
    index = [[4], [10]] if isinstance(settings, config.Decoder) else [[0], [5]]
    together = model(jax.tree.map(jnp.asarray, packed), jnp.array(index, jnp.int32))
    np.testing.assert_allclose(together, separate, atol=1e-5)


@both
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_last_layer_computes_what_is_read_and_no_more(settings, remat):
    settings = dataclasses.replace(settings, remat=remat)
    model, lengths = make(settings), [5, 9, 12]
    inputs, index = rows(lengths), index_of(settings, lengths)
    graph, params = nnx.split(model)

    def whole(params):
        body = nnx.merge(graph, params).body
        return heads.gather(body(inputs), index, groups=1)

    def needed(params):
        body = nnx.merge(graph, params).body
        read = partial(heads.gather, index=index, groups=1)
        return body(inputs, read=read)

    np.testing.assert_allclose(needed(params), whole(params), atol=1e-6)
    slopes = [
        jax.grad(lambda params, f=f: jnp.sum(f(params) ** 3))(params)
        for f in (needed, whole)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), *slopes)

    D, F = settings.embed_dim, settings.mlp_dim
    width = settings.num_heads * settings.head_dim
    matrices = 3 if isinstance(settings, config.Decoder) else 2
    spared = 2 * (3 * 12 - 3) * (width * D + matrices * D * F)
    found = [program_flops(jax.make_jaxpr(f)(params)) for f in (whole, needed)]
    assert found[0] - found[1] == spared


@both
def test_layers_compiled_one_by_one_give_the_same_gradients(settings, monkeypatch):
    settings, lengths = dataclasses.replace(settings, num_layers=3), [5, 9]
    inputs, index = rows(lengths), index_of(settings, lengths)
    graph, params = nnx.split(make(settings))
    found, counts = [], []
    for limit in (1 << 30, 1):

        def loss(params):
            return jnp.sum(nnx.merge(graph, params)(inputs, index))

        monkeypatch.setattr(layers, "UNROLLED", limit)
        with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices()[:1])):
            compiled = jax.jit(jax.grad(loss)).lower(params)
            counts.append(compiled.as_text().count("stablehlo.while"))
            found.append(compiled.compile()(params))
    assert counts[0] > counts[1] == 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *found)


def test_layers_are_looped_over_where_that_is_cheap(monkeypatch):
    large, small = jnp.zeros((8, 512, 256)), jnp.zeros((1, 512, 256))
    for platform, expected in (("cpu", True), ("gpu", True), ("tpu", False)):
        monkeypatch.setattr(layers.sharding, "platform", lambda p=platform: p)
        assert layers.unrolled(large, "none") == expected, platform
        assert not layers.unrolled(large, "full")  # little is kept
        assert not layers.unrolled(small, "none")  # not worth the compiling


def test_decoder_is_causal_and_encoder_is_not():
    for settings, changes in ((DECODER, False), (ENCODER, True)):
        model = make(settings)
        given = rows([9])
        other = dataclasses.replace(given, tokens=given.tokens.at[0, 8].set(3))
        a, b = (model.body(x) for x in (given, other))
        assert (not np.allclose(a[0, :8], b[0, :8], atol=1e-6)) == changes


@both
@pytest.mark.parametrize("remat", ["none", "full"])
def test_rows_of_padding_have_finite_gradients(settings, remat):
    settings = type(settings)(**{**vars_of(settings), "remat": remat})
    graphdef, params = nnx.split(make(settings), nnx.Param)
    batch = rows([5, 0])

    def loss(params):
        scores = nnx.merge(graphdef, params)(batch, index_of(settings, [5, 1]))
        return scores[0, 0] + 0 * scores[1, 0]

    gradients = jax.grad(loss)(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert any(np.asarray(g).any() for g in jax.tree.leaves(gradients))


def vars_of(settings):
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


@both
def test_remat_changes_memory_and_nothing_else(settings):
    batch, index = rows([5, 9]), index_of(settings, [5, 9])
    sizes, gradients = [], []
    for choice in ("none", "dots", "attention", "full"):
        chosen = dataclasses.replace(settings, remat=choice)
        graphdef, params = nnx.split(make(chosen), nnx.Param)

        def loss(params, graphdef=graphdef):
            return jnp.sum(nnx.merge(graphdef, params)(batch, index))

        kept = saved_residuals(loss, params)
        sizes.append(sum(a.size for a, why in kept if "argument" not in why))
        if choice in ("none", "attention"):
            gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
    assert sizes == sorted(set(sizes), reverse=True), sizes
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_unrolled_layers_keep_no_more_than_products_and_norms_read():
    """What is cheap is made anew: the compiler must not merge it with the first."""
    settings = config.Encoder(
        num_layers=3,
        embed_dim=256,
        num_heads=4,
        mlp_dim=1024,
        max_positions=512,
        dropout=0.1,
    )
    graphdef, params = nnx.split(make(settings))
    R, T = 4, 512
    text = jnp.ones((R, T), jnp.int32)
    index = jnp.arange(R).reshape(-1, 1) * T
    assert R * T * settings.embed_dim >= layers.UNROLLED

    def loss(params):
        model = nnx.merge(graphdef, params)
        inputs = Rows(text, text, text * 0, text * 0)
        return jnp.sum(model(inputs, index, key=jax.random.key(1)))

    with jax.set_mesh(sharding.make_mesh(config.Mesh(), jax.devices()[:1])):
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    # A layer: q, k, v, what attention gives, and in and out of both norms; in and out
    # of the activation, four times as wide; a byte for both masks of dropout.
    kept = 4 * (settings.num_layers - 1) * R * T * 256 * (4 + 4 + 8 + 1)
    assert temporary < 1.5 * kept, temporary / kept


@both
def test_bfloat16_stays_near_float32(settings):
    low = type(settings)(**{**vars_of(settings), "dtype": "bfloat16"})
    batch, index = rows([5, 9]), index_of(settings, [5, 9])
    a, b = make(settings)(batch, index), make(low)(batch, index)
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.02)
    assert not np.array_equal(a, b)


def test_dropout_follows_its_key():
    settings = config.Encoder(**{**vars_of(ENCODER), "dropout": 0.5})
    model = make(settings)
    batch, index = rows([5, 9]), index_of(settings, [5, 9])
    one = model(batch, index, key=jax.random.key(1))
    assert np.array_equal(one, model(batch, index, key=jax.random.key(1)))
    assert not np.allclose(one, model(batch, index, key=jax.random.key(2)))
    assert np.array_equal(model(batch, index), model(batch, index))


def test_each_dropout_draws_anew(monkeypatch):
    """With one key for all layers the masks of equal layers would be equal."""
    keys = []

    def dropout(x, rate, key):
        assert rate == 0.5
        jax.debug.callback(
            lambda k: keys.append(tuple(map(int, k))), jax.random.key_data(key)
        )
        return x

    monkeypatch.setattr(dropouts, "dropout", dropout)
    rates = {"dropout": 0.5, "attention_dropout": 0.5}
    model = make(config.Encoder(**{**vars_of(ENCODER), **rates}))
    model(rows([5, 9]), index_of(ENCODER, [5, 9]), key=jax.random.key(1))
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 2 * 3 + 2  # three a layer, embeddings, head


@pytest.mark.parametrize("width", [64, 7])
def test_dropout_keeps_what_it_says(width):
    x = jnp.ones((5000, width))
    y = np.asarray(dropouts.dropout(x, 0.1, jax.random.key(0)))
    kept = y > 0
    np.testing.assert_allclose(y[kept], 1 / 0.9, rtol=1e-4)
    spread = (0.1 * 0.9 / kept.size) ** 0.5
    assert abs(kept.mean() - 0.9) < 5 * spread
    # Two entries share a random word, and must not share their fate.
    half = -(-width // 2)
    both = np.stack([kept[:, : width - half].ravel(), kept[:, half:].ravel()])
    assert abs(np.corrcoef(both)[0, 1]) < 5 * both.shape[1] ** -0.5
    none = dropouts.dropout(x, 1 - 1e-9, jax.random.key(0))
    assert np.isfinite(none).all()


@both
def test_a_list_that_leaves_its_shard_scores_nan(settings):
    model, lengths = make(settings), [5, 9, 4, 7]
    batch, index = rows(lengths), index_of(settings, lengths)
    right = model(batch, index, groups=2)
    np.testing.assert_allclose(right, model(batch, index, groups=1), atol=1e-6)
    swapped = model(batch, index[::-1], groups=2)
    assert np.isnan(swapped).all()


def test_language_model_tied_and_untied():
    for tied in (True, False):
        settings = config.Decoder(**{**vars_of(DECODER), "tie_embeddings": tied})
        model = make(settings, "language")
        logits = model(rows([5, 9]))
        assert logits.shape == (2, 12, V) and logits.dtype == jnp.float32
        names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
        assert ("head" in names) == (not tied)
    with pytest.raises(config.ConfigError, match="needs a decoder"):
        make(ENCODER, "language")


def test_seven_billion_parameters_by_shapes_alone():
    llama = config.Decoder(
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11008,
        tie_embeddings=False,
    )
    model = build.abstract(llama, 32000, "language")
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == 6_738_415_616  # Llama-2-7B
