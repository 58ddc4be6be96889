"""Every documented form of `keep_layers`, on every family."""

import json
import math

import published as headers
import pytest

from ranker import config
from ranker.models.families import FAMILIES, read_config, table_of
from ranker.models.folder import read_folder
from ranker.models.huggingface import open_checkpoint

# The documented forms, and what they keep of six layers.
KEPT = {
    "0,2,4": (0, 2, 4),
    "::2": (0, 2, 4),
    "1::2": (1, 3, 5),
    ":3": (0, 1, 2),
    "-3:": (3, 4, 5),
    "5": (5,),
}
SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=6,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
)
# Their defaults are of more layers or heads than there are here.
FIELDS = {
    "distilbert": dict(dim=16, hidden_dim=24, n_layers=6, n_heads=2),
    "electra": dict(embedding_size=16),
    "smollm3": dict(no_rope_layers=[1, 1, 1, 0, 1, 1]),
    "gemma": dict(head_dim=8),
    "gemma2": dict(head_dim=8),
    "gemma3_text": dict(head_dim=8),
    "qwen3": dict(head_dim=8),
    "phi3": dict(pad_token_id=0),
    "modernbert": dict(global_attn_every_n_layers=3),
}


def write_folder(folder, kind):
    """A folder of a family with its class's own fields, all holes, and its match."""
    described = {"model_type": kind, **SIZES, **FIELDS.get(kind, {})}
    (folder / "config.json").write_text(json.dumps(described))
    found = read_folder(folder)
    model, _ = read_config("config.json", found.fields)
    rows, family = found.fields["vocab_size"], FAMILIES[kind]
    tensors = {}
    for entry in table_of(model, rows, "score"):
        for i in range(model.num_layers) if entry.stacked else [0]:
            name = entry.source.format(i=i)
            if name not in family.absent:
                tensors[name] = ("F32", list(entry.source_shape))
    headers.write_header(folder, {"config": described, "tensors": tensors})
    assert sum(math.prod(shape) for _, shape in tensors.values()) > 1000
    return model


def opened(folder, **fields):
    return open_checkpoint(config.Pretrained(path=str(folder), **fields))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_form_on_every_family(kind, tmp_path):
    model = write_folder(tmp_path, kind)
    assert model.num_layers == 6
    whole = opened(tmp_path).match("score")
    assert whole.scores
    for text, kept in KEPT.items():
        checkpoint = opened(tmp_path, keep_layers=text)
        found = checkpoint.match("score")
        assert found.entries.keys() == whole.entries.keys()
        for path, (entry, sources) in found.entries.items():
            every = whole.entries[path][1]
            assert sources == ([every[i] for i in kept] if entry.stacked else every)
        said = f"layers {', '.join(map(str, kept))} are kept"
        assert any(said in note for note in found.notes), found.notes
        # Each layer stays what it is: local or not, turned or not.
        for name in ("local_layers", "unrotated_layers"):
            before = getattr(model, name, ())
            after = getattr(checkpoint.model, name, ())
            assert after == tuple(i for i, j in enumerate(kept) if j in before), name
