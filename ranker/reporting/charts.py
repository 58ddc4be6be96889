"""Charts as SVG text, coloured by the page's style sheet, so that they suit its theme.

Every text that comes from outside is escaped. A chart fills its container; the sizes
here are those of the containers on a desktop, so that letters come out as set.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_PAGE, _HALF, _CARD = 1000, 480, 320  # widths, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 40
GREY = 5  # of these, what is not significant
COLOURS = 10  # the style sheet's classes c0, c1, ... go round after so many


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or not."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """Maps values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values, about `count` of them.

    >>> ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    span = (high - low) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _bounds(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    pad = (high - low) * margin or max(abs(high), 1.0) * margin
    return low - pad, high + pad


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.6g}"


def _svg(body: Sequence[str], label: str, width: int, height: int) -> str:
    kind = ' class="page"' if width == _PAGE else ""
    return (
        f'<svg{kind} viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(body) + "</svg>"
    )


def _axes(
    x: Axis,
    y: Axis,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
) -> list[str]:
    left, right, bottom = x.start, x.end, y.start
    parts = []
    for value in y_ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value)}" '
            f'y2="{y(value)}"/><text class="tick" x="{left - 8}" y="{y(value) + 4}" '
            f'text-anchor="end">{_number(value)}</text>'
        )
    for value in x_ticks:
        parts.append(
            f'<text class="tick" x="{x(value)}" y="{bottom + 16}" '
            f'text-anchor="middle">{_number(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="label" x="{(left + right) / 2}" y="{bottom + 33}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    if y_label:
        middle = (y.start + y.end) / 2
        parts.append(
            f'<text class="label" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
    return parts


def _frame(
    xs: Sequence[float],
    ys: Sequence[float],
    x_label: str,
    y_label: str,
    width: int,
    height: int,
) -> tuple[Axis, Axis, list[str]]:
    x = Axis(*_bounds(xs, 0.02), _LEFT, width - _RIGHT)
    y = Axis(*_bounds(ys), height - _BOTTOM, _TOP)
    return (
        x,
        y,
        _axes(
            x,
            y,
            x_label,
            y_label,
            ticks(x.low, x.high, width // 60),
            ticks(y.low, y.high),
        ),
    )


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Curves over steps."""
    xs = [value for one in series for value in one.x]
    ys = [value for one in series for value in one.y]
    x, y, body = _frame(xs, ys, x_label, y_label, _CARD, 220)
    for one in series:
        points = [
            (x(a), y(b)) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(b)
        ]
        if one.joined and len(points) > 1:
            path = " ".join(f"{a},{b}" for a, b in points)
            body.append(f'<polyline class="line c{one.colour}" points="{path}"/>')
        if not one.joined or len(points) < 30:
            body += [
                f'<circle class="dot c{one.colour}" cx="{a}" cy="{b}" r="3"/>'
                for a, b in points
            ]
    return _svg(body, f"{y_label} by {x_label}", _CARD, 220)


def scatter(
    x_values: np.ndarray,
    y_values: np.ndarray,
    line: tuple[float, float],
    x_label: str,
    y_label: str,
) -> str:
    """Points and a straight line, given by slope and intercept."""
    x, y, body = _frame(
        x_values.tolist(), y_values.tolist(), x_label, y_label, _HALF, 340
    )
    body += [
        f'<circle class="point c0" cx="{x(a)}" cy="{y(b)}" r="2.2"/>'
        for a, b in zip(x_values.tolist(), y_values.tolist(), strict=True)
    ]
    slope, intercept = line
    ends = [(value, slope * value + intercept) for value in (x.low, x.high)]
    clip = [(a, min(max(b, y.low), y.high)) for a, b in ends]
    if slope:  # cut the line at the frame instead of bending it
        clip = [((b - intercept) / slope, b) for _, b in clip]
    (a0, b0), (a1, b1) = clip
    body.append(
        f'<line class="fit" x1="{x(a0)}" y1="{y(b0)}" x2="{x(a1)}" y2="{y(b1)}"/>'
    )
    return _svg(body, f"{y_label} by {x_label}", _HALF, 340)


def histogram_chart(values: np.ndarray, label: str, colour: int, bins: int = 40) -> str:
    """How often values lie where."""
    counts, edges = np.histogram(values, bins=bins)
    height = 175
    x = Axis(*_bounds(values.tolist(), 0.02), _LEFT, _HALF - _RIGHT)
    y = Axis(0.0, float(counts.max(initial=1)) * 1.05, height - _BOTTOM, _TOP)
    body = _axes(x, y, label, "", ticks(x.low, x.high, 6), ticks(0, y.high, 3))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        top = y(float(count))
        body.append(
            f'<rect class="bar c{colour}" x="{x(low)}" y="{top}" '
            f'width="{max(x(high) - x(low) - 0.8, 0.5):.1f}" '
            f'height="{y.start - top:.1f}">'
            f"<title>{low:.4g} to {high:.4g}: {count:,}</title></rect>"
        )
    return _svg(body, f"histogram of {label}", _HALF, height)


def bars(values: np.ndarray, label: str) -> str:
    """Values from the highest to the lowest, a bar each, around a line at zero."""
    ordered = np.sort(values)[::-1]
    height = 240
    x = Axis(0.0, float(max(len(ordered), 1)), _LEFT, _PAGE - _RIGHT)
    y = Axis(*_bounds([0.0, *ordered.tolist()]), height - _BOTTOM, _TOP)
    marks = ticks(0, len(ordered), 8)
    body = _axes(x, y, "queries", label, marks, ticks(y.low, y.high, 4))
    wide = max(x(1.0) - x(0.0) - 0.4, 0.4)
    for at, value in enumerate(ordered.tolist()):
        top, foot = sorted((y(value), y(0.0)))
        body.append(
            f'<rect class="bar c{0 if value > 0 else 1}" x="{x(at)}" y="{top}" '
            f'width="{wide:.1f}" height="{max(foot - top, 0.3):.1f}"/>'
        )
    return _svg(body, f"{label} of each query", _PAGE, height)


@dataclass(frozen=True)
class Interval:
    """A difference and its interval, as a row of a forest plot."""

    name: str
    mean: float
    low: float
    high: float
    strong: bool


def forest(rows: Sequence[Interval], label: str) -> str:
    """Differences with their intervals around a line at zero."""
    ends = [0.0, *(one.low for one in rows), *(one.high for one in rows)]
    return _rows(
        [one.name for one in rows],
        ends,
        label,
        lambda at, x, y: (
            f'<line class="whisker c{0 if rows[at].strong else GREY}" '
            f'x1="{x(rows[at].low)}" '
            f'x2="{x(rows[at].high)}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot c{0 if rows[at].strong else GREY}" '
            f'cx="{x(rows[at].mean)}" cy="{y}" r="4.5">'
            f"<title>{rows[at].mean:+.4f} [{rows[at].low:+.4f}, {rows[at].high:+.4f}]"
            "</title></circle>"
        ),
        zero=True,
    )


def dots(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, int]]]], label: str
) -> str:
    """A row a slice, with a dot for each system: (name, value, colour)."""
    values = [value for _, systems in rows for _, value, _ in systems]

    def draw(at: int, x: Axis, y: float) -> str:
        known = [one for one in rows[at][1] if math.isfinite(one[1])]
        if not known:
            return ""
        reach = [x(value) for _, value, _ in known]
        return (
            f'<line class="grid" x1="{min(reach)}" x2="{max(reach)}" y1="{y}" '
            f'y2="{y}"/>'
        ) + "".join(
            f'<circle class="dot c{colour}" cx="{x(value)}" cy="{y}" r="5">'
            f"<title>{escape(name)}: {value:.4f}</title></circle>"
            for name, value, colour in known
        )

    return _rows([name for name, _ in rows], values, label, draw)


def _rows(
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    draw: Callable[[int, Axis, float], str],
    *,
    zero: bool = False,
) -> str:
    """Named rows over one axis."""
    left = min(240.0, 24 + 7.0 * max(len(name) for name in names))
    height = _TOP + 28 * len(names) + _BOTTOM
    x = Axis(*_bounds(values, 0.08), left, _PAGE - _RIGHT)
    bottom = height - _BOTTOM
    body = []
    for value in ticks(x.low, x.high, 8):
        body.append(
            f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{_TOP}" '
            f'y2="{bottom}"/><text class="tick" x="{x(value)}" y="{bottom + 16}" '
            f'text-anchor="middle">{_number(value)}</text>'
        )
    if zero:
        body.append(
            f'<line class="axis" x1="{x(0.0)}" x2="{x(0.0)}" y1="{_TOP}" '
            f'y2="{bottom}"/>'
        )
    for at, name in enumerate(names):
        y = _TOP + 28 * at + 14
        short = name if len(name) <= 31 else name[:30] + "…"
        body.append(
            f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">'
            f"{escape(short)}</text>{draw(at, x, y)}"
        )
    body.append(
        f'<text class="label" x="{(x.start + x.end) / 2}" y="{bottom + 33}" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return _svg(body, label, _PAGE, height)
