r"""A list's prompt computed once, beside a prompt a pair: equal numbers, less time.

    python benchmarks/shared_prefix.py --shape small-decoder
    python benchmarks/shared_prefix.py --shape qwen3-0.6b --dtype bfloat16 --rows 64

The template is Qwen3-Reranker's. For lists of some sizes: the largest difference of
scores and of gradients, the tokens that are computed, and pairs a second of both
layouts in turn: in scoring, and in fine-tuning by a step on batches made before. One
JSON line a size.
"""

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import jax
import numpy as np
from flax import nnx
from shapes import (
    SHAPES,
    make_network,
    make_texts,
    make_tokenizer,
    model_of,
    pack_lists,
    qwen3_prompt,
    random_params,
)

from ranker import config
from ranker.data import pairs
from ranker.training import objectives, optim, state, step
from ranker.training import scorer as scoring

LAYOUTS = {"plain": False, "shared": True}


def main() -> None:
    """Measures each list size, and prints its JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="tiny-decoder")
    add("--data", default="", help="BEIR folder; empty: drawn texts")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--list_sizes", default="8,20,50", help="documents a query")
    add("--pairs", type=int, default=400, help="scored a round")
    add("--rows", type=int, default=4, help="rows of full length a batch")
    add("--length", type=int, default=512, help="tokens a text, at most")
    add("--rounds", type=int, default=3)
    add("--no_training", action="store_true")
    args = parser.parse_args()
    model, vocab = model_of(args.shape, args.dtype)
    network = make_network(model, vocab)
    params = random_params(network, vocab)
    for list_size in map(int, args.list_sizes.split(",")):
        texts = make_texts(
            args.data, queries=max(args.pairs // list_size, 2), list_size=list_size
        )
        tokenizer = make_tokenizer(texts, model, prompt=qwen3_prompt())
        encoders = {
            name: pairs.ListEncoder(texts.corpus, tokenizer, args.length, shared=shared)
            for name, shared in LAYOUTS.items()
        }
        result = {
            "list_size": list_size,
            "prompt_tokens": len(tokenizer.queries([texts.lists[0].query])[0]),
            **_scoring(args, network, params, texts, encoders),
        }
        if not args.no_training and list_size <= 8:
            result |= _training(args, network, params, texts, encoders)
        print(json.dumps({"shape": args.shape, **result}), flush=True)


def _ratio(times: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(times["plain"], times["shared"], strict=True)]
    return {
        "times_as_fast": round(statistics.median(ratios), 3),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
    }


def _scoring(args: Any, network: Any, params: Any, texts: Any, encoders: Any) -> dict:
    score = scoring.make_score(network)
    count = sum(len(one.documents) for one in texts.lists)
    scores, tokens = {}, dict.fromkeys(LAYOUTS, 0)
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for number in range(args.rounds + 1):  # the first compiles
        for name, encoder in encoders.items():
            seen: list[int] = []
            start = time.perf_counter()
            scores[name] = scoring.score_lists(
                score,
                params,
                network,
                texts.lists,
                encoder,
                rows=args.rows,
                progress=lambda _, n, seen=seen: seen.append(n),
            )
            if number:
                times[name].append(time.perf_counter() - start)
            tokens[name] = sum(seen)
    off = float(np.abs(scores["plain"] - scores["shared"]).max())
    return {
        "scores_off": off,
        "tokens": tokens,
        "tokens_saved": round(tokens["plain"] / tokens["shared"], 3),
        "pairs_per_second": {
            name: round(count / statistics.median(x), 2) for name, x in times.items()
        },
        "scoring": _ratio(times),
    }


def _training(args: Any, network: Any, params: Any, texts: Any, encoders: Any) -> dict:
    objective = objectives.make_objective(config.Rank(loss=("softmax",)), groups=1)
    size = max(args.rows // 8, 1)
    packed = {
        name: pack_lists(texts, encoder, size=size, list_size=8, steps=2)
        for name, encoder in encoders.items()
    }
    tx = optim.make_optimizer(
        config.Optim(learning_rate=1e-5, warmup=1), 1000, network.abstract
    )
    # A step consumes its state: its numbers are not those that are compared.
    copied = jax.tree.map(lambda x: x + 0, params)
    current = state.init_state(network, copied, tx, 0)
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    with jax.set_mesh(network.mesh):
        take = step.make_step(network, objective, tx, current)
        for number in range(args.rounds + 1):
            for name, one in packed.items():
                start = time.perf_counter()
                for batch in one.batches:
                    current, values = take(current, batch)
                jax.block_until_ready(values)
                if number:
                    seconds = time.perf_counter() - start
                    times[name].append(seconds / one.documents)
        grads = {
            name: _gradient(objective, network, params, texts, encoder)
            for name, encoder in encoders.items()
        }
    flat = [jax.tree.leaves(grads[name]) for name in LAYOUTS]
    off = max(float(abs(a - b).max()) for a, b in zip(*flat, strict=True))
    return {"gradients_off": off, "training": _ratio(times)}


def _gradient(
    objective: Any, network: Any, params: Any, texts: Any, encoder: Any
) -> Any:
    """Of the loss of the first list, which both layouts hold in one batch."""
    one = dataclasses.replace(texts, lists=texts.lists[:1] * 4)
    packed = pack_lists(one, encoder, size=1, list_size=8, steps=1)
    batch = jax.tree.map(lambda leaf: leaf[0], packed.batches[0])
    # The same list, however many times it fits.
    batch.where[1:] = False

    def loss(params: Any) -> Any:
        model = nnx.merge(network.graphdef, params)
        return objective.parts(model, batch, None)["softmax"].total

    return jax.jit(jax.grad(loss))(params)


if __name__ == "__main__":
    main()
