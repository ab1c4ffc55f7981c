"""Find the samples of a run that are closest to training images, as numbers and as images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sddit.data.undecoded import refuse_latents
from sddit.evaluation.grids import grid, png
from sddit.evaluation.metrics import copied_fraction, nearest
from sddit.evaluation.sample_images import batches_of, kept_samples
from sddit.evaluation.scores import extract_features, extract_split, refuse_few
from sddit.evaluation.scoring import build_extractors
from sddit.evaluation.thumbnails import PixelFeatures
from sddit.interfaces import Dataset, FeatureExtractor
from sddit.progress import Progress
from sddit.recipes.real_images import real_images
from sddit.recipes.resolve import resolve_run
from sddit.storage.run_folder import RunFolder, recipe_path
from sddit.training.environment import choose_device

PAIRS = 8  # closest pairs that are shown


@dataclass(frozen=True, slots=True)
class Copies:
    """Distances of samples from training images in the features of one extractor."""

    title: str  # of the extractor
    share: float  # fraction of samples as close to a training image as few held-out images are
    floor: float  # the same of held-out images
    pairs: tuple[tuple[int, int, float], ...]  # (sample, training image, distance), closest first

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "share": self.share,
            "floor": self.floor,
            "pairs": [{"sample": a, "training": b, "distance": distance} for a, b, distance in self.pairs],
        }


def find_copies(
    samples: Iterable[Tensor],
    train_set: Dataset,
    test_set: Dataset,
    extractors: Mapping[str, FeatureExtractor],
    batch: int,
) -> dict[str, Copies]:
    """Find the nearest training image of every sample with each extractor. `samples`: uint8 [b, 3, H, W], in parts."""
    training, heldout = (extract_split(split, extractors, batch) for split in (train_set, test_set))
    without_labels = ((images, torch.zeros(len(images), dtype=torch.int64)) for images in samples)
    generated = extract_features(without_labels, extractors, batch)
    found = {}
    for label, extractor in extractors.items():
        reference = training[label].features
        index, distance = nearest(generated[label].features, reference)
        _, unseen = nearest(heldout[label].features, reference)
        share, floor = copied_fraction(distance, unseen)
        closest = np.argsort(distance, kind="stable")[:PAIRS]
        pairs = tuple((int(i), int(index[i]), float(distance[i])) for i in closest)
        found[label] = Copies(extractor.title, share, floor, pairs)
    return found


def pairs_image(copies: Copies, above: Tensor, train_set: Dataset) -> bytes:
    """Return a PNG of the closest pairs: their samples, uint8 [pairs, 3, H, W], above their nearest training images."""
    x, _ = train_set.fetch([training for _, training, _ in copies.pairs])
    return png(grid(torch.cat([above, train_set.to_images(x)]), len(copies.pairs), ("sample", "training image")))


def copies_of_run(folder: Path, *, device: str, progress: Progress) -> dict[str, Copies]:
    """Find copies among the samples of a finished run, with the extractors of its recipe and in pixels.

    Writes `copies.json`, and `samples/copies-LABEL.png` with the closest pairs, into the run folder.

    Raises:
        SdditError: SD-C445 for a folder that is not a run, SD-T912 for a run on latents, SD-T930 for a run without
            samples, SD-T906 without held-out images.
    """
    recipe_path(folder)  # raises if the folder is not a run
    refuse_latents(folder, "copies of training images")
    samples = kept_samples(folder)
    recipe = resolve_run(folder)
    chosen = choose_device(device)
    real = real_images(recipe)
    train_set, test_set = (real.build(split=split) for split in ("train", "test"))
    refuse_few({"training images": train_set, "held-out images": test_set}, recipe.evaluate.neighbours)
    extractors = {**build_extractors(recipe, chosen), "pixels": PixelFeatures(chosen)}
    progress.stage("searching")
    batch = recipe.evaluate.batch
    found = find_copies(batches_of(samples, batch), train_set, test_set, extractors, batch)
    with RunFolder(folder) as run:
        run.write_json("copies.json", {label: one.to_json() for label, one in found.items()})
        for label, one in found.items():
            name = f"samples/copies-{label.replace('/', '-')}.png"
            closest = torch.from_numpy(samples.rows([sample for sample, _, _ in one.pairs])).permute(0, 3, 1, 2)
            run.write_bytes(name, pairs_image(one, closest, train_set))
    progress.end_stage()
    return found
