"""Checkpoint and tokenizer folders from strangers: refused, never run."""

import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ranker import config
from ranker.data.text import Tokenizer, train_wordpiece
from ranker.errors import DataError, ModelError
from ranker.models.huggingface import open_checkpoint

INPUTS = int(os.environ.get("RANKER_FUZZ", "5000"))
BERT = dict(
    model_type="bert",
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
)
LLAMA = dict(
    model_type="llama",
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=8,
    max_position_embeddings=16,
    rope_scaling=None,
    eos_token_id=1,
)
INDEX = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
MODULES = [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "1"}]


def checkpoint(folder: pathlib.Path, fields):
    save_file({"a": np.zeros((4, 3), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return config.Pretrained(path=str(folder))


def meet(settings):
    """Opens a checkpoint: a plan, or a sentence."""
    try:
        open_checkpoint(settings).match("score")
    except ModelError as error:
        assert settings.path in str(error)
        assert len(str(error)) < 20_000
        return str(error)
    return ""


odd = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        2**31,
        10**30,
        0.5,
        10**7,
        1e300,
        float("nan"),
        "",
        "8",
        "bert",
    ]
    + ["../..", [], [1], ["a"], {}, {"type": "yarn"}, {"rope_type": "linear"}, [[[]]]]
    + [{"factor": "x", "rope_type": "llama3"}, "\ud800", {"a": {"b": {}}}, 7]
)
more = ("rope_scaling", "rope_theta", "head_dim", "layer_types", "sliding_window")
more += ("hidden_act", "auto_map", "text_config", "num_labels", "id2label")
more += ("quantization_config", "torch_dtype", "_attn_implementation", "architectures")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_configs_that_say_anything(kind, tmp_path):
    base = BERT if kind == "bert" else LLAMA

    @settings(
        max_examples=max(1, INPUTS // 50),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.dictionaries(st.sampled_from([*base, *more]), odd, max_size=3))
    def check(changes):
        assert meet(checkpoint(tmp_path, {**base, **changes}))

    check()


JSON = [
    "[" * 100_000,
    "null",
    "7",
    "[]",
    "{}",
    '{"weight_map": 3}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": null}}',
    '{"weight_map": {"a": "../model.safetensors"}}',
    '{"weight_map": {"a": "/etc/passwd"}}',
    '[{"type": "x.Dense", "path": "../.."}]',
    '[{"type": 3, "path": 3}]',
    '[{"type": "x.Dense", "path": "\\u0000"}]',
    '{"a": "\\ud800"}',
    "\0",
]


@pytest.mark.parametrize("text", JSON, ids=range(len(JSON)))
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "modules.json"]
)
def test_json_that_is_anything(name, text, tmp_path):
    settings = checkpoint(tmp_path, BERT)
    (tmp_path / name).write_text(text)
    assert meet(settings)


def test_modules_lie_inside_their_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    settings = checkpoint(inside, BERT)
    outside = tmp_path / "outside"
    outside.mkdir()
    checkpoint(outside, {"module_output_name": "scores", "out_features": 1})
    modules = [MODULES[0], {"type": "x.Dense", "path": "../outside"}]
    (inside / "modules.json").write_text(json.dumps(modules))
    assert "'../outside' is not in this folder" in meet(settings)


@pytest.mark.parametrize("cut", [0, 4, 8, 20, -1])
@pytest.mark.parametrize("size", [None, 2**63 - 1, 2**27, 0])
def test_safetensors_that_lie(cut, size, tmp_path):
    settings = checkpoint(tmp_path, BERT)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    if size is not None:
        data[:8] = size.to_bytes(8, "little")
    path.write_bytes(bytes(data[:cut]))
    assert str(path) in meet(settings)


def test_pickles_are_not_read(tmp_path):
    settings = checkpoint(tmp_path, BERT)
    ran = tmp_path / "ran"
    code = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()  # runs where it is unpickled
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(code)
    assert "pickles, which are not read" in meet(settings)
    (tmp_path / "model.safetensors").write_bytes(code)
    assert str(tmp_path / "model.safetensors") in meet(settings)
    assert not ran.exists()


def test_code_that_comes_with_a_folder_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
    train_wordpiece(["some text"] * 3, 60, tmp_path)
    for name in ("tokenization_x.py", "configuration_x.py", "modeling_x.py"):
        (tmp_path / name).write_text(code)
    mapped = {
        "AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"],
        "AutoConfig": "configuration_x.X",
        "AutoModel": "modeling_x.X",
    }
    path = tmp_path / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), "auto_map": mapped}
    path.write_text(json.dumps({**fields, "tokenizer_class": "X"}))
    settings = checkpoint(tmp_path, {**BERT, "auto_map": mapped})
    try:
        Tokenizer(tmp_path, "pair")
    except DataError as error:
        assert str(tmp_path) in str(error)
    meet(settings)
    meet(checkpoint(tmp_path, {**BERT, "model_type": "x", "auto_map": mapped}))
    assert not ran.exists()
