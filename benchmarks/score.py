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
from shapes import model_flops
from side_by_side import (
    Ours,
    Run,
    Setting,
    compare,
    context_of,
    make_parser,
    pairs_of,
    random_bert,
    report_share,
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


class Scored:
    """All pairs to score, how many tokens they have, and everyone's scores of them."""

    def __init__(self, setting: Setting, lists: _First):
        self.lists = lists
        self.pairs = pairs_of(lists, setting.prepared.corpus())
        self.tokens = sum(
            len(segment.tokens)
            for number in range(len(lists))
            for segment in setting.encoder(lists[number].query, lists[number].documents)
        )
        self.scores: dict[str, np.ndarray] = {}


def run_ours(ours: Ours, scored: Scored, rows: int) -> Run:
    """What scores all pairs by `score_lists`."""
    score = scoring.make_score(ours.network)

    def run() -> tuple[int, float]:
        encoder = ours.setting.encoder  # a fresh one: texts are tokenised anew
        start = time.perf_counter()
        scored.scores["ours"] = scoring.score_lists(
            score, ours.params, ours.network, scored.lists, encoder, rows=rows
        )
        return scored.tokens, time.perf_counter() - start

    return run


def run_predict(theirs: CrossEncoder, scored: Scored, batch: int) -> Run:
    """What scores all pairs by CrossEncoder.predict."""

    def run() -> tuple[int, float]:
        start = time.perf_counter()
        scored.scores["predict"] = np.asarray(
            theirs.predict(scored.pairs, batch_size=batch, show_progress_bar=False),
            np.float32,
        )
        return scored.tokens, time.perf_counter() - start

    return run


def run_loop(theirs: CrossEncoder, scored: Scored, batch: int, length: int) -> Run:
    """What scores all pairs by a loop over batches of them, in their order."""
    model, tokenizer = theirs.model, theirs.tokenizer

    @torch.inference_mode()
    def run() -> tuple[int, float]:
        start, found = time.perf_counter(), []
        for first in range(0, len(scored.pairs), batch):
            queries, documents = zip(*scored.pairs[first : first + batch], strict=True)
            inputs = tokenizer(
                list(queries),
                list(documents),
                truncation="only_second",
                max_length=length,
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            found.append(model(**inputs).logits[:, 0].float().cpu().numpy())
        scored.scores["transformers"] = np.concatenate(found)
        return scored.tokens, time.perf_counter() - start

    return run


def load_theirs(folder: str, length: int, dtype: str) -> CrossEncoder:
    """The model of a folder, as sentence-transformers reads it."""
    return CrossEncoder(
        folder,
        num_labels=1,
        max_length=length,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": getattr(torch, dtype)},
    )


def check(scores: dict[str, np.ndarray], limit: float) -> None:
    """Prints how far theirs are from ours; fails above the limit."""
    for name in ("predict", "transformers"):
        off = float(np.abs(scores["ours"] - scores[name]).max())
        print(f"largest difference of scores from {name}: {off:.1e}")
        assert off < limit, (name, off)


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
    theirs = load_theirs(str(setting.folder), args.length, args.dtype)
    # A head that the checkpoint lacks is random in torch: ours takes it over.
    whole = setting.prepared.folder / "whole"
    theirs.save_pretrained(str(whole))
    ours = Ours(setting, folder=whole)
    scored = Scored(setting, _First(setting.prepared.lists("train"), args.lists))
    run = run_ours(ours, scored, args.rows)
    baselines = {
        "predict": run_predict(theirs, scored, args.their_batch),
        "transformers": run_loop(theirs, scored, args.their_batch, args.length),
    }
    run()
    found = compare(run, baselines, args.rounds)
    check(scored.scores, limit=0.1 if args.dtype == "bfloat16" else 1e-3)
    rate = found["tokens_per_second"]["ours"]["median"]
    report_share(
        found,
        args,
        flops=model_flops(ours.model, context_of(setting, 20)),
        side=8192 if torch.cuda.is_available() else 2048,
        pairs=len(scored.pairs),
        pairs_per_second=rate * len(scored.pairs) / scored.tokens,
    )


if __name__ == "__main__":
    main()
