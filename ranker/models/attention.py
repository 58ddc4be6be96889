"""Attention within segments: the mask, and the one place that picks the kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def make_mask(segments: Int[Array, "R T"], *, causal: bool) -> Bool[Array, "R 1 T T"]:
    """Which key (column) each query (row) sees: its own segment, never padding.

    For segments [1, 1, 2, 2, 0], full and causal:

        1 1 . . .        1 . . . .
        1 1 . . .        1 1 . . .
        . . 1 1 .        . . 1 . .
        . . 1 1 .        . . 1 1 .
        . . . . .        . . . . .

    A row of padding sees nothing; `attend` gives it finite values.
    """
    same = segments[:, :, None] == segments[:, None, :]
    mask = same & (segments > 0)[:, :, None]  # [R, T, T]
    if causal:
        length = segments.shape[1]
        mask = mask & jnp.tril(jnp.ones((1, length, length), bool))
    return mask[:, None]


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    mask: Bool[Array, "R 1 T T"],
) -> Float[Array, "R T N H"]:
    """Scaled dot-product attention; N is a multiple of K (grouped heads).

    Logits and softmax are float32. Fully masked rows come out finite, and so do their
    gradients.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask)
