import collections
import itertools
import json

import grain
import jax
import numpy as np
import pytest

from ranker import config
from ranker.data import pipeline
from ranker.data.pairs import ListEncoder, Shards, draw_documents, pair_batches
from ranker.data.records import ClickExample, Document, RankedList
from ranker.data.text import Tokenizer, train_wordpiece
from ranker.data.triples import Triple
from ranker.scoring.targets import Joined
from ranker.training.inputs import Batches

ONE = Shards(1, (0,))
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
    return ListEncoder(CORPUS, Tokenizer(folder, "pair"), 16)


def stream(encoder, n, *, size=4, accumulate=1, seed=0, shards=ONE, list_size=3):
    batch = config.Batch(size=size, list_size=list_size, accumulate=accumulate)
    batches = pipeline.list_batches(
        LISTS, encoder, batch=batch, seed=seed, shards=shards
    )
    return list(itertools.islice(batches, n)), batches


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def documents(batch, first_row=0):
    """The tokens of each list's documents, read at their scores."""
    length = batch.rows.tokens.shape[-1]
    for index, where in zip(batch.score_index, batch.where, strict=True):
        found = []
        for row, t in (divmod(i, length) for i in index[where]):
            same = (
                batch.rows.segments[row - first_row]
                == batch.rows.segments[row - first_row, t]
            )
            found.append(batch.rows.tokens[row - first_row][same].tolist())
        yield found


def test_shapes_are_static(encoder):
    batches, _ = stream(encoder, 8, accumulate=2)
    for batch in batches:
        assert batch.rows.tokens.shape == (2, 6, 16) and batch.where.shape == (2, 4, 3)


def test_lists_are_whole_and_scored_at_their_first_token(encoder):
    batches, _ = stream(encoder, 6, list_size=6)
    known = {
        tuple(s.tokens.tolist()): (one.query_id, row)
        for one in LISTS
        for s, row in zip(encoder(one.query, one.documents), one.documents, strict=True)
    }
    cls = encoder.tokenizer.head[0]
    for batch in batches:
        batch = jax.tree.map(lambda x: x[0], batch)
        assert (
            batch.rows.tokens.reshape(-1)[batch.score_index[batch.where]] == cls
        ).all()
        for found, labels in zip(documents(batch), batch.labels, strict=True):
            names = {known[tuple(tokens)] for tokens in found}
            if names:
                [query] = {name for name, _ in names}
                one = LISTS[int(query[1:])]
                assert {row for _, row in names} == set(one.documents.tolist())
                assert set(labels[: len(found)]) == set(one.labels)
        # Positions restart with each segment, and types follow the template.
        starts = np.diff(batch.rows.segments, axis=1, prepend=0) != 0
        assert (batch.rows.positions[starts & (batch.rows.segments > 0)] == 0).all()
        assert batch.rows.positions.max() < encoder.length


def test_rows_are_shared(encoder):
    batches, _ = stream(encoder, 6)
    used = [(one.rows.segments > 0).mean() for one in batches]
    # Two of 7 tokens fill 14 of 16; a row each would be 0.44.
    assert np.mean(used) > 0.7 and max(one.rows.segments.max() for one in batches) == 2


def test_order_is_a_function_of_the_seed(encoder):
    a, _ = stream(encoder, 5, seed=1)
    b, _ = stream(encoder, 5, seed=1)
    c, _ = stream(encoder, 5, seed=2)
    assert equal(a, b) and not equal(a, c)


def test_resumes_from_its_state_at_every_batch(encoder):
    whole, batches = stream(encoder, 9, size=2)
    states = []
    _, batches = stream(encoder, 0, size=2)
    for _ in whole:
        states.append(json.dumps(batches.get_state()))
        next(batches)
    for done, state in enumerate(states):
        _, again = stream(encoder, 0, size=2)
        again.set_state(json.loads(state))
        assert equal(whole[done:], list(itertools.islice(again, 9 - done)))


def test_goes_on_with_another_number_of_shards(encoder):
    """Nothing is lost and nothing comes twice."""

    def taken(batches):
        return [
            tuple(sorted(map(tuple, one)))
            for batch in batches
            for one in documents(jax.tree.map(lambda x: x[0], batch))
            if one
        ]

    seen, batches = stream(encoder, 2, list_size=6, shards=Shards(2, (0, 1)))
    state = batches.get_state()
    four = Shards(4, (0, 1, 2, 3))
    _, again = stream(encoder, 0, list_size=6, shards=four)
    again.set_state(state)
    seen = taken(seen)
    while len(seen) < 2 * len(LISTS):
        seen += taken([next(again)])
    counts = collections.Counter(seen)
    assert len(counts) == len(LISTS) and max(counts.values()) <= 4


