"""A list's prompt that is computed once gives the numbers of a row a pair."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.data import pairs, pipeline
from ranker.data.packing import (
    Layout,
    choose_trees,
    pack,
)
from ranker.data.records import Document, RankedList
from ranker.data.text import Tokenizer, train_bpe
from ranker.models import attention, blockwise, build, tiles
from ranker.models.masks import Rule, make_mask
from ranker.training import objectives, state
from ranker.training import scorer as scoring

PROMPT = "judge whether the document answers the query, with yes or with no. " * 2
TEMPLATE = f"{PROMPT}{{query}}||| {{both}}||| so"


KERNELS = {
    "xla": attention.xla,
    "blocks": blockwise.attend,
    "tiles": partial(tiles.attend, interpret=True),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_see_the_prefix_forward_and_backward(kernel, monkeypatch):
    monkeypatch.setattr(tiles, "_BLOCK", 128)  # several tiles a row
    T, N, K, H = 256, 2, 1, 8
    segments, prefixes = np.zeros((2, 2, T), np.int32)
    parts = [(30, 0), (40, 1), (25, 1), (20, 0), (70, 4), (20, 0)], [(90, 0), (80, 1)]
    for row, lengths in enumerate(parts):
        at = 0
        for number, (length, prefix) in enumerate(lengths, 1):
            segments[row, at : at + length] = number
            prefixes[row, at : at + length] = prefix
            at += length
    generator = np.random.default_rng(0)
    q, up = generator.normal(size=(2, 2, T, N, H)).astype(np.float32)
    k, v = generator.normal(size=(2, 2, T, K, H)).astype(np.float32)
    rule, real = Rule(causal=True, scale=0.3), (segments > 0)[:, :, None, None]

    def loss(attend):
        def total(q, k, v):
            out = attend(q, k, v)
            return jnp.sum(jnp.where(real, out * up, 0)), jnp.where(real, out, 0)

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)

    def compute(q, k, v):
        return KERNELS[kernel](q, k, v, segments, rule, prefixes=prefixes)

    (_, found), grads = loss(compute)
    mask = make_mask(segments, rule, prefixes)
    (_, wanted), slopes = loss(lambda *x: attention.reference(*x, mask, rule))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for one, other in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_the_mask_is_the_picture_of_its_docstring():
    segments, prefixes = jnp.array([[[1, 1, 2, 2, 3, 0]], [[0, 0, 1, 1, 1, 0]]])
    mask = make_mask(segments, Rule(causal=True), prefixes)[0, 0].astype(int)
    assert mask.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_scores_and_gradients_equal_those_of_a_row_a_pair():
    """On the CPU's kernel, through packing, as fine-tuning computes them."""
    settings = helpers.DECODER
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    network = state.make_network(settings, helpers.V, "score", mesh)
    objective = objectives.make_objective(config.Rank(), groups=1)
    model = build.build(settings, helpers.V, "score", key=jax.random.key(0))
    params = nnx.state(model, nnx.Param)
    examples = [helpers.tree(40, [20, 70, 35], 1), helpers.tree(33, [9, 50], 2)]
    shared = Layout(rows=1, length=512, size=3, shared=True, slots=2)
    plain = Layout(rows=5, length=128, size=3, slots=2)

    def results(rows, layout):
        batch = pack(examples, rows, layout, pad=0)

        def loss(params):
            model = nnx.merge(network.graphdef, params)
            parts = objective.parts(model, batch, None)
            return parts["softmax"].total, model(batch.rows, batch.score_index)

        with jax.set_mesh(mesh):
            run = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (_, scores), grads = run(params)
        return np.asarray(scores)[batch.where], grads

    mine, grads = results(choose_trees(examples, shared).rows, shared)
    alone, slopes = results([[0, 1, 2], [3, 4]], plain)
    np.testing.assert_allclose(mine, alone, atol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.any(other)


CORPUS = [
    Document(f"d{i}", f"title {i % 7}", "some words " * (1 + i % 9)) for i in range(40)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe((f"{one.title} {one.text} {PROMPT}" for one in CORPUS), 300, folder)
    return Tokenizer(folder, TEMPLATE)


def test_batches_of_trees_score_every_pair_as_alone(tokenizer):
    """Lists longer than a row, and of one document, over two data shards."""
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:2])
    network = state.make_network(helpers.DECODER, tokenizer.vocab_size, "score", mesh)
    key = jax.random.key(0)
    model = build.build(helpers.DECODER, tokenizer.vocab_size, "score", key=key)
    params = nnx.state(model, nnx.Param)
    generator = np.random.default_rng(0)
    lists = [
        RankedList(
            query_id=f"q{n}",
            query=f"words {n}",
            documents=generator.integers(0, len(CORPUS), n).astype(np.int32),
            labels=np.zeros(n, np.float32),
            first_stage=np.zeros(n, np.float32),
            judged_ids=(),
            judged_grades=np.zeros(0, np.int32),
        )
        for n in (30, 1, 5, 12)
    ]
    found, counts = [], []
    for shared in (False, True):
        encoder = pairs.ListEncoder(CORPUS, tokenizer, 64, shared=shared)
        tokens = []
        found.append(
            scoring.score_lists(
                scoring.make_score(network),
                params,
                network,
                lists,
                encoder,
                rows=8,
                progress=lambda _, n, tokens=tokens: tokens.append(n),
            )
        )
        counts.append(sum(tokens))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert counts[1] < 0.7 * counts[0]


def test_training_batches_hold_the_same_lists(tokenizer):
    lists = [
        RankedList(
            query_id=f"q{n}",
            query=f"words {n}",
            documents=np.arange(n, n + 4, dtype=np.int32),
            labels=np.arange(4, dtype=np.float32),
            first_stage=np.zeros(4, np.float32),
            judged_ids=(),
            judged_grades=np.zeros(0, np.int32),
        )
        for n in range(20)
    ]
    batch = config.Batch(size=4, list_size=4)
    kept = []
    for shared in (False, True):
        encoder = pairs.ListEncoder(CORPUS, tokenizer, 64, shared=shared)
        batches = pipeline.list_batches(
            lists, encoder, batch=batch, seed=0, shards=pairs.ALL_IN_ONE
        )
        first = [next(batches) for _ in range(3)]
        batches.close()
        kept.append(sum(int(one.where.sum()) for one in first))
        assert len({one.rows.tokens.size for one in first}) == 1
    assert kept[1] > 1.3 * kept[0]  # more lists in as many tokens
