r"""Scoring pairs, beside CrossEncoder.predict and a batched transformers loop.

    python benchmarks/score.py --model MINILM
    python benchmarks/score.py --dtype bfloat16 --embed 768 --layers 12 --rows 256 \
        --lists 300                                                 # on a GPU

All score the same pairs with the same weights, and must give the same scores.
CrossEncoder.predict sorts all texts by length first and pads a batch of 32 to its
longest; the transformers loop pads batches of 32 in the order given; ours is
`score_lists`, which packs rows. A round is all pairs once with each; compiling and
loading are not counted. The last line is one JSON object.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from shapes import matmul_flops, model_flops
from side_by_side import (
    Ours,
    compare,
    context_of,
    make_parser,
    pairs_of,
    random_bert,
    report,
    set_up,
)

from ranker.data.records import RankedList
from ranker.training import scorer as scoring


class _First:
    """The first lists of a source."""

    def __init__(self, source: Any, count: int):
        self.source, self.count = source, min(count, len(source))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RankedList:
        return self.source[index]


def main() -> None:
    """Measures, and prints the ratios."""
    parser = make_parser(
        __doc__,
        rows=(4, "rows a batch of ours; on a GPU some hundreds"),
        lists=(30, "lists scored"),
        their_batch=(32, "pairs a batch of theirs"),
        layers=(6, "of random weights"),
        embed=(384, "width of random weights"),
    )
    args = parser.parse_args()

    setting = set_up(args, "student", partial(random_bert, args))
    lists = _First(setting.prepared.lists("train"), args.lists)
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    theirs = CrossEncoder(
        str(setting.folder),
        num_labels=1,
        max_length=args.length,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": dtype},
    )
    # A head that the checkpoint lacks is random in torch: ours takes it over.
    whole = setting.prepared.folder / "whole"
    theirs.save_pretrained(str(whole))
    ours = Ours(setting, folder=whole)
    score = scoring.make_score(ours.network)
    pairs = pairs_of(lists, setting.prepared.corpus())
    real = sum(
        len(segment.tokens)
        for number in range(len(lists))
        for segment in setting.encoder(lists[number].query, lists[number].documents)
    )
    results: dict[str, np.ndarray] = {}

    def run_ours() -> tuple[int, float]:
        encoder = setting.encoder  # a fresh one: texts are tokenised anew
        start = time.perf_counter()
        results["ours"] = scoring.score_lists(
            score, ours.params, ours.network, lists, encoder, rows=args.rows
        )
        return real, time.perf_counter() - start

    def run_predict() -> tuple[int, float]:
        start = time.perf_counter()
        results["predict"] = np.asarray(
            theirs.predict(pairs, batch_size=args.their_batch, show_progress_bar=False),
            np.float32,
        )
        return real, time.perf_counter() - start

    model, tokenizer = theirs.model, theirs.tokenizer

    @torch.inference_mode()
    def run_loop() -> tuple[int, float]:
        start, found = time.perf_counter(), []
        for first in range(0, len(pairs), args.their_batch):
            queries, documents = zip(
                *pairs[first : first + args.their_batch], strict=True
            )
            inputs = tokenizer(
                list(queries),
                list(documents),
                truncation="only_second",
                max_length=args.length,
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            found.append(model(**inputs).logits[:, 0].float().cpu().numpy())
        results["transformers"] = np.concatenate(found)
        return real, time.perf_counter() - start

    run_ours()
    found = compare(
        run_ours, {"predict": run_predict, "transformers": run_loop}, args.rounds
    )
    for name in ("predict", "transformers"):
        off = float(np.abs(results["ours"] - results[name]).max())
        print(f"largest difference of scores from {name}: {off:.1e}")
        limit = 0.1 if args.dtype == "bfloat16" else 1e-3
        assert off < limit, (name, off)
    peak = matmul_flops(8192 if cuda else 2048, args.dtype)
    flops = model_flops(ours.model, context_of(setting, 20))
    rate = found["tokens_per_second"]["ours"]["median"]
    print(
        f"ours: {flops / 1e6:.1f} MFLOP a real token, {rate * flops / 1e9:,.0f} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that a matrix product reaches here "
        f"({rate * flops / peak:.0%})"
    )
    report(
        found,
        args,
        pairs=len(pairs),
        pairs_per_second=rate * len(pairs) / real,
        mfu=rate * flops / peak,
        matmul_flops=peak,
    )


if __name__ == "__main__":
    main()
