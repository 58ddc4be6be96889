"""Prepares the data of a pipeline, and tells what it holds, before a teacher is paid.

    python -m ranker.prepare --config configs/beir.py --workdir runs/mine \
        --config.data.path=FOLDER

Writes WORKDIR/prepare: records, tokenizers, report.json, and the page report.html with
the same numbers and plots. `python -m ranker.run` does this first as well.
"""

import pathlib
import sys

from ranker import cli, config

PAGE = "report.html"


def _call():
    from ranker.data.prepare import prepare
    from ranker.data.summary import FILE
    from ranker.reporting import data_page
    from ranker.storage import read_json, writing

    def run(settings: config.Pipeline, workdir: pathlib.Path) -> None:
        folder = prepare(settings.data, settings.reading, workdir, replace=True).folder
        report = read_json(folder / FILE)
        with writing(folder / PAGE, "w") as file:
            file.write(data_page.render(str(workdir), report))
        print(f"[prepare] report: {folder / FILE}, {folder / PAGE}", flush=True)

    return run


def main(arguments=None) -> None:
    """Parses the command line, and prepares."""
    cli.main(
        config.Pipeline,
        _call,
        "Prepares the data of a pipeline and writes a report of what it holds.",
        arguments,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
