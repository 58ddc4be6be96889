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

from ranker.data.packing import Example, Layout, choose_documents, pack, text_example
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
