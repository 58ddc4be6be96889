"""Attention within segments: the masks, and the one place that picks the kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LOWEST = float(jnp.finfo(jnp.float32).min)


def make_mask(
    segments: Int[Array, "R T"], *, causal: bool, window: int = 0
) -> Bool[Array, "R 1 T T"]:
    """Which key (column) each query (row) sees: its own segment, never padding.

    For segments [1, 1, 1, 2, 0]: full, causal, and causal with a window of 2:

        1 1 1 . .        1 . . . .        1 . . . .
        1 1 1 . .        1 1 . . .        1 1 . . .
        1 1 1 . .        1 1 1 . .        . 1 1 . .
        . . . 1 .        . . . 1 .        . . . 1 .
        . . . . .        . . . . .        . . . . .

    A row of padding sees nothing; `attend` gives it finite values.

    Args:
      segments: 0: padding; 1, 2, ...: the segments of a row, each contiguous.
      causal: only tokens up to the query's own.
      window: causal: how many tokens are seen, the query's own included; else: how many
        to either side. 0: all.
    """
    same = segments[:, :, None] == segments[:, None, :]
    mask = same & (segments > 0)[:, :, None]  # [R, T, T]
    place = jnp.arange(segments.shape[1])
    back = place.reshape(1, -1, 1) - place.reshape(1, 1, -1)  # [1, T, T]
    if causal:
        mask = mask & (back >= 0)
    if window:
        mask = mask & (back < window if causal else jnp.abs(back) <= window)
    return mask[:, None]


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    mask: Bool[Array, "R 1 T T"],
    *,
    scale: float = 0.0,
    cap: float = 0.0,
) -> Float[Array, "R T N H"]:
    """Scaled dot-product attention; N is a multiple of K (grouped heads).

    Logits and softmax are float32. Fully masked rows come out finite, and so do their
    gradients.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: True: the query sees the key.
      scale: factor on the logits; 0: H ** -0.5.
      cap: bound on the logits, cap * tanh(logits / cap); 0: none.
    """
    if cap:
        return reference(q, k, v, mask, scale=scale, cap=cap)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale or None)


def reference(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    mask: Bool[Array, "R 1 T T"],
    *,
    scale: float = 0.0,
    cap: float = 0.0,
) -> Float[Array, "R T N H"]:
    """What `attend` computes, written from the formula, logits in float32."""
    R, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(R, T, K, N // K, H)
    logits = jnp.einsum(
        "RTKGH,RSKH->RKGTS", grouped, k, preferred_element_type=jnp.float32
    )
    logits = logits * (scale or H**-0.5)
    if cap:
        logits = cap * jnp.tanh(logits / cap)
    # Not minus infinity: a fully masked row would be NaN, and so would gradients.
    logits = jnp.where(mask[:, :, None], logits, _LOWEST)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("RKGTS,RSKH->RTKGH", weights, v).reshape(R, T, N, H)
