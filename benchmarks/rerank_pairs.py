r"""Pairs scored a second at natural lengths, for rerankers of known sizes.

    python benchmarks/rerank_pairs.py --shapes minilm,17m --queries 20
    python benchmarks/rerank_pairs.py --shapes minilm,17m,150m,1b,qwen2-1.5b \
        --dtype bfloat16 --queries 400                              # on a GPU

The conditions of public tables of rerankers: random weights of the given sizes, texts
of natural lengths of at most 512 tokens, every pair once, the best batch found by
doubling. `pairs_per_second` reads, tokenises, packs, computes and fetches;
`device_pairs_per_second` takes batches that lie on the device. With `--baseline`
sentence-transformers' CrossEncoder scores the same texts in the same run, rounds of
both in turn. One JSON line a shape.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from shapes import (
    SHAPES,
    Texts,
    make_network,
    make_texts,
    make_tokenizer,
    model_of,
    random_params,
)

from ranker import config
from ranker.data import pairs
from ranker.training import scorer as scoring


def main() -> None:
    """Measures each shape, and prints its JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", default="minilm", help=f"some of {', '.join(SHAPES)}")
    add("--data", default="", help="BEIR folder; empty: drawn texts")
    add("--queries", type=int, default=20)
    add("--list_size", type=int, default=50, help="documents a query")
    add("--length", type=int, default=512, help="tokens a text, at most")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rows", type=int, default=4, help="rows of the first batch")
    add("--most_rows", type=int, default=1024, help="rows of the last batch, at most")
    add("--rounds", type=int, default=3)
    add("--plain", action="store_true", help="decoders compute a prompt a pair")
    add("--baseline", action="store_true", help="sentence-transformers in turn")
    args = parser.parse_args()
    texts = make_texts(args.data, queries=args.queries, list_size=args.list_size)
    for shape in args.shapes.split(","):
        print(json.dumps({"shape": shape, **measure(shape, texts, args)}), flush=True)


class Ours:
    """A shape of ours with random weights, and the texts that it scores."""

    def __init__(self, shape: str, texts: Texts, args: argparse.Namespace):
        model, vocab = model_of(shape, args.dtype)
        self.texts, self.length = texts, args.length
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rerank-"))
        self.tokenizer = make_tokenizer(texts, model, self.folder)
        self.network = make_network(model, vocab)
        self.params = random_params(self.network, vocab, args.dtype)
        self.score = scoring.make_score(self.network)
        shared, _ = pairs.can_share(model, self.tokenizer.template, args.length)
        self.shared = shared and not args.plain
        self.count = sum(len(one.documents) for one in texts.lists)

    @property
    def encoder(self) -> pairs.ListEncoder:
        """A fresh one, that has not met a text."""
        return pairs.ListEncoder(
            self.texts.corpus, self.tokenizer, self.length, shared=self.shared
        )

    def rate(self, rows: int, lists: int | None = None) -> tuple[float, float]:
        """Pairs a second, and the share of the time spent waiting for input."""
        waits: list[float] = []
        start = time.perf_counter()
        scores = scoring.score_lists(
            self.score,
            self.params,
            self.network,
            self.texts.lists[:lists],
            self.encoder,
            rows=rows,
            waits=waits,
        )
        seconds = time.perf_counter() - start
        assert np.isfinite(scores).all()
        return len(scores) / seconds, sum(waits) / seconds

    def try_rows(self, rows: int, most: int) -> dict[int, float]:
        """Pairs a second by rows a batch, doubled until it is slower or too large."""
        tried: dict[int, float] = {}
        while rows <= most:
            try:
                self.rate(rows, lists=1)  # compiles
                tried[rows] = self.rate(rows)[0]
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                break  # out of memory: smaller batches are known
            if tried[rows] < 0.95 * max(tried.values()):
                break
            rows *= 2
        return tried


