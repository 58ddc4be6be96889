"""Measures the quickstart's systems on its held-out queries, against BM25.

python -m ranker.evaluate --config configs/evaluate.py --workdir runs/quickstart
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Evaluate:
    """The stage as the quickstart runs it; variant "smoke" is the smaller run's."""
    return config.beside(__file__, "quickstart.py", variant).stages()["evaluate"]
