"""A third-party plugin that changes what all code of the process shares is named."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from sddit.errors import SdditError
from sddit.plugins.host import host, using_host
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


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (torch.Tensor, "mean", torch.Tensor.sum),  # inherited, and replaced by another function of torch
        (torch.optim.AdamW, "step", torch.optim.SGD.step),
        (torch.nn.Linear, "forward", functools.partial(max, 0)),
        (time, "monotonic", time.time),
    ],
)
def test_a_function_replaced_by_one_of_a_library_is_refused(replace_mean, monkeypatch, owner, name, other):
    before = SharedState()
    before.refuse_changes()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other)
        for _ in range(2):  # also at a later step
            with pytest.raises(SdditError, match=rf"plugin 'mine' changed [a-zA-Z.]+\.{name} ") as refused:
                before.refuse_changes()
        assert " at 0x" not in str(refused.value)


def test_what_torch_replaces_itself_is_accepted(replace_mean):
    """The control: the first optimizer of a kind wraps its `step`, and compiling replaces methods of modules."""
    before = SharedState()
    before.refuse_changes()
    torch.optim.Rprop([torch.zeros(1, requires_grad=True)])
    torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.zeros(1, 2))
    before.refuse_changes()


def test_the_plugin_whose_code_it_is_is_named_alone(replace_mean, loss_source, tmp_path):
    (tmp_path / "other.py").write_text(loss_source.replace('"mine"', '"other"'), encoding="utf-8")
    host().use(["./other.py"], tmp_path)
    before = SharedState()
    replace_mean()
    with pytest.raises(SdditError, match=r"^error SD-P228: plugin 'mine' changed torch\.Tensor\.mean") as refused:
        before.refuse_changes()
    assert "other" not in str(refused.value)
    del torch.Tensor.mean
    torch.set_default_dtype(torch.float64)  # which of them did this is not known
    try:
        with pytest.raises(SdditError, match="one of the plugins 'mine', 'other' changed"):
            before.refuse_changes()
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_is_read_without_a_third_party_plugin():
    """The control: what our own code, or that of a notebook, changes is its own business."""
    with using_host(toy_host()):
        before = SharedState()
        torch.set_num_threads(2)
        before.refuse_changes()
        torch.set_num_threads(1)
