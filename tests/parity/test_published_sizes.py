"""Configs as published on the hub, at full size, by names and shapes alone."""

import json
import math

import pytest
import torch
import transformers
from flax import nnx
from safetensors import safe_open

from ranker import config
from ranker.models import build
from ranker.models.huggingface import flat, open_checkpoint

LLAMA = dict(model_type="llama", hidden_act="silu", num_attention_heads=32)
# As the hub has them: older files say rope_theta, rope_scaling, sliding_window_pattern
# and global_rope_theta at the top. Behind each: parameters, and fields of ours.
PUBLISHED = {
    "llama-2-7b": (
        LLAMA
        | dict(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_key_value_heads=32,
            vocab_size=32000,
            rms_norm_eps=1e-5,
            max_position_embeddings=4096,
            rope_scaling=None,
            tie_word_embeddings=False,
            pretraining_tp=1,
        ),
        "language",
        6_738_415_616,
        dict(head_dim=128, norm_eps=1e-5, rope=config.Rope()),
    ),
    "llama-3.1-8b": (
        LLAMA
        | dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_key_value_heads=8,
            vocab_size=128256,
            rms_norm_eps=1e-5,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=dict(
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
                rope_type="llama3",
            ),
            tie_word_embeddings=False,
        ),
        "language",
        8_030_261_248,
        dict(
            rope=config.Rope(
                theta=500000.0, scaling="llama3", factor=8.0, original_length=8192
            )
        ),
    ),
    "mistral-7b-v0.1": (
        dict(
            model_type="mistral",
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=32000,
            rms_norm_eps=1e-5,
            max_position_embeddings=32768,
            rope_theta=10000.0,
            sliding_window=4096,
            tie_word_embeddings=False,
        ),
        "language",
        7_241_732_096,
        dict(window=4096, local_layers=tuple(range(32))),
    ),
    "qwen2.5-7b": (
        dict(
            model_type="qwen2",
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
            rms_norm_eps=1e-6,
            max_position_embeddings=131072,
            max_window_layers=28,
            rope_theta=1000000.0,
            sliding_window=131072,
            use_sliding_window=False,
            tie_word_embeddings=False,
        ),
        "language",
        7_615_616_512,
        dict(qkv_bias=True, window=0, local_layers=()),
    ),
    "qwen3-8b": (
        dict(
            model_type="qwen3",
            head_dim=128,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=151936,
            rms_norm_eps=1e-6,
            max_window_layers=36,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=None,
            use_sliding_window=False,
            tie_word_embeddings=False,
        ),
        "language",
        8_190_735_360,
        dict(qk_norm=True, rope=config.Rope(theta=1e6)),
    ),
    "gemma-2-9b": (
        dict(
            model_type="gemma2",
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            hidden_size=3584,
            intermediate_size=14336,
            num_attention_heads=16,
            num_hidden_layers=42,
            num_key_value_heads=8,
            query_pre_attn_scalar=256,
            sliding_window=4096,
            vocab_size=256000,
        ),
        "language",
        9_241_705_984,
        dict(
            attention_cap=50.0,
            logit_cap=30.0,
            attention_scale=1 / 16,
            window=4096,
            local_layers=tuple(range(0, 42, 2)),
        ),
    ),
    "gemma-3-1b": (
        dict(
            model_type="gemma3_text",
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            hidden_size=1152,
            intermediate_size=6912,
            num_attention_heads=4,
            num_hidden_layers=26,
            num_key_value_heads=1,
            query_pre_attn_scalar=256,
            rope_local_base_freq=10000,
            rope_theta=1000000,
            sliding_window=512,
            sliding_window_pattern=6,
            vocab_size=262144,
        ),
        "language",
        999_885_952,
        dict(
            window=512,
            local_layers=tuple(i for i in range(26) if i % 6 != 5),
            local_rope_theta=1e4,
            rope=config.Rope(theta=1e6),
        ),
    ),
    "bge-reranker-v2-m3": (
        dict(
            model_type="xlm-roberta",
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            vocab_size=250002,
            max_position_embeddings=8194,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=1,
            id2label={"0": "LABEL_0"},
        ),
        "score",
        567_755_777,
        dict(max_positions=8192, num_types=1),
    ),
    "modernbert-base": (
        dict(
            model_type="modernbert",
            hidden_size=768,
            intermediate_size=1152,
            num_hidden_layers=22,
            num_attention_heads=12,
            vocab_size=50368,
            global_attn_every_n_layers=3,
            global_rope_theta=160000.0,
            local_attention=128,
            local_rope_theta=10000.0,
            norm_eps=1e-5,
            classifier_pooling="mean",
            id2label={"0": "LABEL_0"},
        ),
        "score",
        149_605_633,
        dict(
            window=64,
            rope_theta=160000.0,
            local_rope_theta=1e4,
            local_layers=tuple(i for i in range(22) if i % 3),
            pooling="mean",
        ),
    ),
}


def save_shapes(folder, described, head):
    """transformers' own model without numbers, as a file that is all holes."""
    kind = described["model_type"]
    rest = {k: v for k, v in described.items() if k != "model_type"}
    settings = transformers.AutoConfig.for_model(kind, **rest)
    auto = dict(
        language=transformers.AutoModelForCausalLM,
        score=transformers.AutoModelForSequenceClassification,
    )[head]
    with torch.device("meta"):
        model = auto.from_config(settings)
    at, header = 0, {}
    for name, one in model.named_parameters():  # a tied one comes once
        size = 2 * math.prod(one.shape)
        offsets = [at, at + size]
        header[name] = dict(dtype="BF16", shape=list(one.shape), data_offsets=offsets)
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(described))
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return len(list(file.keys())), at // 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_fits_by_shapes_alone(name, tmp_path):
    described, head, count, fields = PUBLISHED[name]
    tensors, numbers = save_shapes(tmp_path, described, head)
    assert numbers == count
    checkpoint = open_checkpoint(config.Pretrained(path=str(tmp_path)))
    for field, value in fields.items():
        assert getattr(checkpoint.model, field) == value, field
    match = checkpoint.match(head)
    assert not match.notes
    used = {one for _, names in match.entries.values() for one in names if one}
    assert len(used) == tensors
    abstract = build.abstract(checkpoint.model, checkpoint.vocab_size, head)
    shapes = dict(flat(nnx.state(abstract, nnx.Param)))
    assert set(shapes) == set(match.entries)
    # A norm that ModernBERT lacks, and positions that RoBERTa never reads.
    more = {"modernbert": 1, "xlm-roberta": -2}.get(described["model_type"], 0)
    ours = sum(one.size for one in shapes.values())
    assert ours == count + more * checkpoint.model.embed_dim
