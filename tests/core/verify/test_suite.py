"""What becomes of a check: measurements, reasons, failures; and the verb that prints them."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sddit import Params, hookimpl
from sddit.errors import error
from sddit.interfaces import CheckContext, CheckSkipped, Component, Measurement
from sddit.plugins.host import using_host
from sddit.testing import toy_host
from sddit.testing.toys.params import ToyGuidanceParams
from sddit.verify import Row, suite, verify
from sddit.verify.published import difference, folders, parity, published

HERE = "sddit_checks_of_this_test"


def good(context: CheckContext) -> Iterator[Measurement]:
    assert context.component is not None
    yield Measurement(f"of {context.component.name} on {context.device}", 0.5, 1.0)
    yield Measurement("at least", 2.0, 1.0, ">=")


def bad(context: CheckContext) -> Iterator[Measurement]:
    yield Measurement("too far", 2.0, 1.0)
    yield Measurement("too near", 0.5, 1.0, ">=")
    yield Measurement("no number", math.nan, 1.0)


def absent(context: CheckContext) -> Iterator[Measurement]:
    yield Measurement("so far", 0.0, 0.0)
    raise CheckSkipped("no such file")


def broken(context: CheckContext) -> Iterator[Measurement]:
    raise ZeroDivisionError("half way")
    yield


def refusing(context: CheckContext) -> Iterator[Measurement]:
    raise error("SD-R108", "it cannot be so")
    yield


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Toys, a guidance whose checks are those of this file, and two checks that belong to no component."""
    module = types.ModuleType(HERE)
    module.__dict__.update(good=good, bad=bad, absent=absent, broken=broken, refusing=refusing)
    monkeypatch.setitem(__import__("sys").modules, HERE, module)
    made = toy_host()
    plugin = types.ModuleType("checked")

    def register_guidances(registry: Any) -> None:
        factory = "sddit.testing.toys.components:ToyGuidance"
        checks = {name: f"{HERE}:{name}" for name in ("good", "bad", "absent", "broken", "refusing")}
        registry.add("checked", factory, params=ToyGuidanceParams, summary="For a test.", checks=checks)
        more = {"requires": ("no-such-package",), "checks": {"good": f"{HERE}:good"}}
        registry.add("lacking", factory, params=ToyGuidanceParams, summary="For a test.", **more)

    def register_checks(registry: Any) -> None:
        for name in ("good", "absent"):
            registry.add(name, f"{HERE}:{name}", params=Params, summary=f"{name} on its own")

    plugin.register_guidances = hookimpl(register_guidances)  # type: ignore[attr-defined]
    plugin.register_checks = hookimpl(register_checks)  # type: ignore[attr-defined]
    made.add("checked", plugin)
    with using_host(made):
        yield made


def test_every_check_of_every_component_leaves_rows(host: Any) -> None:
    rows = list(verify())
    assert {row.of for row in rows} == {"checked", "guidances checked/checked", "guidances checked/lacking"}
    assert [(row.check, row.verdict, row.reason) for row in rows] == [
        ("good on its own", "pass", ""),
        ("good on its own", "pass", ""),
        ("absent on its own", "pass", ""),
        ("absent on its own", "skipped", "no such file"),
        ("good", "pass", ""),
        ("good", "pass", ""),
        ("bad", "FAIL", ""),
        ("bad", "FAIL", ""),
        ("bad", "FAIL", ""),
        ("absent", "pass", ""),
        ("absent", "skipped", "no such file"),
        ("broken", "FAIL", "ZeroDivisionError: half way"),
        ("refusing", "FAIL", "it cannot be so"),
        ("good", "skipped", "no-such-package is not installed"),
    ]
    assert rows[0].measurement == Measurement("of good on cpu", 0.5, 1.0)
    assert rows[4].measurement == Measurement("of checked on cpu", 0.5, 1.0)


def test_the_verb_prints_a_table_and_ends_with_the_status_of_wrong_numbers(host: Any, sddit_run: Any) -> None:
    said = sddit_run("verify")
    assert said.status == 6
    assert "error SD-N520: 5 of 14 numerical checks failed" in said.stderr
    assert "guidances checked/checked: bad" in said.stderr
    assert "got:    too far: 2" in said.stderr
    lines = [" ".join(line.split()) for line in said.stdout.splitlines()]
    assert "of checked on cpu 0.5 <= 1 pass" in lines
    assert "too far 2 <= 1 FAIL" in lines
    assert "no-such-package is not installed skipped" in lines
    assert lines[-1] == "6 pass, 5 fail, 3 skipped"


def test_the_verb_gives_json_without_nan(host: Any, sddit_run: Any) -> None:
    rows = json.loads(sddit_run("verify", "--json").stdout)
    assert rows[8] == {
        "of": "guidances checked/checked",
        "check": "bad",
        "what": "no number",
        "value": "nan",
        "tolerance": 1.0,
        "relation": "<=",
        "verdict": "FAIL",
        "reason": "",
    }


def test_the_verb_passes_where_all_hold(host: Any, sddit_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_good() -> Iterator[tuple[str, str, Callable[[], Any], Component[Any]]]:
        yield "guidances checked/checked", "good", lambda: good, host.registries.guidances.get("checked")

    monkeypatch.setattr(suite, "every_check", only_good)
    assert sddit_run("verify").status == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_the_verb_refuses_a_device_that_is_not_there(host: Any, sddit_run: Any) -> None:
    said = sddit_run("verify", "--device", "cuda")
    assert (said.status, "SD-P230" in said.stderr) == (3, True)


def test_a_row_without_a_measurement_is_json_too() -> None:
    assert Row("a", "b", "skipped", reason="c").to_json()["value"] is None


# Stored numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> CheckContext:
    tensors = {"state/w": torch.ones(2), "in/x": torch.arange(3), "out/y": torch.tensor([1.0, 100.0])}
    save_file(tensors, tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text('{"constructor": {"a": 1}}', encoding="utf-8")
    return CheckContext(fixtures=folders(tmp_path))


def test_stored_numbers_are_read_and_widened(stored: CheckContext) -> None:
    found = published(stored, "mine")
    assert found.meta == {"constructor": {"a": 1}}
    assert (found.state["w"].dtype, found.inputs["x"].dtype) == (torch.float64, torch.int64)
    ours = torch.tensor([1.0, 100.0], dtype=torch.float64)
    (row,) = parity("mine", {"y": ours * (1 + 1e-12)}, found)
    assert row.holds
    (row,) = parity("mine", {"y": ours * (1 + 1e-8)}, found)
    assert not row.holds


def test_numbers_that_are_not_here_are_said(stored: CheckContext) -> None:
    with pytest.raises(CheckSkipped, match=r"other\.safetensors is not here"):
        published(stored, "other")


def test_a_named_folder_comes_first_and_the_environment_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, named = tmp_path / "own", tmp_path / "named"
    own.mkdir()
    named.mkdir()
    monkeypatch.setenv("SDDIT_FIXTURES", str(own))
    assert folders(named)[:2] == (named, own)
    assert own in folders(None)


def test_zeros_and_other_shapes_pass_no_bound() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert math.isnan(difference(zeros, zeros))
    assert math.isnan(difference(zeros + 1, torch.ones(4, dtype=torch.float64)))
    assert difference(zeros + 1.5, zeros + 1) == 0.5
    assert difference(zeros + 150, zeros + 100) == 0.5
