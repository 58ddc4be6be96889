"""Small rankers of random weights, in memory and in folders."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from ranker import config
from ranker.data.text import Segment, train_wordpiece
from ranker.models import build
from ranker.serving import golden
from ranker.serving.frame import own_frame
from ranker.serving.packed import PackedModel

WORDS = "cheap flights to rome low fares every day cats and dogs in the Snow".split()
_SMALL: dict[str, Any] = dict(num_layers=3, embed_dim=16, num_heads=2, mlp_dim=24)
ENCODERS = {
    "bert": config.Encoder(**_SMALL, max_positions=96),
    "roberta": config.Encoder(
        **_SMALL, max_positions=96, num_types=1, family="roberta", norm_eps=1e-5
    ),
    "electra": config.Encoder(
        **_SMALL,
        max_positions=96,
        family="electra",
        table_dim=8,
        head_activation="gelu",
    ),
    "modernbert": config.Encoder(
        **_SMALL,
        max_positions=0,
        num_types=0,
        family="modernbert",
        bias=False,
        pre_norm=True,
        first_norm=False,
        gated=True,
        head_activation="gelu",
        head_norm=True,
        pooling="mean",
        window=3,
        local_layers=(1, 2),
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        norm_eps=1e-5,
    ),
}

# What other families do otherwise, all at once.
ENCODERS["others"] = config.Encoder(
    **_SMALL,
    max_positions=0,
    num_types=0,
    unbiased=("q", "k", "v"),
    activation="silu",
    gated=True,
    causal=True,
    pooling="last",
    head_activation="relu",
    pooler_bias=False,
    head_bias=False,
    window=4,
    local_layers=(1,),
    rope_factor=2.0,
)
ENCODERS["cls"] = config.Encoder(  # one token is scored, by a local layer
    **_SMALL,
    max_positions=0,
    num_types=0,
    pre_norm=True,
    pooling="cls",
    window=4,
    local_layers=(0, 2),
)
ENCODERS["mpnet"] = config.Encoder(
    **_SMALL, max_positions=96, num_types=0, family="mpnet", distance_buckets=32
)
ENCODERS["late"] = config.Encoder(
    **_SMALL, activation="gelu_tanh", pooling="late", head_activation="none"
)
DECODER = config.Decoder(
    num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)


def network(model, vocab_size, seed=0):
    """A model whose scores differ: weights are larger than fresh ones."""
    made = build.build(model, vocab_size, "score", key=jax.random.key(seed))
    graphdef, params = nnx.split(made, nnx.Param)
    draw = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: x * 6 + 0.1 * draw.normal(size=x.shape).astype(np.float32), params
    )
    return PackedModel.of(graphdef, params, model, vocab_size)


def rows(count, vocab_size, seed=0, longest=90):
    """Segments of random tokens and many lengths."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(draw.integers(4, longest))
        tokens = draw.integers(0, vocab_size, n).tolist()
        made.append(Segment(tokens, (0, 1), int(draw.integers(1, n)), 0))
    return made


def export(folder, model=ENCODERS["bert"], *, length=64, seed=0, stage="made"):
    """A folder with weights, tokenizer and contract; returns the loaded model."""
    import ranker
    from ranker.data.backends import load_tokenizer
    from ranker.models.huggingface import export_huggingface

    texts = [" ".join(WORDS), *(word for word in WORDS for _ in range(3))]
    tokenizer = folder.parent / f"{folder.name}_tokenizer"
    train_wordpiece(texts, 120, tokenizer)
    loaded = load_tokenizer(tokenizer)
    made = network(model, len(loaded), seed)
    export_huggingface(
        folder, model, made.params, head="score", tokenizer=tokenizer, length=length
    )
    frame = own_frame(load_tokenizer(folder), model, length)
    about = golden.ModelFacts(stage=stage, template="pair", model=model, frame=frame)
    golden.write_contract(folder, about, golden.texts([], None), made)
    return ranker.load(folder)
