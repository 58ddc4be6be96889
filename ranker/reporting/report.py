"""The report of a workdir: the page, and the figures beside it."""

import importlib.util
import pathlib

from ranker.errors import ConfigError
from ranker.reporting import figures, page, workdir
from ranker.storage import writing


def write_report(
    folder: pathlib.Path, *, output: pathlib.Path | None = None, against: str = ""
) -> pathlib.Path:
    """Writes the page, and a PNG of each student beside its teacher in FOLDER/report.

    Args:
      folder: workdir.
      output: the page; None: FOLDER/report.html.
      against: system whose answers are shown beside the reference's; empty: bm25.

    Returns:
      The page's path.

    Raises:
      StageError, DataError, ConfigError: with what is wrong and what to do.
    """
    contents = workdir.read_workdir(folder, against=against)
    output = output or folder / "report.html"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with writing(output, "w") as file:
            file.write(page.render(contents))
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error
    for line in contents.missing:
        print(f"note: {line}")
    print(output)
    if contents.calibrations and not importlib.util.find_spec("matplotlib"):
        print(f"note: {figures.MISSING}")
        return output
    for one in contents.calibrations:
        path = folder / "report" / f"calibration_{one.student}.png"
        figures.write_calibration(
            path,
            one.teacher_scores,
            one.student_scores,
            names=(one.teacher, one.student),
            line=(one.found.slope, one.found.intercept),
        )
        print(path)
    return output
