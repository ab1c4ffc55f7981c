"""A gradient spike is far above the average so far, and is not averaged itself."""

from __future__ import annotations

import math

from sddit.runs.callbacks import GradientSpikes


def test_each_spike_is_noticed() -> None:
    spikes = GradientSpikes()
    assert [spikes.observe(norm) for norm in (1.0, 2.0, 3.0, 19.0)] == [0, 0, 0, 0]
    assert spikes.mean == 6.25
    assert [spikes.observe(norm) for norm in (63.0, 62.0, math.inf)] == [63 / 6.25, 0, math.inf]


def test_the_first_values_and_an_average_of_zero_give_no_spike() -> None:
    spikes = GradientSpikes()
    assert [spikes.observe(norm) for norm in (1.0, 100.0, 1e4)] == [0, 0, 0]
    still = GradientSpikes()
    assert [still.observe(0.0) for _ in range(4)] + [still.observe(5.0)] == [0] * 5
