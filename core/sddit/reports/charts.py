"""Line charts as inline SVG: no scripts, no files, readable in print, in the dark and without colour vision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sddit.errors import printable
from sddit.formatting import format_number
from sddit.interfaces import Monitor

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
    slot: int | None = None  # of the colours and dashes; None: by its place in the chart


@dataclass(frozen=True, slots=True)
class Reference:
    """A level to compare with, such as ln K."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers to pixels."""

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
        """Round numbers inside the axis."""
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
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    references: Sequence[Reference] = (),
) -> Markup:
    """Return an `<svg>` element, safe to place in a page: every text is escaped."""
    room = 0.08 if _are_points(series) else 0
    x = _axis((v for s in series for v in s.x), LEFT, WIDTH - RIGHT, log_x, room)
    levels = [reference.y for reference in references]
    shown = (v for s in series for v in (*s.y, *s.low, *s.high))
    y = _axis([*shown, *levels], HEIGHT - BOTTOM, TOP, log_y, room=0.06)
    parts = [*_frame(x, y, x_label, y_label)]
    slots = [i if one.slot is None else one.slot for i, one in enumerate(series)]
    aside = _aside(series)
    for one, slot, by in zip(series, slots, aside, strict=True):
        parts += _band(one, x, y, slot, by)
    for one, slot, by in zip(series, slots, aside, strict=True):
        parts += _line(one, x, y, slot, by)
    parts += _levels(references, y)
    if not any(_points(one, x, y) for one in series):
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2, "nothing measured", "middle"))
    legend, extra = _legend(series, slots) if len(series) > 1 else ([], 0)
    description = "; ".join(_describe(one) for one in series)
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {width} {height}" font-size="11" font-family="inherit" '
        'fill="currentColor">'
        "<title>{title}</title><desc>{description}</desc>{heading}{body}</svg>"
    ).format(
        width=WIDTH,
        height=HEIGHT + extra,
        title=printable(title),
        description=printable(description),
        heading=_text(LEFT - 44, 15, title, "start", weight="600", size=12.5),
        body=Markup("").join([*parts, *legend]),
    )


def as_file(chart: Markup) -> str:
    """Return a chart as the text of an SVG file of its own, dark on white wherever it is shown; within a page it takes
    the page's.
    """
    opening, inside = str(chart).split(">", 1)
    return f'{opening.replace("<svg ", ALONE, 1)}><rect width="100%" height="100%" fill="#fff"/>{inside}'


def title_of(chart: Markup) -> str:
    """Return the title of a chart."""
    return Markup(str(chart).partition("<title>")[2].partition("</title>")[0]).unescape()


def _axis(values: Iterable[float], start: float, end: float, log: bool, room: float) -> Axis:
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


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[Markup]:
    """Grid lines, tick labels and axis labels."""
    for tick in y.ticks():
        yield Markup('<path d="M{} {:.1f}H{}" stroke="currentColor" stroke-opacity=".13"/>').format(
            LEFT, y(tick), WIDTH - RIGHT
        )
        yield _text(LEFT - 6, y(tick) + 3.5, format_number(tick), "end", opacity=0.75)
    yield Markup('<path d="M{} {}H{}" stroke="currentColor" stroke-opacity=".5"/>').format(
        LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT
    )
    for tick in x.ticks():
        yield Markup('<path d="M{:.1f} {}v4" stroke="currentColor" stroke-opacity=".5"/>').format(
            x(tick), HEIGHT - BOTTOM
        )
        yield _text(x(tick), HEIGHT - BOTTOM + 16, format_number(tick), "middle", opacity=0.75)
    yield _text(WIDTH - RIGHT, HEIGHT - 6, x_label, "end", opacity=0.75)
    if y_label:
        yield _text(LEFT - 44, HEIGHT - 6, y_label, "start", opacity=0.75)


def _levels(references: Sequence[Reference], y: Axis) -> Iterator[Markup]:
    """Dotted lines across the plot, their names at the right, never on each other."""
    lowest = TOP - 16.0  # baseline of the last name, going down
    for reference in sorted((r for r in references if y.shows(r.y)), key=lambda r: -r.y):
        at = y(reference.y)
        yield Markup(
            '<path d="M{} {:.1f}H{}" stroke="currentColor" stroke-opacity=".6" stroke-dasharray="1 3" '
            'stroke-width="1.3"/>'
        ).format(LEFT, at, WIDTH - RIGHT)
        lowest = at - 4 if at - 4 >= lowest + 12 else max(at, lowest) + 12  # above its line, or below
        label = f"{reference.name} = {format_number(reference.y)}"
        yield Markup('<g style="paint-order:stroke;stroke:var(--card, #fff);stroke-width:3px">{}</g>').format(
            _text(WIDTH - RIGHT - 2, lowest, label, "end", opacity=0.8)
        )


def _are_points(series: Sequence[Series]) -> bool:
    """Return whether each is a single point rather than a line."""
    return bool(series) and all(len(one.x) == 1 for one in series)


