"""Measures how long ranking takes here, with other runtimes and smaller students too.

python -m ranker.latency FOLDER --candidates 100 --tokens 128 --budget-ms 10
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from ranker import cli, storage


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table; returns 0."""
    given = _parser().parse_args(arguments)

    def run() -> None:
        from ranker.serving import latency

        shapes = tuple(
            latency.parse_shape(one) for one in given.shapes.split(",") if one
        )
        trial = latency.LatencySettings(
            candidates=given.candidates,
            tokens=given.tokens,
            budget=given.budget_ms / 1e3,
            repeats=given.repeats,
            seconds=given.seconds,
            workers=given.workers,
            shapes=shapes,
        )
        found, rows = latency.time_requests(given.folder, trial), []
        print(latency.heading(trial), flush=True)
        for row in found:
            print(latency.line(row), flush=True)
            rows.append(row)
        if said := latency.note(given.folder, trial):
            print(said)
        if given.json:
            storage.write_json(given.json, [_fields(row) for row in rows])

    cli.sentences(run)
    return 0


def _fields(row: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(row)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ranker.latency",
        description="Measures how long one request takes in each runtime and precision "
        "of a folder on this machine, how many candidates fit into a time budget, and "
        "the same for students of other shapes (random weights) before you train them.",
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path, help="written by ranker.export or model.save")
    add("--candidates", type=int, default=100, help="per request (%(default)s)")
    add("--tokens", type=int, default=128, help="per pair (default %(default)s)")
    add("--budget-ms", type=float, default=10.0, help="time of a request (%(default)g)")
    add("--repeats", type=int, default=20, help="requests per row (%(default)s)")
    add("--seconds", type=float, default=10.0, help="limit per row (%(default)g)")
    add("--workers", type=int, default=0, help="threads; 0: one per core")
    add(
        "--shapes",
        default="2x128,2x384,4x384,6x384",
        help="other students, LAYERSxWIDTH (default %(default)s); empty: none",
    )
    add("--json", type=pathlib.Path, metavar="F", help="also write the rows to F")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
