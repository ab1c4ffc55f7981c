"""Compute the statistics of real images that samples are compared with, for `sddit-run reference`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from sddit import __version__
from sddit.data.archives import write_arrays
from sddit.data.references import ENTRY, ReferenceRecord, hashes, read_reference_file, record_array
from sddit.data.undecoded import scores_of_latents
from sddit.errors import SdditError, error
from sddit.interfaces import Dataset, DatasetParams, EvaluateMode, KeepingDataset, Selected, Split
from sddit.interfaces.component import load_attribute
from sddit.progress import Progress
from sddit.recipes.image_source import dataset_of, settings_in
from sddit.storage.atomic import create_synced, staged_name, storage_errors, write_file
from sddit.storage.run_folder import ensure_directory
from sddit.training.environment import choose_device

BATCH = {"cpu": 32, "cuda": 256}  # a part costs a sum over the covariance, and delays the progress
SPLIT: Split = "train"  # of a run; of a source that is read for this, it is all images
STATED = {"labels": False, "holdout": 0.0}  # of such a source


class RealImages:
    """The images of a data set, in parts."""

    def __init__(self, chosen: Selected[DatasetParams], batch: int, progress: Progress) -> None:
        self._chosen, self._batch, self._progress = chosen, batch, progress
        self.dataset: Dataset | None = None  # once images are read
        self.size = (0, 0)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield uint8 [b, 3, H, W]. Raises SD-T912 for latents without a decoder."""
        self._progress.stage("reading")
        dataset: Dataset = self._chosen.build(split=SPLIT)
        if not dataset.facts.gives_images:
            raise SdditError(scores_of_latents("SOURCE", dataset.facts.source))
        if isinstance(dataset, KeepingDataset):
            dataset.keep_no_more()
        self.dataset, ids = dataset, range(len(dataset))
        self._progress.stage("reference", total=len(ids))
        for start in ids[:: self._batch]:
            images = dataset.to_images(dataset.fetch(ids[start : start + self._batch])[0])
            self.size = (images.shape[2], images.shape[3])
            yield images
            done = start + len(images)
            self._progress.advance(done, {"images_per_second": done / max(self._progress.elapsed, 1e-9)})


def write_reference(
    source: Path,
    out: Path,
    mode: EvaluateMode,
    *,
    paths: Mapping[str, Path],
    settings: Sequence[str],
    device: str,
    progress: Progress,
) -> ReferenceRecord:
    """Write the statistics of the images of `source` to `out`, and return what the file states about them.

    Args:
        source: a run folder or a recipe, whose training split is meant; or images that a data set `reads`: all of
            them, without classes.
        out: a new file, or an earlier reference, which is replaced.
        mode: computes the statistics.
        paths: the files that the mode needs, by option.
        settings: keys of `[dataset]` for such images, as overrides: `dataset.size=64`.
        device: `cpu` or `cuda`.
        progress: where progress is shown.

    Raises:
        SdditError: SD-F716 if another file is in the way, SD-T943 for a source that no data set reads, SD-T912 for
            latents, or an error of the data set, the mode or the storage.
    """
    chosen, target = choose_device(device), _free_path(out)
    given = settings_in(settings, ("dataset",))["dataset"]
    images = RealImages(dataset_of(source, given, stated=STATED), BATCH[chosen.type], progress)
    arrays: dict[str, Any] = load_attribute(mode.statistics)(images, device=chosen, **paths)
    assert images.dataset is not None  # statistics need images
    record = ReferenceRecord(
        version=__version__,
        images=len(images.dataset),
        height=images.size[0],
        width=images.size[1],
        crop=images.dataset.facts.crop,
        source=source.resolve().name,
        split=SPLIT,
        fingerprint=images.dataset.facts.fingerprint,
        files=hashes(paths),
    )
    write_file(target, lambda file: _write(file, {**arrays, ENTRY: record_array(record)}))
    progress.end_stage()
    return record


def _write(file: BinaryIO, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    write_arrays(file, {name: (array.dtype, array.shape, [array]) for name, array in arrays.items()})


def _free_path(out: Path) -> Path:
    """Return the path to write to. Raises SD-F716 if there is anything but an earlier reference, or a storage error."""
    path = ensure_directory(out.parent) / out.name
    if (path.exists() or path.is_symlink()) and (path.is_symlink() or read_reference_file(path).record is None):
        what, expect = "another file is in the way", "a new name, or a file of sddit-run reference"
        raise error("SD-F716", what, where=str(out), expect=expect, fix="move it away, or choose another name")
    probe = staged_name(path.parent, path.name)
    with storage_errors(path):  # before the images are read
        with create_synced(probe):
            pass
        probe.unlink()
    return path
