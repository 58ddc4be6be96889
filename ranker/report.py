"""Writes one HTML page about a workdir: what ran, how it learned, and the results.

python -m ranker.report WORKDIR [--output FILE] [--against SYSTEM]
"""

import argparse
import pathlib

from ranker import cli


def _write(given: argparse.Namespace) -> None:
    from ranker.reporting import report

    report.write_report(given.workdir, output=given.output, against=given.against)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags and makes the call."""
    parser = argparse.ArgumentParser(
        prog="python -m ranker.report",
        description="Writes one self-contained HTML page about a workdir: learning "
        "curves, the table with intervals, slices, teacher against student, queries.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdir", type=pathlib.Path, metavar="WORKDIR", help="folder with all stages"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FILE",
        help="page to write; default WORKDIR/report.html",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="SYSTEM",
        help="system whose results are shown beside the reference's; default bm25",
    )
    given = parser.parse_args(arguments)
    cli.sentences(lambda: _write(given))


if __name__ == "__main__":
    main()
