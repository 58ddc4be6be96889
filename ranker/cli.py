"""What the entries share: flags in, one call, and errors as sentences."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ranker import config


def main(
    of: type,
    call: Callable[[], Callable[[Any, pathlib.Path], Any]],
    description: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses `--config FILE --workdir DIR --config.FIELD=VALUE ...` and makes one call.

    Args:
      of: config class that this entry takes.
      call: returns the function to call; imports it, so that `--help` need not wait for
        jax.
      description: of the entry, for `--help` without a config.
      arguments: command line; default `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=description, add_help=False, allow_abbrev=False
    )
    parser.add_argument("--config", help="config file, e.g. configs/sft.py[:variant]")
    parser.add_argument("--workdir", help="folder of all stages", type=pathlib.Path)
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        parser.print_help()
        print("\n--config FILE --help shows every field with its value and unit.")
        raise SystemExit(0 if "--help" in rest or "-h" in rest else 2)
    try:
        settings = config.load(known.config, rest, of=of)
        if known.workdir is None:
            raise config.ConfigError(
                "--workdir is missing: the folder that all stages write to, e.g. "
                "--workdir runs/first"
            )
        call()(settings, known.workdir)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        if not _is_ours(error):
            raise
        raise SystemExit(f"error: {error}") from None


def _is_ours(error: BaseException) -> bool:
    """True for errors whose message is a sentence for the user."""
    from ranker.data.records import DataError
    from ranker.manifest import StageError
    from ranker.models.families import ModelError

    ours = (config.ConfigError, DataError, StageError, ModelError, FloatingPointError)
    return isinstance(error, ours)
