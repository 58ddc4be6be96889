"""Choosing and placing: nothing overlaps, nothing is split, rows are full."""

import collections
import gzip
import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.data.packing import (
    Choice,
    Example,
    Layout,
    choose_documents,
    empty_batch,
    pack,
    text_example,
)
from ranker.data.text import Segment

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def segment(n, document=1):
    return Segment([7] * n, (0, 1), document, n - 1)


@settings(max_examples=200, deadline=None)
@given(
    lists=st.lists(
        st.lists(st.integers(1, 16), min_size=1, max_size=3), min_size=1, max_size=20
    ),
    rows=st.integers(3, 6),
)
def test_what_is_chosen_fits(lists, rows):
    layout = Layout(rows=rows, length=16, size=3)
    choice = choose_documents(lists, layout)
    assert choice.places == sorted(set(choice.places)) and choice.places[0] == 0
    assert len(choice.places) <= layout.lists
    used = collections.Counter()
    for place, its_rows in zip(choice.places, choice.rows, strict=True):
        for row, length in zip(its_rows, lists[place], strict=True):
            used[row] += length
    assert set(used) <= set(range(rows)) and max(used.values()) <= 16
    # A document that was left has no room in any row.
    free = 16 - min(used[row] for row in range(rows))
    for place in set(range(len(lists))) - set(choice.places):
        if len(choice.places) < layout.lists and len(lists[place]) == 1:
            assert lists[place][0] > free


def test_waiting_lists_are_taken_in_order_while_they_fit():
    lists = [[10, 10], [16], [9], [3], [16]]
    choice = choose_documents(lists, Layout(rows=3, length=16, size=2))
    assert choice.places == [0, 1, 3]


def test_a_list_that_fits_exactly_fills_what_is_left():
    lists = [[10], [9, 7], [8], [5], [6]]
    layout = Layout(rows=2, length=16, size=2, slots=4)
    # 10, 9 and 7 into two rows: what is left of the first takes 6, not 5.
    assert choose_documents(lists, layout) == Choice([0, 1, 4], [[0], [1, 1], [0]])
    # Each into the row that it leaves least of.
    free = choose_documents([[12], [9], [4]], Layout(rows=2, length=16, size=1))
    assert free == Choice([0, 1, 2], [[0], [1], [0]])


@pytest.mark.parametrize(
    ("rows", "length", "size", "slots", "lists"),
    [
        (4, 12, 2, 0, 3),  # 48 tokens are 6 documents of 8
        (4, 4, 1, 0, 4),  # a document a row, however short the rows
        (2, 16, 0, 0, 4),  # texts
        (2, 16, 3, 7, 7),
    ],
)
def test_how_many_lists_a_shard_has_room_for(rows, length, size, slots, lists):
    layout = Layout(rows=rows, length=length, size=size, slots=slots)
    assert (layout.lists, layout.tokens) == (lists, rows * length)
    batch = empty_batch(layout, pad=5)
    assert batch.score_index.shape == batch.where.shape == (lists, size)
    assert (batch.rows.tokens == 5).all() and batch.rows.tokens.shape == (rows, length)
    assert not batch.rows.segments.any() and not batch.where.any()
    assert batch.passages is batch.impressions is batch.rows.prefixes is None
    nothing = pack([], [], layout, pad=5)
    assert (nothing.rows.tokens == 5).all() and not nothing.rows.segments.any()


def test_pairs_are_lists_of_one_document():
    layout = Layout(rows=2, length=8, size=1)
    two = Example([segment(3), segment(4)], np.float32([5, 6]), np.float32([1, 2]))
    one = Example([segment(5)], np.float32([7]), np.float32([3]))
    batch = pack([two, one], [[0, 0], [1]], layout, pad=0)
    assert batch.where.tolist() == [[True]] * 2
    assert batch.labels.tolist() == [[5], [6]]


def test_positions_and_weights_of_clicks_and_what_stands_for_none():
    layout = Layout(rows=2, length=8, size=2, slots=3, impressions=True)
    labels = np.zeros((2, 2), np.float32)
    segments = [segment(2), segment(2)]
    places, weights = np.int32([3, 1]), np.float32([0.5, 4])
    shown = Example(segments, *labels, positions=places, weights=weights)
    judged = Example(segments, *labels)
    batch = pack([judged, shown], [[0, 0], [1, 1]], layout, pad=0)
    assert batch.impressions is not None
    assert batch.impressions.positions.tolist() == [[0, 0], [3, 1], [0, 0]]
    assert batch.impressions.weights.tolist() == [[1, 1], [0.5, 4], [1, 1]]
    # Layouts without them leave them out.
    plain = Layout(rows=2, length=8, size=2)
    assert pack([shown], [[0, 0]], plain, pad=0).impressions is None


