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
    return config.beside(__file__, "llama2_7b.py", variant).stages()["cpt"]
