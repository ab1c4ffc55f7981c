"""Trackers of the core. A run always writes its own metrics.jsonl; these write the same numbers elsewhere."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sddit_standard.params import CsvParams, TensorboardParams


class Csv:
    """`metrics.csv` in the run folder: one line a logged step, one column a number, columns in order of appearance.

    A continued run takes up its file: lines from the first step it logs onwards belong to steps that are taken again.
    """

    def __init__(self, params: CsvParams, *, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.columns: list[str] = []  # none: nothing was logged yet in this sitting

    def log(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: repr(float(value)) for name, value in values.items() if name != "step"}
        row = {"step": str(step), **numbers}
        if self.columns and row.keys() <= set(self.columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._rewrite([*self._before(step), row])

    def close(self) -> None:
        """Do nothing: every line is already on disk."""

    def _before(self, step: int) -> list[dict[str, str]]:
        """Return the lines of earlier steps, without one that a crash truncated."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        return [row for row in rows if int(float(row["step"])) < step]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Rewrite the file atomically, with a column for every number."""
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        aside = self.path.with_suffix(".tmp")
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        aside.replace(self.path)


class Tensorboard:
    """Event files in `tensorboard/` of the run folder. A continued run hides what it logs again."""

    def __init__(self, params: TensorboardParams, *, folder: Path) -> None:
        self._writer_class = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.folder = folder / "tensorboard"
        self.writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is None:
            self.writer = self._writer_class(str(self.folder), purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
