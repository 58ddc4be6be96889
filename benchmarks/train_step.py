r"""A training step of a reranker of known size, on batches that lie on the device.

    python benchmarks/train_step.py --shape bert-base --dtype bfloat16 --size 8
    python benchmarks/train_step.py --shape qwen3-0.6b --dtype bfloat16 --plain

Random weights, texts of natural lengths, a listwise softmax, AdamW; a round is `steps`
steps. `share_of_peak` is what the model needs of a row a pair (matrix products and
attention, three times the forward pass), over what a product of two square matrices
reaches here. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
from shapes import (
    SHAPES,
    Packed,
    make_network,
    make_texts,
    make_tokenizer,
    matmul_flops,
    model_flops,
    model_of,
    pack_lists,
    random_params,
)

from ranker import config
from ranker.data import pairs
from ranker.training import objectives, optim, state, step
from ranker.training import scorer as scoring

Model = config.Encoder | config.Decoder


def flags() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="minilm")
    add("--data", default="", help="BEIR folder; empty: drawn texts")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--size", type=int, default=2, help="lists of full length a step")
    add("--list_size", type=int, default=8, help="documents a list")
    add("--length", type=int, default=512, help="tokens a text, at most")
    add("--steps", type=int, default=4)
    add("--rounds", type=int, default=3)
    add("--dropout", type=float, default=0.1, help="of encoders")
    add("--remat", choices=("none", "dots", "attention", "full"), default="none")
    add("--plain", action="store_true", help="decoders compute a prompt a pair")
    return parser.parse_args()


def make_batches(args: argparse.Namespace, model: Model) -> tuple[Packed, bool]:
    """The batches of a round, and whether their texts share a prompt."""
    texts = make_texts(args.data, queries=16 * args.size, list_size=args.list_size)
    tokenizer = make_tokenizer(texts, model)
    shared = pairs.can_share(model, tokenizer.template, args.length)[0]
    encoder = pairs.ListEncoder(
        texts.corpus, tokenizer, args.length, shared=shared and not args.plain
    )
    packed = pack_lists(
        texts, encoder, size=args.size, list_size=args.list_size, steps=args.steps
    )
    return packed, encoder.shared


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the steps took."""

    rounds: list[float]  # seconds
    compiling: float  # seconds
    temporary_bytes: int  # of device memory
    loss: float


def measure(
    network: state.Network, vocab: int, packed: Packed, rounds: int
) -> Measured:
    """Takes a step a batch, so many times."""
    objective = objectives.make_objective(config.Rank(loss=("softmax",)), groups=1)
    settings = config.Optim(learning_rate=2e-5, warmup=1)
    tx = optim.make_optimizer(settings, 1000, network.abstract)
    current = state.init_state(network, random_params(network, vocab), tx, 0)
    take = step.make_step(network, objective, tx, current)
    times, values = [], {}
    with jax.set_mesh(network.mesh):
        placed = [
            scoring.device_batch(one, network, leading=1) for one in packed.batches
        ]
        start = time.perf_counter()
        compiled = take.lower(current, placed[0]).compile()
        compiling = time.perf_counter() - start
        current, values = compiled(current, placed[0])
        jax.block_until_ready(values)
        for _ in range(rounds):
            start = time.perf_counter()
            for batch in placed:
                current, values = compiled(current, batch)
            jax.block_until_ready(values)
            times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return Measured(times, compiling, memory, float(values["loss"]))


def main() -> None:
    """Measures, and prints the JSON line."""
    args = flags()
    model, vocab = model_of(args.shape, args.dtype)
    model = dataclasses.replace(model, remat=args.remat)
    if isinstance(model, config.Encoder):
        model = dataclasses.replace(model, dropout=args.dropout)
    packed, shared = make_batches(args, model)
    found = measure(make_network(model, vocab), vocab, packed, args.rounds)
    seconds = statistics.median(found.rounds)
    size = 2048 if jax.default_backend() == "cpu" else 8192
    peak = matmul_flops(size, args.dtype)
    flops = 3 * model_flops(model, packed.context) * packed.needed
    report = {
        "shape": args.shape,
        "device": jax.devices()[0].device_kind,
        "seconds_a_step": seconds / args.steps,
        "rounds": [round(x / args.steps, 4) for x in found.rounds],
        "lists_per_second": packed.lists / seconds,
        "pairs_per_second": packed.documents / seconds,
        "tokens_per_second": packed.tokens / seconds,
        "share_of_peak": flops / seconds / peak,
        "peak_tflops": peak / 1e12,
        "seconds_compiling": found.compiling,
        "temporary_gib": found.temporary_bytes / 2**30,
        "shared_prompt": shared,
        "loss": found.loss,
        "settings": vars(args),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
