"""Check what holds for every tracker."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sddit.testing.kit import Case, Findings


def examine(case: Case, findings: Findings) -> None:
    """Log in two sittings, as a run that was stopped and continued does."""
    with tempfile.TemporaryDirectory() as folder:
        for sitting, first in (("a run", 1), ("a continued run", 2)):
            with findings.trying(f"{sitting} was logged"):
                tracker = case.build(folder=Path(folder))
                tracker.log(first, {"loss/denoise": 0.5, "lr": 1e-4})
                tracker.log(
                    first + 1, {"loss/denoise": 0.4, "lr": 1e-4, "grad_ratio/denoise": 1.0}
                )  # a number that comes later
                tracker.close()
