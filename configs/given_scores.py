"""Distils a teacher from outside: its scores come from files, and no teacher is loaded.

    python -m ranker.run --config configs/given_scores.py --workdir runs/given \
        --config.data.path=FOLDER --config.given_scores='scores/*.parquet'

For teachers that this package cannot or need not load: an API, vLLM, DeBERTa, a mixture
of experts, an ensemble. FOLDER is in the BEIR layout (configs/beir.py). The files hold
raw scores of (query, document) pairs, of train queries and of queries that nobody
judged: TREC runs, or JSON lines, TSV or Parquet of query_id, document_id and score.
Held-out queries are not distilled from. Pairs whose score is missing or no number are
named by their ids.

Variants: "" takes every second layer of bert-base-uncased (6 layers, English), "smoke"
a small encoder on the collection and the scores beside this file, in a minute:

    python -m ranker.run --config configs/given_scores.py:smoke --workdir runs/smoke

Scores may be on any scale: they are standardised (`distillation.target_scale`). Source:
arXiv 2411.04539 for the distillation.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Pipeline:
    """The student's stages alone; variant "smoke" ends soon."""
    smoke = variant == "smoke"

    def recipe(steps, learning_rate=3e-5):
        steps = 20 if smoke else steps
        return config.Recipe(
            optim=config.Optim(
                learning_rate=2e-3 if smoke else learning_rate,
                warmup=steps // 10,
                weight_decay=0.01,
            ),
            batch=config.Batch(size=8 if smoke else 16, list_size=8),
            loop=config.Loop(steps=steps),
        )

    folder = __file__.removesuffix(".py") + "_smoke"
    return config.Pipeline(
        data=config.Data(path=folder if smoke else config.REQUIRED, candidates=50),
        given_scores=f"{folder}/scores.jsonl" if smoke else config.REQUIRED,
        text=config.Text(student_template="pair", student_length=32 if smoke else 256),
        student=config.Encoder(num_layers=2, embed_dim=64, num_heads=4, mlp_dim=128)
        if smoke
        else config.Pretrained(
            path="google-bert/bert-base-uncased", keep_layers="1::2", dropout=0.1
        ),
        distill=recipe(10_000),
        labels=recipe(2000),
        rows=16 if smoke else 64,
    )
