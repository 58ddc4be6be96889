"""Scores unlabelled pairs with the teacher.

python -m ranker.score --config configs/score.py --workdir DIR [--config.FIELD=VALUE
...]
"""

from ranker import cli, config


def _call():
    from ranker.training.teacher import score

    return score


if __name__ == "__main__":
    cli.main(config.Score, _call, "Scores unlabelled pairs with the teacher.")
