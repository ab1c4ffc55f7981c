"""Line charts as inline SVG: no scripts, no files, readable in print, in the dark and without colour vision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sddit.formatting import format_number
from sddit.interfaces import Monitor
from sddit.reports.rendering import render

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 30, 38  # margins around the plot
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")  # in the same order, a second way to distinguish lines
MAX_POINTS = 300
POINT_SPACING = 7  # pixels between single points at the same position, so that all are visible
LETTER = 6.4  # width of an average letter of the legend, pixels

ALONE = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" color="#1d2430" style="font-family:system-ui,sans-serif" '
)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A named line. Points that are not finite, or not positive on a log axis, leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()  # of a band around the line, as long as y; none: no band
    high: Sequence[float] = ()
    slot: int | None = None  # of the colours and dashes; None: its position in the chart


@dataclass(frozen=True, slots=True)
class Reference:
    """A level to compare with, such as ln K."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """A series in pixels, as the template draws it."""

    name: str
    colour: str
    dashes: str
    aside: float  # offset of a single point
    runs: list[list[Point]]  # without gaps
    band: list[Point]  # outline of the area between low and high; of a single point, the upper and the lower end


@dataclass(frozen=True, slots=True)
class Axis:
    """Map numbers to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def shows(self, value: float) -> bool:
        """Return whether a value can be drawn at all."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> list[float]:
        """Return round numbers inside the axis."""
        if self.log and self.high / self.low >= 10:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            multiples = (1, 2, 5) if len(decades) <= 4 else (1,)
            inside = [
                m * 10.0**n
                for n in decades
                for m in multiples
                if self.low <= m * 10.0**n * (1 + 1e-9) and m * 10.0**n <= self.high * (1 + 1e-9)
            ]
            return inside[:: -(-len(inside) // 7)]
        step = _round_step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    log_y: bool = False,
    references: Sequence[Reference] = (),
) -> Markup:
    """Return an `<svg>` element, safe to place in a page: every text is escaped."""
    are_points = bool(series) and all(len(one.x) == 1 for one in series)
    x = axis_over((v for s in series for v in s.x), LEFT, WIDTH - RIGHT, room=0.08 if are_points else 0)
    levels = [reference.y for reference in references]
    shown = (v for s in series for v in (*s.y, *s.low, *s.high))
    y = axis_over([*shown, *levels], HEIGHT - BOTTOM, TOP, log=log_y, room=0.06)
    spacing = POINT_SPACING if are_points else 0
    lines = [_draw(one, x, y, i, spacing * (i - (len(series) - 1) / 2)) for i, one in enumerate(series)]
    legend = list(_legend(lines)) if len(lines) > 1 else []
    return Markup(
        render(
            "chart.svg.j2",
            width=WIDTH,
            height=HEIGHT,
            height_with_legend=legend[-1][1] + 6 if legend else HEIGHT,
            left=LEFT,
            right=WIDTH - RIGHT,
            top=TOP,
            bottom=HEIGHT - BOTTOM,
            title=title,
            description="; ".join(map(_describe, series)),
            x=x,
            y=y,
            x_label=x_label,
            lines=lines,
            references=list(_labels(references, y)),
            legend=legend,
            path=_path,
        )
    )


def as_file(chart: Markup) -> str:
    """Return a chart as a standalone SVG file, dark on white; inside a page it has the colours of the page."""
    opening, inside = str(chart).split(">", 1)
    return f'{opening.replace("<svg ", ALONE, 1)}><rect width="100%" height="100%" fill="#fff"/>{inside}'


def title_of(chart: Markup) -> str:
    """Return the title of a chart."""
    return Markup(str(chart).partition("<title>")[2].partition("</title>")[0]).unescape()


def axis_over(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float) -> Axis:
    """Return an axis that holds all values that can be drawn, with a fraction `room` of free space at both ends."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = min(usable, default=1.0), max(usable, default=10.0)
    if log:
        low, high = (low / 2, high * 2) if low == high else (low, high)
        factor = (high / low) ** room
        return Axis(low / factor, high * factor, start, end, log)
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    return Axis(low - room * (high - low), high + room * (high - low), start, end, log)


