"""Rank losses side by side with sentence-transformers: same pairs, steps and rate.

    python -m ranker.run --config configs/evidence.py:nqqed --workdir DIR ...
    python benchmarks/quality.py --workdir DIR --model MINILM

trains sentence-transformers' CrossEncoder from the same weights on the same labelled
lists, with as many steps, lists a step and the same learning rates as the teachers that
DIR already has (`--families` names some of them). It scores the same candidates of the
held-out queries, and compares each pair by NDCG@10 with a paired randomisation test.
The last line is one JSON object.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses

from ranker.data import datasets, formats
from ranker.data.pairs import draw_documents
from ranker.data.text import document_text
from ranker.metrics import ranking, significance
from ranker.metrics.runs import qrels_of, run_of

# Stage of ours -> the loss of theirs, and its target from a list's labels, such that
# both minimise the same function (RankNet up to a factor, which Adam takes out).
FAMILIES: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "sft_pointwise": (losses.BinaryCrossEntropyLoss, lambda labels: labels),
    "sft_pairwise": (losses.RankNetLoss, lambda labels: labels),
    # Theirs takes a softmax of the target, which gives back the labels' shares.
    "sft": (losses.ListNetLoss, lambda labels: _log(labels / labels.sum())),
}


def _log(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(shares)


def schedule(optim: dict[str, Any], step: int, steps: int) -> float:
    """Our learning rate at `step`, over the peak."""
    if step < optim["warmup"]:
        return step / optim["warmup"]
    done = (step - optim["warmup"]) / max(steps - optim["warmup"], 1)
    low = optim["final_fraction"]
    return low + (1 - low) * (1 + np.cos(np.pi * done)) / 2


def train(
    model, loss, target, lists, corpus, *, stage: dict[str, Any], size: float
) -> float:
    """Trains `model` as the stage did, on `size` lists a step; returns the seconds."""
    settings, optim, batch = stage, stage["optim"], stage["batch"]
    generator = np.random.default_rng(settings["seed"])
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=optim["learning_rate"],
        betas=(optim["b1"], optim["b2"]),
        weight_decay=optim["weight_decay"],
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: schedule(optim, step, settings["steps"])
    )
    order: list[int] = []
    pointwise = isinstance(loss, losses.BinaryCrossEntropyLoss)
    model.train()
    start = time.monotonic()
    for step in range(settings["steps"]):
        queries, documents, labels = [], [], []
        # Packed rows hold no fixed number of lists: so many on average.
        while len(queries) < int((step + 1) * size) - int(step * size):
            order = order or generator.permutation(len(lists)).tolist()
            record = lists[order.pop()]
            places = draw_documents(record.labels, batch["list_size"], generator)
            queries.append(record.query)
            documents.append(
                [document_text(corpus[row], "pair") for row in record.documents[places]]
            )
            labels.append(torch.tensor(target(record.labels[places])))
        if pointwise:
            pairs = [
                (q, d) for q, ds in zip(queries, documents, strict=True) for d in ds
            ]
            highest = settings["objective"]["highest_grade"]
            grades = (torch.cat(labels) / highest).clamp(max=1.0)
            value = loss([list(column) for column in zip(*pairs, strict=True)], grades)
        else:
            value = loss([queries, documents], labels)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip_norm"] or 1e9)
        optimiser.step()
        rate.step()
    return time.monotonic() - start


def score(model, lists, corpus) -> np.ndarray:
    """Raw scores of all candidates, in the order of `lists`."""
    pairs = [
        (record.query, document_text(corpus[row], "pair"))
        for record in (lists[i] for i in range(len(lists)))
        for row in record.documents
    ]
    return model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=32)


def main() -> None:
    """Trains, scores, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--model", required=True, help="folder of the pretrained BERT")
    parser.add_argument("--measure", default="NDCG@10")
    names = list(FAMILIES)
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--attention_dropout",
        type=float,
        help="of theirs (ours: teacher.attention_dropout); default: the checkpoint's",
    )
    parser.add_argument("--stage", help="our folder, where it is not the family's name")
    parser.add_argument("--runs", type=pathlib.Path, help="folder for theirs, as TREC")
    flags = parser.parse_args()
    results = {}
    for name in flags.families:
        found = results[name] = compare(name, flags.stage or name, flags)
        low, high = found["difference"]
        own, theirs = found["seconds"].values()
        print(
            f"{name:14} ours {found['ours']:.4f}  sentence-transformers "
            f"{found['sentence_transformers']:.4f}  "
            f"95 % of the difference [{low:+.4f}, {high:+.4f}]  "
            f"p {found['p_value']:.3f}  {own:.0f} s, {theirs:.0f} s",
            flush=True,
        )
    print(json.dumps({"measure": flags.measure, "families": results}))


def compare(family: str, folder: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Trains theirs as the stage in `folder` was trained, and tests the difference."""
    changed = {}
    if flags.attention_dropout is not None:
        changed["attention_probs_dropout_prob"] = flags.attention_dropout
    prepared = flags.workdir / "prepare"
    corpus = datasets.load_corpus(prepared / "corpus")
    train_lists = datasets.load_lists(prepared / "lists", "train")
    test = datasets.load_lists(prepared / "lists", "test")
    make, target = FAMILIES[family]
    own, size = _ours(flags.workdir / folder)
    stage = json.loads((flags.workdir / folder / "manifest.json").read_text())
    stage = stage["settings"]
    torch.manual_seed(stage["seed"])
    model = CrossEncoder(
        flags.model,
        num_labels=1,
        max_length=stage["length"],
        device="cpu",
        config_kwargs=changed,
    )
    seconds = train(
        model, make(model), target, train_lists, corpus, stage=stage, size=size
    )
    theirs = run_of(test, corpus, score(model, test, corpus))
    if flags.runs:
        formats.write_run(flags.runs / f"{folder}.trec", theirs, tag="theirs")
    ours: dict[str, dict[str, float]] = {}
    for one in formats.read_run(flags.workdir / "evaluate" / f"{folder}.trec"):
        ours.setdefault(one.query_id, {})[one.document_id] = one.score
    qrels = qrels_of(test)
    a, b = (
        ranking.evaluate(qrels, run, (flags.measure,))[flags.measure]
        for run in (ours, theirs)
    )
    return {
        "ours": a.mean,
        "sentence_transformers": b.mean,
        "difference": significance.randomisation_interval(a.values, b.values),
        "p_value": significance.randomisation_test(a.values, b.values),
        "seconds": {"ours": own, "sentence_transformers": seconds},
        "lists_a_step": size,
    }


def _ours(folder: pathlib.Path) -> tuple[float, float]:
    """Seconds that our stage took to train, compilation left out, and lists a step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [one for one in map(json.loads, lines) if "loss" in one]
    done = steps[-1]["step"] - steps[0]["step"]
    seconds = (steps[-1]["time"] - steps[0]["time"]) / done * steps[-1]["step"]
    return seconds, float(np.mean([one["weight_collapsed"] for one in steps]))


if __name__ == "__main__":
    main()
