"""Figures as PNG files, by matplotlib."""

import pathlib

import numpy as np

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
