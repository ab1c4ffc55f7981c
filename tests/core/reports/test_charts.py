"""Charts: what is drawn stands where it should, and every text is only text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from sddit.reports.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    POINT_SPACING,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Reference,
    Series,
    line_chart,
)

HOSTILE = """</script><img src=x onerror=1>"'{{7*7}}"""


def parse(chart: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def lines(chart: Markup) -> list[list[tuple[float, float]]]:
    """The pixels of the curves."""
    paths = [path.get("d", "") for path in parse(chart).iter("path") if path.get("stroke-linejoin")]
    return [[tuple(map(float, point.split())) for point in path[1:].split("L")] for path in paths]


def texts(chart: Markup) -> list[str]:
    return ["".join(text.itertext()) for text in parse(chart).iter("text")]


def test_a_line_fills_the_plot_and_rises_upwards():
    [points] = lines(line_chart("t", [Series("a", [0, 5, 10], [1, 2, 3])]))
    assert [x for x, _ in points] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    ys = [y for _, y in points]
    assert HEIGHT - BOTTOM > ys[0] > ys[1] > ys[2] > TOP
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def fills(chart: Markup) -> list[list[tuple[float, float]]]:
    """The pixels around the bands."""
    paths = [path.get("d", "") for path in parse(chart).iter("path") if path.get("fill-opacity")]
    return [[tuple(map(float, point.split())) for point in path[1:-1].split("L")] for path in paths]


def test_a_band_lies_around_its_line():
    chart = line_chart("t", [Series("a", [0, 5, 10], [1, 2, 3], [0, 1, 2], [2, 3, 4])])
    ([line], [band]) = lines(chart), fills(chart)
    top, bottom = band[:3], band[:2:-1]
    for (x, y), (above_x, above), (below_x, below) in zip(line, top, bottom, strict=True):
        assert above_x == below_x == x
        assert above < y < below  # pixels grow downwards
        assert y - above == pytest.approx(below - y, abs=0.11)
    assert fills(line_chart("t", [Series("a", [0, 5, 10], [1, 2, 3])])) == []


def test_a_band_that_is_not_finite_leaves_the_rest():
    [band] = fills(line_chart("t", [Series("a", [0, 5, 10], [1, 2, 3], [0, math.nan, 2], [2, math.nan, 4])]))
    assert len(band) == 4


def test_points_at_one_place_stand_next_to_each_other():
    chart = line_chart("t", [Series(name, [60], [1], [0.5], [1.5]) for name in "abc"])
    xs = [float(circle.get("cx", "")) for circle in parse(chart).iter("circle")]
    assert xs[1] - xs[0] == xs[2] - xs[1] == POINT_SPACING
    apart = line_chart("t", [Series("a", [60], [1]), Series("b", [50, 60], [1, 2])])
    assert [float(circle.get("cx", "")) for circle in parse(apart).iter("circle")] == [WIDTH - RIGHT]


def test_a_series_keeps_its_colour_and_no_two_of_twelve_look_alike():
    chart = line_chart("t", [Series(str(i), [0, 1], [i, i + 1]) for i in range(12)])
    drawn = [path for path in parse(chart).iter("path") if path.get("stroke-linejoin")]
    looks = [(path.get("style"), path.get("stroke-dasharray")) for path in drawn]
    assert len(set(looks)) == 12
    later = line_chart("t", [Series("7", [0, 1], [0, 1], slot=7)])
    [one] = [path for path in parse(later).iter("path") if path.get("stroke-linejoin")]
    assert (one.get("style"), one.get("stroke-dasharray")) == looks[7]


def test_a_log_axis_spaces_decades_evenly_and_leaves_out_what_has_no_logarithm():
    chart = line_chart("t", [Series("a", [1, 2, 3, 4], [1e-3, 1e-1, 1e1, 1e3])], log_y=True)
    [points] = lines(chart)
    assert points[0][1] - points[1][1] == pytest.approx(points[2][1] - points[3][1], abs=0.11)
    runs = lines(line_chart("t", [Series("a", [1, 2, 3, 4, 5], [1, 2, 0, 4, 5])], log_y=True))
    assert [len(run) for run in runs] == [2, 2]


def test_values_that_are_not_numbers_leave_a_gap():
    chart = line_chart("t", [Series("a", [0, 1, 2, 3, 4, 5], [1, 2, math.nan, 3, math.inf, 4])])
    assert [len(run) for run in lines(chart)] == [2, 1, 1]
    assert len(list(parse(chart).iter("circle"))) == 2  # a lone point is a dot, not nothing
    assert "nan" not in chart
    assert "inf" not in chart


@pytest.mark.parametrize("y", [[], [math.nan], [0.0], [5.0, 5.0], [1e300, -1e300], [1e-320, 0.0]])
@pytest.mark.parametrize("log", [False, True])
def test_odd_values_still_give_a_chart(y, log):
    chart = line_chart("t", [Series("a", list(range(len(y))), y)], log_y=log)
    assert "nan" not in re.sub("<desc>.*?</desc>", "", chart)
    drawn = any(math.isfinite(v) and (v > 0 or not log) for v in y)
    assert ("nothing measured" in texts(chart)) != drawn


def test_long_series_are_thinned_but_keep_their_spikes_and_ends():
    y = [math.sin(i / 500) for i in range(20_000)]
    y[12_345] = 9.0
    [points] = lines(line_chart("t", [Series("a", range(20_000), y)]))
    assert MAX_POINTS / 2 < len(points) <= MAX_POINTS + 2
    peak = min(points, key=lambda p: p[1])
    [whole] = lines(line_chart("t", [Series("a", [0, 12_345, 19_999], [y[0], 9.0, -1.0])]))
    assert peak == pytest.approx(whole[1], abs=0.2)
    assert [points[0][0], points[-1][0]] == [LEFT, WIDTH - RIGHT]


def test_lines_can_be_distinguished_without_colour():
    series = [Series(f"series {i}", [0, 1], [i, i + 1]) for i in range(6)]
    chart = line_chart("t", series)
    drawn = [p for p in parse(chart).iter("path") if p.get("stroke-linejoin")]
    assert len({p.get("style") for p in drawn}) == len({p.get("stroke-dasharray") for p in drawn}) == 6
    assert {f"series {i}" for i in range(6)} <= set(texts(chart))
    lowest = max(float(t.get("y")) for t in parse(chart).iter("text"))
    assert lowest < float(parse(chart).get("viewBox").split()[3])  # the legend is inside the image


def test_references_are_drawn_inside_and_named():
    chart = line_chart("t", [Series("a", [0, 1], [1, 2])], references=[Reference("ln K", 6.24), Reference("low", 6.2)])
    assert {"ln K = 6.24", "low = 6.2"} <= set(texts(chart))
    heights = [float(t.get("y")) for t in parse(chart).iter("text") if "=" in (t.text or "")]
    assert abs(heights[0] - heights[1]) >= 12
    assert all(y > TOP for run in lines(chart) for _, y in run)


def test_alternative_text_describes_the_curve():
    chart = parse(line_chart("Entropy", [Series("teacher", [0, 10], [6.2, 1.5])]))
    assert chart.get("role") == "img"
    assert chart.findtext("title") == "Entropy"
    assert chart.findtext("desc") == "teacher: from 6.2 at 0 to 1.5 at 10, lowest 1.5, highest 6.2"


def test_every_text_is_only_text():
    def chart(text: str) -> Markup:
        series = [Series(text, [0, 1], [1, 2]), Series("b", [0, 1], [1, 2])]
        return line_chart(text, series, x_label=text, references=[Reference(text, 1.5)])

    tags = [element.tag for element in parse(chart(HOSTILE)).iter()]
    assert tags == [element.tag for element in parse(chart("x")).iter()]
    assert texts(chart(HOSTILE)).count(HOSTILE) == 3
    assert "\u202e" not in chart("\u202e")


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (-1, 1, False, [-1, -0.5, 0, 0.5, 1]),
        (1, 1e4, True, [1, 10, 100, 1000, 10000]),
        (1, 20, True, [1, 2, 5, 10, 20]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert Axis(low, high, 0, 1, log).ticks() == pytest.approx(expected)
