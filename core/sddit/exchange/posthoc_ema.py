"""Make EMAs of chosen widths from the snapshots of a finished or interrupted run (arXiv:2312.02696, section 3)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddit.errors import Problem, error, raise_all
from sddit.storage.averages import (
    AVERAGE_WEIGHTS,
    AVERAGES,
    SNAPSHOTS,
    average_label,
    average_store,
    snapshot_store,
)
from sddit.storage.manifest import Checkpoint, read_manifest
from sddit.storage.run_folder import RunFolder, ensure_directory, read_json, recipe_path, refuse_changed
from sddit.storage.tensors import pack, require_finite, unpack
from sddit.training.networks import DTYPES
from sddit.training.power_average import Floats, Profile, combination, gamma_of

MAX_MISSING = 0.01
"""Maximum difference of the sum of factors from 1: it multiplies all weights of the network."""
NOTABLE = 0.001  # difference that deserves a warning


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One EMA at one step of a run."""

    checkpoint: Checkpoint
    label: str
    profile: Profile
    buffers: frozenset[str]  # names of tensors that are not averaged

    def read(self) -> dict[str, Tensor]:
        file = f"{self.label}.safetensors"
        return unpack(self.checkpoint.read(file), str(self.checkpoint.folder / file))


@dataclass(frozen=True, slots=True)
class Average:
    """Weights that were written, and how well the snapshots represent them."""

    label: str
    sigma_rel: float
    step: int
    snapshots: int
    sum_of_factors: float
    folder: Path


def write_averages(run: Path, widths: Sequence[float], step: int | None = None) -> Iterator[Average]:
    """Write the weights of a run averaged with each relative width, up to `step`; None: up to the newest snapshot.

    Raises SD-C461 for a run without snapshots, SD-C403 for a step without one, SD-C462 for widths that the snapshots
    cannot represent, before anything is written; SD-C401 for a damaged snapshot.
    """
    refuse_changed(recipe_path(run))
    dtype = DTYPES[read_json(recipe_path(run))["train"]["precision"]]
    with RunFolder(run) as folder:
        found = read_snapshots(folder.path, step)
        newest = found[-1].checkpoint
        ends = max(snapshot.profile.t for snapshot in found)
        factors = {
            width: combination([snapshot.profile for snapshot in found], Profile(ends, gamma_of(width)))
            for width in dict.fromkeys(widths)
        }
        raise_all(poor_fits(factors, len(found), str(folder.path / SNAPSHOTS)))
        ensure_directory(folder.path / AVERAGES)
        for width, own in factors.items():
            label = average_label(width)
            stated = {"sigma_rel": width, "step": newest.step, "taken": ends, "factors": own.tolist()}
            files = {
                AVERAGE_WEIGHTS: pack(combine(found, own, dtype)),
                "state.json": json.dumps(stated, allow_nan=False, indent=1).encode(),
            }
            path = average_store(folder.path, label).save(newest.step, files)
            yield Average(label, width, newest.step, len(found), float(own.sum()), path)


def read_snapshots(run: Path, step: int | None) -> list[Snapshot]:
    """Return the snapshots of a run up to a step, in order. Their files are verified when they are read."""
    store = snapshot_store(run)
    if not (steps := store.steps()):
        raise error(
            "SD-C461",
            "this run has no snapshots of EMAs",
            where=str(run / SNAPSHOTS),
            expect="snapshots of EMAs of profile power",
            fix='two tables such as [ema.narrow] profile = "power", sigma_rel = 0.05, snapshot_every = 100, and train',
        )
    last = steps[-1] if step is None else step
    if last not in steps:
        store.open(last)  # raises SD-C403 with the steps that exist
    found = []
    for checkpoint in (store.open(number, read=read_manifest) for number in steps if number <= last):
        state: dict[str, Any] = json.loads(checkpoint.read("state.json"))
        for label, one in state["averages"].items():
            profile = Profile(state["taken"], gamma_of(one["sigma_rel"]))
            found.append(Snapshot(checkpoint, label, profile, frozenset(one["buffers"])))
    return found


def poor_fits(factors: dict[float, Floats], snapshots: int, where: str) -> Iterator[Problem]:
    """Yield a problem for each width that the snapshots cannot represent."""
    for width, own in factors.items():
        if abs(total := float(own.sum()) - 1) > MAX_MISSING:
            yield Problem(
                "SD-C462",
                f"the {snapshots} snapshots do not determine an average of sigma_rel {width:g}",
                where=where,
                got=f"factors that add up to {1 + total:.4f}",
                expect=f"1 within {MAX_MISSING:g}; widths near those of the snapshots need fewer of them",
                fix="--sigma-rel nearer to the widths of [ema], or a run with a smaller snapshot_every",
            )


def combine(snapshots: Sequence[Snapshot], factors: Floats, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the sum of snapshots times their factors, added in float64; buffers are those of the last snapshot."""
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(snapshots, factors, strict=True):
        for name, tensor in snapshot.read().items():
            if name in snapshot.buffers:
                total[name] = tensor
            elif name in total:
                total[name].add_(tensor.double(), alpha=float(factor))
            else:
                total[name] = float(factor) * tensor.double()
    kept = snapshots[-1].buffers
    average = {name: tensor if name in kept else tensor.to(dtype) for name, tensor in total.items()}
    require_finite(average, "average")
    return average
