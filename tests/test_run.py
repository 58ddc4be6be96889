"""What a whole run says at its end."""

import pathlib

from ranker import config, run

NONE = config.Recipe(
    optim=config.Optim(learning_rate=1e-3, warmup=0),
    batch=config.Batch(size=2),
    loop=config.Loop(steps=1),
)
TEACHER = config.Decoder(
    num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
STUDENT = config.Encoder(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32)


def pipeline(**fields):
    """A pipeline of whose settings only the students matter."""
    return config.Pipeline(
        teacher=TEACHER,
        student=STUDENT,
        cpt=NONE,
        sft=NONE,
        distill=NONE,
        labels=NONE,
        **fields,
    )


def test_the_end_of_a_run_says_how_to_serve():
    workdir = pathlib.Path("runs/my first")
    words = "python -m ranker.serve 'runs/my first/export'"
    assert run.serve_command(pipeline(), workdir) == words
    both = pipeline(first_student=STUDENT, keep=7)
    found = run.serve_command(both, workdir)
    assert found == f"{words} --first 'runs/my first/export_first' --keep 7"
