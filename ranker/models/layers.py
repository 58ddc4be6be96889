"""Parameters and the small functions that layers are made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ranker import config, sharding
from ranker.models import adapters, attention

UNROLLED = 1 << 19  # numbers in a layer's input, above which a loop is unrolled
INIT_STD = 0.02  # of weight matrices, as in BERT and Llama


def weight(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None]
) -> nnx.Param:
    """A float32 matrix, normal with standard deviation 0.02; `axes` name its sizes."""
    return _param(INIT_STD * jax.random.normal(rngs.params(), shape), axes)


def zeros(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 bias of zeros."""
    return _param(jnp.zeros(shape), axes)


def ones(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 scale of ones."""
    return _param(jnp.ones(shape), axes)


def _param(value: Array, axes: Sequence[str | None]) -> nnx.Param:
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, axes=tuple(axes))


_VECTORS = ("_bias", "_norm")  # ends of names of what is no matrix


def make_ready(
    module: nnx.Module, dtype: DTypeLike, *, exact: bool = False
) -> Callable[[dict], dict]:
    """A function that readies one layer's parameters, of those stacked in `module`.

    It takes them by name, without their layer dimension, to `dtype`, whole along fsdp.
    With `exact` their gradients are float32 until all devices' are summed: a matrix is
    a `Master`, and a vector is float32 of the numbers that `dtype` has.
    """
    axes = {
        name: value.get_metadata("axes")[1:]
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param)
    }

    def one(name: str, value: Array) -> Any:
        if not exact:
            return sharding.gathered(value.astype(dtype), *axes[name])
        if name.endswith(_VECTORS):
            return sharding.gathered(_rounded(dtype, value), *axes[name])
        return adapters.Master(value, axes[name], dtype)

    return lambda w: {name: one(name, value) for name, value in w.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(dtype: DTypeLike, x: Array) -> Array:
    """Float32 numbers as `dtype` has them; the gradient is not rounded."""
    return x.astype(dtype).astype(jnp.float32)


_rounded.defvjp(lambda dtype, x: (_rounded(dtype, x), None), lambda *rest: (rest[2],))


def add_bias(x: Float[Array, "*N D"], bias: Float[Array, "*D"] | None) -> Array:
    """X plus a bias over its last dimensions, in x's dtype; x without a bias.

    The gradient of the bias is summed in the bias's dtype.
    """
    if bias is None:
        return x
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    if bias.dtype != x.dtype:
        return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)
    return x + bias


Angles = tuple[Float[Array, "R T 1 H/2"], Float[Array, "R T 1 H/2"]]


def rotary(
    positions: Int[Array, "R T"], head_dim: int, rope: config.Rope
) -> tuple[Float[Array, "R T 1 H/2"], Float[Array, "R T 1 H/2"]]:
    """Cosine and sine of each position's angles; bfloat16 would blur positions."""
    if rope.scaling in ("dynamic", "longrope"):
        by_length = (
            dynamic_frequencies if rope.scaling == "dynamic" else long_frequencies
        )
        waves = by_length(text_lengths(positions), head_dim, rope)
        waves = waves[:, :, None]  # [R, T, 1, H/2]
    else:
        waves = frequencies(head_dim, rope).reshape(1, 1, 1, -1)
    angles = positions.astype(jnp.float32)[:, :, None, None] * waves  # [R, T, 1, H/2]
    factor = rope.attention_factor
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def frequencies(head_dim: int, rope: config.Rope) -> Float[Array, " H/2"]:
    """Radians a token of each pair of a head's dimensions (Su et al., 2021).

    Scaled as `rope` says: "linear" stretches all wavelengths (Chen et al., 2023),
    "llama3" those longer than a text (Llama 3.1), "yarn" too, with a ramp over the
    dimensions (Peng et al., 2023, arXiv 2309.00071, section 3.2).
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    radians = rope.theta**-exponent  # [H/2]
    stretched = radians / rope.factor
    waves = rope.original_length * radians / (2 * np.pi)  # in a text trained on
    if rope.scaling == "linear":
        return jnp.asarray(stretched)
    if rope.scaling == "llama3":
        low, high = rope.low_frequency, rope.high_frequency
        kept = np.clip((waves - low) / (high - low), 0, 1)
    elif rope.scaling == "yarn":

        def dimension(waves: float) -> float:
            """Where in a head the wavelength has so many waves in a text."""
            length = rope.original_length / (waves * 2 * np.pi)
            return head_dim * np.log(length) / (2 * np.log(rope.theta))

        first = max(np.floor(dimension(rope.beta_fast)), 0)
        last = min(np.ceil(dimension(rope.beta_slow)), head_dim - 1)
        place = np.arange(head_dim // 2)
        kept = 1 - np.clip((place - first) / max(last - first, 1e-3), 0, 1)
    else:
        return jnp.asarray(radians)
    return jnp.asarray((1 - kept) * stretched + kept * radians, jnp.float32)


def text_lengths(positions: Int[Array, "R T"]) -> Int[Array, "R T"]:
    """At each token, how many tokens its text has; a text begins at each position 0."""
    text = jnp.cumsum(positions == 0, axis=1)
    same = text[:, :, None] == text[:, None, :]  # [R, T, T]
    return jnp.max(jnp.where(same, positions[:, None, :], 0), axis=2) + 1


def dynamic_frequencies(
    lengths: Int[Array, "R T"], head_dim: int, rope: config.Rope
) -> Float[Array, "R T H/2"]:
    """`frequencies` of a base that grows with a text longer than those trained on.

    So short texts are read as in training ("dynamic NTK", bloc97 and emozilla, 2023).
    The length is each text's own, where transformers takes the longest of a batch.
    """
    beyond = jnp.maximum(lengths / rope.original_length, 1.0)  # 1: not longer
    grown = (rope.factor * beyond - (rope.factor - 1)) ** (head_dim / (head_dim - 2))
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    return (rope.theta * grown)[:, :, None] ** -exponent.reshape(1, 1, -1)


def long_frequencies(
    lengths: Int[Array, "R T"], head_dim: int, rope: config.Rope
) -> Float[Array, "R T H/2"]:
    """`frequencies` with a factor for each wavelength (LongRoPE, arXiv 2402.13753).

    There is one set for texts as short as those trained on, another for longer ones.
    The length is each text's own, where transformers takes the longest of a batch.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    radians = rope.theta**-exponent  # [H/2]
    short, far = (
        jnp.asarray(radians / np.asarray(factors, np.float32)).reshape(1, 1, -1)
        for factors in (rope.short_factors, rope.long_factors)
    )
    return jnp.where((lengths > rope.original_length)[:, :, None], far, short)


def rotate(
    x: Float[Array, "R T N H"],
    angles: tuple[Float[Array, "R T 1 H/2"], Float[Array, "R T 1 H/2"]],
) -> Float[Array, "R T N H"]:
    """Rotates the pairs (i, i + H/2) by their angles (Su et al., 2021)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def activate(x: Array, name: str) -> Array:
    """The activation `name` of an MLP."""
    return _ACTIVATIONS[name](x)


def gated(gate: Array, up: Array, name: str) -> Array:
    """`activate(gate) * up` (Shazeer, 2020, arXiv 2002.05202)."""
    return _ACTIVATIONS[name](gate) * up


def listed(indices: Sequence[int], count: int) -> Bool[Array, " count"]:
    """True at `indices`, out of `count`."""
    return jnp.asarray(np.isin(np.arange(count), list(indices)))


def mixed(indices: Sequence[int], count: int) -> Bool[Array, " count"] | None:
    """True at `indices`, out of `count`; None where they are all or none."""
    return listed(indices, count) if 0 < len(set(indices)) < count else None


def lean(function: Callable, choice: config.Remat) -> Callable:
    """A function of which the inputs alone are kept for its gradient.

    For what is cheap to compute and large to keep. Layers that are compiled one by one
    need a barrier, or the compiler merges both computations and keeps their result. A
    layer that is recomputed as `choice` says keeps none of it anyhow.
    """
    return jax.checkpoint(function) if choice == "none" else function


ReadHidden = Callable[[Array], Array]  # of [R, T, ...] what is asked for: [B, L, ...]


def stack(
    body: Callable,
    x: Float[Array, "R T D"],
    stacked: Any,
    choice: config.Remat,
    read: ReadHidden | None,
) -> Array:
    """Layers one after the other; of the last, only what is asked for.

    After its attention, tokens are on their own: where scores are read off a few of
    them, the last layer's output projection and MLP need no others. Its backward pass
    follows at once, so it is not recomputed, whatever `choice` says.

    Args:
      body: x, one layer's parameters, and `read` to the layer's output.
      x: the first layer's input.
      stacked: parameters, with all layers in front.
      choice: what the other layers keep for the backward pass, see `remat`.
      read: picks tokens; None: all are asked for, and all layers alike.
    """
    num = len(jax.tree.leaves(stacked)[0]) - (read is not None)

    def layer(x, w):
        return body(x, w, None)

    @jax.custom_vjp
    def first(x, stacked):
        # By index, for a slice of the weights would be a copy of them.
        def step(i, x):
            index = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            return layer(x, jax.tree.map(index, stacked))

        return jax.lax.fori_loop(0, num, step, x)

    def differentiable(x, stacked):
        # A scan, for by index a gradient would be one of all layers, for each of them.
        each = remat(lambda x, w: (layer(x, w), None), choice)
        sliced = jax.tree.map(lambda w: w[:num], stacked)
        return jax.lax.scan(each, x, sliced, unroll=unrolled(x, choice))[0]

    first.defvjp(
        lambda x, stacked: jax.vjp(differentiable, x, stacked),
        lambda backward, slope: backward(slope),
    )
    x = first(x, stacked)
    if read is None:
        return x
    return body(x, jax.tree.map(lambda w: w[-1], stacked), read)


def unrolled(x: Array, choice: config.Remat) -> bool:
    """Whether layers are compiled one by one for the backward pass.

    A loop puts what each layer keeps into one array of all layers, and takes it out
    again: a sixth of a step's time on a GPU, a tenth on a CPU. But it compiles in half
    the time.
    """
    copies = sharding.platform() in ("cpu", "gpu", "cuda")
    return copies and choice == "none" and x.size >= UNROLLED


def remat(body: Callable, choice: config.Remat) -> Callable:
    """The body of a scan over layers, its results kept or recomputed as `choice` says.

    A layer's input is always kept. Beyond it "full" keeps nothing, "attention" what the
    attention kernel gives, so that it is not run a third time, and "dots" the results
    of all products with weights too.
    """
    if choice == "none":
        return body
    policies = jax.checkpoint_policies
    kept = {
        "full": policies.nothing_saveable,
        "attention": policies.save_only_these_names(attention.NAME),
        "dots": policies.save_from_both_policies(
            policies.save_only_these_names(attention.NAME),
            policies.dots_with_no_batch_dims_saveable,
        ),
    }
    # The scan itself keeps the compiler from merging what is recomputed.
    return jax.checkpoint(body, policy=kept[choice], prevent_cse=False)
