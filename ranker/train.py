"""Trains one stage: cpt, sft or distill.

python -m ranker.train --config configs/sft.py --workdir DIR [--config.FIELD=VALUE ...]

`--profile STEPS` traces so many steps into DIR/STAGE/profile, for xprof or TensorBoard.
`--sweep FIELD=a,b,c` trains it once with each value, and prints one table; several of
them are every combination.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from ranker import cli, config
from ranker.config import sweep
from ranker.config.sweep import Trial

_DESCRIPTION = (
    "Trains one stage: cpt, sft or distill; --profile STEPS traces it, --sweep "
    "FIELD=a,b,c trains it with each value."
)


def _call(profile: int, trials: Sequence[Trial]):
    def load():
        if trials:
            from ranker.training.sweep import sweep

            def each(stages, workdir):
                pairs = list(zip(trials, stages, strict=True))
                sweep(pairs, workdir, profile=profile)

            return each
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
    parser.add_argument("--sweep", action="append", default=[], metavar="FIELD=A,B")
    given = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = parser.parse_known_args(given)

    def run() -> None:
        found = sweep.trials(known.sweep) if known.sweep else []
        cli.main(
            config.Train,
            _call(known.profile, found),
            _DESCRIPTION,
            rest,
            each=[one.flags for one in found],
        )

    cli.sentences(run)


if __name__ == "__main__":
    main()
