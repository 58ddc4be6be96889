"""Distillation of the quickstart's student: point-wise MSE plus margin MSE.

    python -m ranker.train --config configs/distill.py --workdir runs/quickstart

Reads the stage `scores` of the same workdir. `--config.objective.alpha=0` leaves the
point-wise term out, `--config.objective.beta=0` the margin term.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage as the quickstart runs it; variant "smoke" makes 20 steps."""
    steps = 20 if variant == "smoke" else 900
    return config.Train(
        name="distill",
        scores="scores",
        text=config.Text(teacher_length=32, student_length=24),
        model=config.Encoder(num_layers=2, embed_dim=128, num_heads=4, mlp_dim=512),
        role="student",
        objective=config.Distillation(alpha=1.0, beta=1.0),
        optim=config.Optim(learning_rate=1e-3, warmup=min(50, steps // 2)),
        batch=config.Batch(size=8, list_size=8),
        loop=config.Loop(steps=steps),
    )
