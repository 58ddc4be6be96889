"""Measures systems on held-out queries.

python -m ranker.evaluate --config configs/evaluate.py --workdir DIR
[--config.FIELD=VALUE ...]
"""

from ranker import cli, config


def _call():
    from ranker.training.evaluation import evaluate

    return evaluate


if __name__ == "__main__":
    cli.main(config.Evaluate, _call, "Measures systems on held-out queries.")