def _aside(series: Sequence[Series]) -> list[float]:
    """By how many pixels each series stands aside: lines by none."""
    apart = POINT_SPACING if _are_points(series) else 0
    return [apart * (i - (len(series) - 1) / 2) for i in range(len(series))]


def _line(one: Series, x: Axis, y: Axis, index: int, aside: float) -> Iterator[Markup]:
    for run in _points(one, x, y):
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in run)
        yield Markup('<path d="{}" fill="none" stroke-linejoin="round" stroke-linecap="round" {}/>').format(
            path, _stroke(index)
        )
        if len(run) == 1:
            yield Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" style="fill:{}"/>').format(
                x(run[0][0]) + aside, y(run[0][1]), _colour(index)
            )


def _band(one: Series, x: Axis, y: Axis, index: int, aside: float) -> Iterator[Markup]:
    """Draw the area between low and high; for a single point a vertical line."""
    band = zip(one.x, one.low, one.high, strict=True) if one.low else ()
    shown = [(a, b, c) for a, b, c in band if x.shows(a) and y.shows(b) and y.shows(c)]
    if len(shown) == 1:
        (a, b, c), stroke = shown[0], _stroke(index, dashed=False)
        yield Markup('<path d="M{:.1f} {:.1f}V{:.1f}" fill="none" {}/>').format(x(a) + aside, y(b), y(c), stroke)
    elif shown:
        top, bottom = _thin([(a, c) for a, _, c in shown]), _thin([(a, b) for a, b, _ in shown])
        path = "L".join(f"{x(a):.1f} {y(v):.1f}" for a, v in (*top, *reversed(bottom)))
        yield Markup('<path d="M{}Z" fill-opacity=".15" style="fill:{}"/>').format(path, _colour(index))


def _colour(index: int) -> Markup:
    slot = index % len(COLOURS)
    return Markup("var(--line-{}, {})").format(slot, COLOURS[slot])


def _stroke(index: int, *, dashed: bool = True) -> Markup:
    """Colours come again after six lines, each time with other dashes."""
    dashes = DASHES[(index + index // len(COLOURS)) % len(DASHES)] if dashed else ""
    return Markup('style="stroke:{}" stroke-width="1.7" stroke-dasharray="{}"').format(_colour(index), dashes)


def _points(one: Series, x: Axis, y: Axis) -> list[list[Point]]:
    """Unbroken runs of points that can be drawn, thinned to a few hundred."""
    runs: list[list[Point]] = [[]]
    for a, b in zip(one.x, one.y, strict=True):
        if x.shows(a) and y.shows(b):
            runs[-1].append((a, b))
        elif runs[-1]:
            runs.append([])
    return [_thin(run) for run in runs if run]


def _thin(run: list[Point]) -> list[Point]:
    """At most about `MAX_POINTS` points: the ends, and lowest and highest of each stretch, so that no spike is lost."""
    if len(run) <= MAX_POINTS:
        return run
    size = 2 * len(run) / MAX_POINTS
    kept = {run[0], run[-1]}
    for i in range(MAX_POINTS // 2):
        stretch = run[int(i * size) : int((i + 1) * size)]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def _legend(series: Sequence[Series], slots: Sequence[int]) -> tuple[list[Markup], int]:
    """Line samples with names below the plot, and the height they take."""
    parts: list[Markup] = []
    across, down = float(LEFT), HEIGHT + 10
    for one, slot in zip(series, slots, strict=True):
        width = 34 + LETTER * len(one.name)
        if across > LEFT and across + width > WIDTH:
            across, down = float(LEFT), down + 17
        parts.append(Markup('<path d="M{:.1f} {}h22" fill="none" {}/>').format(across, down - 4, _stroke(slot)))
        parts.append(_text(across + 27, down, one.name, "start"))
        across += width + 10
    return parts, down + 6 - HEIGHT


def _text(
    x: float, y: float, text: str, anchor: str, *, weight: str = "400", size: float = 11, opacity: float = 1
) -> Markup:
    return Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-weight="{}" font-size="{}" fill-opacity="{}">{}</text>'
    ).format(x, y, anchor, weight, size, opacity, printable(text))


def _describe(one: Series) -> str:
    """Describe a line to a reader who cannot see it."""
    finite = [(a, b) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not finite:
        return f"{one.name}: nothing measured"
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    lowest, highest = min(y for _, y in finite), max(y for _, y in finite)
    return (
        f"{one.name}: from {format_number(y0)} at {format_number(x0)} to {format_number(y1)} at {format_number(x1)}, "
        f"lowest {format_number(lowest)}, highest {format_number(highest)}"
    )


def levels(monitor: Monitor) -> list[Reference]:
    """Return the levels to read a curve against."""
    levels = {"reference": monitor.reference, "alarm below": monitor.low, "alarm above": monitor.high}
    return [Reference(name, level) for name, level in levels.items() if level is not None]
