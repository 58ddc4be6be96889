"""A bidirectional transformer: BERT (arXiv 1810.04805) and what others do otherwise."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ranker import config
from ranker.batch import Rows
from ranker.models import adapters, distances, dropout, layers
from ranker.models.attention import attend
from ranker.models.masks import Rule
from ranker.models.norms import layer_norm
from ranker.sharding import constrain, gathered, look_up, sums_exactly

# What a layer's key is folded with; 0 and 1 are what it is split into, 3 the adapters'.
_ATTENTION = 2


class EncoderLayers(nnx.Module):
    """The parameters of all layers, stacked; the scan runs one after the other."""

    def __init__(self, c: config.Encoder, *, rngs: nnx.Rngs):
        L, D, N, H, F = c.num_layers, c.embed_dim, c.num_heads, c.head_dim, c.mlp_dim
        in_axes = ("layers", "embed", "heads", "head_dim")
        up_axes, stream = ("layers", "embed", "mlp"), ("layers", "norm")
        for name in ("q", "k", "v"):
            setattr(self, name, layers.weight(rngs, (L, D, N, H), in_axes))
        out_axes = ("layers", "heads", "head_dim", "embed")
        self.o = layers.weight(rngs, (L, N, H, D), out_axes)
        self.attention_norm = layers.ones((L, D), stream)
        if c.gated:
            self.gate = layers.weight(rngs, (L, D, F), up_axes)
        self.up = layers.weight(rngs, (L, D, F), up_axes)
        self.down = layers.weight(rngs, (L, F, D), ("layers", "mlp", "embed"))
        self.mlp_norm = layers.ones((L, D), stream)
        if c.bias:
            heads = ((L, N, H), ("layers", "heads", "head_dim"))
            hidden = ((L, F), ("layers", "mlp"))
            shapes = dict.fromkeys("qkv", heads) | dict(gate=hidden, up=hidden)
            for name in (
                "q",
                "k",
                "v",
                "o",
                "attention_norm",
                "up",
                "down",
                "mlp_norm",
            ):
                if name not in c.unbiased:
                    shape = shapes.get(name, ((L, D), stream))
                    setattr(self, f"{name}_bias", layers.zeros(*shape))
            if c.gated and "gate" not in c.unbiased:
                self.gate_bias = layers.zeros(*hidden)


def encoder_layer(
    c: config.Encoder,
    w: dict[str, Array],
    x: Float[Array, "R T D"],
    rows: Rows,
    *,
    local: bool | Bool[Array, ""],
    angles: layers.Angles | None,
    bare: Bool[Array, ""],
    biases: Float[Array, "buckets N"] | None,
    key: Array | None,
    drop: dropout.Drop | None,
    read: layers.ReadHidden | None,
) -> Float[Array, "R T D"]:
    """One layer: attention and MLP, each added to what it reads.

    The stream is normalised after each (BERT), or what each reads is (`pre_norm`); a
    `bare` layer's attention then reads the stream as it is. With `read` the output is
    that of the tokens it picks. `drop` is that of adapters.
    """
    keys = (None, None) if key is None else jax.random.split(key)

    def dense(x: Array, name: str) -> Array:
        y = adapters.project(x, w, name, drop=drop)
        return layers.add_bias(y, w.get(f"{name}_bias"))

    def norm(x: Array, name: str, wanted: bool) -> Array:
        if not wanted:
            return x
        return layer_norm(x, w[name], w.get(f"{name}_bias"), c.norm_eps)

    y = norm(x, "attention_norm", c.pre_norm)
    if not c.first_norm:
        y = jnp.where(bare, x, y)
    q, k, v = (dense(y, name) for name in ("q", "k", "v"))
    if angles is not None:
        q, k = layers.rotate(q, angles), layers.rotate(k, angles)
    rule = Rule(causal=c.causal, window=c.window)
    own = None if key is None else jax.random.fold_in(key, _ATTENTION)
    left_out = dropout.make_drop(c.attention_dropout, own)
    bias = None if biases is None else distances.bias(biases, x.shape[1])
    y = attend(q, k, v, rows.segments, rule, local=local, drop=left_out, bias=bias)
    if read is not None:
        x, y = read(x), read(y)
    y = dense(y, "o")
    x = x + dropout.dropout(y, c.dropout, keys[0])
    x = norm(x, "attention_norm", not c.pre_norm)
    y = norm(x, "mlp_norm", c.pre_norm)
    up = dense(y, "up")
    if c.gated:
        function = layers.lean(partial(layers.gated, name=c.activation), c.remat)
        y = function(dense(y, "gate"), up)
    else:
        y = layers.lean(partial(layers.activate, name=c.activation), c.remat)(up)
    y = dense(y, "down")
    x = norm(x + dropout.dropout(y, c.dropout, keys[1]), "mlp_norm", not c.pre_norm)
    return constrain(x, "batch", None, None)


class EncoderStack(nnx.Module):
    """Tokens to hidden states; heads are in heads.py."""

    def __init__(self, c: config.Encoder, vocab_size: int, *, rngs: nnx.Rngs):
        """Fresh parameters, float32."""
        self.config = c
        D = c.embed_dim
        E = c.table_dim or D
        # A narrow table is not split: its width is not the stream's.
        width = "embed" if E == D else None
        self.embedding = layers.weight(rngs, (vocab_size, E), ("lookup", width))
        if c.max_positions:
            axes = ("positions", width)
            self.positions = layers.weight(rngs, (c.max_positions, E), axes)
        if c.num_types:
            self.types = layers.weight(rngs, (c.num_types, E), ("types", width))
        self.norm = layers.ones((E,), ("norm",))
        if c.bias:
            self.norm_bias = layers.zeros((E,), ("norm",))
        if E != D:
            self.project = layers.weight(rngs, (E, D), (None, "embed"))
            self.project_bias = layers.zeros((D,), ("norm",))
        self.layers = EncoderLayers(c, rngs=rngs)
        if c.distance_buckets:
            shape = (c.distance_buckets, c.num_heads)
            self.distances = layers.weight(rngs, shape, ("buckets", "heads"))
        if c.pre_norm:
            self.last_norm = layers.ones((D,), ("norm",))

    def _embed(self, rows: Rows, key: Array | None) -> Float[Array, "R T D"]:
        """The first layer's input: tokens, positions and types, normalised."""
        c = self.config
        width = self.embedding.get_metadata("axes")[1]
        x = look_up(self.embedding[...], rows.tokens, "lookup", width)  # [R, T, E]
        if c.max_positions:
            table = gathered(self.positions[...], "positions", width)
            x = x + jnp.take(table, rows.positions, axis=0)
        if c.num_types:
            # With one type all tokens are of it.
            chosen = jnp.minimum(rows.types, c.num_types - 1)
            table = gathered(self.types[...], "types", width)
            x = x + jnp.take(table, chosen, axis=0)
        bias = self.norm_bias[...] if c.bias else None
        x = layer_norm(x, self.norm[...], bias, c.norm_eps)
        x = dropout.dropout(x, c.dropout, key)
        if c.table_dim not in (0, c.embed_dim):
            project = gathered(self.project[...], None, "embed")
            x = jnp.einsum("RTE,ED->RTD", x, project)
            x = layers.add_bias(x, self.project_bias[...])
        return constrain(x.astype(c.dtype), "batch", None, None)

    def __call__(
        self,
        rows: Rows,
        *,
        read: layers.ReadHidden | None = None,
        key: Array | None = None,
    ) -> Float[Array, "R T D"]:
        """Hidden states of the last layer.

        Args:
          rows: of tokens.
          read: picks the tokens whose states are given; None: all.
          key: of dropout; None: no dropout.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        keys = None if key is None else jax.random.split(key, c.num_layers + 1)
        x = self._embed(rows, None if keys is None else keys[-1])
        angles, near_angles = _angles(c, rows)
        exact = sums_exactly(c.reduce_dtype, dtype)
        ready = layers.make_ready(self.layers, dtype, exact=exact)

        def body(x, layer, read):
            w, local, bare, biases, key = layer
            w = ready(w)
            turned = near_angles if c.local_layers else angles
            if local is None:  # all layers are alike
                local = bool(c.local_layers)
            else:
                turned = jax.tree.map(partial(jnp.where, local), near_angles, angles)
            return encoder_layer(
                c,
                w,
                x,
                rows,
                local=local,
                angles=turned,
                bare=bare,
                biases=biases,
                key=key,
                drop=adapters.make_adapter_drop(self.layers, key),
                read=read,
            )

        stacked = adapters.stacked(self.layers)
        local = layers.mixed(c.local_layers, c.num_layers)
        bare = layers.listed(() if c.first_norm else (0,), c.num_layers)
        layer_keys = None if keys is None else keys[:-1]
        biases = None
        if c.distance_buckets:  # one table, which each layer is given
            table = gathered(self.distances[...], "buckets", "heads")[None]
            biases = jnp.broadcast_to(table, (c.num_layers, *table.shape[1:]))
        stacked = (stacked, local, bare, biases, layer_keys)
        x = layers.stack(body, x, stacked, c.remat, read)
        if c.pre_norm:
            x = layer_norm(x, self.last_norm[...], None, c.norm_eps)
        return x


def _angles(
    c: config.Encoder, rows: Rows
) -> tuple[layers.Angles | None, layers.Angles | None]:
    """Rotary angles of layers that see all, and of local ones; None where learned."""
    if c.max_positions:
        return None, None
    rope = config.Rope(theta=c.rope_theta)
    if c.rope_factor != 1:
        rope = config.Rope(theta=c.rope_theta, scaling="linear", factor=c.rope_factor)
    near = config.Rope(theta=c.local_rope_theta or c.rope_theta)
    far_angles = layers.rotary(rows.positions, c.head_dim, rope)
    return far_angles, layers.rotary(rows.positions, c.head_dim, near)