@pytest.mark.parametrize("counts", [(2, 4), (4, 2), (1, 3), (3, 8), (4, 1, 2)])
def test_every_record_comes_once_however_often_the_shards_change(encoder, counts):
    """A source that ends: what is lost or repeated shows in the scores of its records.

    Lengths differ, so that records wait in each shard when their number changes.
    """
    words = ["word1 " * (1 + 7 * i % 11) for i in range(900)]
    triples = [Triple("ask", word, float(i)) for i, word in enumerate(words)]

    def batches(shards):
        return pipeline.triple_batches(
            triples,
            encoder.tokenizer,
            batch=config.Batch(size=48, list_size=1),
            length=16,
            shards=Shards(shards, tuple(range(shards))),
        )

    made = [next(current := batches(counts[0]))]
    assert made[0].where.sum() < 90
    for count in counts[1:]:
        state = json.loads(json.dumps(current.get_state()))
        assert any(len(waiting) > 1 for waiting in state["dealt"].values())
        current = batches(count)
        current.set_state(state)
        if count != counts[-1]:
            made.append(next(current))
    made += list(current)
    scores = [score for one in made for score in one.targets[one.where].tolist()]
    assert sorted(scores) == list(range(len(triples)))


@pytest.mark.parametrize("size", [1, 4, 10, 25, 27])
@pytest.mark.parametrize(("old", "new"), [(4, 3), (3, 4)])
def test_shards_change_when_some_have_ended(encoder, size, old, new):
    """Nothing is asked for beyond the end of the source."""
    triples = [Triple("ask", f"word{i}", float(i)) for i in range(size)]

    def batches(shards):
        return pipeline.triple_batches(
            triples,
            encoder.tokenizer,
            batch=config.Batch(size=12, list_size=1),
            length=16,
            shards=Shards(shards, tuple(range(shards))),
        )

    current, again = batches(old), batches(new)
    made = [next(current)]
    again.set_state(json.loads(json.dumps(current.get_state())))
    made += list(again)
    scores = [score for one in made for score in one.targets[one.where].tolist()]
    assert sorted(scores) == list(range(size))


