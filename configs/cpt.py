"""Continued pre-training of the quickstart's teacher on the made click log.

    python -m ranker.train --config configs/cpt.py --workdir runs/quickstart

Ends in about 90 s on 2 cores, at a loss of about 1.9 nats a token.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage as the quickstart runs it; variant "smoke" makes 20 steps."""
    steps = 20 if variant == "smoke" else 600
    return config.Train(
        name="cpt",
        text=config.Text(teacher_length=32, student_length=24),
        model=config.Decoder(
            num_layers=2,
            embed_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=384,
        ),
        role="teacher",
        objective=config.Language(),
        optim=config.Optim(learning_rate=2e-3, warmup=min(50, steps // 2)),
        batch=config.Batch(size=64),
        loop=config.Loop(steps=steps),
    )
