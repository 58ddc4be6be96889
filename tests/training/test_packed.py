"""Packed rows give the numbers of a row a text, with one compilation a run."""

import helpers
import jax
import numpy as np
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.data import pairs, pipeline
from ranker.data.packing import Example, Layout, choose_documents, pack, text_example
from ranker.data.records import Document, RankedList
from ranker.data.text import Segment, Tokenizer, train_bpe, train_wordpiece
from ranker.training import objectives, optim, state, step, weights
from ranker.training import scorer as scoring

MODELS = {
    "decoder": helpers.DECODER,
    "window": config.Decoder(
        **{**vars(helpers.DECODER), "window": 4, "local_layers": (0,)}
    ),
    "encoder": helpers.ENCODER,
    "mean": config.Encoder(**{**vars(helpers.ENCODER), "pooling": "mean"}),
}
T, SIZE = 24, 3


def examples(count, seed=0):
    generator = np.random.default_rng(seed)

    def segment():
        n = int(generator.integers(4, T + 1))
        tokens = generator.integers(1, helpers.V, n).tolist()
        return Segment(tokens, (0, 1), 2, int(generator.integers(n)))

    made = []
    for _ in range(count):
        n = int(generator.integers(1, SIZE + 1))
        labels, targets = generator.normal(size=(2, n)).astype(np.float32)
        made.append(Example([segment() for _ in range(n)], labels, targets))
    return made


def packed(given, layout):
    """All of `given` in one shard."""
    choice = choose_documents([one.lengths for one in given], layout)
    assert choice.places == list(range(len(given)))
    return pack(given, choice.rows, layout, pad=0)


