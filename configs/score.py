"""The quickstart's teacher scores the candidates of the train and unlabelled queries.

    python -m ranker.score --config configs/score.py --workdir runs/quickstart

Reads the stage `sft` of the same workdir and writes `scores/chunks/*.parquet`:
51,600 pairs in 25 s on two busy cores.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Score:
    """The stage as the quickstart runs it; variant "smoke" is the smaller run's."""
    return config.beside(__file__, "quickstart.py", variant).stages()["scores"]
