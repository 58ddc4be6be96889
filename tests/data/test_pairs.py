"""Lists of documents to segments and to packed pairs, with a tokenizer made here."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest

from ranker import config
from ranker.data import pairs, pipeline
from ranker.data.pairs import ALL_IN_ONE, ListEncoder, Shards, ahead, pair_batches
from ranker.data.records import ClickExample, Document, RankedList
from ranker.errors import DataError


class Tokenizer:
    """A document's tokens are 100 times its row, and its places; counts its work."""

    pad, type_ids = 0, (0, 1)

    def __init__(self, words=None, query=(1, 2, 3)):
        self.words, self.query, self.tail = words, list(query), [9]
        self.seen: list[str] = []

    def queries(self, texts):
        self.seen += texts
        return [self.query for _ in texts]

    def documents(self, documents):
        self.seen += [one.id for one in documents]
        return [
            [100 * int(one.id) + i for i in range(int(one.text))] for one in documents
        ]

    def segment(self, query, document, length):
        raise DataError(f"{query} {document} {length}")


CORPUS = [Document(str(row), "", str(1 + row % 5)) for row in range(60)]


def ranked(name, rows):
    none = np.zeros(len(rows), np.float32)
    return RankedList(
        name, name, np.array(rows, int), none, none, (), np.zeros(0, np.int32)
    )


def make_encoder(tokenizer=None, **options):
    return ListEncoder(CORPUS, tokenizer or Tokenizer(), 12, **options)


def tokens_of(segments):
    return [np.asarray(one.tokens).tolist() for one in segments]


def test_texts_are_tokenised_once():
    tokenizer = Tokenizer()
    encoder = make_encoder(tokenizer)
    first = encoder.many([("q", range(60)), ("r", [3, 3, 5])])
    again = encoder.many([("r", range(59, -1, -1)), ("q", [3])])
    assert sorted(tokenizer.seen) == sorted([*(one.id for one in CORPUS), "q", "r"])
    assert tokens_of(first[0]) == tokens_of(again[0])[::-1]
    assert tokens_of(first[1])[0] == tokens_of(first[1])[1] == tokens_of(again[1])[0]


@pytest.mark.parametrize("words", [None, object()])
def test_a_segment_is_query_document_and_tail(words):
    long = [Document("1", "", "20"), Document("2", "", "2"), Document("3", "", "0")]
    segments = ListEncoder(long, Tokenizer(words), 10)("q", [0, 1, 2])
    assert tokens_of(segments) == [
        [1, 2, 3, *range(100, 106), 9],  # cut to 10 tokens
        [1, 2, 3, 200, 201, 9],
        [1, 2, 3, 9],
    ]
    assert {one.document for one in segments} == {3}
    assert {one.type_ids for one in segments} == {(0, 1)}
    # Of a pair at the first token, of words at the last.
    scores = [one.score for one in segments]
    assert scores == ([0, 0, 0] if words is None else [9, 5, 3])
    assert make_encoder().many([("q", []), ("r", [])]) == [[], []]


def test_tokens_that_were_kept_are_cut_as_new_ones_are():
    ids = {row: np.arange(20, dtype=np.int32) + 100 * row for row in range(60)}
    tokenizer = Tokenizer()
    encoder = make_encoder(tokenizer, tokens=ids)
    [segment] = encoder("q", [7])
    assert tokens_of([segment]) == [[1, 2, 3, *range(700, 708), 9]]
    two = config.Passages(most=2, score="max")
    [(parts, counts)] = make_encoder(tokens=ids, passages=two).parts([("q", [7, 8])])
    assert counts == [2, 2]
    begins = [one.tokens[3] for one in parts]
    assert begins == [700, 708, 800, 808]
    assert tokenizer.seen == ["q"]


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_a_query_that_leaves_no_room_is_the_tokenizers_to_refuse(size, fits):
    encoder = make_encoder(Tokenizer(query=range(1, size + 1)))
    if fits:  # one token of the document
        assert tokens_of(encoder("q", [4])) == [[*range(1, 11), 400, 9]]
        return
    with pytest.raises(DataError, match=r"11\] \[400, 401, 402, 403, 404\] 12"):
        encoder("q", [4])
    assert encoder("q", []) == []  # there is nothing to make room for