def test_passages_of_documents_by_hand():
    layout = Layout(rows=2, length=8, size=2, slots=3, passages=3)
    labels = np.float32([2, 1])
    # The first document has two passages in row 0, the second one in row 1.
    one = Example(
        [segment(3), segment(2), segment(4)], labels, labels * 0, counts=[2, 1]
    )
    other = Example([segment(2), segment(1)], labels, labels * 0, counts=[1, 1])
    rows = [[0, 0, 1], [0, 1]]
    batch = pack([one, other], rows, layout, pad=0, first_row=1)
    assert batch.score_index.tolist() == [
        [8 + 2, 8 + 4, 8, 16 + 3, 8, 8],
        [8 + 6, 8, 8, 16 + 4, 8, 8],
        [8] * 6,
    ]
    yes, no = True, False
    assert batch.passages.tolist() == [
        [[yes, yes, no], [yes, no, no]],
        [[yes, no, no], [yes, no, no]],
        [[no] * 3] * 2,
    ]
    assert batch.labels.tolist() == [[2, 1], [2, 1], [0, 0]]
    assert batch.where.tolist() == [[yes, yes], [yes, yes], [no, no]]


def test_a_list_of_one_document_of_several_passages_is_one_list():
    layout = Layout(rows=1, length=12, size=1, passages=2, slots=2)
    one, other = (
        Example([segment(3), segment(2)], np.float32([n]), np.float32([0]), counts=[2])
        for n in (1, 2)
    )
    batch = pack([one, other], [[0, 0]] * 2, layout, pad=0)
    assert batch.labels.tolist() == [[1], [2]] and batch.passages.all()
    assert batch.score_index.tolist() == [[2, 4], [7, 9]]


def test_a_row_holds_segments_side_by_side():
    layout = Layout(rows=4, length=12, size=2)
    first = Example(
        [segment(7), segment(5)], np.float32([1, 2]), np.float32([0.5, 0.25])
    )
    second = Example([segment(6, document=2)], np.float32([3]), np.float32([0]))
    batch = pack([first, second], [[0, 1], [1]], layout, pad=9, first_row=4)
    segments = batch.rows.segments
    assert segments[:2].tolist() == [[1] * 7 + [0] * 5, [1] * 5 + [2] * 6 + [0]]
    assert not segments[2:].any()
    assert batch.rows.positions[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0]
    assert batch.rows.types[0].tolist() == [0] + [1] * 6 + [0] * 5
    assert batch.rows.types[1].tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0]
    assert batch.rows.tokens[0].tolist() == [7] * 7 + [9] * 5
    assert batch.loss_mask[1].tolist() == (
        [False] + [True] * 4 + [False] * 2 + [True] * 4 + [False]
    )
    assert batch.score_index[:2].tolist() == [
        [4 * 12 + 6, 5 * 12 + 4],
        [5 * 12 + 10, 48],
    ]
    assert batch.where.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.labels[:2].tolist() == [[1, 2], [3, 0]]


def test_a_list_that_shares_nothing_sees_no_prefix():
    layout = Layout(rows=2, length=8, size=2, shared=True)
    one = Example([segment(3), segment(4)], *np.zeros((2, 2), np.float32))
    batch = pack([one], [[0, 1]], layout, pad=9)
    assert batch.rows.prefixes is not None and not batch.rows.prefixes.any()
    assert batch.rows.segments.sum() == 7


def test_a_text_without_a_query_predicts_nothing_from_the_text_before_it():
    layout = Layout(rows=1, length=16, size=0)
    texts = [text_example(segment(5, document=0)) for _ in range(2)]
    assert len(texts[0].labels) == len(texts[0].targets) == 0
    batch = pack(texts, [[0], [0]], layout, pad=0)
    assert batch.loss_mask[0, [0, 5]].tolist() == [False, False]
    assert batch.loss_mask.sum() == 8


@pytest.mark.parametrize("name", ["nqqed", "medquad"])
@pytest.mark.parametrize("size", [1, 8])
def test_rows_of_real_texts_are_at_least_92_percent_real(name, size):
    folder = DATA / name
    if not folder.exists():
        pytest.skip(f"{folder} is not here")

    def length(text):
        return len(re.findall(r"\w+|[^\w\s]", text))

    def read(path):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt") as lines:
            yield from lines

    documents, queries = {}, {}
    for line in read(folder / "corpus.jsonl.gz"):
        one = json.loads(line)
        documents[one["_id"]] = length(one["title"]) + length(one["text"])
    for line in read(folder / "queries.jsonl"):
        one = json.loads(line)
        queries[one["_id"]] = length(one["text"])
    [run] = folder.glob("runs/bm25.train.*")
    lists = collections.defaultdict(list)
    for line in read(run):
        query, _, document, *_ = line.split()
        if len(lists[query]) < size:
            total = queries[query] + documents[document] + 3
            lists[query].append(min(512, total))
    layout = Layout(rows=32, length=512, size=size)
    order = list(lists.values())[:2500]
    np.random.default_rng(0).shuffle(order)
    filled, waiting = [], []
    while order:
        while order and sum(map(sum, waiting)) < 3 * layout.tokens:
            waiting.append(order.pop())
        choice = choose_documents(waiting, layout)
        gone = set(choice.places)
        filled.append(sum(sum(waiting[place]) for place in gone) / layout.tokens)
        waiting = [one for place, one in enumerate(waiting) if place not in gone]
    assert len(filled) > 5 and np.mean(filled) >= 0.92, np.mean(filled)
