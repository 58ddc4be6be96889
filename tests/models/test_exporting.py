"""Weights of a mesh as files: whole, in parts, and rounded."""

import json

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file

from ranker import config, sharding
from ranker.data.text import train_bpe
from ranker.models import exporting
from ranker.models.families import table_of
from ranker.models.folder import find_tensors
from ranker.models.huggingface import open_checkpoint

MODEL = config.Decoder(
    num_layers=3,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    tie_embeddings=False,
)
V = 320


def made_params():
    """Random parameters by path, as a state; no network is built."""
    generator, params = np.random.default_rng(0), {}
    for entry in table_of(MODEL, V, "language"):
        shape = (MODEL.num_layers, *entry.shape) if entry.stacked else entry.shape
        *parents, last = entry.ours.split(".")
        at = params
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = generator.normal(size=shape).astype(np.float32)
    return nnx.State(params)


def test_rows_are_read_from_every_device():
    mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2))
    value = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32)
    for spec in ((None, "fsdp", "tensor"), ("tensor", None, "fsdp"), ()):
        placed = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))
        for start, stop in ((0, 6), (2, 3), (1, 5)):
            found = exporting.rows_of(placed, start, stop)
            np.testing.assert_array_equal(found, value[start:stop])


def test_a_large_model_is_written_in_parts(tmp_path, monkeypatch):
    train_bpe(iter(["low fares to rome"] * 3), 300, tmp_path / "tokenizer")
    params = made_params()

    def export(name, **fields):
        exporting.export_huggingface(
            tmp_path / name,
            MODEL,
            params,
            head="language",
            tokenizer=tmp_path / "tokenizer",
            length=64,
            **fields,
        )
        return tmp_path / name

    whole = load_file(export("whole") / "model.safetensors")
    monkeypatch.setattr(exporting, "SHARD_BYTES", 10_000)
    folder = export("parts", dtype="bfloat16")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(one.name for one in folder.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and len(files) > 3
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == 2 * sum(v.size for v in whole.values())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="np") as opened:
            found = opened.get_tensor(name)
        np.testing.assert_array_equal(found, whole[name].astype(ml_dtypes.bfloat16))
    # They are one checkpoint; and parts do not stay beside a file that is whole.
    assert find_tensors(folder)[0].keys() == whole.keys()
    assert open_checkpoint(config.Pretrained(path=str(folder))).match("language")
    monkeypatch.undo()
    again = export("parts")
    assert [one.name for one in again.glob("*.safetensors*")] == ["model.safetensors"]
