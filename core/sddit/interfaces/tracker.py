"""Define the contract of a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sddit.interfaces.params import Params


class TrackerParams(Params):
    """Settings of a tracker."""


class Tracker(Protocol):
    """Send metrics elsewhere, in addition to the run's own log."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
