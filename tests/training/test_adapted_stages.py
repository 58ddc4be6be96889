"""Stages with adapters on imported checkpoints: trained, stopped, merged, exported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from ranker import check, config, errors, manifests, sharding
from ranker.data.prepare import prepare
from ranker.data.text import train_bpe
from ranker.models.huggingface import flat
from ranker.training import train as loop
from ranker.training.export import export
from ranker.training.train import train
from ranker.training.trained import load_trained

DATA = config.Data(
    world=config.World(
        num_topics=4,
        labelled_queries=8,
        unlabelled_queries=4,
        dev_queries=0,
        test_queries=4,
        clicks=60,
        candidates=4,
    )
)
LORA = config.Lora(rank=2, alpha=8.0, dropout=0.1)
KINDS = ("cpt", "sft")


def checkpoint(folder, family):
    """A tiny random decoder, saved in bfloat16 as most are."""
    torch.manual_seed(0)
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=20_000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=family == "Qwen3",
    )
    model = getattr(transformers, f"{family}ForCausalLM")(settings)
    model.to(torch.bfloat16).save_pretrained(folder)
    return config.Pretrained(path=str(folder))


def text(root):
    folder = str(root / "tokenizer")
    return config.Text(teacher_tokenizer=folder, teacher_length=48, student_length=24)


def stage(root, name, model, objective, steps, **fields):
    return config.Train(
        data=DATA,
        text=text(root),
        name=name,
        model=model,
        objective=objective,
        optim=config.Optim(learning_rate=1e-2, warmup=0),
        batch=config.Batch(size=8, list_size=4),
        loop=config.Loop(steps=steps, save_every=2),
        **{"lora": LORA, **fields},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with the stages cpt and sft, both with adapters, and their model."""
    root = tmp_path_factory.mktemp("adapters")
    model = checkpoint(root / "llama", "Llama")
    train_bpe(iter(["abcdefghij klmno pqrstu vwxyz"] * 3), 300, root / "tokenizer")
    train(stage(root, "cpt", model, config.Language(), 2), root)
    train(stage(root, "sft", model, config.Rank(), 4, parent="cpt"), root)
    return root, model


def params_of(root, name):
    prepared = prepare(DATA, text(root), root)
    mesh = sharding.make_mesh(config.Mesh())
    trained = load_trained(root, name, prepared, mesh, kinds=KINDS, by="a test")
    return dict(flat(jax.device_get(trained.params)))


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_merged_weights_are_the_base_and_a_low_rank_change(run):
    root, _ = run
    stock = transformers.AutoModelForCausalLM.from_pretrained(root / "llama")
    base = {k: v.float().numpy() for k, v in stock.state_dict().items()}
    merged = params_of(root, "cpt")
    embedding = base["model.embed_tokens.weight"]
    np.testing.assert_array_equal(merged["body.embedding"], embedding)
    for i in range(2):
        down = base[f"model.layers.{i}.mlp.down_proj.weight"].T
        change = merged["body.layers.down"][i] - down
        values = np.linalg.svd(change, compute_uv=False)
        assert values[1] > 1e-3 and values[2:].max() < 1e-6  # of rank two
    manifest = manifests.load_manifest(root / "cpt")
    assert manifest.settings["lora"]["rank"] == 2
    assert manifest.facts["base"]["path"] == str(root / "llama")


def test_a_child_goes_on_with_its_parents_adapters(run):
    """Nothing is lost in a bfloat16 base: the body at step 0 is the parent's."""
    root, model = run
    calm = dataclasses.replace(LORA, dropout=0.0)  # is no other adapter
    train(stage(root, "same", model, config.Rank(), 0, parent="cpt", lora=calm), root)
    before, after = params_of(root, "cpt"), params_of(root, "same")
    for path, value in before.items():
        if path.startswith("body."):
            np.testing.assert_array_equal(value, after[path], err_msg=path)
    other = dataclasses.replace(LORA, rank=3)
    train(stage(root, "other", model, config.Rank(), 0, parent="cpt", lora=other), root)
    rounded = params_of(root, "other")["body.layers.down"]
    expected = np.asarray(
        jax.numpy.asarray(before["body.layers.down"]).astype("bfloat16"), np.float32
    )
    np.testing.assert_array_equal(rounded, expected)


def test_a_stage_that_was_stopped_goes_on_to_the_same_result(run, monkeypatch):
    root, model = run
    make_step = loop.make_step

    def dying(*arguments):
        step = make_step(*arguments)

        def once(state, batch, **rest):
            if int(state.step) == 3:
                raise KeyboardInterrupt
            return step(state, batch, **rest)

        return once

    monkeypatch.setattr(loop, "make_step", dying)
    stopped = stage(root, "stopped", model, config.Rank(), 4, parent="cpt")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, root)
    monkeypatch.setattr(loop, "make_step", make_step)
    train(stopped, root)
    a, b = params_of(root, "sft"), params_of(root, "stopped")
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    assert (a["body.layers.q"] != params_of(root, "cpt")["body.layers.q"]).any()


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_exports_of_teachers_with_adapters(run, family, tmp_path, capsys):
    """Ranker and language model, merged, score in stock classes as here."""
    root, model = run
    name = "sft"
    if family == "Qwen3":
        name, model = "qwen3", checkpoint(tmp_path / "qwen3", family)
        train(stage(root, name, model, config.Rank(), 1), root)
    else:
        folder = export(
            config.Export(data=DATA, text=text(root), stage="cpt", folder="export_cpt"),
            root,
        )
        stock = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        merged = params_of(root, "cpt")
        np.testing.assert_allclose(
            stock.lm_head.weight.detach().numpy(), merged["head"], atol=1e-6
        )
        up = stock.model.layers[1].mlp.up_proj.weight.detach().numpy()
        np.testing.assert_allclose(up.T, merged["body.layers.up"][1], atol=1e-6)
        assert not (folder / "ranker_contract.json").exists()
    settings = config.Export(
        data=DATA, text=text(root), stage=name, folder=f"out_{family}"
    )
    folder = export(settings, root)
    capsys.readouterr()
    assert check.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "ranker: 16 of 16" in shown and "transformers: 16 of 16" in shown
    # A checkpoint with moments is small beside the weights alone.
    assert size_of(root / name / "checkpoints") < size_of(folder) / 3
    if family == "Qwen3":  # the adapters belong to the checkpoint as it was
        path = tmp_path / "qwen3" / "config.json"
        described = json.loads(path.read_text())
        path.write_text(json.dumps({**described, "rms_norm_eps": 0.1}))
        with pytest.raises(errors.StageError, match="which has changed since"):
            params_of(root, name)
