"""docs/reliability.md is rendered from docs/reliability.json; its tool reads figures, counts and bounds correctly."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "tools" / "reliability.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["reliability"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "reliability.json").read_text(encoding="utf-8"))
    return found


MADE_UP = {
    "figures": {"kills": 1000, "checkpoints": 2345, "broken": 0, "lost": 7},
    "quick": False,
    "exit": 1,
    "seconds": 60,
    "date": "2001-02-03",
    "source": "abc1234",
    "machine": "a machine",
}


def test_the_page_is_rendered_from_the_stored_figures(tool: ModuleType, stored: dict[str, Any]) -> None:
    written = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert written == tool.page(stored), "run python tools/reliability.py --page"


def test_another_figure_makes_another_page(tool: ModuleType, stored: dict[str, Any]) -> None:
    """Negative control: an outdated page is detected."""
    assert tool.page(stored | {"writer-kills": MADE_UP}) != tool.page(stored)


def test_the_page_shows_the_figures(tool: ModuleType) -> None:
    text = tool.page({"writer-kills": MADE_UP})
    assert "| kills after which an acknowledged checkpoint was gone | 7 | 1000 kills |" in text
    assert "2345 saves" in text and "fewer than 0.3 %" in text
    assert "--writer-kills 1000" in text and "2001-02-03" in text and "a machine: writer-kills." in text
    assert "The command failed with status 1" in text and "quick" not in text
    assert "Not measured yet: naive-writer" in text
    quick = tool.page({"writer-kills": MADE_UP | {"quick": True, "exit": 0}})
    assert "| 7 (quick) |" in quick and "--writer-kills 50" in quick and "failed" not in quick


def test_every_number_of_the_table_is_measured(tool: ModuleType) -> None:
    """A row names its figures in braces; none is typed by hand."""
    for check in tool.CHECKS:
        for _, measured, count in check.rows:
            assert measured.startswith("{") and not re.search(r"\d", re.sub(r"{[^}]*}", "", measured)), check.name
            assert count.startswith("{"), check.name


def test_figures_of_tests_are_counted(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        """<testsuites><testsuite>
        <testcase name="test_a[x]"><properties><property name="drift" value="1e-12"/></properties></testcase>
        <testcase name="test_a[y]"><properties><property name="drift" value="3e-12"/></properties><failure/></testcase>
        <testcase name="test_a[z]"><skipped/></testcase>
        <testcase name="test_b"><error/></testcase>
        </testsuite></testsuites>"""
    )
    assert tool.of_tests(tmp_path / "junit.xml") == {
        "test_a": {"cases": 2, "passed": 1, "failed": 1},
        "test_b": {"cases": 1, "passed": 0, "failed": 1},
        "drift": {"cases": 2, "sum": 4e-12, "min": 1e-12, "max": 3e-12},
    }


def test_damages_are_counted_by_kind_of_file(tool: ModuleType) -> None:
    one = {"step-000002/model.safetensors": {"caught": 3}, "step-000004/model.safetensors": {"caught": 2, "silent": 1}}
    line = {"run folder": {"by file": one}, "exported folder": {"by file": {"config.json": {"no effect": 4}}}}
    found = tool.of_line(json.dumps(line))
    assert (found["damages"], found["caught"], found["silent"], found["no effect"]) == (10, 5, 1, 4)
    assert "| run folder: model.safetensors | 5 | 0 | 1 | 0 |" in list(tool.kinds(found))


def test_comparisons_are_counted(tool: ModuleType) -> None:
    found = tool.of_line('{"run-kills": {"kills": 6, "same_weights": true, "same_log": false}}')
    assert (found["kills"], found["same"], found["compared"]) == (6, 1, 2)


@pytest.mark.parametrize(
    ("failures", "trials", "rate"), [(0, 1000, 0.0029912), (0, 1, 0.95), (1, 30, 0.1486), (3, 3, 1.0)]
)
def test_the_bound_is_that_of_clopper_and_pearson(tool: ModuleType, failures: int, trials: int, rate: float) -> None:
    assert tool.upper_bound(failures, trials) == pytest.approx(rate, rel=1e-3)


def test_no_smaller_bound_holds(tool: ModuleType) -> None:
    """At the bound, one series in twenty has as few failures, as 4000 simulated series show."""
    chance, rate = random.Random(0), tool.upper_bound(1, 40)
    few = sum(sum(chance.random() < rate for _ in range(40)) <= 1 for _ in range(4000))
    assert 0.04 < few / 4000 < 0.06


def test_valid_figures_are_not_measured_again(tool: ModuleType) -> None:
    full = MADE_UP | {"exit": 0}
    assert tool.is_kept(full, quick=False, now="abc1234") and tool.is_kept(full, quick=True, now="abc1234")
    assert tool.is_kept(full | {"quick": True}, quick=True, now="abc1234")
    for stored in (None, MADE_UP, full | {"quick": True}, full | {"source": "abc1234+"}):
        assert not tool.is_kept(stored, quick=False, now="abc1234")


def test_a_check_says_how_long_it_will_take(tool: ModuleType) -> None:
    kills, tests = tool.CHECKS[0], next(check for check in tool.CHECKS if not check.full)
    assert tool.expected(kills, MADE_UP | {"quick": True}, quick=False) == f"about {kills.full // kills.quick} min"
    assert tool.expected(tests, MADE_UP, quick=True) == "about 1 min"
    assert tool.expected(tests, None, quick=True) == "not known yet"
