import dataclasses

import numpy as np
import pytest

from ranker import config
from ranker.data.bm25 import Bm25
from ranker.data.words import split_words
from ranker.data.world import DocumentMeaning, Meaning, SearchWorld, grade

SETTINGS = config.World()


@pytest.fixture(scope="module")
def world():
    return SearchWorld(SETTINGS)


def test_a_function_of_seed_and_index():
    a, b = SearchWorld(SETTINGS), SearchWorld(SETTINGS)
    list(map(a.document, range(50)))  # what was asked before does not count
    assert a.document(77) == b.document(77)
    assert a.query(5) == b.query(5) and a.candidates(5) == b.candidates(5)
    assert a.click(123) == b.click(123)
    other = SearchWorld(dataclasses.replace(SETTINGS, seed=1))
    assert other.document(77) != a.document(77) and other.click(123) != a.click(123)


def test_the_world_does_not_drift(world):
    """Published numbers rest on these very records."""
    assert world.document(5).title == "dibure fusujo litefe"
    assert world.click(0) == SearchWorld(SETTINGS).click(0)


def test_a_row_far_beyond_any_disk(world):
    click = world.click(10**12)
    assert click.query and click.title and click.dwell >= 0


def test_words_are_never_shared(world):
    made = [
        world.word(family, index, form)
        for family, count in (("topic", 300), ("aspect", 50), ("kind", 4))
        for index in range(count)
        for form in range(4)
    ]
    assert len(set(made)) == len(made)


def test_grades_by_rule():
    about = DocumentMeaning(Meaning(1, 2, 3), touches=5, unlike=Meaning(7, 2, 3))
    asked = {
        Meaning(1, 2, 3): 4,
        Meaning(1, 2, 0): 3,
        Meaning(1, 5, 3): 2,
        Meaning(1, 9, 3): 1,
        Meaning(7, 2, 3): 0,  # named after "unlike", and not what it is about
    }
    assert {query: grade(query, about) for query in asked} == asked


def test_splits_are_disjoint_and_as_large_as_asked(world):
    splits = world.splits()
    indices = [index for split in splits.values() for index in split]
    assert len(set(indices)) == len(indices)
    assert [len(split) for split in splits.values()] == [300, 4000, 200, 600]
    # Few labels, many unlabelled queries, many more clicks.
    assert len(splits["train"]) * 10 < len(splits["unlabelled"]) * 5 < SETTINGS.clicks


def test_queries_use_words_that_documents_never_do(world):
    documents = {
        word
        for row in range(world.num_documents)
        for word in split_words(world.document(row).title)
    }
    topic = {world.word("topic", index, 3) for index in range(SETTINGS.num_topics)}
    assert not topic & documents
    queries = {word for i in range(500) for word in split_words(world.query(i).text)}
    assert topic & queries and documents & queries


def test_candidates_have_all_grades_and_no_duplicate(world):
    counts = np.zeros(5)
    for index in range(300):
        rows = world.candidates(index)
        assert len(set(rows)) == len(rows) == SETTINGS.candidates
        meaning = world.meaning(index)
        for row in rows:
            counts[grade(meaning, world.content(row))] += 1
    assert (counts > 0.01 * counts.sum()).all() and counts[0] < 0.8 * counts.sum()


def test_word_matching_is_neither_useless_nor_enough(world):
    documents = [world.document(row) for row in range(world.num_documents)]
    index = Bm25.build(f"{one.title} {one.text}" for one in documents)
    best = right = chance = 0.0
    for query in range(200):
        rows = np.array(world.candidates(query))
        meaning = world.meaning(query)
        grades = np.array([grade(meaning, world.content(row)) for row in rows])
        right += grades[np.argmax(index.score(world.query(query).text, rows))]
        best += grades.max()
        chance += grades.mean()
    assert 1.3 * chance < right < 0.75 * best


def test_clicks_are_biased_and_noisy(world):
    clicks = [world.click(index) for index in range(4000)]
    positions = np.bincount([click.position for click in clicks], minlength=11)[1:]
    assert positions[0] > 2 * positions[5] > 0
    assert all(click.dwell >= 0 and click.clicked for click in clicks)
    # The same queries come again, some often.
    assert len({click.query for click in clicks}) < 0.95 * len(clicks)


@pytest.mark.parametrize("topics", [1, 2, 3])
def test_tiny_worlds(topics):
    tiny = config.World(
        num_topics=topics, documents_per_topic=2, num_aspects=1, candidates=6
    )
    world = SearchWorld(tiny)
    assert 1 <= len(world.candidates(0)) <= 2 * topics
    assert world.click(3).query
