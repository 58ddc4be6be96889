"""The paper's grid on the synthetic collection: what pre-training and each loss bring.

    python -m ranker.run --config configs/ablation.py --workdir runs/ablation

Teachers without and with continued pre-training; students on the labels alone, by the
point-wise term, by the margin term, and by both (the hybrid, `distill`), which p-values
are against. At most 25 minutes on 2 cores. Works in the workdir of the quickstart too,
whose finished stages it reuses.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Pipeline:
    """The quickstart with every system of the grid; variant "smoke" is tiny."""
    return config.replace(
        config.beside(__file__, "quickstart.py", variant),
        compare=(
            "sft_without_cpt",
            "student_labels",
            "student_point",
            "student_margin",
        ),
    )
