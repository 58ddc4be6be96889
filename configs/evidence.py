"""Does the method hold on real data? A pretrained teacher, its truncation as student.

    python -m ranker.run --config configs/evidence.py:nqqed --workdir runs/nqqed \
        --config.data.path=FOLDER --config.teacher.path=MINILM \
        --config.student.path=MINILM

MINILM is a folder of `sentence-transformers/all-MiniLM-L6-v2`, or that name, which is
fetched. The teacher is fine-tuned with a loss of each family; the student, two of its
six layers, on the labels alone, by the point-wise term, the margin term, both (the
hybrid, `distill`) and the listwise KL divergence. Variants: nqqed, medquad, dbpedia and
cranfield, sized for two CPU cores.
"""

from ranker import config

_SIZES = {
    # Tokens a pair; candidates a query; queries of a split that are read (0: all);
    # train queries whose grades are used; highest grade.
    "nqqed": dict(length=128, candidates=10, queries=400, labelled=400, grade=2),
    "medquad": dict(length=128, candidates=10, queries=400, labelled=400, grade=1),
    "dbpedia": dict(length=32, candidates=50, queries=0, labelled=145, grade=2),
    "cranfield": dict(length=192, candidates=30, queries=0, labelled=55, grade=4),
}


def get_config(variant: str = "nqqed") -> config.Pipeline:
    """The grid on one data set; "smoke" makes few steps on little of it."""
    smoke = variant == "smoke"
    sizes = _SIZES["nqqed" if smoke or not variant else variant]

    def recipe(steps, learning_rate):
        steps = 4 if smoke else steps
        return config.Recipe(
            optim=config.Optim(learning_rate=learning_rate, warmup=steps // 10),
            batch=config.Batch(size=4, list_size=8),
            loop=config.Loop(steps=steps, log_every=25),
        )

    hub = "sentence-transformers/all-MiniLM-L6-v2"
    return config.Pipeline(
        data=config.Data(
            path="set --config.data.path=FOLDER",
            test="live_test" if variant == "medquad" else "test",
            runs="runs/bm25.{split}.*",
            candidates=4 if smoke else sizes["candidates"],
            max_queries=16 if smoke else sizes["queries"],
            labelled_queries=8 if smoke else sizes["labelled"],
        ),
        text=config.Text(
            teacher_template="pair",
            teacher_length=sizes["length"],
            student_length=sizes["length"],
        ),
        teacher=config.Pretrained(path=hub),
        student=config.Pretrained(path=hub, keep_layers="0,3"),
        rank=config.Rank(highest_grade=sizes["grade"]),
        cpt=_none(),
        sft=recipe(100, 5e-5),
        labels=recipe(200, 1e-4),
        distill=recipe(200, 1e-4),
        compare=(
            "sft_pointwise",
            "sft_pairwise",
            "student_labels",
            "student_point",
            "student_margin",
            "student_kl",
        ),
    )


def _none() -> config.Recipe:
    """An encoder has no continued pre-training."""
    return config.Recipe(
        optim=config.Optim(learning_rate=1e-4, warmup=0),
        batch=config.Batch(size=4),
        loop=config.Loop(steps=0),
    )
