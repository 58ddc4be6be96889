r"""Llama-2-7B as the teacher of BERT-base, by the paper's recipe, on TPUs.

    python -m ranker.run --config configs/llama2_7b.py --workdir runs/llama2 \
      --config.data.path=DATA --config.data.click_log=CLICKS

DATA is a folder in the BEIR layout, CLICKS a log of queries and clicked documents. The
stages cpt, sft and scores need 16 chips of 16 GB, such as a v5e:4x4; the distillation
fits 4. Each runs alone by its own file, with the memory and time that `ranker.plan`
finds: configs/{cpt_llama2_7b,sft_llama2_7b,score_llama2_7b,distill_bert}.py.

Variants: "six" keeps every second layer of BERT, the depth that the paper's latency is
reported for; "smoke" makes few steps on a small synthetic collection, for which any
checkpoints of the two families do (`--config.teacher.path`, `--config.student.path`).
"""

from ranker import config

VARIANTS = ("six", "smoke")


def get_config(variant: str = "") -> config.Pipeline:
    """The whole run; a step of the teacher holds 65,536 tokens, of BERT 131,072."""
    smoke = variant == "smoke"

    def recipe(steps, learning_rate, warmup, size):
        return config.Recipe(
            optim=config.Optim(
                learning_rate=learning_rate, warmup=1 if smoke else warmup
            ),
            batch=config.Batch(size=8 if smoke else size),
            loop=config.Loop(steps=4 if smoke else steps),
        )

    length = 64 if smoke else 512
    world = config.World(
        num_topics=4,
        labelled_queries=8,
        unlabelled_queries=8,
        dev_queries=4,
        test_queries=4,
        clicks=50,
    )
    return config.Pipeline(
        data=config.Data(world=world) if smoke else config.Data(path="data"),
        text=config.Text(teacher_length=length, student_length=length),
        mesh=config.Mesh() if smoke else config.Mesh(data=1, fsdp=16),
        teacher=config.Pretrained(
            path="meta-llama/Llama-2-7b-hf", dtype="bfloat16", remat="full"
        ),
        student=config.Pretrained(
            path="google-bert/bert-base-uncased",
            keep_layers="1::2" if variant == "six" else "",
            dropout=0.1,
            dtype="bfloat16",
            remat="attention",
        ),
        cpt=recipe(20000, 1e-5, 500, 128),
        sft=recipe(2000, 1e-5, 100, 16),
        distill=recipe(20000, 5e-5, 1000, 32),
        labels=recipe(2000, 5e-5, 200, 32),
        rows=16 if smoke else 128,
    )
