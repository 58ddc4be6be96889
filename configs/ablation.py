"""The paper's grid on the made world: what continued pre-training and each loss bring.

    python -m ranker.run --config configs/ablation.py --workdir runs/ablation

Teachers without and with continued pre-training; students on the labels alone, by the
point-wise term, by the margin term, and by both (the hybrid, `distill`), which p-values
are against. At most 25 minutes on 2 cores. Works in the workdir of the quickstart too,
whose stages it then takes over.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Pipeline:
    """The quickstart's settings with every system of the grid; "smoke" is tiny."""
    smoke = variant == "smoke"

    def recipe(steps, learning_rate, size, list_size=8, **loop):
        steps = 20 if smoke else steps
        return config.Recipe(
            optim=config.Optim(learning_rate=learning_rate, warmup=min(50, steps // 2)),
            batch=config.Batch(size=size, list_size=list_size),
            loop=config.Loop(steps=steps, **loop),
        )

    world = config.World()
    if smoke:
        world = config.World(
            labelled_queries=50,
            unlabelled_queries=200,
            dev_queries=20,
            test_queries=50,
            clicks=2000,
        )
    return config.Pipeline(
        data=config.Data(world=world),
        text=config.Text(teacher_length=32, student_length=24),
        teacher=config.Decoder(
            num_layers=2,
            embed_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=384,
        ),
        student=config.Encoder(num_layers=2, embed_dim=128, num_heads=4, mlp_dim=512),
        cpt=recipe(600, 2e-3, 64),
        sft=recipe(160, 5e-4, 8, 12),
        distill=recipe(900, 1e-3, 8, 8),
        # As many steps as distillation; few labels can be learnt by heart, so the best
        # on dev is kept.
        labels=recipe(
            900, 1e-3, 8, 8, eval_every=100, best_metric="dev_ndcg@5", result="best"
        ),
        compare=(
            "sft_without_cpt",
            "student_labels",
            "student_point",
            "student_margin",
        ),
    )
