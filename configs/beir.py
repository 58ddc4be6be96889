"""The whole method on a folder in the BEIR layout, with models trained from scratch.

    python -m ranker.run --config configs/beir.py --workdir runs/mine \
        --config.data.path=FOLDER

FOLDER holds corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv; candidates come
from runs/*.SPLIT.* where there are such files, else from BM25. Half an hour on 2 cores
for 8,000 queries. Small models from scratch do not know a language: expect them below
BM25 on real text, and use pretrained checkpoints for a student worth serving.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Pipeline:
    """A laptop's size; variant "smoke" reads few queries and makes few steps."""
    smoke = variant == "smoke"

    def recipe(steps, learning_rate, size, list_size=8):
        steps = steps // 50 if smoke else steps
        return config.Recipe(
            optim=config.Optim(
                learning_rate=learning_rate, warmup=steps // 10, clip_norm=1.0
            ),
            batch=config.Batch(size=size, list_size=list_size),
            loop=config.Loop(steps=steps),
        )

    return config.Pipeline(
        data=config.Data(
            path=config.REQUIRED,
            candidates=10 if smoke else 20,
            max_queries=100 if smoke else 0,
        ),
        text=config.Text(
            teacher_vocab_size=8192,
            student_vocab_size=8192,
            teacher_length=128,
            student_length=128,
        ),
        teacher=config.Decoder(
            num_layers=2 if smoke else 4,
            embed_dim=128 if smoke else 256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32 if smoke else 64,
            mlp_dim=384 if smoke else 704,
        ),
        student=config.Encoder(
            num_layers=2, embed_dim=128, num_heads=4, mlp_dim=512, dropout=0.1
        ),
        rows=16,  # of 128 tokens: what stays in a cache
        cpt=recipe(1000, 1e-3, 16),
        sft=recipe(500, 3e-4, 4),
        distill=recipe(1000, 5e-4, 4),
        labels=recipe(1000, 5e-4, 4),
    )
