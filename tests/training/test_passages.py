"""Long documents by passages: windows, packing, the losses, and what an export says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ranker
from ranker import config, errors
from ranker.data import pairs, passages, pipeline
from ranker.data.prepare import prepare
from ranker.data.records import Document, RankedList
from ranker.data.text import Segment
from ranker.models.heads import over_passages
from ranker.serving import contract, starting
from ranker.training.evaluate import evaluate_systems
from ranker.training.export import export
from ranker.training.score import score_chunks
from ranker.training.train import train

TWO = config.Passages(most=2, score="max")


@pytest.mark.parametrize(
    ("size", "room", "most", "overlap", "expected"),
    [
        (5, 8, 3, 0, [(0, 5)]),
        (8, 8, 3, 0, [(0, 8)]),  # fits exactly
        (9, 8, 3, 0, [(0, 8), (8, 9)]),
        (30, 8, 3, 0, [(0, 8), (8, 16), (16, 24)]),  # the rest is not read
        (20, 8, 9, 2, [(0, 8), (6, 14), (12, 20)]),
        (12, 8, 9, 7, [(0, 8), (4, 12)]),  # at least half is new
        (3, 1, 9, 5, [(0, 1), (1, 2), (2, 3)]),
        (0, 8, 2, 0, [(0, 0)]),
    ],
)
def test_windows_of_a_document(size, room, most, overlap, expected):
    how = config.Passages(most=most, overlap=overlap, score="max")
    found = passages.cut_passages(np.arange(size), room, how)
    assert [one.tolist() for one in found] == [list(range(*one)) for one in expected]


@pytest.mark.parametrize("how", ["max", "mean"])
def test_a_documents_score_is_that_of_its_passages(how):
    counts = [1, 3, 2]
    scores = np.array([0.5, -3.0, -1.0, -2.0, 4.0, 2.0], np.float32)
    expected = [0.5, -1.0, 4.0] if how == "max" else [0.5, -2.0, 3.0]
    found = passages.pool_scores(scores, passages.numbers(counts), how)
    np.testing.assert_allclose(found, expected)
    # In another order, as batches give them.
    order = np.array([5, 2, 0, 4, 1, 3])
    again = passages.pool_scores(scores[order], passages.numbers(counts)[order], how)
    np.testing.assert_allclose(again, expected)
    # And on the devices, with padding that no loss sees.
    laid = np.full((1, 4, 3), 99.0, np.float32)
    real = np.zeros((1, 4, 3), bool)
    at = 0
    for document, count in enumerate(counts):
        laid[0, document, :count] = scores[at : at + count]
        real[0, document, :count] = True
        at += count
    flat = jnp.asarray(laid.reshape(1, -1))

    def pooled(flat):
        return over_passages(flat, jnp.asarray(real), how)

    np.testing.assert_allclose(pooled(flat), [[*expected, 0.0]])
    slope = jax.grad(lambda flat: jnp.sum(pooled(flat)))(flat).reshape(real.shape)
    assert np.isfinite(slope).all() and not slope[~real].any()
    np.testing.assert_allclose(slope.sum(-1)[0, :3], 1.0)


class Tokenizer:
    """A document's tokens are 100 times its row, and its places."""

    pad, type_ids, words, tail, template = 0, (0, 1), None, [9], "pair"

    def queries(self, texts):
        return [[1, 2, 3] for _ in texts]

    def documents(self, documents):
        return [
            [100 * int(one.id) + i for i in range(int(one.text))] for one in documents
        ]

    def segment(self, query, document, length):
        raise AssertionError((query, document, length))


SIZES = [3, 20, 9, 1, 12]  # tokens of the documents
CORPUS = [Document(str(i + 1), "", str(size)) for i, size in enumerate(SIZES)]


def ranked(name, rows, labels):
    labels = np.array(labels, np.float32)
    return RankedList(name, name, np.array(rows), labels, labels, (), np.zeros(0, int))


