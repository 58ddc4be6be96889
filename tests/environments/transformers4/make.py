"""Tiny exports of families whose config.json transformers 4 spells otherwise.

python make.py FOLDER    writes FOLDER/NAME with a contract of a few golden pairs
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ranker import config
from ranker.batch import Rows
from ranker.data.text import train_bpe, train_wordpiece
from ranker.models import build
from ranker.models.huggingface import export_huggingface

V, T = 98, 40
DECODER = config.Decoder(
    num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=48
)
SCALED = config.Rope(theta=5e5, scaling="llama3", factor=4.0, original_length=16)
YARN = config.Rope(
    theta=500.0, scaling="yarn", factor=4.0, original_length=16, attention_factor=1.2
)
ENCODER = dict(num_layers=4, embed_dim=32, num_heads=4, mlp_dim=48)
MODERN = config.Encoder(
    **ENCODER,
    max_positions=0,
    num_types=0,
    norm_eps=1e-5,
    family="modernbert",
    bias=False,
    pre_norm=True,
    first_norm=False,
    gated=True,
    head_activation="gelu",
    head_norm=True,
    pooler_bias=False,
    pooling="mean",
    window=4,
    local_layers=(1, 2),
    rope_theta=160000.0,
    local_rope_theta=160000.0,
)


def decoder(**changes) -> config.Decoder:
    """A small decoder."""
    return dataclasses.replace(DECODER, **changes)


GEMMA = dict(activation="gelu_tanh", embed_scale=32**0.5, qk_norm=True)
MODELS = {
    "qwen3": decoder(family="qwen3", qk_norm=True, rope=config.Rope(theta=1e6)),
    "qwen3_yarn": decoder(family="qwen3", qk_norm=True, rope=YARN),
    "llama3": decoder(family="llama", rope=SCALED),
    "mistral": decoder(family="mistral", rope=config.Rope(theta=1e6)),
    "gemma3": decoder(
        family="gemma3_text",
        **GEMMA,
        post_norms=True,
        attention_scale=0.25,
        window=5,
        local_layers=(0, 2),
        local_rope_theta=100.0,
        rope=config.Rope(theta=5e3, scaling="linear", factor=4.0),
    ),
    "smollm3": decoder(
        family="smollm3",
        head_dim=8,
        unrotated_layers=(2,),
        rope=config.Rope(theta=5e6),
    ),
    "phi3": decoder(
        family="phi3",
        head_dim=8,
        rotary_dim=4,
        rope=config.Rope(theta=1e5),
    ),
    "mmbert": MODERN,
    "bert": config.Encoder(**ENCODER, max_positions=64),
    "distilbert": config.Encoder(
        **ENCODER,
        max_positions=64,
        num_types=0,
        family="distilbert",
        head_activation="relu",
    ),
}


def make(folder: pathlib.Path, model, tokenizer: pathlib.Path) -> None:
    """Random weights, their export, and scores of random tokens."""
    network = build.build(model, V, "score", key=jax.random.key(3))
    params = nnx.state(network, nnx.Param)
    params = jax.tree.map(lambda x: x * 6 + 0.02, params)
    nnx.update(network, params)
    export_huggingface(
        folder, model, params, head="score", tokenizer=tokenizer, length=T
    )
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, V, (3, T)).astype(np.int32)
    ones, place = np.ones_like(tokens), np.tile(np.arange(T, dtype=np.int32), (3, 1))
    rows = Rows(*map(jnp.asarray, (tokens, ones, place, ones * 0)))
    at = T - 1 if isinstance(model, config.Decoder) else 0
    index = jnp.asarray([[row * T + at] for row in range(3)], jnp.int32)
    with jax.default_matmul_precision("highest"):
        scores = np.asarray(network(rows, index))[:, 0]
    golden = [
        {"tokens": row.tolist(), "document": T, "score": float(score)}
        for row, score in zip(tokens, scores, strict=True)
    ]
    promise = {
        "golden": golden,
        "types": [0, 0],
        "scores": {"std": float(scores.std())},
    }
    (folder / "ranker_contract.json").write_text(json.dumps(promise))


def main() -> None:
    """Writes all folders."""
    root = pathlib.Path(sys.argv[1])
    texts = ["cheap flights to rome", "low fares every day"] * 3
    train_bpe(iter(texts), 98, root / "bpe")
    train_wordpiece(iter(texts), 90, root / "wordpiece")
    for name, model in MODELS.items():
        kind = "bpe" if isinstance(model, config.Decoder) else "wordpiece"
        make(root / name, model, root / kind)


if __name__ == "__main__":
    main()
