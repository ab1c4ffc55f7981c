"""Find the last samples of each arm, scaled down to be embedded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from sddit.ablations.analysis.results import AblationResults

WIDEST = 480  # pixels of a sample grid as it is embedded


@dataclass(frozen=True, slots=True)
class Grid:
    """The samples of one arm."""

    arm: str
    seed: int
    png: bytes | None  # None: there are none


def samples(results: AblationResults) -> Iterator[Grid]:
    """Yield the last grid of every arm at one seed: the first of those at which most arms have one."""
    arms = [arm.label for arm in results.plan.arms]
    found = {(row.arm, row.seed): path for row in results.runs if (path := last_grid(results.folder / row.folder))}
    if found:
        seed = max(results.plan.seeds, key=lambda seed: sum((arm, seed) in found for arm in arms))
        for arm in arms:
            yield Grid(arm, seed, shrunk(found[arm, seed]) if (arm, seed) in found else None)


def last_grid(run: Path) -> Path | None:
    """Return the newest sample grid of a run."""
    return max((run / "samples").glob("step-*.png"), default=None)


def shrunk(path: Path) -> bytes | None:
    """Return an image, scaled down to the width at which it is shown; None if the file is not an image."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            scaled = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if scaled.width > WIDEST:
        scaled = scaled.resize((WIDEST, max(1, round(scaled.height * WIDEST / scaled.width))))
    buffer = BytesIO()
    scaled.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
