"""A decoder that answers with grades: trained, scored, exported, read by others."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from sentence_transformers import CrossEncoder

import ranker
from ranker import check, config, manifests
from ranker.data.prepare import prepare
from ranker.data.text import TEMPLATES, train_bpe
from ranker.models.folder import read_head
from ranker.models.huggingface import ModelError
from ranker.serving import contract
from ranker.training.export import export
from ranker.training.origin import Origin
from ranker.training.score import score_chunks
from ranker.training.train import train
from ranker.training.weights import score_of_words

# torch's Softmax without an axis takes the last of two, and warns that it is implicit.
pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")
WORLD = dict(num_topics=4, labelled_queries=8, unlabelled_queries=2, dev_queries=2)
WORLD |= dict(test_queries=2, clicks=12, candidates=4)


def save_language_model(folder):
    """A tiny Llama whose tokenizer has the grades 0 to 4 as tokens."""
    words = TEMPLATES["grades"]
    train_bpe(iter([words.query, "".join(words.end), "bota kela"] * 3), 320, folder)
    settings = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)


def stage(folder, objective, **fields):
    return config.Train(
        data=config.Data(world=config.World(**WORLD)),
        text=config.Text(
            teacher_tokenizer=str(folder), teacher_template="grades", teacher_length=384
        ),
        model=config.Pretrained(path=str(folder)),
        role="teacher",
        objective=objective,
        optim=config.Optim(learning_rate=1e-3, warmup=1),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=3, log_every=1),
        **fields,
    )


def test_grades_are_trained_scored_exported_and_read_again(tmp_path):
    source, workdir = tmp_path / "llm", tmp_path / "run"
    save_language_model(source)
    train(stage(source, config.Language(), name="cpt"), workdir)
    sft = stage(source, config.Rank(), name="sft", parent="cpt")
    manifest = train(sft, workdir)
    assert manifest.settings["model"]["grades"] == 5
    lines = (workdir / "sft" / "metrics.jsonl").read_text().splitlines()
    losses = [value["loss"] for value in map(json.loads, lines) if "loss" in value]
    assert losses[-1] < losses[0]
    shared = dict(data=sft.data, text=sft.text)
    scored = score_chunks(config.Score(**shared, teacher="sft", rows=8), workdir)
    assert 0 < scored.facts["min"] < scored.facts["max"] < 4  # expected grades
    out = export(config.Export(**shared, stage="sft", folder="out"), workdir)
    promise = contract.load_contract(out)
    assert promise.head == "expected grade of 5"
    assert check.main([str(out)]) == 0
    prepared = prepare(sft.data, sft.text, workdir)
    lists, corpus = prepared.lists("train"), prepared.corpus()
    record = lists[0]
    texts = [corpus[int(row)] for row in record.documents]
    ours = ranker.load(str(out)).predict(
        [(record.query, (one.title, one.text)) for one in texts]
    )
    found = pq.read_table(workdir / "scores" / "chunks")["score"].to_numpy()
    np.testing.assert_allclose(ours, found[: len(ours)], atol=1e-4)
    asked = promise.query.format(query=record.query)
    pairs = [
        (asked, promise.document.format(title=t.title, text=t.text, both=both(t)))
        for t in texts
    ]
    stock = CrossEncoder(str(out), device="cpu")
    np.testing.assert_allclose(
        stock.predict(pairs, show_progress_bar=False), ours, atol=1e-4
    )
    assert manifests.load_manifest(workdir / "sft").done


def both(document):
    return f"{document.title} {document.text}".strip()


def test_words_score_after_continued_pretraining():
    """Rows of the language head, or of the embeddings where these are tied."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    model = config.Decoder(
        num_layers=1,
        embed_dim=4,
        num_heads=2,
        num_kv_heads=2,
        head_dim=2,
        mlp_dim=8,
        logit_scale=0.5,
    )
    graded = dataclasses.replace(model, grades=3)

    class Source:
        score_tokens, fresh_head = (7, 2), False

    def head(params, model, source=Source):
        found = score_of_words(params, Origin(model, "teacher", 9, source))
        return found.get("head.dense")

    expected = 0.5 * (table[7] - table[2])
    tied, apart = {"body.embedding": table}, {"body.embedding": table * 0}
    np.testing.assert_allclose(head(tied, model), expected, atol=1e-6)
    np.testing.assert_allclose(head({**apart, "head": table}, model), expected)
    Source.score_tokens = (1, 2, 3)
    np.testing.assert_allclose(head(tied, graded), table[1:4])
    Source.fresh_head = True
    assert head(tied, graded) is None and head(tied, model, None) is None


@pytest.mark.parametrize(
    ("weights", "bias", "residual", "message"),
    [
        ([[0.0, 2.0, 4.0]], False, False, r"weights \[0.0, 2.0, 4.0\]"),
        ([[0.0, 1.0, 2.0]], True, False, "both without a bias"),
        ([[0.0, 1.0, 2.0]], False, True, "3_Dense has use_residual"),
    ],
)
def test_modules_with_a_softmax_that_are_no_grades(
    weights, bias, residual, message, tmp_path
):
    from safetensors.numpy import save_file

    parts = ("Transformer", "Pooling", "Dense", "Dense")
    listed = []
    for i, kind in enumerate(parts):
        path = f"{i}_{kind}" if i else ""
        (tmp_path / path).mkdir(exist_ok=True)
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"x.{kind}"})
    dense = dict(activation_function="torch.nn.Softmax", out_features=3)
    last = dict(activation_function="torch.nn.Identity", out_features=1)
    last |= dict(module_output_name="scores", use_residual=residual)
    for i, fields in enumerate([dict(pooling_mode="lasttoken"), dense, last], start=1):
        (tmp_path / listed[i]["path"] / "config.json").write_text(json.dumps(fields))
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    made = {"linear.weight": np.zeros((3, 4), np.float32)}
    made |= {"linear.bias": np.zeros(3, np.float32)} if bias else {}
    save_file(made, tmp_path / "2_Dense" / "model.safetensors")
    made = {"linear.weight": np.array(weights, np.float32)}
    save_file(made, tmp_path / "3_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        read_head(tmp_path)
