"""Prepares the data of a pipeline and reports on it, before you pay for a teacher.

    python -m ranker.prepare --config configs/beir.py --workdir runs/mine \
        --config.data.path=FOLDER

Writes WORKDIR/prepare: records, tokenizers, report.json, and the page report.html with
the same numbers and plots. `python -m ranker.run` does this first as well.

With --runner, Apache Beam applies the click rules: on this machine's cores, or on a
cluster. Flags that do not begin with --config go to Beam:

    python -m ranker.prepare --config ... --workdir runs/mine \
        --config.data.click_log=LOG \
        --runner=DirectRunner --direct_num_workers=4 \
        --direct_running_mode=multi_processing

--output names a folder that every worker can write to (a bucket, or one that they
share; by default below the workdir), --shards the number of files a split.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ranker import cli, config

PAGE = "report.html"
_OURS = ("--config", "--workdir", "--help")


def _call(beam: Sequence[str]):
    from ranker.data.prepare import prepare
    from ranker.data.summary import FILE
    from ranker.reporting import data_page
    from ranker.storage import read_json, writing

    def run(settings: config.Pipeline, workdir: pathlib.Path) -> None:
        engine = beam_engine(beam) if beam else None
        folder = prepare(
            settings.data, settings.reading, workdir, replace=True, engine=engine
        ).folder
        report = read_json(folder / FILE)
        with writing(folder / PAGE, "w") as file:
            file.write(data_page.render(str(workdir), report))
        print(f"[prepare] report: {folder / FILE}, {folder / PAGE}", flush=True)

    return run


def beam_engine(arguments: Sequence[str]) -> Any:
    """The click rules by Beam, from its flags and from --output and --shards.

    Raises:
      ConfigError: where Beam is not installed, or --shards is not a number.
    """
    try:
        from ranker.data.beam import make_engine
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise config.ConfigError(
            "--runner needs Apache Beam, which is not installed: "
            'pip install "ranker[beam]", in an environment of its own where other '
            "packages want newer protobuf or pyarrow"
        ) from error
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--output", default="")
    parser.add_argument("--shards", type=shard_count, default=0)
    known, options = parser.parse_known_args(arguments)
    return make_engine(options, output=known.output, shards=known.shards)


def shard_count(text: str) -> int:
    """The value of --shards.

    Raises:
      ConfigError: for anything but a whole number from 1 on.
    """
    if not text.isdecimal() or not int(text):
        raise config.ConfigError(f"--shards takes a number from 1 on, found {text!r}")
    return int(text)


def divide_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """This entry's own arguments, and Beam's: none unless --runner is among them."""
    if not any(one.partition("=")[0] == "--runner" for one in arguments):
        return list(arguments), []
    ours: list[str] = []
    beam: list[str] = []
    side = beam
    for one in arguments:
        if one.startswith("-"):  # values without a dash follow their flag
            side = ours if one.startswith((*_OURS, "-h")) else beam
        side.append(one)
    return ours, beam


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, and prepares."""
    ours, beam = divide_flags(sys.argv[1:] if arguments is None else arguments)
    cli.main(
        config.Pipeline,
        lambda: _call(beam),
        "Prepares the data of a pipeline and writes a report of what it holds.",
        ours,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
