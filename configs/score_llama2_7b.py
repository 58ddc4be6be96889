r"""Llama-2-7B scores the candidates of the train and unlabelled queries.

    python -m ranker.score --config configs/score_llama2_7b.py --workdir runs/llama2 \
      --config.data.path=DATA

Reads the stage `sft` of the same workdir (configs/sft_llama2_7b.py).

On one v5e:4x4 (16 chips of 16 GB) `ranker.plan --teacher configs/sft_llama2_7b.py`
found 2.9 GiB a chip of the 15.75 that a program may use, and at least 0.27 s a batch
(compute): at most 243,000 tokens/s, and at least 9.4 chip-hours for a million pairs of
512 tokens. That was before matrices were read in bfloat16, which takes 0.75 GiB less.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Score:
    """The stage; a batch holds 65,536 tokens, in rows that several pairs share."""
    return config.beside(__file__, "llama2_7b.py", variant).stages()["scores"]
