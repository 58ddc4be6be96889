"""Distils Qwen3-Reranker, as published, into BERT or XLM-R.

    python -m ranker.run --config configs/qwen3_reranker_to_bert.py \
        --config.data.path=FOLDER --workdir runs/qwen

The teacher is not trained: it answers "yes" or "no" in its own template, and its score
is the logit of the one less that of the other. It scores the candidates of train and
unlabelled queries; the student learns from these scores by point-wise and margin MSE,
and is exported for `CrossEncoder`. FOLDER is in the BEIR layout (configs/beir.py).

Variants: "" takes every second layer of bert-base-uncased (6 layers, English), "xlmr"
xlm-roberta-base (12 layers, 100 languages), "smoke" BERT on a synthetic collection of
few queries, for which any checkpoints do. Checkpoints are hub names or folders:
`--config.teacher.path=Qwen/Qwen3-Reranker-4B`, `--config.student.path=FOLDER`.

To train the teacher on judged queries first: `--config.sft.loop.steps=500`, best with
adapters (`--config.sft.lora.rank=16`). Source: arXiv 2506.05176 (Qwen3 Embedding), and
arXiv 2411.04539 for the distillation.
"""

from ranker import config

VARIANTS = ("xlmr", "smoke")


def get_config(variant: str = "") -> config.Pipeline:
    """The whole run; variant "xlmr" is multilingual, "smoke" ends soon."""
    smoke, multilingual = variant == "smoke", variant == "xlmr"

    def recipe(steps, learning_rate=3e-5):
        return config.Recipe(
            optim=config.Optim(
                learning_rate=learning_rate, warmup=steps // 10, weight_decay=0.01
            ),
            batch=config.Batch(size=8 if smoke else 16, list_size=4 if smoke else 8),
            loop=config.Loop(steps=steps),
        )

    world = config.World(
        num_topics=4,
        labelled_queries=4,
        unlabelled_queries=4,
        dev_queries=2,
        test_queries=4,
        clicks=10,
        candidates=4,
    )
    return config.Pipeline(
        data=config.Data(world=world)
        if smoke
        else config.Data(path=config.REQUIRED, candidates=50),
        text=config.Text(
            teacher_template="qwen3_reranker",
            student_template="pair",
            teacher_length=192 if smoke else 512,
            student_length=64 if smoke else 256,
        ),
        teacher=config.Pretrained(path="Qwen/Qwen3-Reranker-0.6B", dtype="bfloat16"),
        student=config.Pretrained(path="FacebookAI/xlm-roberta-base")
        if multilingual
        else config.Pretrained(
            path="google-bert/bert-base-uncased", keep_layers="1::2", dropout=0.1
        ),
        cpt=recipe(0),
        sft=recipe(0),  # the teacher unchanged
        distill=recipe(4 if smoke else 10_000),
        labels=recipe(4 if smoke else 2000),
        rows=16 if smoke else 64,
    )
