"""A spike is far above the average so far, and does not become part of it."""

from __future__ import annotations

import math

from sddit.runs.spikes import Spikes


def test_a_spike_is_seen_each_time() -> None:
    spikes = Spikes()
    assert [spikes.seen(norm) for norm in (1.0, 2.0, 3.0, 19.0)] == [0, 0, 0, 0]
    assert spikes.mean == 6.25
    assert [spikes.seen(norm) for norm in (63.0, 62.0, math.inf)] == [63 / 6.25, 0, math.inf]


def test_the_first_values_and_an_average_of_zero_are_no_measure() -> None:
    spikes = Spikes()
    assert [spikes.seen(norm) for norm in (1.0, 100.0, 1e4)] == [0, 0, 0]
    still = Spikes()
    assert [still.seen(0.0) for _ in range(4)] + [still.seen(5.0)] == [0] * 5
