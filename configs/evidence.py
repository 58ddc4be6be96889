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

# What two CPU cores can do of a data set.
_SIZES = {
    "nqqed": {
        "length": 128,  # tokens a pair
        "candidates": 10,  # a query
        "queries": 300,  # of a split, that are read; 0: all
        "labelled": 200,  # train queries whose grades are used
        "highest_grade": 2,
        "lists": 2,  # of full length, a step
        "teacher_steps": 120,
        "student_steps": 600,
        "student_rate": 3e-4,
    },
    "medquad": {
        "length": 128,
        "candidates": 10,
        "queries": 200,
        "labelled": 150,
        "highest_grade": 1,
        "lists": 2,
        "teacher_steps": 100,
        "student_steps": 300,
        "student_rate": 3e-4,
    },
    "dbpedia": {
        "length": 32,
        "candidates": 50,
        "queries": 0,
        "labelled": 145,
        "highest_grade": 2,
        "lists": 4,
        "teacher_steps": 150,
        "student_steps": 1000,
        "student_rate": 2e-4,
    },
    "cranfield": {
        "length": 128,
        "candidates": 30,
        "queries": 0,
        "labelled": 55,
        "highest_grade": 4,
        "lists": 2,
        "teacher_steps": 100,
        "student_steps": 200,
        "student_rate": 3e-4,
    },
}
VARIANTS = (*_SIZES, "smoke")


def get_config(variant: str = "nqqed") -> config.Pipeline:
    """The grid on one data set; "smoke" makes few steps on little of it."""
    smoke = variant == "smoke"
    size = _SIZES["nqqed" if smoke or not variant else variant]

    def recipe(steps, learning_rate):
        steps = 4 if smoke else steps
        return config.Recipe(
            optim=config.Optim(learning_rate=learning_rate, warmup=steps // 10),
            batch=config.Batch(size=size["lists"], list_size=8),
            loop=config.Loop(steps=steps, log_every=10),
        )

    hub = "sentence-transformers/all-MiniLM-L6-v2"
    return config.Pipeline(
        data=config.Data(
            path=config.REQUIRED,
            test="live_test" if variant == "medquad" else "test",
            # Of dbpedia all that are graded, in the order of BM25.
            runs=f"runs/{'judged' if variant == 'dbpedia' else 'bm25'}.{{split}}.*",
            on_error="skip" if variant == "cranfield" else "stop",  # two are empty
            candidates=4 if smoke else size["candidates"],
            max_queries=16 if smoke else size["queries"],
            labelled_queries=8 if smoke else size["labelled"],
        ),
        text=config.Text(
            teacher_template="pair",
            teacher_length=size["length"],
            student_length=size["length"],
        ),
        teacher=config.Pretrained(path=hub),
        student=config.Pretrained(path=hub, keep_layers="0,3"),
        rows=2048 // size["length"],  # what stays in a cache
        rank=config.Rank(highest_grade=size["highest_grade"]),
        cpt=_none(),
        sft=recipe(size["teacher_steps"], 1e-4),
        labels=recipe(size["student_steps"], size["student_rate"]),
        distill=recipe(size["student_steps"], size["student_rate"]),
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
