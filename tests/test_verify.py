"""Test `sddit-run verify` with all built-in plugins."""

from __future__ import annotations

import contextlib

import pytest

from sddit.interfaces import CheckContext, CheckSkipped, Measurement
from sddit.plugins.host import host
from sddit.verify import shipped_recipes, verify
from sddit.verify.published import folders


def test_no_shipped_recipe_sees_its_target() -> None:
    """Test those of small networks, with the detector that `core/verify/test_leak_detector.py` tests."""
    found: list[Measurement] = []
    with contextlib.suppress(CheckSkipped):  # the data of large recipes
        found.extend(shipped_recipes.leaks(CheckContext()))
    assert [m.what for m in found if not m.holds] == []
    assert len({m.what.partition(":")[0] for m in found}) > 3


def test_every_check_of_a_component_can_be_loaded() -> None:
    checked = [c for registry in host().registries.all().values() for c in registry if c.checks]
    assert checked
    assert all(callable(check.load()) for check in host().registries.checks)
    for component in checked:
        for name, path in component.checks:
            module, _, function = path.partition(":")
            plugin = component.load().__module__.partition(".")[0]
            assert module.startswith(f"{plugin}.") and module.endswith("checks"), f"{component.qualified}: {name}"
            assert function.isidentifier()


@pytest.mark.slow
def test_every_quick_check_holds() -> None:
    rows = list(verify(CheckContext(fixtures=folders(None))))
    assert [(row.of, row.check, row.measurement, row.reason) for row in rows if row.verdict == "FAIL"] == []
    assert sum(row.verdict == "pass" for row in rows) > 100
