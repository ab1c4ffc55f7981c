"""Check a device before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sddit.training import devices


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulate a Linux machine with a driver, every device visible, and a torch with CUDA."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(devices, "installed", lambda name: "2.13.0")
    monkeypatch.setattr(devices, "DRIVERS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    return tmp_path


def test_a_device_that_may_exist_has_no_reason(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.unavailable_reason("cuda") == ""
    monkeypatch.setattr(devices, "installed", lambda name: "2.13.0+cu130")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.unavailable_reason("cuda") == ""


def test_the_reason_for_a_missing_device_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(devices, "installed", lambda name: "2.13.0+cpu")
        assert devices.unavailable_reason("cuda") == "torch 2.13.0+cpu is built without CUDA"
    with monkeypatch.context() as other:
        other.setenv("CUDA_VISIBLE_DEVICES", "")
        assert devices.unavailable_reason("cuda") == "CUDA_VISIBLE_DEVICES hides every device"
    with monkeypatch.context() as other:
        other.setattr(sys, "platform", "darwin")
        assert devices.unavailable_reason("cuda") == "this system has no CUDA"
    (machine / "nvidiactl").unlink()
    assert devices.unavailable_reason("cuda") == "no driver of a GPU is loaded"


def test_a_cpu_is_always_available(machine: Path) -> None:
    (machine / "nvidiactl").unlink()
    assert devices.unavailable_reason("cpu") == ""


PLAN = """
import sys
from sddit.training import devices
from sddit.cli.app import call
from sddit.plugins.host import using_host
from sddit.testing import toy_host
devices.installed = lambda name: "2.13.0+cpu"
with using_host(toy_host()):
    status = call(["-n", "toy.toml", "--json", *sys.argv[1:]])
assert "torch" not in sys.modules
raise SystemExit(status)
"""


@pytest.mark.parametrize(("device", "warnings"), [("cpu", 0), ("cuda", 1)])
def test_a_dry_run_warns_without_importing_torch(toy_recipe: Path, device: str, warnings: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, "--device", device],
        cwd=toy_recipe.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [text for text in json.loads(done.stdout)["warnings"] if "--device" in text]
    assert (
        found == ["--device cuda is not available on this machine: torch 2.13.0+cpu is built without CUDA"][:warnings]
    )
