"""What a run shows: plain lines now and then, or a live display; and nothing of torch."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sddit.progress import LiveProgress, PlainProgress, Progress, progress_on

ROW = {
    "loss": 1.0,
    "loss/denoise": 0.25,
    "loss/denoise@1": 9.0,
    "loss/agree": 6.0,
    "images_per_second": 1234.5,
    "lr": 1e-3,
}


class Clock:
    """Seconds that pass when reported."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainProgress, Clock, io.StringIO]:
    text, clock = io.StringIO(), Clock()
    return PlainProgress(Console(file=text, width=120), clock), clock, text


def test_a_plain_line_has_step_losses_speed_and_time_left():
    progress, clock, text = plain()
    progress.stage("training", total=100)
    clock.now += 2
    progress.advance(10, ROW)
    assert text.getvalue() == "training    10/100   denoise 0.25   agree 6   1,234 images/s   18 s left\n"


def test_plain_lines_come_now_and_then():
    progress, clock, text = plain()
    progress.stage("training", total=1000)
    for step in range(1, 101):
        clock.now += 1
        progress.advance(step, ROW)
    lines = text.getvalue().splitlines()
    assert 4 <= len(lines) <= 6  # of 1,000 s: one every 20 s


def test_a_long_stage_gets_a_line_every_fiftieth():
    progress, clock, text = plain()
    progress.stage("training", total=1000)
    for step in range(1, 1001):
        clock.now += 60
        progress.advance(step, ROW)
    assert 45 <= len(text.getvalue().splitlines()) <= 52


def test_time_left_counts_only_what_this_sitting_did():
    progress, clock, _ = plain()
    progress.stage("training", total=100, done=90)
    assert progress.remaining() is None
    clock.now += 10
    progress.advance(95)
    assert progress.remaining() == 10


def test_a_stage_ends_with_its_time_and_last_numbers():
    progress, clock, text = plain()
    with progress:
        progress.stage("training", total=10)
        clock.now += 75
        progress.advance(10, ROW)
        progress.stage("report")
        clock.now += 1
    last = text.getvalue().splitlines()[-2:]
    assert last == [
        "training    done in 1 min 15 s   denoise 0.25   agree 6   1,234 images/s",
        "report      done in 1 s",
    ]


def test_a_stage_that_fails_is_not_called_done():
    progress, _, text = plain()
    with pytest.raises(ValueError, match="x"), progress:
        progress.stage("training", total=10)
        raise ValueError("x")
    assert "done" not in text.getvalue()


def test_notes_and_warnings_stay_whole_and_harmless():
    progress, _, text = plain()
    progress.note("a [bold]name[/bold] " + "x" * 200 + "\x1b[2J")
    progress.warn("mind")
    assert text.getvalue().splitlines() == ["a [bold]name[/bold] " + "x" * 200 + "\\x1b[2J", "warning: mind"]


def test_the_live_display_shows_bar_losses_and_time_and_leaves_the_screen_in_order(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=True, width=80, height=20)
    with LiveProgress(console, clock) as progress:
        progress.stage("training", total=100)
        clock.now += 2
        progress.advance(10, ROW)
        progress.warn("mind")
        progress._live.refresh()
        shown = text.getvalue()
        progress.stage("sampling", total=4)
        progress.tick()
    for part in ("training", "10/100", "18 s left", "denoise 0.25   agree 6", "1,234 images/s", "warning: mind"):
        assert part in shown
    assert "done in 2 s" in text.getvalue()
    assert text.getvalue().count("\x1b[?25h") >= 1, "the cursor is back"


def test_the_display_suits_where_it_is_shown(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_on(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=True)), LiveProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=True)), PlainProgress)


def test_the_silent_one_takes_every_call():
    with Progress() as progress:
        progress.stage("training", total=2)
        progress.tick()
        progress.advance(2, ROW)
        progress.note("x")
    assert (progress.done, progress.folder) == (2, None)
