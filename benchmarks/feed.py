"""How fast one process makes training batches, beside the tokenizer and a collator.

    python benchmarks/feed.py --model MINILM

Ours reads prepared lists, draws documents, tokenises and packs them into rows. The
baseline does what CrossEncoder's training does: the tokenizer pads batches of 32 pairs
to their longest, in a DataLoader of this process. Neither computes anything of a model.
`ours` reads a corpus that was tokenised before, from disk; `live` tokenises each text
when it first meets it. The last line is one JSON object.
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
from ranker.data.tokens import key_of, make_store


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

    fresh = setting.encoder
    key = key_of("corpus", fresh.tokenizer)
    folder = args.workdir / "tokens"
    store = make_store(folder, key, fresh.corpus, fresh.tokenizer)

    def feed_stored() -> tuple[int, float]:
        """As a stage, an epoch or a host after the first: ids are on disk."""
        return feed(
            ListEncoder(fresh.corpus, fresh.tokenizer, fresh.length, tokens=store)
        )

    baselines = {
        "live": lambda: feed(setting.encoder),
        "tokenizer": feed_theirs,
    }
    feed_stored()
    report(compare(feed_stored, baselines, args.rounds), args)


if __name__ == "__main__":
    main()
