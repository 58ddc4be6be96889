r"""Continued pre-training of Llama-2-7B on a click log.

    python -m ranker.train --config configs/cpt_llama2_7b.py --workdir runs/llama2 \
      --config.data.path=DATA --config.data.click_log=CLICKS

DATA is a folder in the BEIR layout, CLICKS a log of queries and clicked documents.

On one v5e:4x4 (16 chips of 16 GB) `ranker.plan` finds 11.4 GiB a chip of the 15.75 that
a program may use, 4.7 of them parameters and moments in float32; the model needs 78 %
of the operations; a step takes at least 1.07 s (compute): at most 61,300 tokens/s.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage; every step holds 65,536 tokens, in rows that several texts share."""
    del variant
    checkpoint = "meta-llama/Llama-2-7b-hf"
    return config.Train(
        name="cpt",
        data=config.Data(path="data"),
        text=config.Text(
            teacher_tokenizer=checkpoint,
            student_tokenizer="google-bert/bert-base-uncased",
            teacher_length=512,
            student_length=512,
        ),
        mesh=config.Mesh(data=1, fsdp=16),
        model=config.Pretrained(path=checkpoint, dtype="bfloat16", remat="full"),
        role="teacher",
        objective=config.Language(),
        optim=config.Optim(learning_rate=1e-5, warmup=500),
        batch=config.Batch(size=128),
        loop=config.Loop(steps=20000),
    )
