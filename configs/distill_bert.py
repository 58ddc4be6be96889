r"""Distillation of Llama-2-7B's scores into BERT-base, or into six layers of it.

    python -m ranker.train --config configs/distill_bert.py --workdir runs/llama2 \
      --config.data.path=DATA

Reads the stage `scores` of the same workdir (configs/score_llama2_7b.py). Variant "six"
keeps every second layer, the depth that the paper's latency is reported for.

On one v5e:2x2 (4 chips of 16 GB) `ranker.plan` finds, of BERT-base, 7.2 GiB a chip of
the 15.75 that a program may use, and at least 0.12 s a step (compute): at most
1,087,000 tokens/s; of six layers 4.2 GiB and 0.06 s (compute): at most 2,313,000.
"""

from ranker import config

VARIANTS = ("six", "smoke")


def get_config(variant: str = "") -> config.Train:
    """The stage; every step holds 131,072 tokens, in rows that several pairs share."""
    checkpoint = "google-bert/bert-base-uncased"
    return config.Train(
        name="distill",
        scores="scores",
        data=config.Data(path="data"),
        text=config.Text(
            teacher_tokenizer="meta-llama/Llama-2-7b-hf",
            student_tokenizer=checkpoint,
            teacher_length=512,
            student_length=512,
        ),
        model=config.Pretrained(
            path=checkpoint,
            keep_layers="1::2" if variant == "six" else "",
            dropout=0.1,
            dtype="bfloat16",
            remat="attention",
        ),
        role="student",
        objective=config.Distillation(alpha=1.0, beta=1.0),
        optim=config.Optim(learning_rate=5e-5, warmup=1000),
        batch=config.Batch(size=32, list_size=8),
        loop=config.Loop(steps=20000),
    )
