"""Public checkpoints by name: their networks, for plans made where they are not."""

from ranker import config

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
}