LISTS = [ranked("a", [0, 1, 2], [0, 2, 1]), ranked("b", [3, 4], [1, 0])]


def encoder(how=TWO):
    return pairs.ListEncoder(CORPUS, Tokenizer(), 12, passages=how)  # room for 8


def test_a_batch_points_at_every_passage_and_holds_a_label_a_document():
    stream = pipeline.list_batches(
        LISTS,
        encoder(),
        batch=config.Batch(size=2, list_size=3),
        seed=0,
        shards=pairs.ALL_IN_ONE,
    )
    batch = next(stream)
    stream.close()
    tokens = batch.rows.tokens[0].reshape(-1)
    assert batch.rows.tokens.shape == (1, 2 * 3 * 2, 12)
    assert batch.score_index.shape[-1] == 6 and batch.passages.shape[-2:] == (3, 2)
    seen = {}
    for slot in np.flatnonzero(batch.where[0].any(-1)):
        for place in np.flatnonzero(batch.where[0, slot]):
            real = batch.passages[0, slot, place]
            index = batch.score_index[0, slot].reshape(3, 2)[place][real]
            # Scored at the first token (of the query); a document's follow the query's.
            assert (tokens[index] == 1).all() and (tokens[index + 2] == 3).all()
            begins = tokens[index + 3].tolist()
            row = begins[0] // 100 - 1
            assert begins == [100 * (row + 1), 100 * (row + 1) + 8][: len(begins)]
            assert len(begins) == (2 if SIZES[row] > 8 else 1)
            seen[row] = batch.labels[0, slot, place]
    assert seen == {0: 0, 1: 2, 2: 1, 3: 1, 4: 0}
    assert batch.passages.sum() == batch.passages[batch.where].sum()


def test_scoring_gives_every_passage_the_number_of_its_pair():
    found = list(pairs.pair_batches(LISTS, encoder(), rows=4, shards=pairs.ALL_IN_ONE))
    begins = {}
    for batch, numbers in found:
        tokens = batch.rows.tokens.reshape(-1)
        for slot in np.flatnonzero(numbers >= 0):
            first = tokens[batch.score_index[slot, 0] + 3]
            begins.setdefault(int(numbers[slot]), []).append(int(first))
    assert {k: sorted(v) for k, v in begins.items()} == {
        0: [100],
        1: [200, 208],
        2: [300, 308],
        3: [400],
        4: [500, 508],
    }
    # One passage a document is what it was.
    plain = encoder(config.Passages())
    [(segments, counts)] = plain.parts([("q", np.array([1]))])
    assert counts == [1] and len(segments[0].tokens) == 12
    assert isinstance(segments[0], Segment)


# --- a whole run ----------------------------------------------------------------------

WORLD = config.World(
    num_topics=4,
    labelled_queries=8,
    unlabelled_queries=4,
    dev_queries=4,
    test_queries=4,
    clicks=40,
    candidates=4,
)
TEXT = config.Text(
    teacher_length=24,
    student_length=24,
    student_passages=3,
    passage_overlap=4,
    passage_score="max",
)
DATA = config.Data(candidates=4, world=WORLD)


def stage(text=TEXT, **fields):
    return config.Train(
        **{
            "name": "student",
            "model": config.Encoder(
                num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16
            ),
            "data": DATA,
            "text": text,
            "objective": config.Rank(),
            "optim": config.Optim(learning_rate=1e-2, warmup=0),
            "batch": config.Batch(size=8, list_size=4, accumulate=1),
            "loop": config.Loop(steps=4, log_every=1),
            **fields,
        }
    )


