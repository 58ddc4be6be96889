"""How fast one process makes training batches, beside the tokenizer and a collator.

    python benchmarks/feed.py --model MINILM

Ours reads prepared lists, draws documents, tokenises and packs them into rows. The
baseline does what CrossEncoder's training does: the tokenizer pads batches of 32 pairs
to their longest, in a DataLoader of this process. Neither computes anything of a model.
`ours` reads a corpus that was tokenised before, from disk; `live` tokenises each text
when it first meets it. Seconds are processor time of all threads, so that rates are
those of one core. The last line is one JSON object.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial

from side_by_side import (
    Setting,
    compare,
    make_parser,
    pairs_of,
    random_bert,
    report,
    set_up,
)
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from ranker import config
from ranker.data import pipeline
from ranker.data.pairs import ALL_IN_ONE, ListEncoder
from ranker.data.tokens import TokenStore, key_of, make_store


def main() -> None:
    """Measures, and prints the ratios."""
    parser = make_parser(
        __doc__,
        size=(8, "batch.size of ours: lists of full length a step"),
        list_size=(8, "documents a list"),
        steps=(20, "steps of ours a round"),
        their_steps=(150, "batches of theirs a round"),
        their_batch=(32, "pairs a batch of theirs"),
        layers=(1, "of the model that is made without --model; not used"),
        embed=(128, "its width"),
    )
    args = parser.parse_args()
    setting = set_up(args, "student", partial(random_bert, args))
    fresh = setting.encoder
    key = key_of("corpus", fresh.tokenizer)
    store = make_store(args.workdir / "tokens", key, fresh.corpus, fresh.tokenizer)

    def ours() -> tuple[int, float]:
        """As a stage, an epoch or a host after the first: ids are on disk."""
        return feed(args, setting, store)

    baselines = {
        "live": lambda: feed(args, setting, None),
        "tokenizer": padded_feed(args, setting),
    }
    ours()
    report(compare(ours, baselines, args.rounds), args)


def feed(
    args: argparse.Namespace, setting: Setting, store: TokenStore | None
) -> tuple[int, float]:
    """Real tokens of `args.steps` steps, and processor seconds; from ids in `store`."""
    fresh = setting.encoder
    encoder = ListEncoder(fresh.corpus, fresh.tokenizer, fresh.length, tokens=store)
    start, tokens = time.process_time(), 0
    batches = pipeline.list_batches(
        setting.prepared.lists("train"),
        encoder,
        batch=config.Batch(size=args.size, list_size=args.list_size),
        seed=0,
        shards=ALL_IN_ONE,
    )
    with contextlib.closing(batches):
        for _ in range(args.steps):
            tokens += int((next(batches).rows.segments > 0).sum())
    return tokens, time.process_time() - start


def padded_feed(
    args: argparse.Namespace, setting: Setting
) -> Callable[[], tuple[int, float]]:
    """As `feed`, of batches that the tokenizer pads."""
    lists, corpus = setting.prepared.lists("train"), setting.prepared.corpus()
    pairs = pairs_of(lists, corpus, args.list_size)
    tokenizer = AutoTokenizer.from_pretrained(str(setting.folder))

    def collate(some: list[tuple[str, str]]):
        queries, documents = zip(*some, strict=True)
        return tokenizer(
            list(queries),
            list(documents),
            truncation="longest_first",
            max_length=args.length,
            padding=True,
            return_tensors="pt",
        )

    def run() -> tuple[int, float]:
        loader = DataLoader(
            pairs, batch_size=args.their_batch, shuffle=True, collate_fn=collate
        )
        start, tokens = time.process_time(), 0
        for _, inputs in zip(range(args.their_steps), loader, strict=False):
            tokens += int(inputs["attention_mask"].sum())
        return tokens, time.process_time() - start

    return run


if __name__ == "__main__":
    main()
