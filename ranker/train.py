"""Trains one stage: cpt, sft or distill.

python -m ranker.train --config configs/sft.py --workdir DIR [--config.FIELD=VALUE ...]
"""

from ranker import cli, config


def _call():
    from ranker.training.train import train

    return train


if __name__ == "__main__":
    cli.main(config.Train, _call, "Trains one stage: cpt, sft or distill.")
