"""Public checkpoints by name: their networks, for plans made where they are not."""

from ranker import config


def _ettin(num_layers: int, embed_dim: int, mlp_dim: int) -> config.Encoder:
    """A ModernBERT of the Ettin suite: heads of 64, every third layer sees all."""
    return config.Encoder(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=embed_dim // 64,
        mlp_dim=mlp_dim,
        family="modernbert",
        max_positions=0,
        num_types=0,
        norm_eps=1e-5,
        bias=False,
        pre_norm=True,
        first_norm=False,
        gated=True,
        head_activation="gelu",
        head_norm=True,
        pooler_bias=False,
        head_bias=True,
        window=64,
        local_layers=tuple(i for i in range(num_layers) if i % 3),
        rope_theta=160_000.0,
        local_rope_theta=10_000.0,
    )


# Weller et al., 2025, arXiv 2507.11412: layers, width, MLP.
_ETTIN = {
    "17m": (7, 256, 384),
    "32m": (10, 384, 576),
    "68m": (19, 512, 768),
    "150m": (22, 768, 1152),
    "400m": (28, 1024, 2624),
    "1b": (28, 1792, 3840),
}

# From the config.json of each, on the hub.
KNOWN: dict[str, tuple[config.Decoder | config.Encoder, int]] = {
    "meta-llama/Llama-2-7b-hf": (
        config.Decoder(
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=32,
            head_dim=128,
            mlp_dim=11008,
            tie_embeddings=False,
        ),
        32000,
    ),
    "google-bert/bert-base-uncased": (
        config.Encoder(
            num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, dropout=0.1
        ),
        30522,
    ),
    **{
        f"jhu-clsp/ettin-encoder-{size}": (_ettin(*sizes), 50368)
        for size, sizes in _ETTIN.items()
    },
}
