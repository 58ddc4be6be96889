"""A causal transformer: Llama (arXiv 2302.13971) and what others do differently."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ranker import config
from ranker.batch import Rows
from ranker.models import adapters, layers
from ranker.models.attention import attend
from ranker.models.masks import Rule
from ranker.models.norms import rms_norm
from ranker.sharding import constrain, gathered


class DecoderLayers(nnx.Module):
    """The parameters of all layers, stacked; the scan runs one after the other."""

    def __init__(self, c: config.Decoder, *, rngs: nnx.Rngs):
        L, D, N, K = c.num_layers, c.embed_dim, c.num_heads, c.num_kv_heads
        H, F = c.head_dim, c.mlp_dim
        q_axes = ("layers", "embed", "heads", "head_dim")
        kv_axes = ("layers", "embed", "kv_heads", "head_dim")
        self.attention_norm = layers.ones((L, D), ("layers", "norm"))
        self.q = layers.weight(rngs, (L, D, N, H), q_axes)
        self.k = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.v = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.o = layers.weight(
            rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed")
        )
        self.mlp_norm = layers.ones((L, D), ("layers", "norm"))
        self.gate = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.up = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.down = layers.weight(rngs, (L, F, D), ("layers", "mlp", "embed"))
        if c.qkv_bias:
            for name, heads in (("q", N), ("k", K), ("v", K)):
                axes = ("layers", q_axes[2] if name == "q" else kv_axes[2], "head_dim")
                setattr(self, f"{name}_bias", layers.zeros((L, heads, H), axes))
        if c.qk_norm:
            self.q_norm = layers.ones((L, H), ("layers", "head_dim"))
            self.k_norm = layers.ones((L, H), ("layers", "head_dim"))
        if c.post_norms:
            self.attention_post_norm = layers.ones((L, D), ("layers", "norm"))
            self.mlp_post_norm = layers.ones((L, D), ("layers", "norm"))


def decoder_layer(
    c: config.Decoder,
    w: dict[str, Array],
    x: Float[Array, "R T D"],
    rows: Rows,
    local: bool | Bool[Array, ""],
    angles: layers.Angles,
    read: layers.Read | None,
) -> Float[Array, "R T D"]:
    """One layer: attention, then a gated MLP, each on the normalised stream.

    With `read` the output is that of the tokens it picks.
    """

    def norm(x: Array, name: str, wanted: bool = True) -> Array:
        if not wanted:
            return x
        return rms_norm(x, w[name], c.norm_eps)

    def project(y: Array, name: str) -> Array:
        return layers.add_bias(adapters.project(y, w, name), w.get(f"{name}_bias"))

    y = norm(x, "attention_norm")
    q = layers.rotate(norm(project(y, "q"), "q_norm", c.qk_norm), angles)
    k = layers.rotate(norm(project(y, "k"), "k_norm", c.qk_norm), angles)
    rule = Rule(
        causal=True, window=c.window, scale=c.attention_scale, cap=c.attention_cap
    )
    y = attend(q, k, project(y, "v"), rows.segments, rule, local=local)
    if read is not None:
        x, y = read(x), read(y)
    y = adapters.project(y, w, "o")
    x = x + norm(y, "attention_post_norm", c.post_norms)
    y = norm(x, "mlp_norm")
    gate = adapters.project(y, w, "gate")
    up = adapters.project(y, w, "up")
    y = layers.lean(partial(layers.gated, name=c.activation), c.remat)(gate, up)
    y = adapters.project(y, w, "down")
    x = x + norm(y, "mlp_post_norm", c.post_norms)
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
        self.norm = layers.ones((c.embed_dim,), ("norm",))

    def __call__(
        self,
        rows: Rows,
        *,
        read: layers.Read | None = None,
        key: Array | None = None,
    ) -> Float[Array, "R T D"]:
        """Hidden states after the last norm.

        Args:
          rows: of tokens; their types are not used.
          read: picks the tokens whose states are given; None: all.
          key: not used.
        """
        del key
        c = self.config
        dtype = jnp.dtype(c.dtype)
        # Each device looks up in its part of the vocabulary, at full width.
        table = gathered(self.embedding[...].astype(dtype), "vocab", "embed")
        x = jnp.take(table, rows.tokens, axis=0)
        if c.embed_scale != 1:
            x = x * jnp.asarray(c.embed_scale, dtype)
        x = constrain(x, "batch", None, None)
        angles = near_angles = layers.rotary(rows.positions, c.head_dim, c.rope)
        if c.local_layers and c.local_rope_theta:
            rope = config.Rope(theta=c.local_rope_theta)
            near_angles = layers.rotary(rows.positions, c.head_dim, rope)

        ready = layers.gathered(self.layers, dtype)

        def body(x, layer, read):
            w, local = layer
            w = ready(w)
            turned = near_angles if c.local_layers else angles
            if local is None:  # all layers are alike
                local = bool(c.local_layers)
            else:
                turned = jax.tree.map(partial(jnp.where, local), near_angles, angles)
            return decoder_layer(c, w, x, rows, local, turned, read)

        stacked = adapters.stacked(self.layers)
        local = layers.mixed(c.local_layers, c.num_layers)
        x = layers.stack(body, x, (stacked, local), c.remat, read)
        return rms_norm(x, self.norm[...], c.norm_eps)
