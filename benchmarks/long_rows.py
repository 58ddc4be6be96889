r"""What a training step of an encoder of 8,192 tokens takes on TPUs, by its kernel.

    python benchmarks/long_rows.py --topology v5e:2x2
    python benchmarks/long_rows.py --topology v6e:2x2 --text-tokens 512

Traces the step of a ModernBERT of 150M for chips that are not here, with the kernel
that is picked (`tiles`) and with the one before it, JAX's splash, and counts its
operations as `ranker.plan` does. `--compile` adds HBM bytes, memory and bounds in
many minutes a kernel. Needs `pip install -e '.[tpu]'`. One JSON line a kernel.
"""

import argparse
import dataclasses
import json
from typing import Any
from unittest import mock

import shapes

from ranker import config
from ranker.plan import prepare_compiler

LENGTH = 8192


def stage(lists: int, documents: int, chips: int) -> config.Train:
    """Fine-tuning on lists, a row of full length for each document."""
    model, vocab = shapes.model_of("150m", "bfloat16")
    return config.Train(
        name="labels",
        model=dataclasses.replace(model, remat="full"),
        role="student",
        objective=config.Rank(loss=("softmax",)),
        text=config.Text(student_length=LENGTH, student_vocab_size=vocab),
        optim=config.Optim(learning_rate=1e-4, warmup=1),
        batch=config.Batch(size=lists, list_size=documents),
        loop=config.Loop(steps=10),
        mesh=config.Mesh(data=chips),
    )


def measure(args: argparse.Namespace, kernel: str) -> dict[str, Any]:
    """The plan of the step with one kernel."""
    import jax

    from ranker.models import attention
    from ranker.planning import chips, estimate, flops
    from ranker.planning.job import TextLengths, make_job

    slices = chips.find_slices(args.topology, 1)
    count, text = len(slices.devices), args.text_tokens
    picked = attention.choose_kernel

    def choose(*shape: Any) -> str:
        found = picked(*shape)
        return kernel if found == "tiles" else found

    with mock.patch.object(attention, "choose_kernel", choose):
        job = make_job(
            stage(count, args.documents, count),
            None,
            slices.devices,
            None,
            TextLengths(text, 0, 0),
        )
        with jax.set_mesh(job.mesh):
            traced = job.function.trace(*job.arguments)
        operations = flops.program_flops(traced.jaxpr, text)
        cost = estimate.step_cost(job, slices) if args.compile else None
    chip = slices.chip
    result = {
        "topology": args.topology,
        "kernel": kernel,
        "text_tokens": text,
        "tokens": job.tokens,
        "model_tflop": round(job.flops / 1e12, 2),
        "tflop": round(operations / 1e12, 2),
        "compute_ms": round(operations / count / chip.share(chip.flops) * 1e3, 2),
    }
    if cost:
        found = estimate.cost_as_dict(job, slices, cost)
        result |= {name: found[name] for name in ("memory", "hbm_bytes", "terms")}
    return result


def main() -> None:
    """Compiles both, and prints a JSON line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--topology", default="v5e:2x2", help="chip and shape")
    add("--kernels", default="splash,tiles")
    add("--text-tokens", type=int, default=512, help="of a text, on average")
    add("--documents", type=int, default=4, help="rows of full length a chip")
    add("--compile", action="store_true", help="for memory and HBM bytes too")
    args = parser.parse_args()
    prepare_compiler(args.topology)
    import jax

    # A program for chips that are not here cannot be read back from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    for kernel in args.kernels.split(","):
        print(json.dumps(measure(args, kernel)), flush=True)


if __name__ == "__main__":
    main()
