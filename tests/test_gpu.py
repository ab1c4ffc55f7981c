"""`tools/gpu_checks.py`: its sections on a GPU where there is one, and its own ways on a CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """Load the script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_checks", ROOT / "tools" / "gpu_checks.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["gpu_checks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_checks"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch's compiler and xformers warn of their own doings
@pytest.mark.parametrize("section", ["kernels", "train", "command", "sampling", "processes"])
def test_a_section_holds_on_cuda(tool: Any, section: str) -> None:
    assert [line for line in tool.run([section], "cuda") if line.verdict == "FAIL"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_it_says_that_nothing_was_checked(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    assert capsys.readouterr().out == "no CUDA device is usable here: nothing was checked\n"


def test_sampling_is_compared_with_other_images_too(tool: Any) -> None:
    lines = tool.run(["sampling"], "cpu")
    assert [line.verdict for line in lines] == ["pass", "pass"]


def test_a_section_that_breaks_is_a_failed_row(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> Iterator[Any]:
        yield tool.Line("a", "b | c", "1", "<= 2", "pass")
        raise RuntimeError("no kernel | here")

    monkeypatch.setitem(tool.SECTIONS, "train", broken)
    monkeypatch.setitem(tool.SECTIONS, "speed", lambda device: iter([tool.Line("speed", "x", "", "", "")]))
    lines = tool.run(["train", "speed"], "cpu")
    assert [line.verdict for line in lines] == ["pass", "FAIL", ""]
    assert tool.markdown(lines).splitlines()[2:4] == [
        "| a | b \\| c | 1 | <= 2 | pass |",
        "| train | RuntimeError: no kernel \\| here |  |  | FAIL |",
    ]


def test_a_failed_row_ends_with_the_status_of_wrong_numbers(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tool, "machine", lambda: "a machine")
    for verdict, status in (("pass", 0), ("FAIL", 6), ("skipped", 0)):
        monkeypatch.setattr(tool, "run", lambda only, device, v=verdict: [tool.Line("a", "b", "", "", v)])
        assert tool.main(["--only", "train"]) == status
        assert capsys.readouterr().out.startswith("a machine\n\n| of |")
