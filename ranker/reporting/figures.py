"""Figures as PNG files, by matplotlib."""

import pathlib
from collections.abc import Sequence

import numpy as np

from ranker.reporting.charts import Interval

MISSING = (
    "matplotlib is not installed, so no PNG file is written; pip install "
    "'ranker[report]' brings it"
)
_POINTS = 5_000  # of a scatter, drawn at random where there are more


def sample(
    teacher: np.ndarray, student: np.ndarray, points: int = _POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most so many of the pairs, the same ones each time."""
    if len(teacher) <= points:
        return teacher, student
    chosen = np.random.default_rng(0).choice(len(teacher), points, replace=False)
    return teacher[chosen], student[chosen]


def write_calibration(
    path: pathlib.Path,
    teacher: np.ndarray,
    student: np.ndarray,
    *,
    names: tuple[str, str],
    line: tuple[float, float],
) -> None:
    """Draws a student's scores over its teacher's, and how both are distributed.

    Args:
      path: PNG file.
      teacher: scores [N].
      student: scores of the same documents [N].
      names: of the teacher and the student.
      line: slope and intercept of the least-squares line.

    Raises:
      ImportError: without matplotlib.
    """
    # A figure of its own, without pyplot: no window, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=140, layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    ends = np.array([teacher.min(), teacher.max()])
    axes[0].scatter(*sample(teacher, student), s=5, alpha=0.35, linewidths=0)
    axes[0].plot(ends, line[0] * ends + line[1], color="tab:red", linewidth=1.4)
    axes[0].set_title(f"{names[1]} = {line[0]:.3g} x {names[0]} {line[1]:+.3g}")
    axes[0].set_xlabel(f"{names[0]} (teacher)")
    axes[0].set_ylabel(f"{names[1]} (student)")
    for at, (name, scores) in enumerate(zip(names, (teacher, student), strict=True), 1):
        axes[at].hist(scores, bins=50, color=f"C{at}")
        axes[at].set_xlabel(f"scores of {name}")
        axes[at].set_ylabel("documents")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_intervals(
    path: pathlib.Path, rows: Sequence[Interval], label: str, *, zero: bool = True
) -> None:
    """Draws values with their intervals, a row each, the first at the top.

    Args:
      path: PNG file.
      rows: `strong` ones stand out.
      label: of the axis.
      zero: draws a line at zero, for differences.

    Raises:
      ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    height = 1.1 + 0.34 * len(rows)
    figure = Figure(figsize=(7.5, height), dpi=140, layout="constrained")
    axes = figure.subplots()
    for at, one in enumerate(rows):
        colour = "tab:blue" if one.strong else "0.5"
        axes.plot([one.low, one.high], [at, at], color=colour, linewidth=2)
        axes.plot(one.mean, at, "o", color=colour, markersize=6)
    if zero:
        axes.axvline(0.0, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [one.name for one in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
