"""Continued pre-training of the quickstart's teacher on the synthetic click log.

    python -m ranker.train --config configs/cpt.py --workdir runs/quickstart

Ends in about 90 s on 2 cores, at a loss of about 1.9 nats a token.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage as the quickstart runs it; variant "smoke" is the smaller run's."""
    return config.beside(__file__, "quickstart.py", variant).stages()["cpt"]