def measure(shape: str, texts: Texts, args: argparse.Namespace) -> dict[str, Any]:
    """Rates of one shape at its best batch, and beside them those of the baseline."""
    ours = Ours(shape, texts, args)
    tried = ours.try_rows(args.rows, args.most_rows)
    chosen = max(tried, key=lambda rows: tried[rows])
    baseline = None
    if args.baseline:
        baseline = _Baseline(shape, ours.tokenizer, ours.folder, args)
    found: dict[str, list[float]] = {"ours": [], "baseline": []}
    waited = 0.0
    for _ in range(args.rounds):
        rate, waited = ours.rate(chosen)
        found["ours"].append(rate)
        if baseline:
            found["baseline"].append(baseline.rate(texts))
    device, tokens = on_device(ours, chosen)
    result = {
        "device": jax.devices()[0].device_kind,
        "pairs_per_second": statistics.median(found["ours"]),
        "rounds": [round(x, 1) for x in found["ours"]],
        "device_pairs_per_second": device,
        "waited_for_input": round(waited, 3),
        "tokens_a_pair": round(tokens / ours.count, 1),
        "pairs": ours.count,
        "rows": chosen,
        "tried": {rows: round(rate, 1) for rows, rate in tried.items()},
        "shared_prompt": ours.shared,
        "dtype": args.dtype,
    }
    if baseline:
        result["sentence_transformers"] = statistics.median(found["baseline"])
        result["ratio"] = statistics.median(
            a / b for a, b in zip(found["ours"], found["baseline"], strict=True)
        )
    return result


def on_device(ours: Ours, rows: int) -> tuple[float, int]:
    """Pairs a second of batches that were made before, and their real tokens."""
    score, params, network = ours.score, ours.params, ours.network
    lists, encoder = ours.texts.lists, ours.encoder
    shards = scoring.shards_of(network)
    rows = -(-rows // shards.count) * shards.count
    made = list(pairs.pair_batches(lists, encoder, rows=rows, shards=shards))
    tokens = sum(int((batch.rows.segments > 0).sum()) for batch, _ in made)
    with jax.set_mesh(network.mesh):
        placed = [
            scoring.device_batch(batch, network, leading=0) for batch, _ in made[:32]
        ]
        count = sum(int(batch.where.sum()) for batch, _ in made[:32])
        jax.block_until_ready(score(params, placed[0]))
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready([score(params, batch) for batch in placed])
            rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates), tokens


class _Baseline:
    """CrossEncoder with random weights of the same shape, and the same tokenizer."""

    def __init__(self, shape: str, tokenizer: Any, folder: Any, args: Any):
        import torch
        import transformers
        from sentence_transformers import CrossEncoder

        model, vocab = model_of(shape, args.dtype)
        common = dict(
            vocab_size=vocab,
            hidden_size=model.embed_dim,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=model.mlp_dim,
            pad_token_id=tokenizer.pad,
            num_labels=1,
        )
        if isinstance(model, config.Decoder):
            settings = transformers.Qwen2Config(
                **common, num_key_value_heads=model.num_kv_heads
            )
        elif model.family == "modernbert":
            settings = transformers.ModernBertConfig(
                **common, global_attn_every_n_layers=3, local_attention=128
            )
        else:
            settings = transformers.BertConfig(**common)
        auto = transformers.AutoModelForSequenceClassification
        auto.from_config(settings).save_pretrained(str(folder))
        self.prompt = tokenizer.words
        low = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
        self.model = CrossEncoder(
            str(folder),
            num_labels=1,
            max_length=args.length,
            model_kwargs={"dtype": low},
        )
        self.batch, self.most = 0, args.most_rows

    def rate(self, texts: Texts) -> float:
        """Pairs a second, with the best batch, found by doubling in the first call."""
        if not self.batch:
            rates = {}
            self.batch = 16
            while self.batch <= max(self.most, 32):
                rates[self.batch] = self._rate(texts)
                if rates[self.batch] < 0.95 * max(rates.values()):
                    break
                self.batch *= 2
            self.batch = max(rates, key=lambda size: rates[size])
        return self._rate(texts)

    def _rate(self, texts: Texts) -> float:
        given = texts.pairs
        if self.prompt is not None:
            given = [
                (self.prompt.query.format(query=query), document)
                for query, document in given
            ]
        start = time.perf_counter()
        self.model.predict(given, batch_size=self.batch, show_progress_bar=False)
        return len(given) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
