"""A third-party plugin that changes what all code of the process shares is named."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from sddit.errors import SdditError
from sddit.plugins.host import using_host
from sddit.plugins.shared_state import SharedState
from sddit.testing import toy_host


@pytest.fixture
def replace_mean(tmp_path, loss_source) -> Iterator[Callable[[], None]]:
    """Load a one-file plugin, and return its function that replaces one of torch."""
    source = loss_source + (
        "\nimport torch\n\ndef change():\n    real = torch.Tensor.mean\n"
        "    torch.Tensor.mean = lambda *a, **k: real(*a, **k)\n"
    )
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    with using_host(toy_host()) as host:
        host.use(["./mine.py"], tmp_path)
        yield sys.modules["sddit_file_mine"].change
    if "mean" in vars(torch.Tensor):
        del torch.Tensor.mean


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "number of torch's threads": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
    "gradient mode": (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
    "anomaly": (
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: torch.autograd.set_detect_anomaly(False),
    ),
    "use_deterministic_algorithms": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "cudnn.benchmark": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: setattr(torch.backends.cudnn, "benchmark", False),
    ),
    "the handler of SIGUSR1": (
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL),
    ),
    "the working directory": (lambda: os.chdir("/"), lambda: None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_until_it_is_undone(replace_mean, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    change, undo = CHANGES[name]
    undo()
    before = SharedState()
    before.refuse_changes()
    change()
    try:
        with pytest.raises(SdditError, match="SD-P228") as refused:
            before.refuse_changes()
    finally:
        undo()
        monkeypatch.chdir(tmp_path)
    (problem,) = refused.value.problems
    assert name in problem.what
    assert "plugin 'mine'" in problem.what
    assert problem.where.endswith("mine.py")
    assert " at 0x" not in problem.got
    before.refuse_changes()


def test_a_replaced_function_is_refused(replace_mean):
    before = SharedState()
    before.refuse_changes()
    replace_mean()
    with pytest.raises(SdditError, match=r"plugin 'mine' changed torch\.Tensor\.mean"):
        before.refuse_changes()


def test_a_function_replaced_on_import_is_refused(replace_mean):
    replace_mean()
    with pytest.raises(SdditError, match=r"torch\.Tensor\.mean"):
        SharedState().refuse_changes()


def test_nothing_is_read_without_a_third_party_plugin():
    """The control: what our own code, or that of a notebook, changes is its own business."""
    with using_host(toy_host()):
        before = SharedState()
        torch.set_num_threads(2)
        before.refuse_changes()
        torch.set_num_threads(1)
