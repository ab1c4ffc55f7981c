"""Seal the result of a run, and find what is missing in it. Torch-free.

`result.json` is written last: the id of the run, its step, and the sha256 of its report, of its samples and of the
files with its numbers. The samples may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, describe_exception, error
from sddit.storage import atomic
from sddit.storage.atomic import NOT_NUMBERS
from sddit.storage.manifest import seal_manifest
from sddit.storage.run_folder import (
    COST,
    LATENTS,
    REPORT,
    SAMPLES,
    SCORES,
    RunFolder,
    read_json,
    recorded_ids,
    unreadable_error,
)

RESULT = "result.json"
SEALED = (SCORES, COST)
MAKE_AGAIN = "restore it from a backup, or rerun the recipe: the result is made again"
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)  # of damaged JSON
ALWAYS_MEASURED = ("fd", "fd_all", "kid", "precision", "recall")
"""Metrics that every version measures with every extractor."""


def write_result(folder: RunFolder, run_id: str, step: int, preview: str = "") -> None:
    """Seal the result of a run, after all its other files. `preview` is that of its last step."""
    kept = [name for name in (SAMPLES, LATENTS, preview) if (folder.path / name).is_file()]
    files = {name: _digest(folder.path / name) for name in (*SEALED, REPORT, *kept)}
    folder.write_bytes(RESULT, seal_manifest({"run_id": run_id, "step": step, "files": files}) + b"\n")


def result_damage(
    folder: Path,
    run_id: str,
    labels: Collection[str],
    metrics: Collection[str] | None = None,
    *,
    numbers_only: bool = False,
) -> str:
    """Return why the result of a run has to be made again; empty if it is complete.

    With `numbers_only`, samples and report are not read: samples may be large.

    A result of an earlier version has no seal: its scores must be there for all `labels`, and those of `metrics` (None:
    all) must be finite. In a sealed result, a NaN is what was measured.
    """
    for name in (REPORT, SCORES):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if os.path.lexists(folder / RESULT):
        return _seal_damage(folder, run_id, numbers_only=numbers_only)
    try:
        scores = read_json(folder / SCORES)
    except SdditError as fault:
        return f"its folder is damaged: {fault.problems[0].what}, {fault.problems[0].where}"
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        return f"its folder is damaged: {RESULT}: {describe_exception(fault)}"
    for label in labels:
        held = scores.get(label)
        wanted = [metric.rpartition(".")[2] for metric in metrics or () if metric.rpartition(".")[0] == label]
        if not isinstance(held, dict):
            return f"{SCORES} has no scores of {label}"
        if absent := [name for name in wanted if name in ALWAYS_MEASURED and name not in held]:
            return f"{SCORES} has no {label}.{absent[0]}"
    found = (f"{name} is {value}" for name, value in non_finite_scores(scores) if metrics is None or name in metrics)
    return next(found, "")


def refuse_other_result(folder: Path, name: str, fix: str = MAKE_AGAIN) -> None:
    """Raise SD-F704 if a file is not the one that the run sealed in `result.json`. Without it, any is accepted."""
    path = folder / name
    if not all(os.path.lexists(one) for one in (path, folder / RESULT)):
        return
    try:
        seal, found = _read_seal(folder), _digest(path)
        run, sealed = seal["run_id"], seal["files"].get(name)
    except UNREADABLE as fault:
        raise unreadable_error(folder / RESULT, f"{type(fault).__name__}: {fault}"[:160], fix) from fault
    ids = recorded_ids(folder)
    if ids and run not in ids:
        what, expect = f"{RESULT} is that of another run", f"run {ids[0]}"
        raise error("SD-F704", what, where=str(folder / RESULT), got=f"run {run}", expect=expect, fix=fix)
    if sealed not in (None, found):
        what, expect = "a file of the run folder is not what was written", f"{sealed[:12]}..., as in {RESULT}"
        raise error("SD-F704", what, where=str(path), got=f"sha256 {found[:12]}...", expect=expect, fix=fix)


def non_finite_scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every number in `scores.json` that is NaN or infinite."""
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}".replace(".own.", "."), inner) for name, inner in non_finite_scores(value))
        elif value in NOT_NUMBERS or (isinstance(value, float) and not math.isfinite(value)):
            yield key, value


def _read_seal(folder: Path) -> dict[str, Any]:
    """Read `result.json`. Raises one of `UNREADABLE` if it is damaged."""
    data = atomic.read_file(folder / RESULT)
    body: dict[str, Any] = json.loads(data)
    del body["sha256"]
    if seal_manifest(body) + b"\n" != data:
        raise ValueError(f"{RESULT} is not what was written")
    return body


def _seal_damage(folder: Path, run_id: str, *, numbers_only: bool) -> str:
    try:
        body = _read_seal(folder)
        if body["run_id"] != run_id:
            return f"{RESULT} is that of run {body['run_id']}"
        others = [name for name in body["files"] if name not in SEALED and not numbers_only]
        kept = [name for name in others if os.path.lexists(folder / name)]
        changed = [name for name in (*SEALED, *kept) if _digest(folder / name) != body["files"][name]]
    except UNREADABLE as fault:
        return f"its folder is damaged: {RESULT}: {describe_exception(fault)}"
    return f"{changed[0]} is not what was written" if changed else ""


def _digest(path: Path) -> str:
    with os.fdopen(atomic.open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
