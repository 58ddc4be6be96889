"""Two towers: a logit of each position, learned beside the scores and then dropped."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from flax import nnx

from ranker import config, sharding
from ranker.batch import Impressions, PackedBatch, Rows
from ranker.data.prepare import prepare
from ranker.models.build import POSITION_BIAS
from ranker.online import attraction
from ranker.training import objectives, state
from ranker.training.checkpoint import Checkpoints
from ranker.training.score import score_chunks
from ranker.training.train import train
from ranker.training.trained import load_trained


def _batch(labels, positions, weights=None):
    labels = jnp.asarray(labels, jnp.float32)
    nothing = jnp.zeros((1, 1), jnp.int32)
    weights = jnp.ones(labels.shape) if weights is None else jnp.asarray(weights)
    return PackedBatch(
        rows=Rows(nothing, nothing, nothing, nothing),
        loss_mask=nothing > 0,
        score_index=jnp.zeros(labels.shape, jnp.int32),
        labels=labels,
        targets=labels * 0,
        where=jnp.ones(labels.shape, bool),
        impressions=Impressions(jnp.asarray(positions), weights),
    )


class _Model:
    """Scores and logits of positions as they are given."""

    def __init__(self, scores, bias):
        self.scores = scores
        self.position_bias = bias

    def __call__(self, *_, **__):
        return self.scores


def test_positions_and_weights_by_hand():
    """A page with a click on its second result, and a judged list of no page."""
    scores = np.array([[0.3, -0.2, 1.0], [0.5, 0.1, -0.4]])
    bias = np.array([1.0, -0.5])
    batch = _batch(
        [[0, 1, 0], [2, 1, 0]],
        [[1, 2, 3], [0, 0, 0]],
        [[1.0, 4.0, 1.0], [1.0, 1.0, 1.0]],
    )
    made = objectives.make_objective(config.Rank(position_bias=2), groups=1)
    model = _Model(jnp.asarray(scores), jnp.asarray(bias))
    found = made.parts(model, batch, None)["softmax"]
    # Position 3 has the last logit, and position 0 none.
    page = scores[0] + [1.0, -0.5, -0.5]
    judged = scores[1]
    surprise = [np.log(np.exp(one).sum()) - one for one in (page, judged)]
    by_hand = 4 * surprise[0][1] + (2 * surprise[1][0] + surprise[1][1]) / 3
    assert float(found.total) == pytest.approx(by_hand, rel=1e-5)
    assert float(found.weight) == float(made.weights(batch)["softmax"]) == 5.0
    plain = objectives.make_objective(config.Rank(), groups=1)
    assert plain.parts(model, batch, None)["softmax"].total != found.total


@pytest.mark.parametrize("name", objectives.RANK_LOSSES)
def test_every_rank_loss_takes_weights(name):
    settings = config.Rank(loss=(name,), thresholds=(0.5, 1.5))
    made = objectives.make_objective(settings, groups=1)
    model = _Model(jnp.asarray([[0.3, -0.2], [0.5, 0.1]]), None)

    def mean(weights):
        batch = _batch([[0, 1], [1, 0]], [[1, 2], [1, 2]], weights)
        return float(made.parts(model, batch, None)[name].mean())

    alike = mean([[1.0, 1.0], [1.0, 1.0]])
    assert mean([[5.0, 5.0], [1.0, 1.0]]) != pytest.approx(alike, rel=1e-4)


def test_planted_looks_come_back():
    """A click is drawn from the softmax of liking plus position; both are learned."""
    r = np.random.default_rng(0)
    liking = np.array([1.2, 0.4, 0.0, -0.3, -1.3])
    looks = np.array([0.0, -0.6, -1.0, -1.6, -2.0])
    pages, size = 6000, 5
    # A logger that puts what is liked on top, more or less.
    order = np.argsort(-liking + 1.5 * r.gumbel(size=(pages, size)), axis=1)
    logits = liking[order] + looks
    clicked = np.argmax(logits + r.gumbel(size=logits.shape), axis=1)
    labels = np.eye(size)[clicked]
    batch = _batch(labels, np.tile(np.arange(1, size + 1), (pages, 1)))

    def fit(bias_of):
        made = objectives.make_objective(config.Rank(position_bias=bias_of), groups=1)
        tx = optax.adam(0.05)
        params = {"scores": jnp.zeros(size), "bias": jnp.zeros(size)}

        def loss(params):
            model = _Model(params["scores"][order], params["bias"])
            return made.parts(model, batch, None)["softmax"].mean()

        @jax.jit
        def step(carry, _):
            params, moments = carry
            updates, moments = tx.update(jax.grad(loss)(params), moments)
            return (optax.apply_updates(params, updates), moments), None

        carry = (params, tx.init(params))
        (params, _), _ = jax.lax.scan(step, carry, length=300)
        return jax.device_get(params)

    found = fit(size)
    np.testing.assert_allclose(found["bias"] - found["bias"][0], looks, atol=0.15)
    scores = found["scores"] - found["scores"].mean()
    np.testing.assert_allclose(scores, liking - liking.mean(), atol=0.15)
    naive = fit(0)["scores"]  # takes being on top for being liked
    assert np.ptp(naive) > np.ptp(liking) + 0.4


def test_adapters_train_the_logits_too():
    decoder = config.Decoder(
        num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8
    )
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    lora = config.Lora(rank=2)
    network = state.make_network(decoder, 16, "score", mesh, lora, position_bias=3)
    assert network.abstract[POSITION_BIAS].get_value().shape == (3,)
    assert POSITION_BIAS not in network.frozen


WORLD = config.World(
    num_topics=6,
    labelled_queries=8,
    unlabelled_queries=6,
    dev_queries=4,
    test_queries=4,
    clicks=50,
    candidates=5,
)


def _stage(path, **fields):
    given = {
        "name": "clicks",
        "click_lists": str(path),
        "objective": config.Rank(position_bias=5),
        "model": config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16),
        "optim": config.Optim(learning_rate=1e-3, warmup=1),
    }
    return config.Train(
        data=config.Data(world=WORLD, candidates=5),
        text=config.Text(teacher_length=24, student_length=24),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=4),
        **given | fields,
    )


def _pages(made, folder):
    """A file of the lists of train, as pages whose first result was clicked."""
    lists, corpus = made.lists("train"), made.corpus()
    path = folder / "pages.jsonl"
    with path.open("w") as file:
        for at in range(len(lists)):
            ids = [corpus[int(row)].id for row in lists[at].documents]
            row = {
                "query": lists[at].query,
                "document_ids": ids,
                "labels": [1] + [0] * (len(ids) - 1),
                "positions": list(range(1, len(ids) + 1)),
                "weights": [2.0] + [1.0] * (len(ids) - 1),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.slow
def test_a_stage_learns_looks_and_drops_them(tmp_path, capsys):
    made = prepare(
        config.Data(world=WORLD, candidates=5),
        config.Text(teacher_length=24, student_length=24),
        tmp_path,
    )
    pages = _pages(made, tmp_path)
    train(_stage(pages), tmp_path)
    looks = attraction.read_file(tmp_path / "clicks" / "looks.json")
    assert len(looks) == 5 and looks[0] == 1.0 and looks[1] < 1.0
    said = capsys.readouterr().out
    assert (
        "are pages with positions; " in said and "as a share of the first: 1.00" in said
    )
    mesh = sharding.make_mesh(config.Mesh())
    loaded = load_trained(tmp_path, "clicks", made, mesh, kinds=("sft",), by="the test")
    assert POSITION_BIAS not in loaded.params
    # A child has logits of its own, and no child of none.
    train(_stage(pages, name="child", parent="clicks"), tmp_path)
    train(
        _stage(pages, name="plain", parent="child", objective=config.Rank()), tmp_path
    )
    assert (tmp_path / "child" / "looks.json").is_file()
    assert not (tmp_path / "plain" / "looks.json").exists()
    with contextlib.closing(Checkpoints(tmp_path / "clicks")) as one:
        assert one.latest == 4


@pytest.mark.slow
def test_adapters_learn_looks_and_are_scored_without_them(tmp_path):
    made = prepare(
        config.Data(world=WORLD, candidates=5),
        config.Text(teacher_length=24, student_length=24),
        tmp_path,
    )
    pages = _pages(made, tmp_path)
    model = config.Decoder(
        num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16
    )
    shared = {"model": model, "optim": config.Optim(learning_rate=1e-2, warmup=0)}
    train(_stage(pages, name="base", objective=config.Rank(), **shared), tmp_path)
    lora = config.Lora(rank=2)
    train(_stage(pages, parent="base", lora=lora, **shared), tmp_path)
    looks = attraction.read_file(tmp_path / "clicks" / "looks.json")
    assert len(looks) == 5 and looks[0] == 1.0 and looks[1] < 1.0
    mesh = sharding.make_mesh(config.Mesh())
    loaded = load_trained(tmp_path, "clicks", made, mesh, kinds=("sft",), by="the test")
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(loaded.params)}
    assert not any(POSITION_BIAS in name or "lora" in name for name in names)
    scores = {}
    for name in ("base", "clicks"):
        job = config.Score(
            data=config.Data(world=WORLD, candidates=5),
            text=config.Text(teacher_length=24, student_length=24),
            name=f"scores_{name}",
            teacher=name,
            splits=("train",),
            rows=8,
        )
        score_chunks(job, tmp_path)
        table = pq.read_table(tmp_path / job.name / "chunks")
        scores[name] = table["score"].to_numpy()
    lists = made.lists("train")
    pairs = sum(len(lists[at].documents) for at in range(len(lists)))
    assert len(scores["base"]) == len(scores["clicks"]) == pairs
    assert np.isfinite(scores["clicks"]).all()
    assert not np.allclose(scores["base"], scores["clicks"])


def test_lists_without_positions_are_refused(tmp_path):
    from ranker.data.records import Document
    from ranker.training.inputs import rank_lists

    path = tmp_path / "lists.jsonl"
    path.write_text('{"query": "q", "document_ids": ["a", "b"], "labels": [1, 0]}\n')
    corpus = [Document("a", "one", ""), Document("b", "two", "")]
    prepared = types.SimpleNamespace(lists=lambda _: [], corpus=lambda: corpus)
    with pytest.raises(config.ConfigError, match="--by page"):
        rank_lists(_stage(path), prepared, tmp_path)
    with pytest.raises(config.ConfigError, match="position_bias is learned from"):
        _stage("", click_lists="")
