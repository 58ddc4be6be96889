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
    stage = config.beside(__file__, "llama2_7b.py", variant).stages()["distill"]
    return config.replace(stage, mesh=config.Mesh())  # four chips do
