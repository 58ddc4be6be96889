"""Checks that an exported ranker still scores as its contract says.

python -m ranker.check FOLDER [--against OTHER] [--scores FILE]
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from ranker import cli

_TOLERANCE = 1e-2


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what each reader found; returns 1 where scores differ, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m ranker.check",
        description="Scores the golden pairs of an exported ranker again, with this "
        "package and with transformers if torch is installed, and names the likely "
        "cause of a difference. Exits with 1 if a score differs.",
    )
    parser.add_argument("folder", type=pathlib.Path, help="written by ranker.export")
    parser.add_argument(
        "--against",
        type=pathlib.Path,
        metavar="OTHER",
        help="also score the pairs with this folder, such as a copy that is served",
    )
    parser.add_argument(
        "--scores",
        type=pathlib.Path,
        metavar="FILE",
        help="also compare a server's scores: a JSON list in the order of the pairs",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=_TOLERANCE,
        help="allowed difference, in standard deviations of the scores (default "
        "%(default)g)",
    )
    given = parser.parse_args(arguments)

    equal = False

    def run() -> None:
        nonlocal equal
        equal = _check(given)

    cli.sentences(run, where=given.folder)
    return 0 if equal else 1


def _check(given: Any) -> bool:
    from ranker.serving import checking, contract, readers

    promise = contract.load_contract(given.folder)
    served = _read_scores(given.scores, len(promise.golden)) if given.scores else None
    print(
        f"{given.folder}: {len(promise.golden)} golden pairs of {promise.stage!r}, "
        f"exported by {promise.made_by}"
    )
    equal = True
    for folder in [given.folder, *([given.against] if given.against else [])]:
        if given.against:
            print(f"scores of {folder}:")
        for result in checking.check(folder, promise, tolerance=given.tolerance):
            equal &= _print(result, promise)
    if not readers.has_torch():
        print("transformers: not checked, torch is not installed")
    if served is not None:
        reader = readers.best_reader(given.folder, promise)
        result = checking.judge_scores(
            reader, promise, None, served, tolerance=given.tolerance
        )
        equal &= _print(result, promise, name=str(given.scores))
    return equal


def _read_scores(path: pathlib.Path, count: int) -> Any:
    import json

    import numpy as np

    from ranker.errors import ContractError

    try:
        found = np.asarray(json.loads(path.read_text()), np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ContractError(f"{path}: no JSON list of scores ({error})") from error
    if found.shape != (count,):
        raise ContractError(
            f"{path}: expected a list of {count} scores, one for each golden pair, "
            f"found the shape {found.shape}"
        )
    return found


def _print(result: Any, promise: Any, name: str = "") -> bool:
    total = len(promise.golden)
    print(
        f"{name or result.reader}: {result.equal} of {total} equal, largest difference "
        f"{result.largest:.2g}"
    )
    if result.first is None:
        return True
    golden = promise.golden[result.first]
    print(
        f"  first difference: pair {result.first} ({golden.kind}), query "
        f"{golden.query[:60]!r}: expected {golden.score:.5f}, found "
        f"{result.found[result.first]:.5f}"
    )
    print(f"  likely cause: {result.cause.name}: {result.cause.sentence}")
    return False


if __name__ == "__main__":
    raise SystemExit(main())
