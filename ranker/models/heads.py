"""What is read off the hidden states: the next token, or a score a document."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ranker import config, sharding
from ranker.batch import Rows
from ranker.models import dropout, layers
from ranker.models.decoder import DecoderStack
from ranker.models.encoder import EncoderStack
from ranker.models.masks import Rule, make_mask
from ranker.models.norms import layer_norm
from ranker.sharding import constrain, gathered

# By default a GPU or a TPU would round what a product of float32 reads.
_EXACT = jax.lax.Precision.HIGHEST
_LOWEST = float(jnp.finfo(jnp.float32).min)


class LanguageModel(nnx.Module):
    """A decoder that predicts the next token."""

    def __init__(self, c: config.Decoder, vocab_size: int, *, rngs: nnx.Rngs):
        """Fresh parameters; with tied embeddings the head has none of its own."""
        self.body = DecoderStack(c, vocab_size, rngs=rngs, multiplied=c.tie_embeddings)
        self.vocab_size = vocab_size
        self.tied, self.cap = c.tie_embeddings, c.logit_cap
        self.scale = c.logit_scale
        if not self.tied:
            self.head = layers.weight(
                rngs, (vocab_size, c.embed_dim), ("vocab", "embed")
            )

    def __call__(
        self,
        rows: Rows,
        *,
        key: Array | None = None,
    ) -> Float[Array, "R T V"]:
        """Logits of the token after each position, float32."""
        hidden = self.body(rows, key=key)
        return self.logits(hidden, self.table())[..., : self.vocab_size]

    def table(self) -> Float[Array, "W D"]:
        """The head's weights as each device uses them, float32.

        So are gradients of several uses added up, whatever the logits are computed in.
        Rows of zeros follow where the mesh does not divide the vocabulary: W is V, or
        the next size that it does divide.
        """
        head = self.body.embedding if self.tied else self.head
        whole = gathered(head[...], "vocab", "embed")
        more = sharding.rounded("vocab", self.vocab_size) - self.vocab_size
        if not more:
            return whole
        return constrain(jnp.pad(whole, ((0, more), (0, 0))), "vocab", None)

    def logits(
        self, hidden: Float[Array, "R T D"], table: Float[Array, "W D"]
    ) -> Float[Array, "R T W"]:
        """Logits, float32; each device makes its part of the vocabulary.

        Those of rows that are no token have no weight in a softmax.
        """
        logits = jnp.einsum(
            "RTD,VD->RTV",
            hidden,
            table.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        logits = constrain(logits, "batch", None, "vocab")
        logits = logits if self.scale == 1 else logits * self.scale
        logits = self.cap * jnp.tanh(logits / self.cap) if self.cap else logits
        if table.shape[0] == self.vocab_size:
            return logits
        token = jnp.arange(table.shape[0]) < self.vocab_size
        return jnp.where(token.reshape(1, 1, -1), logits, _LOWEST)


class DenseHead(nnx.Module):
    """A dense layer from a hidden state to a score."""

    def __init__(self, c: config.Decoder, *, rngs: nnx.Rngs):
        self.config = c
        self.dense = layers.weight(rngs, (c.embed_dim,), ("norm",))
        if c.head_bias:
            self.bias = layers.zeros((), ())

    def __call__(self, x: Float[Array, "*B D"], *, key: Array | None) -> Array:
        """Scores [*B]; `key` is not used."""
        del key
        scores = jnp.einsum("...D,D->...", x, self.dense[...], precision=_EXACT)
        return scores + self.bias[...] if self.config.head_bias else scores


class GradeHead(nnx.Module):
    """The expected grade: grades 0, 1, ... weighted by the softmax of their logits.

    A language model that answers with a grade has such logits, of the grades' tokens;
    trained by a rank loss, the expectation keeps what the answer means (the grades'
    scale) where one dense layer would not.
    """

    def __init__(self, c: config.Decoder, *, rngs: nnx.Rngs):
        self.config = c
        self.dense = layers.weight(rngs, (c.grades, c.embed_dim), (None, "norm"))

    def __call__(self, x: Float[Array, "*B D"], *, key: Array | None) -> Array:
        """Scores [*B], from 0 to the highest grade; `key` is not used."""
        del key
        c = self.config
        logits = jnp.einsum("...D,GD->...G", x, self.dense[...], precision=_EXACT)
        logits = logits * c.logit_scale
        if c.logit_cap:
            logits = c.logit_cap * jnp.tanh(logits / c.logit_cap)
        grades = jnp.arange(c.grades, dtype=jnp.float32)
        chances = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("...G,G->...", chances, grades, precision=_EXACT)


class PoolerHead(nnx.Module):
    """BERT's pooler (dense, tanh) and a dense layer to a score, or what others have."""

    def __init__(self, c: config.Encoder | config.Decoder, *, rngs: nnx.Rngs):
        D = c.embed_dim
        self.config = c
        encoder = c if isinstance(c, config.Encoder) else None
        self.dropout = encoder.dropout if encoder else 0.0
        self.normed = encoder is not None and encoder.head_norm
        if c.head_activation != "none":
            self.pooler = layers.weight(rngs, (D, D), ("embed", None))
            if encoder is None or (encoder.bias and encoder.pooler_bias):
                self.pooler_bias = layers.zeros((D,), (None,))
        if self.normed:
            self.norm = layers.ones((D,), (None,))
        self.dense = layers.weight(rngs, (D,), (None,))
        if c.head_bias:
            self.bias = layers.zeros((), ())

    def __call__(self, x: Float[Array, "*B D"], *, key: Array | None) -> Array:
        """Scores [*B]; `key` draws dropout, None: no dropout."""
        c = self.config
        if c.head_activation != "none":
            pooler = gathered(self.pooler[...], "embed", None)
            x = jnp.einsum("...D,DE->...E", x, pooler, precision=_EXACT)
            bias = self.pooler_bias[...] if hasattr(self, "pooler_bias") else None
            x = layers.add_bias(x, bias)
            x = _HEAD_ACTIVATIONS[c.head_activation](x)
        if self.normed:
            x = layer_norm(x, self.norm[...], None, c.norm_eps)
        x = dropout.dropout(x, self.dropout, key)
        scores = jnp.einsum("...D,D->...", x, self.dense[...], precision=_EXACT)
        return scores + self.bias[...] if c.head_bias else scores


