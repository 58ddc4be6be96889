"""Attention within segments: which key a query sees, and the kernel that computes it.

`choose_kernel` picks the kernel by platform and shape, and nothing else does, but for
weights that are left out and a bias on the logits, for which `xla` alone has a place:

    tiles   TPU: only the blocks that texts reach; see tiles.py
    splash  TPU, rows of one such block: JAX's own, never holds the [T, T] logits
    cudnn   GPU: flash attention of `jax.nn.dot_product_attention`
    blocks  CPU: in a loop, only the blocks that texts reach; see blockwise.py
    xla     elsewhere, and what those cannot take: plain matrix products

All compute what `reference` says.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jaxtyping import Array, Bool, Float, Int

from ranker import config, sharding
from ranker.models import blockwise, tiles
from ranker.models.dropout import Drop
from ranker.models.masks import Rule, make_mask

Kernel = Literal["tiles", "splash", "cudnn", "blocks", "xla"]

_LOWEST = float(jnp.finfo(jnp.float32).min)
_WEIGHTS = 0  # place of the attention weights, of `Drop`
NAME = "attention"  # of the kernel's results, for rematerialisation


def attend(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    local: bool | Bool[Array, ""] = False,
    prefixes: Int[Array, "R T"] | None = None,
    drop: Drop | None = None,
    bias: Float[Array, "1 N T T"] | None = None,
) -> Float[Array, "R T N H"]:
    """Scaled dot-product attention; N is a multiple of K (grouped heads).

    Logits and softmax are float32. What padding gets is finite, and so are its
    gradients; its value differs between kernels.

    Args:
      q: queries.
      k: keys.
      v: values.
      segments: 0: padding; a token sees its own segment, see `make_mask`.
      rule: what is computed; its window is that of a local layer.
      local: whether this layer sees the window only; an array where layers that are
        scanned differ.
      prefixes: the segment that each token sees beside its own, see `make_mask`. All
        texts are then within the window, which is left out.
      drop: leaves weights out, each query's and head's for itself; by the kernel `xla`,
        since no other has a place for it.
      bias: added to the scaled logits of each query (row) and key (column), float32; by
        the same kernel.

    Raises:
      ConfigError: on a TPU, for rows whose length the kernel cannot take.
    """
    platform = sharding.platform()
    shared, plain = prefixes is not None, drop is not None or bias is not None
    kernel = (
        "xla" if plain else choose_kernel(platform, q.shape, q.dtype, rule.cap, shared)
    )
    one: Callable[..., Array] = KERNELS[kernel]
    if plain:
        one = partial(xla, drop=drop, bias=bias)
    if kernel in ("tiles", "splash"):
        one = partial(one, interpret=platform != "tpu")
    near = replace(rule, scale=rule.scale or q.shape[-1] ** -0.5)
    texts = dict(segments=segments)
    if prefixes is not None:
        texts["prefixes"] = prefixes

    def run(rule: Rule):
        def compute(q, k, v, texts):
            return one(q, k, v, rule=rule, **texts)

        if kernel == "xla":
            return compute
        # The kernels are opaque to the partitioner: each device runs its own part.
        inner = sharding.spec(("batch", None, "heads", None))
        keys = sharding.spec(("batch", None, key_heads, None))
        rows = sharding.spec(("batch", None))
        return jax.shard_map(
            compute,
            in_specs=(inner, keys, keys, rows),
            out_specs=inner,
            check_vma=False,
        )

    if kernel != "xla" and not sharding.divides("kv_heads", k.shape[2]):
        group = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(one, group, axis=2) for one in (k, v))  # [R, T, N, H]
        key_heads = "heads"
    else:
        key_heads = "kv_heads"
    far = replace(near, window=0)
    if prefixes is not None:
        local = False
    if isinstance(local, bool):
        out = run(near if local else far)(q, k, v, texts)
    else:
        out = jax.lax.cond(local, run(near), run(far), q, k, v, texts)
    return checkpoint_name(out, NAME)


def choose_kernel(
    platform: str,
    shape: tuple[Any, ...],
    dtype: Any,
    cap: float,
    shared: bool = False,
) -> Kernel:
    """The kernel for queries of `shape` [R, T, N, H].

    Args:
      platform: of the mesh's devices, which need not be here: plan compiles for a TPU
        in a process without one. Empty: no mesh is set (serving, export).
      shape: of the queries; sizes may be symbolic where no mesh is set.
      dtype: of the queries.
      cap: bound on the logits.
      shared: whether texts share prefixes.

    Raises:
      ConfigError: on a TPU, for a length that is neither short nor a multiple of 128.
    """
    if platform == "tpu" and shape[1] >= tiles.LANES:
        T, lanes = shape[1], tiles.LANES
        if T % lanes:
            raise config.ConfigError(
                f"rows of {T} tokens: attention on a TPU takes multiples of {lanes}; "
                f"set the length of text to {T // lanes * lanes} or "
                f"{-(-T // lanes) * lanes} tokens"
            )
        return "splash" if tiles.block_of(T) == T and not shared else "tiles"
    if platform in ("gpu", "cuda") and not cap:
        # What every GPU since 2020 can do, see jax's `check_is_flash_attention`.
        low = dtype in (jnp.bfloat16, jnp.float16)
        if low and shape[3] % 8 == 0 and shape[3] <= 128 and shape[1] % 2 == 0:
            return "cudnn"
    if platform == "cpu" and not cap:
        if shape[1] > blockwise.BLOCK and shape[1] % blockwise.BLOCK == 0:
            return "blocks"
    return "xla"


def splash(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    interpret: bool = False,
) -> Float[Array, "R T N H"]:
    """Attention on one TPU, of rows that are one block; padding sees padding.

    Args:
      q: queries; T is a multiple of 128.
      k: keys.
      v: values.
      segments: 0: padding.
      rule: what is computed, its scale given.
      interpret: runs the kernel's program on any platform, slowly.
    """
    T, N = q.shape[1:3]
    mask: splash_mask.Mask = splash_mask.FullMask((T, T))
    if rule.window:
        sides = (rule.window - 1, 0) if rule.causal else (rule.window, rule.window)
        mask = splash_mask.LocalMask((T, T), sides, offset=0)
    elif rule.causal:
        mask = splash_mask.CausalMask((T, T))
    block = tiles.block_of(T)
    kernel: Any = splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * N),
        block_sizes=splash_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.cap or None,
        residual_checkpoint_name=NAME,
        interpret=interpret,
    )
    # The kernel takes heads in front, and does not scale.
    scaled = q * jnp.asarray(rule.scale, q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
    own = splash_kernel.SegmentIds(q=segments, kv=segments)
    out = jax.vmap(lambda *row: kernel(*row[:3], segment_ids=row[3]))(q, k, v, own)
    return jnp.swapaxes(cast(Array, out), 1, 2)


def cudnn(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    prefixes: Int[Array, "R T"] | None = None,
) -> Float[Array, "R T N H"]:
    """Attention on one GPU, by cuDNN; the rule's `cap` must be 0."""
    assert not rule.cap, rule
    # Segments and window are a mask; of the causal triangle cuDNN computes one half.
    mask = make_mask(segments, rule, prefixes)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=rule.scale,
        is_causal=rule.causal,
        implementation="cudnn",
    )


