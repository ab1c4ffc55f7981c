"""Test that the conformance kit detects weight layouts that break their contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import NOTHING
from sddit.plugins.host import Host
from sddit.testing import ConformanceError, check
from sddit.testing.toys.network import ToyFormat


class Sideways(ToyFormat):
    @staticmethod
    def to_ours(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> dict[str, Tensor]:
        ours = ToyFormat.to_ours(state)
        return {**ours, "label.weight": ours["label.weight"].flip(0)}


class Forgetful(ToyFormat):
    @staticmethod
    def config(params: Any, shapes: Any, schedule: Mapping[str, Any]) -> dict[str, Any]:
        return {**ToyFormat.config(params, shapes, schedule), "depth": 1}


class Wishful(ToyFormat):
    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[dict[str, Any], dict[str, Any]]:
        inferred, guessed = ToyFormat.infer(state)
        return {**inferred, "classes": 1000}, {**guessed, "patches": 2}


class Bare(ToyFormat):
    def __getattribute__(self, name: str) -> Any:
        if name == "note":
            raise AttributeError(name)
        return super().__getattribute__(name)


BROKEN = {
    "does not come back": Sideways(),
    "imply wrong arguments": Wishful(),
    "infers arguments that its constructor does not have": Wishful(),
    "has no note": Bare(),
    "depth": Forgetful(),
}


def test_toy_layout_conforms(host: Host) -> None:
    check("toy", kind="backbones")


@pytest.mark.parametrize("words", BROKEN)
def test_broken_layout_is_reported(words: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.testing.toys.network.ToyFormat", BROKEN[words])
    with pytest.raises(ConformanceError, match=words):
        check("toy", kind="backbones")
    assert torch.get_default_dtype() == torch.float32