@pytest.mark.slow
def test_training_scoring_evaluation_and_export_read_alike(tmp_path, capsys):
    done = train(stage(), tmp_path)
    assert done.settings["passages"] == {"most": 3, "overlap": 4, "score": "max"}
    prepared = prepare(DATA, TEXT, tmp_path)
    fields = dict(data=DATA, text=TEXT)
    evaluate_systems(
        config.Evaluate(**fields, systems=("student",), reference="student"), tmp_path
    )
    score_chunks(config.Score(**fields, teacher="student", splits=("train",)), tmp_path)
    onnx = config.Onnx(precision="none")
    folder = export(config.Export(**fields, stage="student", onnx=onnx), tmp_path)
    promise = contract.load_contract(folder)
    assert promise.passages == {"most": 3, "overlap": 4, "score": "max"}
    model = ranker.load(folder)
    corpus = prepared.corpus()
    texts = [(corpus[i].title, corpus[i].text) for i in range(len(corpus))]
    query = prepared.lists("test")[0]
    asked = [(query.query, one) for one in texts]
    segments, counts = model.encoder.parts(asked)
    assert max(counts) > 1  # else nothing is tested
    alone = model.scorer(segments)
    ends = np.cumsum(counts)
    by_hand = [alone[e - n : e].max() for e, n in zip(ends, counts, strict=True)]
    found = model.predict(asked)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    # The evaluation's run has the same scores.
    ids = {corpus[i].id: i for i in range(len(corpus))}
    text = (tmp_path / "evaluate/student.trec").read_text()
    lines = [line.split() for line in text.splitlines()]
    ours = {i: float(s) for q, _, i, _, s, _ in lines if q == query.query_id}
    assert ours
    for name, value in ours.items():
        assert value == pytest.approx(found[ids[name]], abs=1e-4)
    # Golden scores are those of one row, so that stock readers can be checked.
    one = promise.golden[0]
    [segment] = model.encoder.pairs([(one.query, (one.title, one.text))])
    assert list(segment.tokens) == one.tokens
    assert model.scorer([segment])[0] == pytest.approx(one.score, abs=1e-4)
    # What reads one row says so.
    with pytest.raises(errors.ContractError, match="scored by passages .max over 3"):
        starting.start(folder, limits=None)  # type: ignore[arg-type]
    # Saved again it promises the same.
    model.save(tmp_path / "again")
    assert contract.load_contract(tmp_path / "again").passages == promise.passages
    # A damaged promise is named.
    fields = json.loads((folder / contract.FILE).read_text())
    fields["passages"]["score"] = "first"
    (folder / contract.FILE).write_text(json.dumps(fields))
    with pytest.raises(errors.ContractError, match="not whole.*passages are 3"):
        ranker.load(folder)


def test_a_checkpoint_without_a_contract_is_told(tmp_path):
    with pytest.raises(config.ConfigError, match="several have max or mean"):
        config.Passages(most=4)
    with pytest.raises(config.ConfigError, match="several have max or mean"):
        config.Text(passage_score="max")
    with pytest.raises(config.ConfigError, match="several have max or mean"):
        config.Text(student_passages=2)
    with pytest.raises(config.ConfigError, match="overlap by 3 tokens, and there is"):
        config.Text(passage_overlap=3)
    with pytest.raises(config.ConfigError, match="text.teacher_passages must be 1 or"):
        config.Text(teacher_passages=0)
    text = config.Text(student_passages=2, passage_score="mean", passage_overlap=1)
    assert text.passages("teacher") == config.Passages()
    assert text.passages("student") == config.Passages(most=2, score="mean", overlap=1)
    # What was prepared is the same, however it is read.
    from ranker.data.prepare import plan

    assert (
        plan(DATA, TEXT).key
        == plan(DATA, config.Text(teacher_length=24, student_length=24)).key
    )


def test_streamed_triples_are_one_row_each(tmp_path):
    objective = config.Distillation(
        triples="x.parquet", alpha=1.0, beta=0.0, target_scale="raw"
    )
    one = stage(objective=objective, batch=config.Batch(size=8, list_size=1))
    with pytest.raises(config.ConfigError, match="set text.student_passages to 1"):
        train(one, tmp_path)
    assert dataclasses.replace(one, text=config.Text(student_length=24))
