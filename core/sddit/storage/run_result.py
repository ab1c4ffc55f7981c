"""Seal the result of a run, and find what is missing in it. Torch-free.

`result.json` is written last: the id of the run, its step, and the sha256 of the files with its numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, error
from sddit.storage import atomic
from sddit.storage.atomic import NOT_NUMBERS
from sddit.storage.manifest import seal_manifest
from sddit.storage.run_folder import COST, REPORT, SCORES, RunFolder, read_json, recorded_ids

RESULT = "result.json"
SEALED = (SCORES, COST)
ALWAYS_MEASURED = ("fd", "fd_all", "kid", "precision", "recall")
"""Metrics that every version measures with every extractor."""


def write_result(folder: RunFolder, run_id: str, step: int) -> None:
    """Seal the result of a run, after all its other files."""
    files = {name: _digest(folder.path / name) for name in SEALED}
    folder.write_bytes(RESULT, seal_manifest({"run_id": run_id, "step": step, "files": files}) + b"\n")


def result_damage(folder: Path, run_id: str, labels: Collection[str], metrics: Collection[str] | None = None) -> str:
    """Return why the result of a run has to be made again; empty if it is complete.

    A result of an earlier version has no seal: its scores must be there for all `labels`, and those of `metrics` (None:
    all) must be finite. In a sealed result, a NaN is what was measured.
    """
    for name in (REPORT, SCORES):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if os.path.lexists(folder / RESULT):
        return _seal_damage(folder, run_id)
    try:
        scores = read_json(folder / SCORES)
    except SdditError as fault:
        return f"its folder is damaged: {fault.problems[0].what}, {fault.problems[0].where}"
    for label in labels:
        held = scores.get(label)
        wanted = [metric.rpartition(".")[2] for metric in metrics or () if metric.rpartition(".")[0] == label]
        if not isinstance(held, dict):
            return f"{SCORES} has no scores of {label}"
        if absent := [name for name in wanted if name in ALWAYS_MEASURED and name not in held]:
            return f"{SCORES} has no {label}.{absent[0]}"
    found = (f"{name} is {value}" for name, value in non_finite_scores(scores) if metrics is None or name in metrics)
    return next(found, "")


def non_finite_scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every number in `scores.json` that is NaN or infinite."""
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}".replace(".own.", "."), inner) for name, inner in non_finite_scores(value))
        elif value in NOT_NUMBERS or (isinstance(value, float) and not math.isfinite(value)):
            yield key, value


def refuse_changed_scores(folder: Path, fix: str) -> None:
    """Raise SD-F704 if the scores are not those that the run sealed. A run of an earlier version has no seal."""
    if not all(os.path.lexists(folder / name) for name in (SCORES, RESULT)):
        return
    if damage := _seal_damage(folder, next(iter(recorded_ids(folder)), "")):
        what = "the scores are not those that the run wrote"
        raise error("SD-F704", what, where=str(folder / SCORES), got=damage, fix=fix)


def _seal_damage(folder: Path, run_id: str) -> str:
    try:
        data = atomic.read_file(folder / RESULT)
        body: dict[str, Any] = json.loads(data)
        del body["sha256"]
        if seal_manifest(body) + b"\n" != data:
            return f"{RESULT} is not what was written"
        if body["run_id"] != run_id:
            return f"{RESULT} is that of run {body['run_id']}"
        changed = [name for name, digest in body["files"].items() if _digest(folder / name) != digest]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        return f"its folder is damaged: {RESULT}: {type(fault).__name__}"
    return f"{changed[0]} is not what was written" if changed else ""


def _digest(path: Path) -> str:
    return hashlib.sha256(atomic.read_file(path)).hexdigest()
