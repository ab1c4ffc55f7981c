"""Read stored numbers of published implementations: `<name>.safetensors` next to `<name>.json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, CheckSkipped, Component, Measurement
from sddit.storage.tensors import unpack
from sddit.testing import fixtures

TOLERANCE = 1e-9
"""Maximum difference of two float64 implementations, relative to max(1, |theirs|)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Stored numbers by name, without the prefix of their part; floats are converted to float64."""

    state: Mapping[str, Tensor]  # parameters under their original names
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    meta: Mapping[str, Any]  # content of the JSON file: `constructor` has their arguments


def folders(named: Path | None) -> tuple[Path, ...]:
    """Return the existing folders to search: the named one, SDDIT_FIXTURES, and the one of a checkout."""
    shipped = Path(__file__).parents[3] / "tests" / "fixtures" / "published"
    own = os.environ.get("SDDIT_FIXTURES")
    candidates = [named, Path(own) if own else None, shipped]
    return tuple(folder for folder in candidates if folder is not None and folder.is_dir())


def published(context: CheckContext, name: str) -> Stored:
    """Return the stored numbers of a name. Raises CheckSkipped if no folder has them."""
    folder = next((path for path in context.fixtures if (path / f"{name}.safetensors").is_file()), None)
    if folder is None:
        raise CheckSkipped(f"{name}.safetensors is not here: --fixtures FOLDER, or SDDIT_FIXTURES")
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
    for key, tensor in unpack((folder / f"{name}.safetensors").read_bytes()).items():
        part, _, rest = key.partition("/")
        parts[part][rest] = tensor.double() if tensor.is_floating_point() else tensor
    meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Stored(parts["state"], parts["in"], parts["out"], meta)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to max(1, |theirs|); NaN, which fails every bound, if shapes differ."""
    if ours.shape != theirs.shape or theirs.abs().max() < 1e-3:
        return math.nan
    return float(((ours.detach() - theirs).abs() / theirs.abs().clamp(min=1)).max())


def parity(name: str, ours: Mapping[str, Tensor], stored: Stored) -> Iterator[Measurement]:
    """Compare our outputs, by name, with the stored ones."""
    for key, tensor in ours.items():
        assert tensor.dtype == torch.float64, f"{key} must be compared in float64"
        yield Measurement(f"{name}: {key}", difference(tensor, stored.outputs[key]), TOLERANCE)


def network(component: Component[Any], layout: str, stored: Stored) -> nn.Module:
    """Return our backbone with their weights in float64, with the toy attention, an explicit softmax."""
    form = component.format(layout)
    described = form.describe(stored.meta["constructor"])
    build = partial(component.build, component.params(**described.backbone))
    backbone: nn.Module = fixtures.backbone_of(build, described.shapes, torch.float64)
    backbone.load_state_dict(form.to_ours(stored.state))
    return backbone.double()
