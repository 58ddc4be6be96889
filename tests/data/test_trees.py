"""Lists whose documents share a prefix: which rows they are laid into, and how."""

import dataclasses

import helpers
import numpy as np
import pytest
from helpers import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import config
from ranker.data import pairs
from ranker.data.packing import (
    Choice,
    Example,
    Layout,
    choose_parts,
    choose_trees,
    common_prefix,
    pack,
)
from ranker.data.text import Segment

PROMPT = "judge whether the document answers the query, with yes or with no. " * 2
TEMPLATE = f"{PROMPT}{{query}}||| {{both}}||| so"


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
    assert common_prefix([one]) == common_prefix([]) == 0  # nothing to share it with
    # The same texts, of which one says that its document begins later.
    early, late = (Segment([1, 2, 5], (0, 0), n, 2) for n in (1, 2))
    assert common_prefix([early, late]) == common_prefix([late, early]) == 0


def test_a_list_that_does_not_fit_waits_and_later_ones_fill_what_is_left():
    layout = Layout(rows=2, length=10, size=2, shared=True, slots=3)
    # In a row each: 2 + 4 + 3, 2 + 5 + 4 (too long), 1 + 5 + 4 (full), 1.
    lists = [tree(2, [4, 3]), tree(2, [5, 4]), tree(1, [5, 4]), tree(0, [1])]
    assert choose_trees(lists, layout) == Choice([0, 2, 3], [[0, 0], [1, 1], [0]])
    two = dataclasses.replace(layout, slots=2)
    assert choose_trees(lists, two) == Choice([0, 2], [[0, 0], [1, 1]])
    # Alone it has both rows, each with the prefix.
    assert choose_trees(lists[1:], two) == Choice([0, 2], [[0, 1], [0]])
    assert choose_trees(lists[:1], layout) == Choice([0], [[0, 0]])
    one = dataclasses.replace(layout, rows=1)
    with pytest.raises(AssertionError, match="does not fit into an empty shard"):
        choose_trees(lists[1:], one)


def test_a_list_goes_on_in_the_next_row_and_the_next_list_behind_it():
    layout = Layout(rows=3, length=10, size=3, shared=True, slots=3)
    # Behind the prefix: 5 and 2 of the first list, then 4; the second has room there.
    lists = [tree(2, [4, 5, 2]), tree(1, [2, 1])]
    found = choose_trees(lists, layout)
    assert found == Choice([0, 1], [[1, 0, 0], [1, 1]])
    # A list of 3 documents of 6 tokens needs 3 rows, and there are 2.
    third = [tree(2, [7, 2]), tree(2, [6, 6, 6])]
    assert choose_trees(third, layout) == Choice([0], [[0, 1]])


def test_pairs_are_laid_into_what_the_ones_before_leave():
    layout = Layout(rows=2, length=10, size=1, shared=True, slots=5)
    lists = [tree(2, [3, 4, 2, 5]), tree(1, [1, 1])]
    parts = choose_parts(lists, layout)
    # Row 0: 2 + 5 + 3; row 1: 2 + 4 + 2, and 1 + 1 of the next list.
    assert [(x.place, x.members, x.rows) for x in parts] == [
        (0, [3, 0, 1, 2], [0, 0, 1, 1]),
        (1, [0], [1]),
    ]
    few = dataclasses.replace(layout, slots=3)
    [part] = choose_parts(lists, few)
    assert (part.members, part.rows) == ([3, 0, 1], [0, 0, 1])
    assert choose_parts([tree(9, [1, 1, 1])], layout)[0].rows == [0, 1]
    assert choose_parts([tree(10, [1, 1])], layout) == []


def test_a_tree_is_packed_whole_where_nothing_is_shared():
    one = tree(2, [2, 3])
    batch = pack([one], [[0, 1]], Layout(rows=2, length=6, size=2), pad=0)
    assert batch.rows.prefixes is None
    tokens = [row[row > 0].tolist() for row in batch.rows.tokens]
    assert tokens == [segment.tokens for segment in one.segments]


@pytest.mark.parametrize(
    ("rows", "length", "shared"),
    [
        (8, 512, (2, 2048)),  # 2,048 tokens a row at most
        (6, 600, (2, 1800)),
        (3, 683, (3, 683)),  # 2,049 are too many
        (3, 2048, (3, 2048)),
        (3, 4096, (3, 4096)),
        (5, 100, (1, 500)),
    ],
)
def test_shared_rows_are_fewer_and_longer(rows, length, shared):
    plain = Layout(rows=rows, length=length, size=4, impressions=True)
    found = pairs.share(plain)
    assert (found.rows, found.length) == shared and found.shared
    assert (found.lists, found.tokens) == (plain.lists, plain.tokens)
    assert found.impressions and found.size == 4


@settings(max_examples=60, deadline=None)
@given(
    prefix=st.integers(1, 12),
    lists=st.lists(
        st.lists(st.integers(1, 12), min_size=2, max_size=4),
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
    prefix=st.integers(1, 12),
    lists=st.lists(
        st.lists(st.integers(1, 12), min_size=1, max_size=30),
        min_size=1,
        max_size=12,
    ),
    rows=st.integers(1, 3),
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


@pytest.mark.parametrize(("characters", "shares"), [(127, False), (128, True)])
def test_a_prompt_is_shared_from_128_characters_on(characters, shares):
    template = f"{'x' * (characters - 7)}{{query}}|||{{both}}||| so"
    assert pairs.can_share(helpers.DECODER, template, 64) == (shares, "")


def test_a_window_as_long_as_a_text_shares_its_prompt():
    local = dataclasses.replace(helpers.DECODER, window=64, local_layers=(0,))
    assert pairs.can_share(local, TEMPLATE, 64) == (True, "")
    unused = dataclasses.replace(helpers.DECODER, window=32)
    assert pairs.can_share(unused, TEMPLATE, 64) == (True, "")
    rope = config.Rope(scaling="dynamic", factor=2.0, original_length=32)
    dynamic = dataclasses.replace(helpers.DECODER, rope=rope)
    found, why = pairs.can_share(dynamic, TEMPLATE, 64)
    assert not found and "rotary positions (dynamic)" in why
