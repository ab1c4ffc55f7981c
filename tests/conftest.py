"""Fixtures of the whole suite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

TESTS = Path(__file__).parent

settings.register_profile("shared", deadline=None)  # a busy machine is no mistake of the code
settings.load_profile("shared")


@dataclass(frozen=True, slots=True)
class Published:
    """Numbers of a published implementation, by their names without the prefix; see `<name>.json` for meanings."""

    state: dict[str, Tensor]  # parameters under their original names
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    meta: dict[str, Any]


def fixture_folders() -> list[Path]:
    """Where published numbers may lie: a folder of the user's, one beside the checkout, the ones kept here."""
    own = [Path(folder)] if (folder := os.environ.get("SDDIT_FIXTURES")) else []
    return [*own, TESTS.parents[1] / "shared" / "fixtures", TESTS / "fixtures" / "published"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` say why they do not run where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device is usable here"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture
def published_folder() -> Callable[[str], Path]:
    """`published_folder("dit_a")` is where that file of stored numbers lies; without one the test is skipped."""

    def find(name: str) -> Path:
        folder = next((f for f in fixture_folders() if (f / f"{name}.safetensors").is_file()), None)
        if folder is None:
            pytest.skip(f"the stored numbers {name}.safetensors are not here: set SDDIT_FIXTURES to their folder")
        return folder

    return find


@pytest.fixture
def published(published_folder: Callable[[str], Path]) -> Callable[[str], Published]:
    """`published("dit_a")` reads that file of stored numbers, floats widened to float64, or skips the test."""

    def read(name: str) -> Published:
        folder = published_folder(name)
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
        for key, tensor in load_file(folder / f"{name}.safetensors").items():
            part, _, rest = key.partition("/")
            parts[part][rest] = tensor.double() if tensor.is_floating_point() else tensor
        meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return Published(parts["state"], parts["in"], parts["out"], meta)

    return read