def test_every_epoch_has_an_order_of_its_own():
    row = pipeline.shuffled_rows(40, seed=3)
    epochs = [[row(40 * epoch + i) for i in range(40)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("size", [1, 7, 300])
def test_records_and_draws_are_those_of_grain(size):
    """Runs that were begun with grain's own data set go on as they were."""

    def draw(record, generator):
        return record, generator.integers(10**9), generator.permutation(5).tolist()

    ours = pipeline.Endless(range(size), 11, draw)
    theirs = grain.MapDataset.source(range(size)).seed(11).shuffle().repeat()
    drawn = theirs.random_map(draw)
    for index in (*range(min(3 * size, 40)), 5 * size - 1):
        assert ours[index] == drawn[index]
        assert pipeline.shuffled_rows(size, 11)(index) == theirs[index]


def test_an_epoch_shows_every_list_once(encoder):
    batches, _ = stream(encoder, 12, size=4, list_size=6)
    seen = [
        tuple(sorted(map(tuple, one)))
        for batch in batches
        for one in documents(jax.tree.map(lambda x: x[0], batch))
        if one
    ]
    counts = collections.Counter(seen)
    assert len(counts) == len(LISTS)
    # What waits to be packed is from the epochs that are under way.
    assert max(counts.values()) - min(counts.values()) <= 2


def test_processes_make_what_one_process_makes(encoder):
    whole, _ = stream(encoder, 4, size=4, accumulate=2, shards=Shards(2, (0, 1)))
    halves = [
        stream(encoder, 4, size=4, accumulate=2, shards=Shards(2, (i,)))[0]
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        both = jax.tree.map(lambda x, y: np.concatenate([x, y], axis=1), *parts)
        assert equal(batch, both)
        # The lists of a shard point at its own rows alone.
        row = batch.score_index.reshape(2, 2, -1) // 16
        assert (row // 3 == np.arange(2).reshape(1, 2, 1)).all()


def test_drawing_keeps_a_best_document():
    labels = np.array([0, 0, 0, 2, 0, 0, 0, 0, 1, 0], np.float32)
    generator = np.random.default_rng(0)
    draws = [draw_documents(labels, 3, generator) for _ in range(200)]
    assert all(len(set(draw)) == 3 and 3 in draw for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 50
    short = draw_documents(labels[:2], 3, generator)
    assert sorted(short) == [0, 1]


def test_a_best_document_is_drawn_to_any_place():
    """Losses that take one place as a random document rely on it."""
    labels = np.array([0, 0, 0, 2, 0, 0, 0, 0, 1, 0], np.float32)
    generator = np.random.default_rng(0)
    draws = np.array([draw_documents(labels, 3, generator) for _ in range(2000)])
    # A third each; four standard deviations of 2,000 draws are 0.042.
    np.testing.assert_allclose((draws == 3).mean(axis=0), 1 / 3, atol=0.042)


def test_text_batches_predict_the_document_alone(encoder):
    clicks = [ClickExample(f"ask q{i}", f"word{i}", "text") for i in range(10)]
    batches = pipeline.text_batches(
        clicks,
        encoder.tokenizer,
        batch=config.Batch(size=4),
        length=16,
        seed=0,
        shards=ONE,
    )
    batch = next(batches)
    assert batch.rows.tokens.shape == (1, 4, 16) and batch.where.shape[2] == 0
    assert (
        batch.loss_mask == ((batch.rows.types == 1) & (batch.rows.segments > 0))
    ).all()
    assert batch.rows.segments.max() == 2 and batch.loss_mask.any()


def test_every_text_once(encoder):
    clicks = [ClickExample(f"ask q{i}", f"word{i}", "text") for i in range(23)]
    batches, nothing = pipeline.every_text(
        clicks, encoder.tokenizer, batch=config.Batch(size=4), length=16, shards=ONE
    )
    found = list(batches)
    starts = [(one.rows.positions == 0) & (one.rows.segments > 0) for one in found]
    assert sum(int(one.sum()) for one in starts) == 23
    assert (
        nothing.rows.tokens.shape == found[0].rows.tokens.shape
        and not nothing.rows.segments.any()
    )


@pytest.mark.parametrize("shards", [1, 2])
def test_every_pair_is_scored_once(encoder, shards):
    local = tuple(range(shards))
    pairs = list(pair_batches(LISTS, encoder, rows=8, shards=Shards(shards, local)))
    expected = [
        s.tokens.tolist() for one in LISTS for s in encoder(one.query, one.documents)
    ]
    seen = {}
    for batch, numbers in pairs:
        assert batch.rows.tokens.shape == (8, 16)
        for number, found in zip(numbers.tolist(), documents(batch), strict=True):
            assert (number >= 0) == bool(found)
            if found:
                assert number not in seen
                [seen[number]] = found
    assert [seen[i] for i in range(len(expected))] == expected
    fill = [(batch.rows.segments > 0).mean() for batch, _ in pairs[:-shards]]
    assert np.mean(fill) > 0.8


def test_two_processes_share_the_rows_of_each_batch(encoder):
    def batches(local):
        shards = Shards(2, local)
        return list(pair_batches(LISTS, encoder, rows=8, shards=shards))

    # A process ends when its lists do, so the numbers of batches may differ by one.
    for whole, *halves in zip(
        batches((0, 1)), batches((0,)), batches((1,)), strict=False
    ):
        both = jax.tree.map(lambda x, y: np.concatenate([x, y]), *halves)
        assert equal(whole, both)


def test_sizes_that_do_not_divide(encoder):
    shards = Shards(3, (0, 1, 2))
    with pytest.raises(config.ConfigError, match="micro-batch of 4 .* 3 data shards"):
        stream(encoder, 1, shards=shards)
    with pytest.raises(config.ConfigError, match="no example"):
        pipeline.text_batches(
            [],
            encoder.tokenizer,
            batch=config.Batch(size=4),
            length=16,
            seed=0,
            shards=ONE,
        )


# --- teacher scores ---


def test_joined_sources():
    joined = Joined([LISTS[:3], [], LISTS[3:5]])
    assert len(joined) == 5
    assert [joined[i].query_id for i in range(5)] == [f"q{i}" for i in range(5)]


def test_an_epoch_counts_what_was_packed(encoder):
    _, batches = stream(encoder, 0)
    counted = Batches(batches, lambda row: row, str, size=len(LISTS))
    packed = 0
    for _ in range(12):
        packed += int(next(counted).where.any(-1).sum())
        assert counted.epoch == pytest.approx(packed / len(LISTS))
