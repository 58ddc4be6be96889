"""Tiny collections and tiny random models, for a run of every part in seconds."""

import argparse
import gzip
import json
import pathlib

import numpy as np

QUERIES = {"data": (20, 20), "medquad": (20, 210)}  # of train and dev
DOCUMENTS = 30
WORDS = ("river", "stone", "paper", "light", "metal", "sugar", "cloud", "horse")


def make(args: argparse.Namespace) -> None:
    """Fills args.data, medquad, minilm and smollm with folders below OUT/smoke."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # compiling is the cost
    root = args.out / "smoke"
    for name, sizes in QUERIES.items():
        setattr(args, name, collection(root / name, *sizes))
    args.minilm, args.smollm = encoder(root / "minilm"), decoder(root / "smollm")


def texts() -> list[str]:
    """Documents of a few words each."""
    draw = np.random.default_rng(0)
    return [
        f"{' '.join(draw.choice(WORDS, 6))} number{number}"
        for number in range(DOCUMENTS)
    ]


def collection(folder: pathlib.Path, train: int, dev: int) -> pathlib.Path:
    """A BEIR folder with runs/bm25.*; each query has one judged document of four."""
    if (folder / "queries.jsonl").exists():
        return folder
    for name in ("qrels", "runs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    corpus = [
        {"_id": f"d{i}", "title": f"page {i}", "text": text}
        for i, text in enumerate(texts())
    ]
    write(folder / "corpus.jsonl", corpus)
    packed = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl.gz").write_bytes(packed)
    (folder / "corpus.jsonl").unlink()
    draw = np.random.default_rng(1)
    chosen = [draw.choice(DOCUMENTS, 4, replace=False) for _ in range(train + dev)]
    asked = [
        {"_id": f"q{i}", "text": f"what about number{found[0]} and {WORDS[i % 8]} {i}"}
        for i, found in enumerate(chosen)
    ]
    splits = {"train": range(train), "dev": range(train, train + dev)}
    for split, rows in splits.items():
        judged = [f"q{i}\td{chosen[i][0]}\t1\n" for i in rows]
        text = "query-id\tcorpus-id\tscore\n" + "".join(judged)
        (folder / "qrels" / f"{split}.tsv").write_text(text)
        lines = [
            f"q{i} Q0 d{document} {rank} {10 - rank} bm25\n"
            for i in rows
            for rank, document in enumerate(sorted(chosen[i]), 1)
        ]
        (folder / "runs" / f"bm25.{split}.trec").write_text("".join(lines))
    write(folder / "queries.jsonl", asked)
    return folder


def write(path: pathlib.Path, records: list[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def encoder(folder: pathlib.Path) -> pathlib.Path:
    """A random BERT of two layers with a tokenizer."""
    if (folder / "config.json").exists():
        return folder
    import transformers

    from ranker.data.text import train_wordpiece

    train_wordpiece(iter(texts() * 3), 300, folder)
    size = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32)
    size |= dict(hidden_dropout_prob=0.0)  # random numbers take long to compile
    settings = transformers.BertConfig(vocab_size=400, num_hidden_layers=2, **size)
    transformers.BertModel(settings).save_pretrained(folder)
    return folder


def decoder(folder: pathlib.Path) -> pathlib.Path:
    """A random Llama of two layers with a tokenizer that has the words Yes and No."""
    if (folder / "config.json").exists():
        return folder
    import transformers

    from ranker.data.text import train_bpe

    train_bpe(iter([*texts() * 3, *["Yes", "No"] * 50]), 400, folder)
    settings = transformers.LlamaConfig(
        vocab_size=500,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)
    return folder
