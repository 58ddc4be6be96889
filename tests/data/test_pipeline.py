import itertools

import jax
import numpy as np
import pytest

from ranker import config
from ranker.data import pipeline, scores
from ranker.data.records import ClickExample, DataError, Document, RankedList
from ranker.data.text import Tokenizer, train_wordpiece

ONE = pipeline.Share(0, 1)
CORPUS = [Document(f"d{i}", f"word{i}", "text") for i in range(40)]


def ranked(name, rows, labels=None):
    n = len(rows)
    return RankedList(
        query_id=name,
        query=f"ask {name}",
        documents=np.array(rows, np.int64),
        labels=np.array(labels or [0] * n, np.float32),
        first_stage=np.zeros(n, np.float32),
        judged_ids=(),
        judged_grades=np.zeros(0, np.int32),
    )


LISTS = [
    ranked(f"q{i}", list(range(i, i + 1 + i % 6)), [i % 3] * (1 + i % 6))
    for i in range(23)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t") / "encoder"
    texts = [f"{d.title} {d.text}" for d in CORPUS] + [one.query for one in LISTS]
    train_wordpiece(iter(texts), 300, folder)
    return pipeline.ListEncoder(CORPUS, Tokenizer(folder, "pair"), 16)


def stream(encoder, n, *, size=4, accumulate=1, seed=0, share=ONE, list_size=3):
    batch = config.Batch(size=size, list_size=list_size, accumulate=accumulate)
    batches = pipeline.list_batches(LISTS, encoder, batch=batch, seed=seed, share=share)
    return list(itertools.islice(batches, n)), batches


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_shapes_are_static(encoder):
    batches, _ = stream(encoder, 8, accumulate=2)
    for batch in batches:
        assert batch.tokens.shape == (2, 6, 16) and batch.where.shape == (2, 2, 3)


def test_score_index_points_at_each_document(encoder):
    [batch], _ = stream(encoder, 1)
    cls = encoder.tokenizer.head[0]
    tokens = batch.tokens[0].reshape(-1)
    index, where = batch.score_index[0], batch.where[0]
    assert (tokens[index[where]] == cls).all()
    segments = batch.segments[0].reshape(-1)
    assert (segments[index[where]] == 1).all() and (segments[index[~where]] == 0).all()
    assert len(np.unique(index)) == index.size


def test_order_is_a_function_of_the_seed(encoder):
    a, _ = stream(encoder, 5, seed=1)
    b, _ = stream(encoder, 5, seed=1)
    c, _ = stream(encoder, 5, seed=2)
    assert equal(a, b) and not equal(a, c)


def test_resumes_from_its_state(encoder):
    _, batches = stream(encoder, 7)
    state = batches.get_state()
    rest = [next(batches) for _ in range(5)]
    _, again = stream(encoder, 0)
    again.set_state(state)
    assert equal(rest, [next(again) for _ in range(5)])


def test_an_epoch_shows_every_list_once_over_all_processes(encoder):
    seen = []
    for index in range(2):
        share = pipeline.Share(index, 2)
        batches, _ = stream(encoder, 11, size=2, share=share, list_size=6)
        for batch in batches:
            row = batch.tokens[0, 0]
            seen.append(tuple(row[: int(batch.segments[0, 0].sum())]))
    assert len(seen) == 22 and len({row for row in seen}) >= 18  # of 23 lists


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_are_the_same_for_any_number_of_processes(encoder, accumulate):
    """Joined as a mesh joins them; and a run can go on with another number."""
    sizes = dict(size=8, accumulate=accumulate)
    whole, _ = stream(encoder, 4, **sizes)
    parts = []
    for index in range(4):
        _, batches = stream(encoder, 0, share=pipeline.Share(index, 4), **sizes)
        pipeline.skip(batches, 2)
        parts.append([next(batches) for _ in range(2)])
    for batch, *quarters in zip(whole[2:], *parts, strict=True):
        joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *quarters)
        assert equal(batch, joined)


def test_rows_of_a_second_process_are_numbered_globally(encoder):
    [batch], _ = stream(encoder, 1, size=4, share=pipeline.Share(1, 2))
    first = 2 * 3 * 16
    assert batch.score_index.min() >= first
    assert batch.score_index.max() < 2 * first


