r"""The public recipe of strong small rerankers: a teacher's raw scores, pair by pair.

    python -m ranker.train --config configs/ettin.py:150m --workdir runs/ettin \
      --config.data.path=BEIR_FOLDER --config.objective.triples='triples/*.parquet'

Point-wise MSE on the raw scores of 143 million (query, document, teacher score) rows in
Parquet, one epoch, linear decay after 3 % of warm-up, with a rate and a global batch by
size, evaluation every 5 % and the best kept (sentence-transformers' Ettin rerankers,
May 2026). The rows are streamed: a few row groups are in memory, whatever their number.
The collection in data.path is there for its dev queries.

Variants are sizes: 17m (the default), 32m, 68m, 150m, 400m and 1b; `smoke` is a tiny
encoder on the 240 rows beside this file. The length (512) and the mean text (128
tokens) are ours: a step of G texts has G / 4 rows, which short texts share. How many
steps the epoch has is found from the files when the stage begins: about
143,000,000 / G.

docs/plan.md has what `python -m ranker.plan --config configs/ettin.py:SIZE --topology
v5e:2x2 --records 143000000 --text-tokens 128` finds, for each size on v5e and v6e. Of
150m, 744,792 steps: on v5e:2x2 1.7 GiB of parameters and moments a chip, a step of at
least 25 ms (compute), and 44 chip-hours at the 39 % utilisation that BERT-base reached;
on v6e:2x2 at least 5 ms and 9.5 chip-hours. Of 1b: at 39 %, 368 chip-hours on v5e, 79
on v6e. Only 17m has been compiled (v5e:2x2): 3.1 GiB a chip of the 15.75 that a program
may use, at least 33 ms a step (HBM; compute 6 ms), and at least 5.2 chip-hours.
"""

from ranker import config

VARIANTS = ("17m", "32m", "68m", "150m", "400m", "1b", "smoke")
_LENGTH, _MEAN = 512, 128  # tokens
# Learning rate and texts a step, by size.
_RECIPES = {
    "17m": (2.4e-4, 1024),
    "32m": (1.2e-4, 512),
    "68m": (3e-5, 256),
    "150m": (1.5e-5, 192),
    "400m": (7e-6, 256),
    "1b": (3e-6, 512),
}


def get_config(variant: str = "") -> config.Train:
    """The stage; every row of the files once."""
    smoke = variant == "smoke"
    size = "17m" if smoke or not variant else variant
    rate, texts = _RECIPES[size]
    length, rows = _LENGTH, texts * _MEAN // _LENGTH
    model: config.Model = config.Pretrained(
        path=f"jhu-clsp/ettin-encoder-{size}", dtype="bfloat16"
    )
    triples = "triples/*.parquet"
    if smoke:
        rate, length, rows = 1e-3, 64, 8
        model = config.Encoder(num_layers=2, embed_dim=32, num_heads=2, mlp_dim=64)
        triples = __file__.removesuffix(".py") + "_smoke.parquet"
    return config.Train(
        name="distill",
        role="student",
        model=model,
        data=config.Data(max_queries=20) if smoke else config.Data(),
        text=config.Text(student_length=length),
        objective=config.Distillation(
            triples=triples, alpha=1.0, beta=0.0, target_scale="raw"
        ),
        optim=config.Optim(
            learning_rate=rate, warmup=0.03, schedule="linear", final_fraction=0.0
        ),
        batch=config.Batch(size=rows, list_size=1),
        loop=config.Loop(
            epochs=1,
            log_every=10 if smoke else 50,
            eval_every=0.5 if smoke else 0.05,
            save_every=0.05,
            best_metric="dev_ndcg@5",
            result="best",
        ),
    )
