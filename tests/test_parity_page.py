"""docs/parity.md does what it says: its blocks are run as they stand, and their numbers are the published ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "parity.md").read_text(encoding="utf-8"), re.DOTALL)
PREAMBLE, *REST = BLOCKS
NAMED = {name: block for block in REST for name in re.match(r"# (.*)\n", block)[1].split(", ")}  # type: ignore[index]


@pytest.fixture
def run(published_folder: Any, tmp_path: Path) -> Any:
    """`run("dit_a")` executes that block and gives what it found."""

    def execute(name: str) -> dict[str, Tensor]:
        scope: dict[str, Any] = {"FOLDER": published_folder(name), "SCRATCH": tmp_path, "NAME": name}
        exec(PREAMBLE + NAMED[name], scope)
        found: dict[str, Tensor] = scope["found"]
        return found

    return execute


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to max(1, |theirs|)."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()


@pytest.mark.parametrize("name", NAMED)
def test_the_block_gives_the_published_numbers(name: str, run: Any, published: Any) -> None:
    stored = published(name).outputs
    found = run(name)
    assert found
    for key, ours in found.items():
        assert ours.dtype == torch.float64, key
        assert apart(ours.detach(), stored[key]) < 1e-9, key
        assert apart(ours.detach() * (1 + 1e-6) + 1e-6, stored[key]) > 1e-9, key


def test_every_set_of_numbers_kept_here_has_a_block() -> None:
    kept = {path.stem for path in (ROOT / "tests" / "fixtures" / "published").glob("*.safetensors")}
    assert kept <= set(NAMED)
