"""Notice a gradient that is suddenly far longer than it was: often the first sign of a run that goes astray."""

from __future__ import annotations

import math

from sddit.evaluation.monitors import GRADIENT_SPIKE

FIRST = 3
"""Values before there is an average worth the name."""


class Spikes:
    """The average of what it has seen in this sitting, without the spikes themselves."""

    def __init__(self) -> None:
        self.mean, self.count = 0.0, 0

    def seen(self, norm: float) -> float:
        """How many times its average a spike is; 0 for what is none."""
        if self.count >= FIRST and norm > GRADIENT_SPIKE * self.mean > 0:
            return norm / self.mean
        if math.isfinite(norm):
            self.count += 1
            self.mean += (norm - self.mean) / self.count
        return 0.0
