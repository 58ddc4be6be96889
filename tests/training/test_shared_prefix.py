"""A list's prompt that is computed once gives the numbers of a row a pair."""

import dataclasses
from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies

from ranker import config, sharding
from ranker.data import pairs, pipeline
from ranker.data.packing import (
    Example,
    Layout,
    choose_parts,
    choose_trees,
    common_prefix,
    pack,
)
from ranker.data.records import Document, RankedList
from ranker.data.text import Segment, Tokenizer, train_bpe
from ranker.models import attention, blockwise, build, tiles
from ranker.models.masks import Rule, make_mask
from ranker.training import objectives, state
from ranker.training import scorer as scoring

PROMPT = "judge whether the document answers the query, with yes or with no. " * 2
TEMPLATE = f"{PROMPT}{{query}}||| {{both}}||| so"


def tree(prefix, lengths, seed=0):
    """A list of documents behind one prefix."""
    generator = np.random.default_rng(seed)
    begin = generator.integers(1, helpers.V, prefix).tolist()
    texts = [begin + generator.integers(1, helpers.V, n).tolist() for n in lengths]
    segments = [Segment(text, (0, 1), prefix, len(text) - 1) for text in texts]
    labels = generator.normal(size=(2, len(lengths))).astype(np.float32)
    return Example(segments, *labels, shared=common_prefix(segments))


def test_a_tree_in_its_rows_by_hand():
    one = Example(
        [Segment([7, 8, i, i], (0, 1), 2, 3) for i in (1, 2, 3)],
        *np.zeros((2, 3), np.float32),
        shared=2,
    )
    layout = Layout(rows=2, length=7, size=3, shared=True, slots=1)
    choice = choose_trees([one], layout)
    assert choice.rows == [[0, 0, 1]]  # two of them and the prefix are 6 tokens
    batch = pack([one], choice.rows, layout, pad=9)
    rows = batch.rows
    assert rows.tokens.tolist() == [[7, 8, 1, 1, 2, 2, 9], [7, 8, 3, 3, 9, 9, 9]]
    assert rows.segments.tolist() == [
        [1, 1, 2, 2, 3, 3, 0],
        [1, 1, 2, 2, 0, 0, 0],
    ]
    assert rows.prefixes.tolist() == [
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 0, 0, 0],
    ]
    assert rows.positions.tolist() == [
        [0, 1, 2, 3, 2, 3, 0],
        [0, 1, 2, 3, 0, 0, 0],
    ]
    assert rows.types.tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]
    assert batch.score_index.tolist() == [[3, 5, 7 + 3]]


def test_prompts_that_differ_are_not_shared():
    one, other = (Segment([1, n, 5], (0, 0), 2, 2) for n in (2, 3))
    assert common_prefix([one, one]) == 2
    assert common_prefix([one, other]) == 0
    assert common_prefix([one]) == 0  # nothing to share it with


@settings(max_examples=60, deadline=None)
@given(
    prefix=strategies.integers(1, 12),
    lists=strategies.lists(
        strategies.lists(strategies.integers(1, 12), min_size=2, max_size=4),
        min_size=1,
        max_size=8,
    ),
)
def test_trees_fit_and_every_token_lies_once_behind_its_prefix(prefix, lists):
    examples = [tree(prefix, lengths, seed) for seed, lengths in enumerate(lists)]
    layout = pairs.share(Layout(rows=4, length=24, size=4))
    assert (layout.rows, layout.length) == (1, 96)
    choice = choose_trees(examples, layout)
    assert choice.places and choice.places[0] == 0
    chosen = [examples[i] for i in choice.places]
    batch = pack(chosen, choice.rows, layout, pad=0)
    rows = batch.rows
    for b, example in enumerate(chosen):
        for i, segment in enumerate(example.segments):
            r, t = divmod(int(batch.score_index[b, i]), layout.length)
            number, before = rows.segments[r, t], rows.prefixes[r, t]
            seen = (rows.segments[r] == number) | (rows.segments[r] == before)
            assert rows.tokens[r][seen].tolist() == segment.tokens
            assert rows.positions[r][seen].tolist() == list(range(len(segment.tokens)))
    assert (rows.segments > 0).sum() == sum(one.total for one in chosen)


@settings(max_examples=60, deadline=None)
@given(
    prefix=strategies.integers(1, 12),
    lists=strategies.lists(
        strategies.lists(strategies.integers(1, 12), min_size=1, max_size=30),
        min_size=1,
        max_size=12,
    ),
    rows=strategies.integers(1, 3),
)
def test_pairs_that_are_scored_fill_rows_and_each_goes_once(prefix, lists, rows):
    waiting = [tree(prefix, lengths, seed) for seed, lengths in enumerate(lists)]
    layout = Layout(rows=rows, length=96, size=1, shared=True, slots=40)
    seen = []
    left = [list(range(len(one.segments))) for one in waiting]
    while any(left):
        some = [i for i, members in enumerate(left) if members]
        examples = [
            dataclasses.replace(
                waiting[i], segments=[waiting[i].segments[j] for j in left[i]]
            )
            for i in some
        ]
        parts = choose_parts(examples, layout)
        used = [0] * rows
        for one in parts:
            example = examples[one.place]
            for row in set(one.rows):
                used[row] += example.shared
            for member, row in zip(one.members, one.rows, strict=True):
                used[row] += example.lengths[member] - example.shared
        count = sum(len(one.members) for one in parts)
        assert max(used) <= 96 and 0 < count <= 40
        assert parts[0].place == 0
        # Where pairs are left over, no row has room for a prompt and a long document.
        if count < min(40, sum(len(left[i]) for i in some)):
            assert min(used) > 96 - 24
        for one in parts:
            i = some[one.place]
            members = [left[i][j] for j in one.members]
            seen += [(i, j) for j in members]
            left[i] = [j for j in left[i] if j not in members]
    assert sorted(seen) == [(i, j) for i, x in enumerate(lists) for j in range(len(x))]


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
    examples = [tree(40, [20, 70, 35], 1), tree(33, [9, 50], 2)]
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


@pytest.mark.parametrize(
    ("model", "template", "shares", "why"),
    [
        (helpers.DECODER, TEMPLATE, True, ""),
        (helpers.DECODER, "prompt", False, ""),  # too short to be worth it
        (helpers.ENCODER, TEMPLATE, False, ""),
        (
            dataclasses.replace(helpers.DECODER, window=32, local_layers=(0,)),
            TEMPLATE,
            False,
            "window, 32 tokens, is below 64",
        ),
    ],
)
def test_where_a_prompt_is_shared(model, template, shares, why):
    found, reason = pairs.can_share(model, template, 64)
    assert found == shares and why in reason and bool(why) == bool(reason)
    assert pairs.can_share(helpers.DECODER, "qwen3_reranker", 512) == (True, "")
