"""A causal transformer: Llama (arXiv 2302.13971) and what others do differently."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ranker import config
from ranker.batch import Rows
from ranker.models import adapters, layers
from ranker.models.attention import attend
from ranker.models.dropout import Drop
from ranker.models.masks import Rule
from ranker.models.norms import rms_norm
from ranker.sharding import constrain, look_up, sums_exactly


class DecoderLayers(nnx.Module):
    """The parameters of all layers, stacked; the scan runs one after the other."""

    def __init__(self, c: config.Decoder, *, rngs: nnx.Rngs):
        L, D, N, K = c.num_layers, c.embed_dim, c.num_heads, c.num_kv_heads
        H, F = c.head_dim, c.mlp_dim
        q_axes = ("layers", "embed", "heads", "head_dim")
        kv_axes = ("layers", "embed", "kv_heads", "head_dim")
        if c.pre_norms:
            self.attention_norm = layers.ones((L, D), ("layers", "norm"))
            self.mlp_norm = layers.ones((L, D), ("layers", "norm"))
        self.q = layers.weight(rngs, (L, D, N, H), q_axes)
        self.k = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.v = layers.weight(rngs, (L, D, K, H), kv_axes)
        self.o = layers.weight(
            rngs, (L, N, H, D), ("layers", "heads", "head_dim", "embed")
        )
        self.gate = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.up = layers.weight(rngs, (L, D, F), ("layers", "embed", "mlp"))
        self.down = layers.weight(rngs, (L, F, D), ("layers", "mlp", "embed"))
        for name, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads")):
            if c.qk_norm:
                whole = ((L, heads, H), ("layers", axis, "head_dim"))
                each = ((L, H), ("layers", "head_dim"))
                norm = layers.ones(*(whole if c.wide_qk_norm else each))
                setattr(self, f"{name}_norm", norm)
        self._biases(c)
        if c.post_norms:
            self.attention_post_norm = layers.ones((L, D), ("layers", "norm"))
            self.mlp_post_norm = layers.ones((L, D), ("layers", "norm"))

    def _biases(self, c: config.Decoder) -> None:
        L, D, H, F = c.num_layers, c.embed_dim, c.head_dim, c.mlp_dim
        kinds = (
            (c.qkv_bias, "q", (L, c.num_heads, H), ("layers", "heads", "head_dim")),
            (
                c.qkv_bias,
                "k",
                (L, c.num_kv_heads, H),
                ("layers", "kv_heads", "head_dim"),
            ),
            (
                c.qkv_bias,
                "v",
                (L, c.num_kv_heads, H),
                ("layers", "kv_heads", "head_dim"),
            ),
            (c.o_bias, "o", (L, D), ("layers", "norm")),
            (c.mlp_bias, "gate", (L, F), ("layers", "mlp")),
            (c.mlp_bias, "up", (L, F), ("layers", "mlp")),
            (c.mlp_bias, "down", (L, D), ("layers", "norm")),
        )
        for wanted, name, shape, axes in kinds:
            if wanted:
                setattr(self, f"{name}_bias", layers.zeros(shape, axes))


def decoder_layer(
    c: config.Decoder,
    w: dict[str, Array],
    x: Float[Array, "R T D"],
    rows: Rows,
    *,
    local: bool | Bool[Array, ""],
    turns: tuple[layers.Angles, layers.Angles],
    drop: Drop | None,
    read: layers.ReadHidden | None,
) -> Float[Array, "R T D"]:
    """One layer: attention, then a gated MLP, each on the normalised stream.

    `turns` are the angles of queries and of keys, `drop` that of adapters. With `read`
    the output is that of the tokens it picks.
    """

    def norm(x: Array, name: str, wanted: bool = True) -> Array:
        if not wanted:
            return x
        return rms_norm(x, w[name], c.norm_eps)

    def project(y: Array, name: str) -> Array:
        z = adapters.project(y, w, name, drop=drop)
        return layers.add_bias(z, w.get(f"{name}_bias"))

    def turned(y: Array, name: str, angles: layers.Angles) -> Array:
        z = project(y, name)  # [R, T, N, H]
        if c.qk_norm and c.wide_qk_norm:
            whole = rms_norm(_joined(z), w[f"{name}_norm"].reshape(-1), c.norm_eps)
            z = whole.reshape(z.shape)
        elif c.qk_norm:
            z = norm(z, f"{name}_norm")
        return _rotate(z, angles, c.rotary_dim)

    y = norm(x, "attention_norm", c.pre_norms)
    q, k = turned(y, "q", turns[0]), turned(y, "k", turns[1])
    rule = Rule(
        causal=c.causal, window=c.window, scale=c.attention_scale, cap=c.attention_cap
    )
    y = attend(
        q,
        k,
        project(y, "v"),
        rows.segments,
        rule,
        local=local,
        prefixes=rows.prefixes,
    )
    if read is not None:
        x, y = read(x), read(y)

    def add(x: Array, y: Array, name: str) -> Array:
        y = norm(y, name, c.post_norms)
        return x + (y if c.residual_scale == 1 else y * c.residual_scale)

    x = add(x, project(y, "o"), "attention_post_norm")
    y = norm(x, "mlp_norm", c.pre_norms)
    gate, up = project(y, "gate"), project(y, "up")
    y = layers.lean(partial(layers.gated, name=c.activation), c.remat)(gate, up)
    x = add(x, project(y, "down"), "mlp_post_norm")
    return constrain(x, "batch", None, None)


def _joined(z: Float[Array, "R T N H"]) -> Float[Array, "R T D"]:
    return z.reshape(*z.shape[:-2], -1)


def _rotate(
    z: Float[Array, "R T N H"], angles: layers.Angles, rotary_dim: int
) -> Float[Array, "R T N H"]:
    """Turns the first `rotary_dim` dimensions of each head; 0: all."""
    if rotary_dim in (0, z.shape[-1]):
        return layers.rotate(z, angles)
    turned = layers.rotate(z[..., :rotary_dim], angles)
    return jnp.concatenate([turned, z[..., rotary_dim:]], axis=-1)


class DecoderStack(nnx.Module):
    """Tokens to hidden states; heads are in heads.py."""

    def __init__(
        self,
        c: config.Decoder,
        vocab_size: int,
        *,
        rngs: nnx.Rngs,
        multiplied: bool = False,
    ):
        """Fresh parameters, float32; `multiplied`: logits come of the embeddings."""
        self.config = c
        axes = ("vocab" if multiplied else "lookup", "embed")
        self.embedding = layers.weight(rngs, (vocab_size, c.embed_dim), axes)
        self.layers = DecoderLayers(c, rngs=rngs)
        self.norm = layers.ones((c.embed_dim,), ("norm",))

    def __call__(
        self,
        rows: Rows,
        *,
        read: layers.ReadHidden | None = None,
        key: Array | None = None,
    ) -> Float[Array, "R T D"]:
        """Hidden states after the last norm.

        Args:
          rows: of tokens; their types are not used.
          read: picks the tokens whose states are given; None: all.
          key: of the dropout of adapters; None: no dropout.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        exact = sums_exactly(c.reduce_dtype, dtype)
        sent = jnp.float32 if exact else dtype
        axes = self.embedding.get_metadata("axes")
        table = self.embedding[...].astype(sent)
        x = look_up(table, rows.tokens, *axes).astype(dtype)
        if c.embed_scale != 1:
            x = x * jnp.asarray(c.embed_scale, dtype)
        x = constrain(x, "batch", None, None)
        turns, near = self._turns(rows.positions)
        ready = layers.make_ready(self.layers, dtype, exact=exact)

        def body(x, layer, read):
            w, local, still, key = layer
            w = ready(w)
            turned = near if c.local_layers else turns
            if local is None:  # all layers are alike
                local = bool(c.local_layers)
            else:
                turned = jax.tree.map(partial(jnp.where, local), near, turns)
            if still is not None:
                turned = jax.tree.map(
                    partial(jnp.where, still), _unturned(turned), turned
                )
            drop = adapters.make_adapter_drop(self.layers, key)
            return decoder_layer(
                c, w, x, rows, local=local, turns=turned, drop=drop, read=read
            )

        stacked = adapters.stacked(self.layers)
        local = layers.mixed(c.local_layers, c.num_layers)
        still = layers.listed(c.unrotated_layers, c.num_layers)
        still = still if c.unrotated_layers else None
        keys = None
        if key is not None and adapters.make_adapter_drop(self.layers, key):
            keys = jax.random.split(key, c.num_layers)
        x = layers.stack(body, x, (stacked, local, still, keys), c.remat, read)
        return rms_norm(x, self.norm[...], c.norm_eps)

    def _turns(self, positions: Int[Array, "R T"]):
        """Angles of queries and keys, in layers that see all and in local ones."""
        c = self.config
        width = c.rotary_dim or c.head_dim
        far = near = layers.rotary(positions, width, c.rope)
        if c.local_layers and c.local_rope_theta:
            near = layers.rotary(
                positions, width, config.Rope(theta=c.local_rope_theta)
            )
        if not c.query_growth:
            return (far, far), (near, near)
        period = jnp.floor_divide(positions, c.rope.original_length)
        growth = 1 + c.query_growth * jnp.log1p(period.astype(jnp.float32))
        growth = growth[:, :, None, None]  # [R, T, 1, 1]

        def grown(angles: layers.Angles) -> layers.Angles:
            return angles[0] * growth, angles[1] * growth

        return (grown(far), far), (grown(near), near)


def _unturned(turns: tuple[layers.Angles, layers.Angles]):
    """Angles of the same shape that turn nothing."""
    return tuple((jnp.ones_like(cos), jnp.zeros_like(sin)) for cos, sin in turns)