_HEAD_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "gelu": partial(layers.activate, name="gelu"),
    "relu": jax.nn.relu,
}


class Ranker(nnx.Module):
    """A decoder or an encoder that scores documents."""

    def __init__(
        self, c: config.Decoder | config.Encoder, vocab_size: int, *, rngs: nnx.Rngs
    ):
        """Fresh parameters."""
        self.pooling = c.pooling
        if isinstance(c, config.Encoder):
            self.body = EncoderStack(c, vocab_size, rngs=rngs)
            self.head = PoolerHead(c, rngs=rngs)
            self.given = "" if c.causal else "cls"
        else:
            self.body = DecoderStack(c, vocab_size, rngs=rngs)
            kind = GradeHead if c.grades else DenseHead
            kind = kind if c.head_activation == "none" else PoolerHead
            self.head = kind(c, rngs=rngs)
            self.given = "last" if c.causal else ""

    def __call__(
        self,
        rows: Rows,
        score_index: Int[Array, "B L"],
        *,
        groups: int = 1,
        key: Array | None = None,
    ) -> Float[Array, "B L"]:
        """Scores of documents at the tokens `score_index`, float32.

        Args:
          rows: of tokens.
          score_index: r * T + t of a token of the document's segment: its first for an
            encoder, its last for a decoder; any for a decoder that reads both ways.
          groups: data shards; the lists of one point only at rows of the same, so that
            no hidden state crosses devices. A list that does not scores NaN.
          key: of dropout; None: no dropout.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        index = score_index
        if self.pooling in ("cls", "last") and self.pooling != self.given:
            ends = segment_ends(rows.segments, last=self.pooling == "last")
            index = gather(ends, score_index, groups)
        read = partial(gather, index=index, groups=groups)
        if self.pooling in ("mean", "late"):
            hidden = self.body(rows, key=keys[0])
        else:
            hidden = self.body(rows, read=read, key=keys[0])
        # The scores are float32 whatever the layers compute in.
        hidden = hidden.astype(jnp.float32)
        if self.pooling == "late":
            scores = self.head(hidden, key=keys[1])  # [R, T]
            return read(segment_means(scores[..., None], rows.segments)[..., 0])
        if self.pooling == "mean":
            hidden = read(segment_means(hidden, rows.segments))
        return self.head(hidden, key=keys[1])


def over_passages(
    scores: Float[Array, "B L*P"], passages: Bool[Array, "B L P"], how: str
) -> Float[Array, "B L"]:
    """Scores of documents from those of their passages; 0 for padding.

    Args:
      scores: of passages, P a document, one after the other.
      passages: True for a real one.
      how: "max" or "mean" over the real ones.
    """
    scores = scores.reshape(passages.shape)
    count = jnp.sum(passages, axis=-1)
    if how == "mean":
        total = jnp.sum(jnp.where(passages, scores, 0.0), axis=-1)
        return total / jnp.maximum(count, 1)
    most = jnp.max(jnp.where(passages, scores, _LOWEST), axis=-1)
    return jnp.where(count > 0, most, 0.0)


def segment_ends(segments: Int[Array, "R T"], *, last: bool) -> Int[Array, "R T"]:
    """At each token the flat index r * T + t of its segment's last, or first, token."""
    R, T = segments.shape
    place = jnp.arange(R * T, dtype=jnp.int32).reshape(R, T)
    change = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones((R, 1), bool)
    if last:
        ends = jnp.where(jnp.concatenate([change, edge], 1), place, R * T)
        return jax.lax.cummin(ends, axis=1, reverse=True)
    ends = jnp.where(jnp.concatenate([edge, change], 1), place, -1)
    return jax.lax.cummax(ends, axis=1)


def segment_means(
    hidden: Float[Array, "R T D"], segments: Int[Array, "R T"]
) -> Float[Array, "R T D"]:
    """At each token the mean, in float32, over the tokens of its segment."""
    mask = make_mask(segments, Rule(causal=False))[:, 0]  # [R, T, T]
    same = mask.astype(jnp.float32)
    hidden = hidden.astype(jnp.float32)
    total = jnp.einsum("RTS,RSD->RTD", same, hidden, precision=_EXACT)
    return total / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1)


def gather(
    x: Float[Array, "R T *D"], index: Int[Array, "B L"], groups: int
) -> Float[Array, "B L *D"]:
    """What x holds at flat positions r * T + t, within each of `groups` shards."""
    R, T, *inner = x.shape
    B, L = index.shape
    flat = x.reshape(groups, R // groups * T, *inner)
    first = jnp.arange(groups, dtype=index.dtype).reshape(-1, 1) * (R // groups * T)
    local = index.reshape(groups, B // groups * L) - first
    # A negative index would count from the end; out of range fills with NaN.
    local = jnp.where(local < 0, flat.shape[1], local)
    local = local.reshape(*local.shape, *(1 for _ in inner))
    found = jnp.take_along_axis(flat, local, axis=1, mode="fill")
    return found.reshape(B, L, *inner)
