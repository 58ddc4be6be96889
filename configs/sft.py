"""Supervised fine-tuning of the quickstart's teacher, by a listwise softmax loss.

    python -m ranker.train --config configs/sft.py --workdir runs/quickstart

Begins from the stage `cpt` of the same workdir; `--config.parent ''` begins from fresh
weights.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Train:
    """The stage as the quickstart runs it; variant "smoke" makes 20 steps."""
    steps = 20 if variant == "smoke" else 160
    return config.Train(
        name="sft",
        parent="cpt",
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
        objective=config.Rank(loss=("softmax",)),
        optim=config.Optim(learning_rate=5e-4, warmup=min(50, steps // 2)),
        batch=config.Batch(size=8, list_size=12),
        loop=config.Loop(steps=steps),
    )
