"""A BERT encoder (Devlin et al., 2019, arXiv 1810.04805)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ranker import config
from ranker.models import layers
from ranker.models.attention import attend, make_mask
from ranker.sharding import constrain


class EncoderLayers(nnx.Module):
    """The parameters of all layers, stacked; the scan runs one after the other."""

    def __init__(self, c: config.Encoder, *, rngs: nnx.Rngs):
        L, D, N, H, F = c.num_layers, c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
        in_axes = ("layers", "embed", "heads", "head_dim")
        for name in ("q", "k", "v"):
            setattr(self, name, layers.weight(rngs, (L, D, N, H), in_axes))
            bias = layers.zeros((L, N, H), ("layers", "heads", "head_dim"))
            setattr(self, f"{name}_bias", bias)
        out_axes = ("layers", "heads", "head_dim", "embed")
        self.o = layers.weight(rngs, (L, N, H, D), out_axes)
        self.o_bias = layers.zeros((L, D), ("layers", "embed"))
        self.attention_norm = layers.ones((L, D), ("layers", "embed"))
        self.attention_norm_bias = layers.zeros((L, D), ("layers", "embed"))
        self.up = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.up_bias = layers.zeros((L, F), ("layers", "mlp"))
        self.down = layers.weight(rngs, (L, F, D), ("layers", "mlp", "embed"))
        self.down_bias = layers.zeros((L, D), ("layers", "embed"))
        self.mlp_norm = layers.ones((L, D), ("layers", "embed"))
        self.mlp_norm_bias = layers.zeros((L, D), ("layers", "embed"))


def encoder_layer(
    c: config.Encoder,
    w: dict[str, Array],
    x: Float[Array, "R T D"],
    mask: Bool[Array, "R 1 T T"],
    key: Array | None,
) -> Float[Array, "R T D"]:
    """One layer: attention and MLP, each added to its input and then normalised."""
    keys = (None, None) if key is None else jax.random.split(key)

    def project(name: str) -> Array:
        return layers.add_bias(
            jnp.einsum("RTD,DNH->RTNH", x, w[name]), w[f"{name}_bias"]
        )

    attended = attend(project("q"), project("k"), project("v"), mask)
    y = layers.add_bias(jnp.einsum("RTNH,NHD->RTD", attended, w["o"]), w["o_bias"])
    x = layers.layer_norm(
        x + layers.dropout(y, c.dropout, keys[0]),
        w["attention_norm"],
        w["attention_norm_bias"],
        c.norm_eps,
    )
    y = layers.add_bias(jnp.einsum("RTD,DF->RTF", x, w["up"]), w["up_bias"])
    y = jax.nn.gelu(y, approximate=False)
    y = layers.add_bias(jnp.einsum("RTF,FD->RTD", y, w["down"]), w["down_bias"])
    x = layers.layer_norm(
        x + layers.dropout(y, c.dropout, keys[1]),
        w["mlp_norm"],
        w["mlp_norm_bias"],
        c.norm_eps,
    )
    return constrain(x, "batch", None, None)


class Encoder(nnx.Module):
    """Tokens to hidden states; heads are in heads.py."""

    def __init__(self, c: config.Encoder, vocab_size: int, *, rngs: nnx.Rngs):
        """Fresh parameters, float32."""
        self.config = c
        D = c.embed_dim
        self.embedding = layers.weight(rngs, (vocab_size, D), ("vocab", "embed"))
        self.positions = layers.weight(
            rngs, (c.max_positions, D), ("positions", "embed")
        )
        self.types = layers.weight(rngs, (c.num_types, D), ("types", "embed"))
        self.norm = layers.ones((D,), ("embed",))
        self.norm_bias = layers.zeros((D,), ("embed",))
        self.layers = EncoderLayers(c, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "R T"],
        segments: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        types: Int[Array, "R T"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "R T D"]:
        """Hidden states of the last layer; `key` draws dropout, None: no dropout."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        keys = None if key is None else jax.random.split(key, c.num_layers + 1)
        # Each device looks up in its part of the vocabulary, at full width.
        table = constrain(self.embedding[...], "vocab", None)
        x = (
            jnp.take(table, tokens, axis=0)
            + jnp.take(constrain(self.positions[...], None, None), positions, axis=0)
            + jnp.take(constrain(self.types[...], None, None), types, axis=0)
        )  # [R, T, D]
        x = layers.layer_norm(x, self.norm[...], self.norm_bias[...], c.norm_eps)
        x = layers.dropout(x, c.dropout, None if keys is None else keys[-1])
        x = constrain(x.astype(dtype), "batch", None, None)
        mask = make_mask(segments, causal=False)

        def body(x, layer):
            w, key = layer
            w = jax.tree.map(lambda value: value.astype(dtype), w)
            return encoder_layer(c, w, x, mask, key), None

        stacked = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
        layer_keys = None if keys is None else keys[:-1]
        body = jax.checkpoint(body) if c.remat else body
        x, _ = jax.lax.scan(body, x, (stacked, layer_keys))
        return x
