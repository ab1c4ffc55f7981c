"""Are samples copies? The samples of a run that lie nearest to training images, as numbers and as images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.archives import load_arrays
from sddit.errors import error
from sddit.evaluation.grids import grid, png
from sddit.evaluation.metrics import copied_share, nearest
from sddit.evaluation.scores import refuse_few, see_images, see_split
from sddit.evaluation.scoring import SAMPLES, extractors
from sddit.evaluation.thumbnails import PixelFeatures
from sddit.interfaces import Dataset, FeatureExtractor
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.storage.run_folder import RunFolder, recipe_path, unreadable_error
from sddit.training.environment import choose_device

COPIES = "copies.json"
PAIRS = 8  # closest pairs that are shown
ROWS = ("sample", "training image")


@dataclass(frozen=True, slots=True)
class Copies:
    """Nearness of samples to training images in the features of one extractor."""

    title: str  # of the extractor
    share: float  # of samples that lie as near to a training image as few held-out images do
    floor: float  # the same of held-out images
    pairs: tuple[tuple[int, int, float], ...]  # (sample, training image, distance), the nearest first

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "share": self.share,
            "floor": self.floor,
            "pairs": [{"sample": a, "training": b, "distance": distance} for a, b, distance in self.pairs],
        }


def find_copies(
    samples: Tensor,
    train_set: Dataset,
    test_set: Dataset,
    viewers: Mapping[str, FeatureExtractor],
    batch: int,
) -> dict[str, Copies]:
    """Return the nearest training image of every sample, uint8 [n, 3, H, W], by each extractor."""
    training, heldout = (see_split(split, viewers, batch) for split in (train_set, test_set))
    generated = see_images(samples, torch.zeros(len(samples), dtype=torch.int64), viewers, batch)
    found = {}
    for label, viewer in viewers.items():
        reference = training[label].features
        index, distance = nearest(generated[label].features, reference)
        _, unseen = nearest(heldout[label].features, reference)
        share, floor = copied_share(distance, unseen)
        first = np.argsort(distance, kind="stable")[:PAIRS]
        pairs = tuple((int(i), int(index[i]), float(distance[i])) for i in first)
        found[label] = Copies(viewer.title, share, floor, pairs)
    return found


def pairs_image(copies: Copies, samples: Tensor, train_set: Dataset) -> bytes:
    """PNG of the closest pairs: samples above the training images that they are nearest to."""
    above = samples[[sample for sample, _, _ in copies.pairs]]
    x, _ = train_set.fetch([training for _, training, _ in copies.pairs])
    return png(grid(torch.cat([above, train_set.to_images(x)]), len(copies.pairs), ROWS))


def copies_of_run(folder: Path, *, device: str, progress: Progress) -> dict[str, Copies]:
    """Return the check on the samples that a run has kept, by the extractors of its recipe and in pixels.

    Writes `copies.json`, and `samples/copies-LABEL.png` with the closest pairs, into the run folder.

    Raises:
        SdditError: SD-C445 for a folder that is not a run, SD-T930 for a run without samples, SD-T906 without held-out
            images.
    """
    resolved = recipe_path(folder)
    samples = torch.from_numpy(kept_samples(folder)).permute(0, 3, 1, 2)
    recipe = resolve(resolved)
    chosen = choose_device(device)
    train_set, test_set = (recipe.dataset.build(split=split) for split in ("train", "test"))
    refuse_few({"training images": train_set, "held-out images": test_set}, recipe.evaluate.neighbours)
    viewers = {**extractors(recipe, chosen), "pixels": PixelFeatures(chosen)}
    progress.stage("searching")
    found = find_copies(samples, train_set, test_set, viewers, recipe.evaluate.batch)
    with RunFolder(folder) as held:
        held.write_json(COPIES, {label: one.to_json() for label, one in found.items()})
        for label, one in found.items():
            held.write_bytes(image_name(label), pairs_image(one, samples, train_set))
    progress.end_stage()
    return found


def image_name(label: str) -> str:
    """Return the file of the closest pairs in a run folder."""
    return f"samples/copies-{label.replace('/', '-')}.png"


def kept_samples(folder: Path) -> NDArray[np.uint8]:
    """Return the samples that a finished run has kept, [n, H, W, 3]."""
    path = folder / SAMPLES
    if not path.is_file():
        raise error(
            "SD-T930",
            "this run has kept no samples yet",
            where=str(folder),
            expect=SAMPLES,
            fix="run its recipe to the end",
        )
    try:
        images: NDArray[np.uint8] = load_arrays(path, ["arr_0"])["arr_0"]
    except (OSError, ValueError, KeyError) as fault:
        fix = "delete it and report.html, then run the recipe: it samples again"
        raise unreadable_error(path, str(fault)[:160], fix) from fault
    return images
