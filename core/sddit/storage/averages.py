"""Where the snapshots of power-function EMAs, and averages made of them, are in a run folder. Torch-free.

<run>/snapshots/step-000400/             LABEL.safetensors of each [ema.LABEL], state.json, manifest.json
<run>/averages/power-0.05/step-000400/   weights.safetensors, state.json, manifest.json
<run>/averages/scores.json               scores of such weights
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import recorded_ids

SNAPSHOTS, AVERAGES = "snapshots", "averages"
AVERAGE_SCORES = f"{AVERAGES}/scores.json"
AVERAGE_WEIGHTS = "weights.safetensors"
LABEL = re.compile(r"power-(0\.[0-9]+)")  # never the label of an [ema], which has no dot


def snapshot_store(folder: Path, run_ids: Sequence[str] | None = None) -> Store:
    """Return the snapshots of a run; `run_ids` of the process that writes them, None: those that are recorded."""
    return Store(folder / SNAPSHOTS, keep=None, run_ids=recorded_ids(folder) if run_ids is None else run_ids)


def average_store(folder: Path, label: str) -> Store:
    """Return the averages of one width, by step."""
    return Store(folder / AVERAGES / label, keep=None, run_ids=recorded_ids(folder))


def average_label(sigma_rel: float) -> str:
    """Return the label of weights averaged with a relative width, such as power-0.05."""
    return f"power-{sigma_rel:.6f}".rstrip("0")


def width_of(label: str) -> float | None:
    """Return the relative width that a label states; None for other labels."""
    match = LABEL.fullmatch(label)
    return float(match[1]) if match else None


def average_labels(folder: Path) -> list[str]:
    """Return the labels of the averages in a run folder, by width."""
    found = [path.name for path in (folder / AVERAGES).glob("power-*") if width_of(path.name) is not None]
    return sorted(found, key=lambda label: width_of(label) or 0.0)


def remove_later(folder: Path, step: int) -> None:
    """Remove the snapshots and averages of steps after the one at which a run continues: it makes them again."""
    for store in (snapshot_store(folder), *(average_store(folder, label) for label in average_labels(folder))):
        store.remove_after(step)
