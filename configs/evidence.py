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

from dataclasses import dataclass

from ranker import config


@dataclass(frozen=True)
class _Size:
    """What two CPU cores can do of a data set."""

    length: int  # tokens a pair
    candidates: int  # a query
    queries: int  # of a split, that are read; 0: all
    labelled: int  # train queries whose grades are used
    highest_grade: int
    lists: int  # of full length, a step
    teacher_steps: int
    student_steps: int
    student_rate: float


_SIZES = {
    "nqqed": _Size(128, 10, 300, 200, 2, 2, 120, 600, 3e-4),
    "medquad": _Size(128, 10, 200, 150, 1, 2, 100, 300, 3e-4),
    "dbpedia": _Size(32, 50, 0, 145, 2, 4, 150, 1000, 2e-4),
    "cranfield": _Size(128, 30, 0, 55, 4, 2, 100, 200, 3e-4),
}


def get_config(variant: str = "nqqed") -> config.Pipeline:
    """The grid on one data set; "smoke" makes few steps on little of it."""
    smoke = variant == "smoke"
    size = _SIZES["nqqed" if smoke or not variant else variant]

    def recipe(steps, learning_rate):
        steps = 4 if smoke else steps
        return config.Recipe(
            optim=config.Optim(learning_rate=learning_rate, warmup=steps // 10),
            batch=config.Batch(size=size.lists, list_size=8),
            loop=config.Loop(steps=steps, log_every=10),
        )

    hub = "sentence-transformers/all-MiniLM-L6-v2"
    return config.Pipeline(
        data=config.Data(
            path="set --config.data.path=FOLDER",
            test="live_test" if variant == "medquad" else "test",
            # Of dbpedia all that are graded, in the order of BM25.
            runs=f"runs/{'judged' if variant == 'dbpedia' else 'bm25'}.{{split}}.*",
            on_error="skip",  # two documents of cranfield are empty
            candidates=4 if smoke else size.candidates,
            max_queries=16 if smoke else size.queries,
            labelled_queries=8 if smoke else size.labelled,
        ),
        text=config.Text(
            teacher_template="pair",
            teacher_length=size.length,
            student_length=size.length,
        ),
        teacher=config.Pretrained(path=hub),
        student=config.Pretrained(path=hub, keep_layers="0,3"),
        rows=2048 // size.length,  # what stays in a cache
        rank=config.Rank(highest_grade=size.highest_grade),
        cpt=_none(),
        sft=recipe(size.teacher_steps, 1e-4),
        labels=recipe(size.student_steps, size.student_rate),
        distill=recipe(size.student_steps, size.student_rate),
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