def _round_step(rough: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def _labels(references: Sequence[Reference], y: Axis) -> Iterator[tuple[float, float, str]]:
    """Yield (pixel, baseline of its name, its name) of each level, downwards; names never overlap."""
    lowest = TOP - 16.0  # baseline of the last name
    for reference in sorted((r for r in references if y.shows(r.y)), key=lambda r: -r.y):
        at = y(reference.y)
        lowest = at - 4 if at - 4 >= lowest + 12 else max(at, lowest) + 12  # above its line, or below
        yield at, lowest, f"{reference.name} = {format_number(reference.y)}"


def _draw(one: Series, x: Axis, y: Axis, index: int, aside: float) -> DrawnLine:
    """Return a series in pixels, thinned to a few hundred points."""
    slot = index if one.slot is None else one.slot
    colour, again = slot % len(COLOURS), slot // len(COLOURS)  # colours come again, each time with other dashes
    runs: list[list[Point]] = [[]]
    for a, b in zip(one.x, one.y, strict=True):
        if x.shows(a) and y.shows(b):
            runs[-1].append((a, b))
        elif runs[-1]:
            runs.append([])
    band = zip(one.x, one.low, one.high, strict=True) if one.low else ()
    ends = [(a, b, c) for a, b, c in band if x.shows(a) and y.shows(b) and y.shows(c)]
    top, bottom = _thin([(a, c) for a, _, c in ends]), _thin([(a, b) for a, b, _ in ends])
    return DrawnLine(
        one.name,
        f"var(--line-{colour}, {COLOURS[colour]})",
        DASHES[(slot + again) % len(DASHES)],
        aside,
        [[(x(a), y(b)) for a, b in _thin(run)] for run in runs if run],
        [(x(a), y(b)) for a, b in (*top, *reversed(bottom))],
    )


def _path(points: Sequence[Point]) -> Markup:
    return Markup("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))


def _thin(run: list[Point]) -> list[Point]:
    """Return about `MAX_POINTS` points: the ends, and the extremes of each stretch, so that no spike is lost."""
    if len(run) <= MAX_POINTS:
        return run
    size = 2 * len(run) / MAX_POINTS
    kept = {run[0], run[-1]}
    for i in range(MAX_POINTS // 2):
        stretch = run[int(i * size) : int((i + 1) * size)]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def _legend(lines: Sequence[DrawnLine]) -> Iterator[tuple[float, float, DrawnLine]]:
    """Yield the position of each name below the plot."""
    across, down = float(LEFT), HEIGHT + 10
    for line in lines:
        width = 34 + LETTER * len(line.name)
        if across > LEFT and across + width > WIDTH:
            across, down = float(LEFT), down + 17
        yield across, down, line
        across += width + 10


def _describe(one: Series) -> str:
    """Describe a line for readers who cannot see it."""
    finite = [(a, b) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not finite:
        return f"{one.name}: nothing measured"
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    lowest, highest = min(y for _, y in finite), max(y for _, y in finite)
    return (
        f"{one.name}: from {format_number(y0)} at {format_number(x0)} to {format_number(y1)} at {format_number(x1)}, "
        f"lowest {format_number(lowest)}, highest {format_number(highest)}"
    )


def are_positive(series: Iterable[Series]) -> bool:
    """Return whether a log axis can show every value."""
    return all(value > 0 for one in series for value in one.y)


def levels(monitor: Monitor) -> list[Reference]:
    """Return the levels to read a curve against."""
    levels = {"reference": monitor.reference, "alarm below": monitor.low, "alarm above": monitor.high}
    return [Reference(name, level) for name, level in levels.items() if level is not None]
