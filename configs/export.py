"""Writes the quickstart's student as a Hugging Face folder.

    python -m ranker.export --config configs/export.py --workdir runs/quickstart

Reads the stage `distill` of the same workdir. 5 s on two busy cores.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Export:
    """The stage as the quickstart runs it; variant "smoke" is the smaller run's."""
    return config.beside(__file__, "quickstart.py", variant).stages()["export"]
