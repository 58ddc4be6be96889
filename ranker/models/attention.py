"""Attention within segments: which key a query sees, and the kernel that computes it.

`choose` picks the kernel by platform and shape, and nothing else does:

    splash  TPU: blockwise, never holds the [T, T] logits
    cudnn   GPU: flash attention of `jax.nn.dot_product_attention`
    blocks  CPU: in a loop, only the blocks that segments reach; see blockwise.py
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
from ranker.models import blockwise
from ranker.models.masks import Rule, make_mask

Kernel = Literal["splash", "cudnn", "blocks", "xla"]

_LOWEST = float(jnp.finfo(jnp.float32).min)
_LANES = 128  # the TPU's vectors: splash takes multiples of it
_BLOCK = 512  # tokens a side of splash's blocks, as in MaxText
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

    Raises:
      ConfigError: on a TPU, for rows whose length the kernel cannot take.
    """
    platform = sharding.platform()
    kernel = choose(platform, q.shape, q.dtype, rule.cap)
    one: Callable[..., Array] = _KERNELS[kernel]
    if kernel == "splash":
        one = partial(one, interpret=platform != "tpu")
    near = replace(rule, scale=rule.scale or q.shape[-1] ** -0.5)
    texts = (segments,) if prefixes is None else (segments, prefixes)

    def run(rule: Rule):
        def compute(q, k, v, segments, prefixes=None):
            return one(q, k, v, segments, rule, prefixes=prefixes)

        if kernel == "xla":
            return compute
        # The kernels are opaque to the partitioner: each device runs its own part.
        inner = sharding.spec(("batch", None, "heads", None))
        keys = sharding.spec(("batch", None, key_heads, None))
        rows = sharding.spec(("batch", None))
        return jax.shard_map(
            compute,
            in_specs=(inner, keys, keys, *(rows for _ in texts)),
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
        out = run(near if local else far)(q, k, v, *texts)
    else:
        out = jax.lax.cond(local, run(near), run(far), q, k, v, *texts)
    return checkpoint_name(out, NAME)


def choose(platform: str, shape: tuple[Any, ...], dtype: Any, cap: float) -> Kernel:
    """The kernel for queries of `shape` [R, T, N, H].

    Args:
      platform: of the mesh's devices, which need not be here: plan compiles for a TPU
        in a process without one. Empty: no mesh is set (serving, export).
      shape: of the queries; sizes may be symbolic where no mesh is set.
      dtype: of the queries.
      cap: bound on the logits.

    Raises:
      ConfigError: on a TPU, for a length that is neither short nor a multiple of 128.
    """
    if platform == "tpu" and shape[1] >= _LANES:
        T = shape[1]
        if T % _LANES:
            raise config.ConfigError(
                f"rows of {T} tokens: attention on a TPU takes multiples of {_LANES}; "
                f"set the length of text to {T // _LANES * _LANES} or "
                f"{-(-T // _LANES) * _LANES} tokens"
            )
        return "splash"
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
    prefixes: Int[Array, "R T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "R T N H"]:
    """Attention on one TPU, by blocks; padding sees padding.

    Blocks that the causal triangle or the window leave empty are not computed. Tokens
    of one row that lie in different segments are masked, not left out.

    Args:
      q: queries; T is a multiple of 128.
      k: keys.
      v: values.
      segments: 0: padding.
      rule: what is computed, its scale given.
      prefixes: as for `attend`; needs a second pass over the keys.
      interpret: runs the kernel's program on any platform, slowly.
    """
    R, T, N, _ = q.shape
    mask: splash_mask.Mask = splash_mask.FullMask((T, T))
    if rule.window:
        sides = (rule.window - 1, 0) if rule.causal else (rule.window, rule.window)
        mask = splash_mask.LocalMask((T, T), sides, offset=0)
    elif rule.causal:
        mask = splash_mask.CausalMask((T, T))
    block = max(b for b in range(_LANES, _BLOCK + 1, _LANES) if T % b == 0)
    make = partial(
        splash_kernel.make_splash_mha,
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
        interpret=interpret,
    )
    # The kernel takes heads in front, and does not scale.
    scaled = q * jnp.asarray(rule.scale, q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
    own = splash_kernel.SegmentIds(q=segments, kv=segments)
    if prefixes is None:
        kernel: Any = make(residual_checkpoint_name=NAME)
        out = jax.vmap(lambda *row: kernel(*row[:3], segment_ids=row[3]))(q, k, v, own)
    else:
        # A token without a prefix finds no key in the second pass.
        shared = jnp.where(prefixes > 0, prefixes, -1)
        shared = splash_kernel.SegmentIds(q=shared, kv=segments)
        kernel = make(save_residuals=True)
        infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
        settings = tuple(kernel.kwargs.items())
        run = partial(_two_passes, settings, infos)
        out = jax.vmap(run)(q, k, v, (own, shared))
    return jnp.swapaxes(cast(Array, out), 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _two_passes(settings: tuple, infos: tuple, q, k, v, segment_ids):
    """One softmax over the keys that two passes of splash see; see arXiv 2310.01889.

    Args:
      settings: of a splash kernel that gives its log-sum-exp beside its output.
      infos: which blocks that kernel computes, forward and backward.
      q: scaled queries of a row, [N, T, H].
      k: keys, [K, T, H].
      v: values, [K, T, H].
      segment_ids: those of each pass; every query finds a key in the first.
    """
    return _two_forward(settings, infos, q, k, v, segment_ids)[0]


def _two_forward(settings: tuple, infos: tuple, q, k, v, segment_ids):
    kernel: Any = splash_kernel.SplashAttentionKernel(*infos, **dict(settings))
    found = [kernel(q, k, v, segment_ids=ids) for ids in segment_ids]
    totals = jnp.stack([total for _, (total,) in found])  # [2, N, T]
    total = jax.nn.logsumexp(totals, axis=0)
    shares = jnp.exp(totals - total[None])[..., None]
    out = sum(x * share for (x, _), share in zip(found, shares, strict=True))
    out = checkpoint_name(cast(Array, out).astype(v.dtype), NAME)
    total = checkpoint_name(total, NAME)
    return out, (infos, q, k, v, segment_ids, out, total)


def _two_backward(settings: tuple, saved, slope):
    infos, q, k, v, segment_ids, out, total = saved
    # Each pass's backward kernel needs the softmax's whole result, and no more.
    slopes = []
    for ids in segment_ids:
        kept = (q, k, v, ids, None, out, total)
        # There is no public one.
        backward = partial(splash_kernel._splash_attention_bwd, **dict(settings))
        slopes.append(backward(res=(*kept, *infos[1:]), do=slope)[3:6])
    return (None, *jax.tree.map(jnp.add, *slopes), None)


_two_passes.defvjp(_two_forward, _two_backward)


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
) -> Float[Array, "R T N H"]:
    """Attention on any platform, by matrix products."""
    mask = make_mask(segments, rule, prefixes)
    if rule.cap:
        return reference(q, k, v, mask, rule)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=rule.scale)


_KERNELS = {"splash": splash, "cudnn": cudnn, "blocks": blockwise.attend, "xla": xla}


def reference(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    mask: Bool[Array, "R 1 T T"],
    rule: Rule,
) -> Float[Array, "R T N H"]:
    """What all kernels compute, written from the formula, logits in float32."""
    R, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(R, T, K, N // K, H)
    logits = jnp.einsum(
        "RTKGH,RSKH->RKGTS", grouped, k, preferred_element_type=jnp.float32
    )
    logits = logits * rule.scale
    if rule.cap:
        logits = rule.cap * jnp.tanh(logits / rule.cap)
    # Not minus infinity: a fully masked row would be NaN, and so would gradients.
    logits = jnp.where(mask[:, :, None], logits, _LOWEST)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("RKGTS,RSKH->RTKGH", weights, v).reshape(R, T, N, H)