LISTS = [ranked(f"q{n}", [(7 * n + i) % 60 for i in range(n % 7)]) for n in range(40)]


def read_pairs(encoder, shards, rows=8):
    """The tokens of each pair by its number, of all that the shards make."""
    found = {}
    for batch, numbers in pair_batches(LISTS, encoder, rows=rows, shards=shards):
        length = batch.rows.tokens.shape[1]
        assert batch.rows.tokens.size == len(shards.local) * rows // shards.count * 12
        # Rows are numbered over all shards, and each list is in its own.
        first = rows * 12 // shards.count // length
        per = len(numbers) // len(shards.local)
        for place, number in enumerate(numbers.tolist()):
            if number < 0:
                assert not batch.where[place].any()
                continue
            r, t = divmod(int(batch.score_index[place, 0]), length)
            shard = shards.local[place // per]
            assert r // first == shard
            r -= (shard - place // per) * first
            number_here = batch.rows.segments[r, t]
            seen = batch.rows.segments[r] == number_here
            if batch.rows.prefixes is not None and batch.rows.prefixes[r, t]:
                seen |= batch.rows.segments[r] == batch.rows.prefixes[r, t]
            found.setdefault(number, []).append(batch.rows.tokens[r][seen].tolist())
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("local", [(0,), (0, 1), (1,)])
def test_every_pair_of_a_processs_lists_comes_once(shared, local):
    shards = Shards(2 if local != (0,) else 1, local)
    # Prompts are shared by models that are scored at the last token.
    words = object() if shared else None
    found = read_pairs(make_encoder(Tokenizer(words), shared=shared), shards)
    expected, number, encoder = {}, 0, make_encoder()
    for index, one in enumerate(LISTS):
        for tokens in tokens_of(encoder(one.query, one.documents)):
            if index % shards.count in local:
                expected[number] = [tokens]
            number += 1
    assert found == expected


def test_passages_have_the_number_of_their_pair():
    two = config.Passages(most=2, score="max")
    ids = [np.arange(size) + 100 * row for row, size in enumerate((3, 20, 9))]
    encoder = make_encoder(tokens=ids, passages=two)
    lists = [ranked("a", [0, 1]), ranked("b", [2])]
    [(batch, numbers)] = pair_batches(lists, encoder, rows=6, shards=ALL_IN_ONE)
    begins = batch.rows.tokens.reshape(-1)[batch.score_index[:, 0] + 3]
    real = numbers >= 0
    assert dict(zip(begins[real].tolist(), numbers[real].tolist(), strict=True)) == {
        0: 0,
        100: 1,
        108: 1,
        200: 2,
        208: 2,
    }


def test_lists_are_read_a_bounded_way_ahead():
    """A corpus of lists need not be in memory, however long it is."""
    read = 0

    def endless():
        nonlocal read
        for read in itertools.count(1):  # noqa: B007
            yield ranked(f"q{read % 5}", range(10))

    batches = pair_batches(endless(), make_encoder(), rows=8, shards=ALL_IN_ONE)
    next(batches)
    # 8 batches wait, of at least one token a pair; 6 calls of 256 documents are read.
    assert read * 10 <= 8 * 8 * 12 + 6 * 270
    batches.close()


def test_a_call_of_the_tokenizer_has_some_hundred_pairs():
    """It works on all cores then, and not on one text after the other."""
    tokenizer, calls = Tokenizer(), []
    queries = tokenizer.queries
    tokenizer.queries = lambda texts: calls.append(len(texts)) or queries(texts)
    lists = [ranked(f"q{n}", [*range(60), *range(4)]) for n in range(10)]
    batches = pair_batches(lists, make_encoder(tokenizer), rows=8, shards=ALL_IN_ONE)
    assert sum(int((numbers >= 0).sum()) for _, numbers in batches) == 640
    assert calls == [4, 4, 2]  # lists, of 256 documents or all that are left


def test_a_batch_of_padding_has_the_shape_of_others():
    for shared in (False, True):
        encoder = make_encoder(shared=shared)
        shards = Shards(2, (0, 1))
        nothing, numbers = pairs.no_pairs(encoder, rows=8, shards=shards)
        batch, others = next(pair_batches(LISTS, encoder, rows=8, shards=shards))
        assert (numbers == -1).all() and numbers.shape == others.shape
        assert nothing.rows.tokens.shape == batch.rows.tokens.shape
        assert not nothing.where.any() and not nothing.rows.segments.any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_items_are_made_ahead_in_order(count):
    begun, made = threading.Event(), []

    def items():
        for n in range(9):
            made.append(n)
            if len(made) == count:
                begun.set()
            yield n

    found = ahead(items()) if count == 2 else ahead(items(), count)
    assert begun.wait(60)  # nobody has asked for one
    assert len(made) == count
    assert list(found) == list(range(9))


# --- what batches hold of their lists ---


def test_a_batch_has_the_targets_positions_and_weights_of_its_documents():
    lists = [
        dataclasses.replace(
            ranked(f"q{n}", [n, n + 20, n + 40]),
            labels=np.float32([n, 0, 1]),
            positions=np.int32([1, 2, 3]) + n if n % 2 else np.zeros(0, np.int32),
            weights=np.float32([4, 5, 6]) + n if n % 2 else np.zeros(0, np.float32),
        )
        for n in range(8)
    ]
    targets = [np.float32([n, n + 0.25, n + 0.5]) for n in range(8)]
    seen = set()
    for given in (targets, None):
        stream = pipeline.list_batches(
            lists,
            make_encoder(),
            batch=config.Batch(size=8, list_size=3),
            seed=0,
            shards=ALL_IN_ONE,
            targets=given,
            impressions=True,
        )
        batch = next(stream)
        stream.close()
        begins = batch.rows.tokens[0].reshape(-1)[batch.score_index[0] + 3]
        for slot, place in zip(*np.nonzero(batch.where[0]), strict=True):
            which, n = divmod(begins[slot, place] // 100, 20)
            told = (
                batch.labels[0, slot, place],
                batch.targets[0, slot, place],
                batch.impressions.positions[0, slot, place],
                batch.impressions.weights[0, slot, place],
            )
            assert told == (
                [n, 0, 1][which],
                targets[n][which] if given else 0,
                1 + which + n if n % 2 else 0,
                4 + which + n if n % 2 else 1,
            )
            seen.add((n, which))
    assert len(seen) > 12


def test_batches_without_clicks_have_no_positions():
    stream = pipeline.list_batches(
        LISTS[1:7],
        make_encoder(),
        batch=config.Batch(size=2, list_size=3),
        seed=0,
        shards=ALL_IN_ONE,
    )
    assert next(stream).impressions is None
    stream.close()


def test_a_batch_of_no_text_has_the_rows_of_each_shard_of_the_process():
    clicks = [ClickExample("q", str(n), str(n % 5)) for n in range(6)]

    class Words(Tokenizer):
        def documents(self, documents):
            return [[7] * int(one.text) for one in documents]

        def segment(self, query, document, length):
            return pairs.Segment([*query, *document], (0, 1), len(query), 0)

    shards = Shards(4, (1, 3))
    found, nothing = pipeline.every_text(
        clicks, Words(), batch=config.Batch(size=8), length=12, shards=shards
    )
    [batch] = found
    assert nothing.rows.tokens.shape == batch.rows.tokens.shape == (4, 12)
    # Records 1 and 5 are of shard 1, record 3 of shard 3.
    assert (batch.rows.tokens[:2] == 7).sum() == 1 + 0
    assert (batch.rows.tokens[2:] == 7).sum() == 3


def test_rows_of_a_batch_are_told_by_the_states_around_it():
    """Records that waited before, and those read since, but for those that wait."""
    before = {"shards": 2, "dealt": {"0": [4, 0], "1": [3, 1]}}
    after = {"shards": 2, "dealt": {"0": [8, 6], "1": [7, 1, 5]}}
    found = pipeline.rows_between(before, after, row=lambda at: 10 * at)
    assert found == [0, 40, 30]
