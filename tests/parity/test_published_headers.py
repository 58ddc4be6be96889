"""Checkpoints as published: plans by the names, shapes and dtypes of their own files.

published.json has the config.json and the header of each file, without weights: tensors
by name, `{i}` for layers, as dtype, shape and range of layers. The names are those of
the files on the hub, which transformers' classes of today would not all write.
"""

import json
import math
import pathlib

import pytest

from ranker import config
from ranker.models.huggingface import open_checkpoint

PUBLISHED = json.loads(
    pathlib.Path(__file__).with_name("published.json").read_text("utf-8")
)
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def write_header(folder, published):
    """The published folder, its file all holes; returns how many tensors there are."""
    header, at = {}, 0
    for pattern, (dtype, shape, *layers) in published["tensors"].items():
        numbers = range(*layers[0]) if layers else [0]
        for i in numbers:
            size = WIDTHS[dtype] * math.prod(shape)
            offsets = [at, at + size]
            name = pattern.replace("{i}", str(i))
            header[name] = dict(dtype=dtype, shape=shape, data_offsets=offsets)
            at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(published["config"]))
    return len(header)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_is_planned(name, tmp_path):
    published = PUBLISHED[name]
    count = write_header(tmp_path, published)
    expected = dict(published["expect"])
    checkpoint = open_checkpoint(config.Pretrained(path=str(tmp_path)))
    plan = checkpoint.plan(published["head"])
    notes = " ".join(plan.notes)
    assert expected.pop("note", "") in notes
    if "scores" in expected:
        assert plan.scores == expected.pop("scores")
    for field, value in expected.items():
        found = getattr(checkpoint.model, field)
        assert (list(found) if isinstance(value, list) else found) == value
    used = {one for _, names in plan.entries.values() for one in names if one}
    ignored = sum(note.endswith(": ignored") for note in plan.notes)
    # A tensor that holds several is counted once in the file, and for each here.
    fused = any(one in notes for one in ("auto_map", "architectures"))
    assert len(used) + ignored == count or fused
    layers = published["config"].get("num_hidden_layers", 0)
    if layers > 1:
        half = config.Pretrained(path=str(tmp_path), keep_layers=f":{layers // 2}")
        open_checkpoint(half).plan(published["head"])


def test_code_of_its_own_is_spoken_of(tmp_path):
    published = PUBLISHED["EuroBERT/EuroBERT-210m"]
    write_header(tmp_path, published)
    found = open_checkpoint(config.Pretrained(path=str(tmp_path)))
    assert "auto_map" in found.notes[0] and "not run" in found.notes[0]
