r"""Attention and its gradient by the length of rows and of the texts in them.

    python benchmarks/attention.py                                   # on a CPU
    python benchmarks/attention.py --gpu --dtype bfloat16            # on a GPU

Rows of T tokens hold texts of about the same length. `ours` is the kernel that is
picked for the device; `xla` computes every pair of tokens of a row. On a GPU `ours` is
cuDNN with the segments as a mask, and `packed` cuDNN's layout of sequences one after
the other, which computes texts alone; the package does not use it yet. Times are of all
rows, in milliseconds, the median of some rounds in turn. One JSON line a case.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranker import config, sharding
from ranker.models import attention
from ranker.models.masks import Rule


def segments_of(rows: int, T: int, text: int, seed: int = 0) -> np.ndarray:
    """Texts of 0.6 to 1.4 times `text` tokens, until a row is full."""
    generator = np.random.default_rng(seed)
    segments = np.zeros((rows, T), np.int32)
    for row in segments:
        at, number = 0, 1
        while at < T:
            size = int(text * generator.uniform(0.6, 1.4))
            row[at : at + size] = number
            at, number = at + size, number + 1
    return segments


def packed(q: Any, k: Any, v: Any, segments: Any, rule: Rule, *, most: int) -> Any:
    """CuDNN over sequences one after the other, `most` a row at most."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    R, T = segments.shape
    numbers = jnp.arange(1, most + 1)
    mine = segments[:, :, None] == numbers[None, None]  # [R, T, M]
    sizes = jnp.sum(mine, axis=1, dtype=jnp.int32)
    first = jnp.where(sizes > 0, jnp.argmax(mine, axis=1), -1).astype(jnp.int32)
    last = jnp.full((R, 1), -1, jnp.int32)
    offsets = jnp.concatenate([first, last], axis=1)
    kind = fused.MaskType.PADDING_CAUSAL if rule.causal else fused.MaskType.PADDING
    return fused.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=sizes,
        kv_seqlen=sizes,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=rule.scale,
        mask_type=kind,
    )


def kernels(
    args: argparse.Namespace, segments: np.ndarray, rule: Rule
) -> dict[str, Callable]:
    """(q, k, v) to the output, by name."""
    ours = partial(attention.attend, segments=jnp.asarray(segments), rule=rule)
    found: dict[str, Callable] = {"ours": ours}
    if args.gpu:
        most = int(segments.max())
        found["packed"] = partial(
            packed, segments=jnp.asarray(segments), rule=rule, most=most
        )
    elif segments.shape[1] <= 2048:
        found["xla"] = partial(attention.xla, segments=jnp.asarray(segments), rule=rule)
    return found


def measure(args: argparse.Namespace, T: int, text: int, causal: bool) -> dict:
    """Times of all kernels at one length of rows and texts."""
    rows = max(args.tokens // T, 1)
    segments = segments_of(rows, T, text)
    rule = Rule(causal=causal, scale=args.width**-0.5)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (rows, T, args.heads, args.width)
    q, k, v = (jax.random.normal(key, shape).astype(args.dtype) for key in keys)
    result: dict[str, Any] = {
        "T": T,
        "text": text,
        "causal": causal,
        "rows": rows,
        "device": jax.devices()[0].device_kind,
    }
    runs: dict[str, Callable] = {}
    outputs: dict[str, Any] = {}
    for name, kernel in kernels(args, segments, rule).items():
        forward = jax.jit(kernel)

        def total(q: Any, k: Any, v: Any, kernel: Callable = kernel) -> Any:
            return jnp.sum(kernel(q, k, v).astype(jnp.float32) ** 2)

        backward = jax.jit(jax.grad(total, (0, 1, 2)))
        for kind, run in (("forward", forward), ("gradient", backward)):
            try:
                out = jax.block_until_ready(run(q, k, v))
            except Exception as error:  # what a card or a library cannot do
                result[f"{name}_{kind}_failed"] = str(error)[:200]
                continue
            runs[f"{name}_{kind}"] = run
            outputs[f"{name}_{kind}"] = out[0] if kind == "gradient" else out
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(args.repeat):
                out = run(q, k, v)
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - start) / args.repeat * 1e3)
    result |= {name: round(statistics.median(x), 3) for name, x in times.items()}
    real = np.asarray(segments > 0)
    for other in ("packed", "xla"):
        for kind in ("forward", "gradient"):
            if f"{other}_{kind}" in outputs and f"ours_{kind}" in outputs:
                a, b = (
                    np.asarray(outputs[f"{name}_{kind}"], np.float32)[real]
                    for name in ("ours", other)
                )
                off = np.linalg.norm(a - b) / np.linalg.norm(a)
                result[f"{other}_{kind}_off"] = float(off)
    return result


def main() -> None:
    """Measures, and prints a JSON line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gpu", action="store_true", help="the kernels of a GPU")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--tokens", type=int, default=0, help="tokens of all rows; 0: by device")
    add("--heads", type=int, default=12)
    add("--width", type=int, default=64, help="of a head")
    add("--rounds", type=int, default=5)
    add("--cases", default="512:150,2048:150,2048:512,8192:512", help="T:text, ...")
    add("--causal", action="store_true")
    args = parser.parse_args()
    args.tokens = args.tokens or (32768 if args.gpu else 4096)
    args.repeat = 10 if args.gpu else 1
    with jax.set_mesh(sharding.make_mesh(config.Mesh())):
        for case in args.cases.split(","):
            T, text = map(int, case.split(":"))
            print(json.dumps(measure(args, T, text, args.causal)), flush=True)


if __name__ == "__main__":
    main()
