"""Checkpoints as published: plans by the names, shapes and dtypes of their own files.

published.json has the config.json and the header of each file, without weights: tensors
by name, `{i}` for layers, as dtype, shape and range of layers. The names are those of
the files on the hub, which transformers' classes of today would not all write.
"""

import pytest
from published import PUBLISHED, write_header

from ranker import config
from ranker.models.huggingface import open_checkpoint


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_is_planned(name, tmp_path):
    published = PUBLISHED[name]
    count = write_header(tmp_path, published)
    expected = dict(published["expect"])
    checkpoint = open_checkpoint(config.Pretrained(path=str(tmp_path)))
    match = checkpoint.match(published["head"])
    notes = " ".join(match.notes)
    assert expected.pop("note", "") in notes
    if "scores" in expected:
        assert match.scores == expected.pop("scores")
    for field, value in expected.items():
        found = getattr(checkpoint.model, field)
        assert (list(found) if isinstance(value, list) else found) == value
    used = {one for _, names in match.entries.values() for one in names if one}
    ignored = sum(note.endswith(": ignored") for note in match.notes)
    # A tensor that holds several is counted once in the file, and for each here.
    fused = any(one in notes for one in ("auto_map", "architectures"))
    assert len(used) + ignored == count or fused
    layers = published["config"].get("num_hidden_layers", 0)
    if layers > 1:
        half = config.Pretrained(path=str(tmp_path), keep_layers=f":{layers // 2}")
        open_checkpoint(half).match(published["head"])


def test_code_of_its_own_is_spoken_of(tmp_path):
    published = PUBLISHED["EuroBERT/EuroBERT-210m"]
    write_header(tmp_path, published)
    found = open_checkpoint(config.Pretrained(path=str(tmp_path)))
    assert "auto_map" in found.notes[0] and "not run" in found.notes[0]