def a_row_each(given, layout):
    rows = np.arange(len(given) * SIZE).reshape(-1, SIZE).tolist()
    rows = [mine[: len(one.segments)] for one, mine in zip(given, rows, strict=True)]
    return pack(given, rows, layout, pad=0)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_a_row_a_document(name):
    network = helpers.network_of(MODELS[name], "one")
    params = weights.complete_params(
        {}, network, MODELS[name], helpers.V, "score", seed=0
    )
    # Weights far from zero, so that a token of a neighbour would be seen.
    params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
    score = scoring.make_score(network)
    given = examples(6)
    one = packed(given, Layout(rows=9, length=32, size=SIZE))
    other = a_row_each(given, Layout(rows=18, length=T, size=SIZE))
    assert one.rows.segments.max() > 1 and other.rows.segments.max() == 1
    a, b = (np.asarray(score(params, batch)) for batch in (one, other))
    a, b = a[one.where], b[other.where]
    assert a.std() > 1e-3
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_language_loss_is_that_of_a_row_a_text():
    settings, objective = helpers.OBJECTIVES["language"]
    network = helpers.network_of(settings, "one", "language")
    params = weights.complete_params(
        {}, network, settings, helpers.V, "language", seed=0
    )
    texts = [text_example(s) for one in examples(5) for s in one.segments]
    made = objectives.make_objective(objective, groups=1)

    def loss(batch):
        model = nnx.merge(network.graphdef, params)
        return made.parts(model, batch, None)["language"]

    layout = Layout(rows=len(texts), length=T, size=0)
    rows = [[i] for i in range(len(texts))]
    one, other = loss(packed(texts, layout)), loss(pack(texts, rows, layout, pad=0))
    assert float(one.weight) == float(other.weight) > 0
    np.testing.assert_allclose(one.total, other.total, rtol=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    generator = np.random.default_rng(0)

    def words(n):
        return " ".join(f"w{i}" for i in generator.integers(0, 50, n))

    corpus = [
        Document(f"d{i}", words(2), words(generator.integers(1, 12))) for i in range(60)
    ]
    texts = [f"{one.title} {one.text}" for one in corpus]
    train_bpe(iter(texts), 300, folder / "teacher")
    train_wordpiece(iter(texts), 120, folder / "student")
    lists = [
        RankedList(
            query_id=f"q{i}",
            query=words(3),
            documents=generator.choice(60, 1 + i % 6, replace=False),
            labels=np.zeros(1 + i % 6, np.float32),
            first_stage=np.zeros(1 + i % 6, np.float32),
            judged_ids=(),
            judged_grades=np.zeros(0, np.int32),
        )
        for i in range(17)
    ]
    encoders = {
        "decoder": Tokenizer(folder / "teacher", "prompt"),
        "encoder": Tokenizer(folder / "student", "pair"),
    }
    return lists, {
        name: pairs.ListEncoder(corpus, tokenizer, 40)
        for name, tokenizer in encoders.items()
    }


@pytest.mark.parametrize(
    ("name", "mesh"), [("decoder", "one"), ("encoder", "one"), ("encoder", "data8")]
)
def test_lists_are_scored_in_order(text, name, mesh):
    lists, encoders = text
    encoder, settings = encoders[name], MODELS[name]
    network = helpers.network_of(settings, mesh)
    network = state.make_network(
        settings, encoder.tokenizer.vocab_size, "score", network.mesh
    )
    params = weights.complete_params(
        {}, network, settings, encoder.tokenizer.vocab_size, "score", seed=0
    )
    seen = []
    score = scoring.make_score(network)
    scores = scoring.score_lists(
        score,
        params,
        network,
        lists,
        encoder,
        rows=8,
        progress=lambda done, tokens: seen.append((done, tokens)),
    )
    model = nnx.merge(network.graphdef, jax.device_get(params))
    segments = [s for one in lists for s in encoder(one.query, one.documents)]
    alone = []
    for segment in segments[::7]:
        layout = Layout(rows=1, length=40, size=1)
        zero = np.zeros(1, np.float32)
        batch = pack([Example([segment], zero, zero)], [[0]], layout, pad=0)
        alone.append(model(batch.rows, batch.score_index)[0, 0])
    assert score._cache_size() == 1  # one shape, one compilation
    assert len(scores) == len(segments) == seen[-1][0]
    assert sum(tokens for _, tokens in seen) == sum(len(s.tokens) for s in segments)
    np.testing.assert_allclose(scores[::7], np.array(alone), rtol=1e-4, atol=1e-5)


def test_a_run_is_compiled_once(text):
    """Lists differ in number and length from step to step; shapes do not."""
    lists, encoders = text
    settings, objective = helpers.OBJECTIVES["softmax"]
    mesh = helpers.mesh_of("data8")
    encoder = encoders["decoder"]
    made = objectives.make_objective(objective, groups=sharding.num_shards(mesh))
    vocab = encoder.tokenizer.vocab_size
    network = state.make_network(settings, vocab, made.head, mesh)
    tx = optim.make_optimizer(
        config.Optim(learning_rate=1e-3, warmup=1), 10, network.abstract
    )
    params = weights.complete_params({}, network, settings, vocab, made.head, seed=0)
    current = state.init_state(network, params, tx, 0)
    traces = []
    counted = objectives.Objective(
        parts=lambda *given: traces.append(None) or made.parts(*given),
        weights=made.weights,
        coefficients=made.coefficients,
        head=made.head,
    )
    batches = pipeline.list_batches(
        lists,
        encoder,
        batch=config.Batch(size=16, list_size=3, accumulate=2),
        seed=0,
        shards=scoring.shards_of(network),
    )
    compiled = step.make_step(network, counted, tx, current)
    counts = set()
    with jax.set_mesh(mesh):
        for _ in range(4):
            batch = next(batches)
            counts.add(int(batch.where.sum()))
            placed = scoring.device_batch(batch, network, leading=1)
            current, metrics = compiled(current, placed)
    batches.close()
    assert len(counts) > 1 and np.isfinite(float(metrics["loss"]))
    assert len(traces) == 1
