"""Check what holds for every tracker."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sddit.testing.case import Case


def examine(case: Case) -> None:
    """Log a run that is stopped and continued."""
    with tempfile.TemporaryDirectory() as folder:
        for run, first in (("a run", 1), ("a continued run", 2)):
            with case.trying(f"{run} was logged"):
                tracker = case.build(folder=Path(folder))
                values = {"loss/denoise": 0.5, "lr": 1e-4}
                tracker.log(first, values)
                tracker.log(first + 1, {**values, "grad_ratio/denoise": 1.0})  # a key that appears later
                tracker.close()