def test_drawing_keeps_a_best_document():
    labels = np.array([0, 0, 0, 2, 0, 0, 0, 0, 1, 0], np.float32)
    generator = np.random.default_rng(0)
    draws = [pipeline.draw_documents(labels, 3, generator) for _ in range(200)]
    assert all(len(set(draw)) == 3 and 3 in draw for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 50
    short = pipeline.draw_documents(labels[:2], 3, generator)
    assert sorted(short) == [0, 1]


def test_text_batches_predict_the_document_alone(encoder):
    clicks = [ClickExample(f"ask q{i}", f"word{i}", "text") for i in range(10)]
    batches = pipeline.text_batches(
        clicks,
        encoder.tokenizer,
        batch=config.Batch(size=4),
        length=16,
        seed=0,
        share=ONE,
    )
    batch = next(batches)
    assert batch.tokens.shape == (1, 4, 16) and batch.where.shape == (1, 4, 0)
    assert (batch.loss_mask == ((batch.types == 1) & (batch.segments > 0))).all()
    assert batch.loss_mask.any()


def test_every_pair_is_scored_once_in_order(encoder):
    pairs = list(pipeline.pair_batches(LISTS, encoder, rows=8, share=ONE))
    total = sum(len(one.documents) for one in LISTS)
    assert sum(real for _, real in pairs) == total
    assert all(batch.tokens.shape == (8, 16) for batch, _ in pairs)
    tokens = np.concatenate([batch.tokens[:real] for batch, real in pairs])
    expected = [s.tokens for one in LISTS for s in encoder(one.query, one.documents)]
    assert [
        row[: len(e)].tolist() for row, e in zip(tokens, expected, strict=True)
    ] == expected


def test_two_processes_share_the_rows_of_each_batch(encoder):
    whole = list(pipeline.pair_batches(LISTS, encoder, rows=8, share=ONE))
    halves = [
        list(pipeline.pair_batches(LISTS, encoder, rows=8, share=pipeline.Share(i, 2)))
        for i in range(2)
    ]
    for (batch, _), (a, _), (b, _) in zip(whole, *halves, strict=True):
        both = jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)
        assert equal(batch, both)


def test_sizes_that_do_not_divide(encoder):
    with pytest.raises(config.ConfigError, match="batch.size 4 .* 3 processes"):
        stream(encoder, 1, share=pipeline.Share(0, 3))
    with pytest.raises(config.ConfigError, match="no example"):
        pipeline.text_batches(
            [],
            encoder.tokenizer,
            batch=config.Batch(size=4),
            length=16,
            seed=0,
            share=ONE,
        )


# --- teacher scores ---


def test_scores_round_trip_and_refuse_other_lists(tmp_path):
    flat = np.arange(sum(len(one.documents) for one in LISTS), dtype=np.float32) / 3
    scores.save_scores(tmp_path, "train", LISTS, CORPUS, flat)
    read = scores.load_scores(tmp_path, "train", LISTS)
    assert np.concatenate(read).tolist() == flat.tolist()
    assert [len(one) for one in read] == [len(one.documents) for one in LISTS]
    for wrong in (LISTS[1:], LISTS[:-1], [LISTS[1], LISTS[0], *LISTS[2:]]):
        with pytest.raises(DataError, match="belong to other data"):
            scores.load_scores(tmp_path, "train", wrong)


def test_scores_that_are_broken(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        scores.load_scores(tmp_path, "train", LISTS)
    flat = np.zeros(sum(len(one.documents) for one in LISTS), np.float32)
    flat[7] = np.nan
    scores.save_scores(tmp_path, "train", LISTS, CORPUS, flat)
    with pytest.raises(DataError, match="row 7: field 'score': found nan"):
        scores.load_scores(tmp_path, "train", LISTS)


def test_joined_sources():
    joined = scores.Joined([LISTS[:3], [], LISTS[3:5]])
    assert len(joined) == 5
    assert [joined[i].query_id for i in range(5)] == [f"q{i}" for i in range(5)]
