"""Trains one stage

    python -m ranker.train --config configs/train.py --workdir DIR [--config.FIELD=VALUE ...]
"""

from ranker import cli, config


def _call():
    from ranker. cpt, sft or distill. import training.loop:train

    return training.loop:train


if __name__ == "__main__":
    cli.main(config.Train, _call, "Trains one stage")
