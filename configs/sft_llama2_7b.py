r"""Supervised fine-tuning of Llama-2-7B as a ranker, by a listwise softmax loss.

    python -m ranker.train --config configs/sft_llama2_7b.py --workdir runs/llama2 \
      --config.data.path=DATA

DATA is a folder in the BEIR layout. Begins from the stage `cpt` of the same workdir
(configs/cpt_llama2_7b.py); `--config.parent ''` begins from the checkpoint itself.

On one v5e:4x4 (16 chips of 16 GB) `ranker.plan` finds 11.3 GiB a chip of the 15.75 that
a program may use, 4.6 of them parameters and moments in float32; the model needs 78 %
of the operations; a step takes at least 1.02 s (compute): at most 63,900 tokens/s.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage; every step holds 65,536 tokens, in rows that several pairs share."""
    return config.beside(__file__, "llama2_7b.py", variant).stages()["sft"]
