"""Measures the quickstart's systems on its held-out queries, against BM25.

    python -m ranker.evaluate --config configs/evaluate.py --workdir runs/quickstart

Reads the stages `sft`, `student_labels` and `distill` of the same workdir. 20 s on two
busy cores; NDCG@5 is 0.545 for BM25 and 0.833 for the distilled student.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Evaluate:
    """The stage as the quickstart runs it; variant "smoke" is the smaller run's."""
    return config.beside(__file__, "quickstart.py", variant).stages()["evaluate"]
