"""Trains one stage: cpt, sft or distill.

python -m ranker.train --config configs/sft.py --workdir DIR [--config.FIELD=VALUE ...]

`--profile STEPS` traces so many steps into DIR/STAGE/profile, for xprof or TensorBoard.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from ranker import cli, config

_DESCRIPTION = "Trains one stage: cpt, sft or distill; --profile STEPS traces it."


def _call(profile: int):
    def load():
        from ranker.training.train import train

        return functools.partial(train, profile=profile)

    return load


def _steps(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps, such as 5")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the flags and trains."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", type=_steps, default=0, metavar="STEPS")
    given = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = parser.parse_known_args(given)
    cli.main(config.Train, _call(known.profile), _DESCRIPTION, rest)


if __name__ == "__main__":
    main()
