"""Check what holds for every numerical check."""

from __future__ import annotations

import contextlib

from sddit.interfaces import CheckContext, CheckSkipped
from sddit.testing.case import Case


def examine(case: Case) -> None:
    """Run a check as `sddit-run verify` does on the CPU. It may raise CheckSkipped for want of a file or device."""
    with case.trying("it measured"), contextlib.suppress(CheckSkipped):
        for found in case.component.load()(CheckContext(component=case.component)):
            bound = f"{found.relation} {found.tolerance:g}"
            case.expect(found.holds, f"a measurement fails: {found.what}", got=f"{found.value:g}", expect=bound)
