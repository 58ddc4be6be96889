r"""Training an LLM teacher, beside a transformers loop in torch.

    python benchmarks/train_teacher.py
    python benchmarks/train_teacher.py --dtype bfloat16 --embed 2048 --layers 16 \
        --mlp 8192 --heads 32 --kv_heads 8 --size 8 --steps 10 \
        --their_batch 4 --their_steps 20

Both train the same random Llama (about 30M parameters by default, 1B in the second
line) to rank lists by a listwise softmax: ours in packed rows, theirs with lists in
batches padded to their longest text, attention by torch's scaled_dot_product_attention,
AdamW (fused where there is a GPU). A round is so many steps of ours, then of theirs;
compiling and the first step are not counted. The last line is one JSON object.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from shapes import model_flops
from side_by_side import (
    Ours,
    Setting,
    compare,
    context_of,
    make_parser,
    report_share,
    set_up,
)
from transformers import AutoModelForSequenceClassification, LlamaConfig
from transformers import LlamaForSequenceClassification as Llama

from ranker import config


def random_llama(args: argparse.Namespace, vocab: int, pad: int) -> Any:
    """A torch Llama of random weights."""
    return Llama(
        LlamaConfig(
            vocab_size=vocab,
            pad_token_id=pad,
            hidden_size=args.embed,
            intermediate_size=args.mlp,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            num_key_value_heads=args.kv_heads,
            tie_word_embeddings=True,
            num_labels=1,
        )
    )


def padded(
    tokens: list[np.ndarray], pad: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as rows of the longest one's length, and which of their tokens are real."""
    ids = torch.full((len(tokens), max(map(len, tokens))), pad)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(tokens):
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return ids.to(device), mask.to(device)


def softmax_loss(scores: torch.Tensor, labels: list[np.ndarray]) -> torch.Tensor:
    """Mean over lists of the listwise softmax; the lists' scores follow each other."""
    loss, at = torch.zeros((), device=scores.device), 0
    for one in labels:
        mine = scores[at : at + len(one)].float()
        goal = torch.tensor(one, device=scores.device)
        loss = loss - (goal * torch.log_softmax(mine, 0)).sum() / len(labels)
        at += len(one)
    return loss


def make_their_step(setting: Setting, args: argparse.Namespace) -> Callable[[], int]:
    """What makes a step of theirs and returns the real tokens that it saw."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    theirs = AutoModelForSequenceClassification.from_pretrained(
        str(setting.folder), num_labels=1, dtype=torch.float32
    ).to(device)
    theirs.train()
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=2e-5, fused=cuda)
    lists, encoder = setting.prepared.lists("train"), setting.encoder
    generator = np.random.default_rng(0)

    def take() -> int:
        tokens, labels = [], []
        for number in generator.integers(0, len(lists), args.their_batch):
            record = lists[int(number)]
            segments = encoder(record.query, record.documents[: args.list_size])
            tokens += [segment.tokens for segment in segments]
            labels.append(record.labels[: args.list_size])
        ids, mask = padded(tokens, encoder.tokenizer.pad, device)
        ends = mask.sum(1) - 1
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            hidden = theirs.model(input_ids=ids, attention_mask=mask).last_hidden_state
            scores = theirs.score(hidden[torch.arange(len(ids), device=device), ends])
        softmax_loss(scores[:, 0], labels).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return sum(map(len, tokens))

    return take


def run_theirs(take: Callable[[], int], steps: int) -> tuple[int, float]:
    """Makes the steps of a round; real tokens and seconds."""
    start = time.perf_counter()
    seen = sum(take() for _ in range(steps))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return seen, time.perf_counter() - start


def main() -> None:
    """Measures, and prints the ratio."""
    parser = make_parser(
        __doc__,
        size=(2, "batch.size of ours: lists of full length a step"),
        list_size=(8, "documents a list"),
        steps=(3, "steps of ours a round"),
        their_steps=(4, "steps of theirs a round"),
        their_batch=(4, "lists a batch of theirs"),
        layers=(8, "of random weights"),
        embed=(512, "width"),
        mlp=(1408, "width of the MLP"),
        heads=(8, "query heads"),
        kv_heads=(8, "key and value heads"),
        remat=(0, "1: ours recomputes each layer in the backward pass"),
    )
    args = parser.parse_args()
    setting = set_up(args, "teacher", partial(random_llama, args))
    ours = Ours(setting, remat=bool(args.remat))
    batch = config.Batch(size=args.size, list_size=args.list_size)
    run_ours = ours.train_steps(config.Rank(loss=("softmax",)), batch, 2e-5)
    run_ours(2)
    take = make_their_step(setting, args)
    take()
    baselines = {"transformers": partial(run_theirs, take, args.their_steps)}
    found = compare(lambda: run_ours(args.steps), baselines, args.rounds)
    report_share(
        found,
        args,
        flops=3 * model_flops(ours.model, context_of(setting, args.list_size)),
        side=8192 if args.dtype == "bfloat16" else 2048,
    )


if __name__ == "__main__":
    main()
