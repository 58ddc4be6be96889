"""A Llama-style causal transformer (Touvron et al., 2023, arXiv 2302.13971)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ranker import config
from ranker.models import layers
from ranker.models.attention import attend, make_mask
from ranker.sharding import constrain


class DecoderLayers(nnx.Module):
    """The parameters of all layers, stacked; the scan runs one after the other."""

    def __init__(self, c: config.Decoder, *, rngs: nnx.Rngs):
        L, D, N, K = c.num_layers, c.embed_dim, c.num_heads, c.num_kv_heads
        H, F = c.head_dim, c.mlp_dim
        q_axes = ("layers", "embed", "heads", "head_dim")
        kv_axes = ("layers", "embed", "kv_heads", "head_dim")
        self.attention_norm = layers.ones((L, D), ("layers", "embed"))
        self.q = layers.weight(rngs, (L, D, N, H), q_axes)
        self.k = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.v = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.o = layers.weight(
            rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed")
        )
        self.mlp_norm = layers.ones((L, D), ("layers", "embed"))
        self.gate = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.up = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.down = layers.weight(rngs, (L, F, D), ("layers", "mlp", "embed"))


def decoder_layer(
    c: config.Decoder,
    w: dict[str, Array],
    x: Float[Array, "R T D"],
    mask: Bool[Array, "R 1 T T"],
    angles: tuple[Array, Array],
) -> Float[Array, "R T D"]:
    """One layer: attention, then a gated MLP, each on the normalised stream."""
    y = layers.rms_norm(x, w["attention_norm"], c.norm_eps)
    q = layers.rotate(jnp.einsum("RTD,DNH->RTNH", y, w["q"]), angles)
    k = layers.rotate(jnp.einsum("RTD,DKH->RTKH", y, w["k"]), angles)
    v = jnp.einsum("RTD,DKH->RTKH", y, w["v"])
    x = x + jnp.einsum("RTNH,NHD->RTD", attend(q, k, v, mask), w["o"])
    y = layers.rms_norm(x, w["mlp_norm"], c.norm_eps)
    gate = jax.nn.silu(jnp.einsum("RTD,DF->RTF", y, w["gate"]))
    up = jnp.einsum("RTD,DF->RTF", y, w["up"])
    x = x + jnp.einsum("RTF,FD->RTD", gate * up, w["down"])
    return constrain(x, "batch", None, None)


class Decoder(nnx.Module):
    """Tokens to hidden states; heads are in heads.py."""

    def __init__(self, c: config.Decoder, vocab_size: int, *, rngs: nnx.Rngs):
        """Fresh parameters, float32."""
        self.config = c
        self.embedding = layers.weight(
            rngs, (vocab_size, c.embed_dim), ("vocab", "embed")
        )
        self.layers = DecoderLayers(c, rngs=rngs)
        self.norm = layers.ones((c.embed_dim,), ("embed",))

    def __call__(
        self,
        tokens: Int[Array, "R T"],
        segments: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        types: Int[Array, "R T"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "R T D"]:
        """Hidden states after the last norm; `types` and `key` are not used."""
        del types, key
        c = self.config
        dtype = jnp.dtype(c.dtype)
        # Each device looks up in its part of the vocabulary, at full width.
        table = constrain(self.embedding[...].astype(dtype), "vocab", None)
        x = jnp.take(table, tokens, axis=0)
        x = constrain(x, "batch", None, None)
        mask = make_mask(segments, causal=True)
        angles = layers.rotary(positions, c.head_dim, c.rope_theta)

        def body(x, w):
            w = jax.tree.map(lambda value: value.astype(dtype), w)
            return decoder_layer(c, w, x, mask, angles), None

        stacked = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
        x, _ = jax.lax.scan(jax.checkpoint(body) if c.remat else body, x, stacked)
        return layers.rms_norm(x, self.norm[...], c.norm_eps)