def xla(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segments: Int[Array, "R T"],
    rule: Rule,
    *,
    prefixes: Int[Array, "R T"] | None = None,
    drop: Drop | None = None,
    bias: Float[Array, "1 N T T"] | None = None,
) -> Float[Array, "R T N H"]:
    """Attention on any platform, by matrix products."""
    mask = make_mask(segments, rule, prefixes)
    if rule.cap or drop is not None:
        return reference(q, k, v, mask, rule, drop=drop, bias=bias)
    return jax.nn.dot_product_attention(q, k, v, bias, mask=mask, scale=rule.scale)


KERNELS = {
    "tiles": partial(tiles.attend, name=NAME),
    "splash": splash,
    "cudnn": cudnn,
    "blocks": blockwise.attend,
    "xla": xla,
}


def reference(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    mask: Bool[Array, "R 1 T T"],
    rule: Rule,
    *,
    drop: Drop | None = None,
    bias: Float[Array, "1 N T T"] | None = None,
) -> Float[Array, "R T N H"]:
    """What all kernels compute, written from the formula, logits in float32."""
    R, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(R, T, K, N // K, H)
    logits = jnp.einsum(
        "RTKGH,RSKH->RKGTS", grouped, k, preferred_element_type=jnp.float32
    )
    logits = logits * rule.scale
    if bias is not None:
        logits = logits + bias.reshape(1, K, N // K, T, T)
    if rule.cap:
        logits = rule.cap * jnp.tanh(logits / rule.cap)
    # Not minus infinity: a fully masked row would be NaN, and so would gradients.
    logits = jnp.where(mask[:, :, None], logits, _LOWEST)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if drop is not None:
        weights = drop(weights, _WEIGHTS)
    return jnp.einsum("RKGTS,RSKH->RTKGH", weights, v).reshape(R, T, N, H)
