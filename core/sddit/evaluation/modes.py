"""Run a mode of `sddit-run evaluate` that a feature extractor offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sddit.evaluation.copies import kept_samples
from sddit.interfaces import EvaluateMode
from sddit.interfaces.component import load_attribute
from sddit.progress import Progress
from sddit.storage.run_folder import RunFolder
from sddit.training.environment import choose_device


def run_mode(
    folder: Path, mode: EvaluateMode, *, paths: Mapping[str, Path], device: str, progress: Progress
) -> dict[str, Any]:
    """Measure the saved samples of the run in `folder`, write the figures to `NAME.json` there, and return them.

    Raises SD-T930 for a run without samples.
    """
    chosen = choose_device(device)
    samples = kept_samples(folder)
    figures: dict[str, Any] = load_attribute(mode.function)(samples, device=chosen, progress=progress, **paths)
    with RunFolder(folder) as run:
        run.write_json(f"{mode.name}.json", figures)
    return figures
