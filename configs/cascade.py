"""Two students of one teacher: two layers for all candidates, six for the best of them.

python -m ranker.run --config configs/cascade.py --workdir runs/cascade
python -m ranker.serve runs/cascade/export --first runs/cascade/export_first --keep 4

The evaluate stage measures each student and both in turn. In the quickstart's synthetic
collection a query has twelve candidates, so four of them are kept; 100 is for search
engines. On two CPU cores it takes about twice as long as the quickstart.
"""

from ranker import config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> config.Pipeline:
    """The quickstart with a second student; variant "smoke" is the smaller run."""
    quickstart = config.beside(__file__, "quickstart.py", variant)
    layers = 3 if variant == "smoke" else 6
    student = config.replace(quickstart.student, num_layers=layers)
    return config.replace(
        quickstart, student=student, first_student=quickstart.student, keep=4
    )
