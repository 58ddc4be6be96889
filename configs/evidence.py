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
    # train queries whose grades are used; highest grade; full lists a step; steps of a
    # teacher; steps of a student, and its learning rate.
    "nqqed": (128, 10, 300, 200, 2, 2, 120, 150, 3e-4),
    "medquad": (128, 10, 200, 150, 1, 2, 100, 150, 3e-4),
    "dbpedia": (32, 50, 0, 145, 2, 4, 150, 250, 2e-4),
    "cranfield": (128, 30, 0, 55, 4, 2, 100, 150, 3e-4),
}


def get_config(variant: str = "nqqed") -> config.Pipeline:
    """The grid on one data set; "smoke" makes few steps on little of it."""
    smoke = variant == "smoke"
    sizes = _SIZES["nqqed" if smoke or not variant else variant]
    length, candidates, queries, labelled, grade, size, teacher, student, rate = sizes

    def recipe(steps, learning_rate):
        steps = 4 if smoke else steps
        return config.Recipe(
            optim=config.Optim(learning_rate=learning_rate, warmup=steps // 10),
            batch=config.Batch(size=size, list_size=8),
            loop=config.Loop(steps=steps, log_every=10),
        )

    hub = "sentence-transformers/all-MiniLM-L6-v2"
    return config.Pipeline(
        data=config.Data(
            path="set --config.data.path=FOLDER",
            test="live_test" if variant == "medquad" else "test",
            # Of dbpedia all that are graded, in the order of BM25.
            runs=f"runs/{'judged' if variant == 'dbpedia' else 'bm25'}.{{split}}.*",
            candidates=4 if smoke else candidates,
            max_queries=16 if smoke else queries,
            labelled_queries=8 if smoke else labelled,
        ),
        text=config.Text(
            teacher_template="pair",
            teacher_length=length,
            student_length=length,
        ),
        teacher=config.Pretrained(path=hub),
        student=config.Pretrained(path=hub, keep_layers="0,3"),
        rows=2048 // length,  # what stays in a cache
        rank=config.Rank(highest_grade=grade),
        cpt=_none(),
        sft=recipe(teacher, 1e-4),
        labels=recipe(student, rate),
        distill=recipe(student, rate),
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
