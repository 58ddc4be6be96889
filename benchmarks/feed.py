"""How fast one process makes training batches, beside the tokenizer and a collator.

    python benchmarks/feed.py --model MINILM

Ours reads prepared lists, draws documents, tokenises and packs them into rows. The peer
does what CrossEncoder's training does: the tokenizer pads batches of 32 pairs to their
longest, in a DataLoader of this process. Neither computes anything of a model. Ours is
measured on texts it has not tokenised before, and on texts that it has: it keeps them,
the peer tokenises anew. The last line is one JSON object.
"""

import contextlib
import time
from functools import partial

from side_by_side import compare, make_parser, pairs_of, random_bert, report, set_up
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from ranker import config
from ranker.data import pipeline
from ranker.data.pairs import ALL_IN_ONE, ListEncoder


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
    lists = setting.prepared.lists("train")
    batch = config.Batch(size=args.size, list_size=args.list_size)

    def feed(encoder: ListEncoder) -> tuple[int, float]:
        start, tokens = time.perf_counter(), 0
        batches = pipeline.list_batches(
            lists, encoder, batch=batch, seed=0, shards=ALL_IN_ONE
        )
        with contextlib.closing(batches):
            for _ in range(args.steps):
                tokens += int((next(batches).rows.segments > 0).sum())
        return tokens, time.perf_counter() - start

    pairs = pairs_of(lists, setting.prepared.corpus(), args.list_size)
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

    def feed_theirs() -> tuple[int, float]:
        loader = DataLoader(
            pairs, batch_size=args.their_batch, shuffle=True, collate_fn=collate
        )
        start, tokens = time.perf_counter(), 0
        for _, inputs in zip(range(args.their_steps), loader, strict=False):
            tokens += int(inputs["attention_mask"].sum())
        return tokens, time.perf_counter() - start

    peers = {"tokenizer": feed_theirs}
    seen = setting.encoder
    feed(seen)
    again = compare(lambda: feed(seen), peers, args.rounds)
    print("texts that were not tokenised before:")
    found = compare(lambda: feed(setting.encoder), peers, args.rounds)
    report(found, args, again=again)


if __name__ == "__main__":
    main()
