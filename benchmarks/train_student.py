r"""Training a BERT student, beside sentence-transformers' CrossEncoder.

    python benchmarks/train_student.py --model MINILM
    python benchmarks/train_student.py --dtype bfloat16 --embed 768 --layers 12 \
        --accumulate 1 --steps 40 --their_steps 60                  # on a GPU

Both train the same weights on the same pairs: ours in packed rows, with the batch of
configs/distill.py cut into micro-batches of 16 rows, CrossEncoder by its trainer at its
defaults (batches of 32, padded to their longest text). Each has the checkpoint's
dropout; ours has none on attention weights, and `--dropout 0` turns it off for both. A
round is so many steps of ours, then of theirs; compiling and the first step are not
counted. Needs `datasets` and `accelerate` for the baseline's trainer. The last line
is one JSON object.
"""

import argparse
import time
from functools import partial

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import (
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from shapes import model_flops
from side_by_side import (
    Ours,
    Run,
    Setting,
    compare,
    context_of,
    make_parser,
    random_bert,
    report_share,
    set_up,
)
from transformers import TrainerCallback

from ranker import config


class _Clock(TrainerCallback):
    """Time from the end of the first step to the end of the last."""

    def __init__(self):
        self.start = self.end = 0.0

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.end = time.perf_counter()
        self.start = self.start or self.end


def rows_of(setting: Setting, list_size: int) -> Dataset:
    """The pairs that both train on, as a data set of theirs."""
    lists, corpus = setting.prepared.lists("train"), setting.prepared.corpus()
    rows: dict[str, list] = {"query": [], "document": [], "label": []}
    for number in range(len(lists)):
        record = lists[number]
        pairs = list(zip(record.documents, record.labels, strict=True))
        for row, label in pairs[:list_size]:
            document = corpus[int(row)]
            rows["query"].append(record.query)
            rows["document"].append(f"{document.title} {document.text}".strip())
            rows["label"].append(float(label > 0))
    return Dataset.from_dict(rows)


def count_tokens(model: torch.nn.Module) -> list[int]:
    """Where the real tokens of every batch that the model sees are added."""
    seen: list[int] = []

    def count(module, positional, named):
        mask = named.get("attention_mask")
        mask = positional[0]["attention_mask"] if mask is None else mask
        seen.append(int(mask.sum()))

    model.register_forward_pre_hook(count, with_kwargs=True)
    return seen


def run_theirs(setting: Setting, args: argparse.Namespace) -> Run:
    """What trains theirs for the steps of a round."""
    pairs = rows_of(setting, args.list_size)
    theirs = CrossEncoder(str(setting.folder), num_labels=1, max_length=args.length)
    if args.dropout >= 0:
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
    seen = count_tokens(theirs)

    def run() -> tuple[int, float]:
        seen.clear()
        clock = _Clock()
        trainer = CrossEncoderTrainer(
            model=theirs,
            args=CrossEncoderTrainingArguments(
                output_dir=str(args.workdir / "theirs"),
                max_steps=args.their_steps + 1,
                per_device_train_batch_size=args.their_batch,
                bf16=args.dtype == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
            ),
            train_dataset=pairs,
            callbacks=[clock],
        )
        trainer.train()
        return sum(seen[1:]), clock.end - clock.start

    return run


def main() -> None:
    """Measures, and prints the ratio."""
    parser = make_parser(
        __doc__,
        size=(8, "batch.size of ours: lists of full length a step"),
        list_size=(8, "documents a list"),
        accumulate=(4, "batch.accumulate of ours: micro-batches a step"),
        steps=(2, "steps of ours a round"),
        their_steps=(6, "steps of theirs a round"),
        their_batch=(32, "pairs a batch of theirs"),
        dropout=(-1.0, "rate of both; -1: the checkpoint's"),
        layers=(6, "of random weights"),
        embed=(384, "width of random weights"),
    )
    args = parser.parse_args()
    setting = set_up(args, "student", partial(random_bert, args))
    ours = Ours(setting, dropout=args.dropout)
    batch = config.Batch(
        size=args.size, list_size=args.list_size, accumulate=args.accumulate
    )
    objective = config.Rank(loss=("sigmoid_cross_entropy",))
    run_ours = ours.train_steps(objective, batch, 2e-5)
    run_ours(2)
    baselines = {"cross_encoder": run_theirs(setting, args)}
    found = compare(lambda: run_ours(args.steps), baselines, args.rounds)
    report_share(
        found,
        args,
        flops=3 * model_flops(ours.model, context_of(setting, args.list_size)),
        side=4096 if args.dtype == "bfloat16" else 2048,
    )


if __name__ == "__main__":
    main()
