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

import time
from typing import Any

import numpy as np
import torch
from shapes import matmul_flops, model_flops
from side_by_side import (
    Ours,
    compare,
    context_of,
    make_parser,
    report,
    set_up,
)
from transformers import AutoModelForSequenceClassification, LlamaConfig
from transformers import LlamaForSequenceClassification as Llama

from ranker import config


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

    def make(vocab: int, pad: int) -> Any:
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

    setting = set_up(args, "teacher", make)
    ours = Ours(setting, remat=bool(args.remat))
    batch = config.Batch(size=args.size, list_size=args.list_size)
    run_ours = ours.train_steps(config.Rank(loss=("softmax",)), batch, 2e-5)
    run_ours(2)

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    theirs = AutoModelForSequenceClassification.from_pretrained(
        str(setting.folder), num_labels=1, dtype=torch.float32
    ).to(device)
    theirs.train()
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=2e-5, fused=cuda)
    lists, encoder = setting.prepared.lists("train"), setting.encoder
    generator = np.random.default_rng(0)

    def their_step() -> int:
        """One step; the real tokens that it saw."""
        tokens, labels = [], []
        for number in generator.integers(0, len(lists), args.their_batch):
            record = lists[int(number)]
            segments = encoder(record.query, record.documents[: args.list_size])
            tokens += [segment.tokens for segment in segments]
            labels.append(record.labels[: args.list_size])
        longest = max(map(len, tokens))
        ids = torch.full((len(tokens), longest), encoder.tokenizer.pad)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        ids, mask = ids.to(device), mask.to(device)
        ends = mask.sum(1) - 1
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            hidden = theirs.model(input_ids=ids, attention_mask=mask).last_hidden_state
            scores = theirs.score(hidden[torch.arange(len(ids), device=device), ends])
        loss, at = torch.zeros((), device=device), 0
        for one in labels:
            mine = scores[at : at + len(one), 0].float()
            goal = torch.tensor(one, device=device)
            loss = loss - (goal * torch.log_softmax(mine, 0)).sum() / len(labels)
            at += len(one)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return sum(map(len, tokens))

    def run_theirs() -> tuple[int, float]:
        start = time.perf_counter()
        seen = sum(their_step() for _ in range(args.their_steps))
        if cuda:
            torch.cuda.synchronize()
        return seen, time.perf_counter() - start

    their_step()
    found = compare(
        lambda: run_ours(args.steps), {"transformers": run_theirs}, args.rounds
    )
    peak = matmul_flops(8192 if args.dtype == "bfloat16" else 2048, args.dtype)
    flops = 3 * model_flops(ours.model, context_of(setting, args.list_size))
    rate = found["tokens_per_second"]["ours"]["median"]
    print(
        f"ours: {flops / 1e6:.1f} MFLOP a real token, {rate * flops / 1e9:,.0f} of the "
        f"{peak / 1e9:,.0f} GFLOP/s that a matrix product reaches here "
        f"({rate * flops / peak:.0%})"
    )
    report(found, args, mfu=rate * flops / peak, matmul_flops=peak)


if __name__ == "__main__":
    main()
