"""FID, sFID, Inception score, precision and recall as ADM's evaluation suite defines them (arXiv:2105.05233).

For the user's own Inception weights and reference batch. Written from the definitions: no figure of it has been
compared with a published one yet. ADM's suite measures neighbours in float16, which is not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.archives import load_arrays
from sddit.errors import SdditError, error
from sddit.evaluation.metrics import Array, frechet, gaussian_fault, inception_score, moments, precision_recall
from sddit.evaluation.thumbnails import in_chunks
from sddit.interfaces import DataFacts
from sddit.progress import Progress
from sddit_standard.features.inception import PLACES, POOLED, Inception, Seen, load_inception, look, prepared

if TYPE_CHECKING:
    from sddit_standard.features.params import InceptionParams

PART = 5000  # images of one Inception score, whose mean over parts is given
NEIGHBOURS = 3  # of precision and recall
BATCH = 256


Gaussian = tuple[Array, Array]
"""Mean [d] and covariance [d, d]."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Arrays of an ADM reference batch, as far as the file has them."""

    pooled: Gaussian | None  # `mu` and `sigma`
    spatial: Gaussian | None  # `mu_s` and `sigma_s`
    images: NDArray[np.uint8] | None  # `arr_0`, [n, H, W, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmScores:
    """None: the reference does not hold what the figure needs."""

    samples: int
    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None
    reference: str  # name of the file
    weights_sha256: str  # of the Inception file

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inception(params: InceptionParams, *, facts: DataFacts, device: torch.device) -> InceptionFeatures:
    """FID's network as a feature extractor. SD-T940 and SD-T941 for files that are something else."""
    network, _ = load_inception(Path(params.weights), device)
    reference = read_reference(Path(params.reference)) if params.reference else None
    return InceptionFeatures(network, reference, Path(params.reference).name, device)


class InceptionFeatures:
    """The 2048 features before FID's network names a class, and ADM's figures of all samples.

    Its distance to the training split, with a floor as that of any extractor, is not called FID: that is the distance
    to the reference batch, among its own figures.
    """

    title = "Inception"
    dimensions = POOLED

    def __init__(self, network: Inception, reference: Reference | None, name: str, device: torch.device) -> None:
        self._network, self._reference, self._name, self._device = network, reference, name, device

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, 2048] on the CPU."""
        return in_chunks(lambda chunk: self._network(prepared(chunk)).pooled, images, POOLED, self._device)

    def classes(self, images: Tensor) -> None:
        """None: ImageNet's classes are not those of the data set."""

    def own_figures(self, images: Tensor) -> dict[str, float]:
        """uint8 [n, 3, H, W] -> ADM's figures, as far as the reference allows."""
        fake = look(self._network, images, self._device)
        if self._reference is None:
            return {"inception_score": score_of(fake)}
        found = adm_scores(fake, self._reference, self._real, name=self._name, digest="")
        figures = {
            "fid": found.fid,
            "sfid": found.sfid,
            "inception_score": found.inception_score,
            "precision_adm": found.precision,
            "recall_adm": found.recall,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @cached_property
    def _real(self) -> Seen | None:
        """Outputs of the network for the reference's images, if it has any."""
        if self._reference is None or self._reference.images is None:
            return None
        return see(self._network, self._reference.images, self._device, Progress(), "reference")


def score_of(seen: Seen) -> float:
    """Return the Inception score: its mean over parts."""
    return float(inception_score(seen.classes.double().numpy(), PART).mean())


def score_samples(
    samples: NDArray[np.uint8], *, inception: Path, reference: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Score the saved samples of a run for `sddit-run evaluate RUN --inception FILE --reference NPZ`.

    Args:
        samples: uint8 [n, H, W, 3].
        inception: weights of FID's Inception network.
        reference: npz with `mu` and `sigma`, `mu_s` and `sigma_s`, or with images `arr_0` uint8 [n, H, W, 3], or with
            both.
        device: where the network runs.
        progress: where progress is shown.

    Raises:
        SdditError: SD-T940 for other weights, SD-T941 for another reference.
    """
    held = read_reference(reference)
    network, digest = load_inception(inception, device)
    fake = see(network, samples, device, progress, "samples")
    real = None if held.images is None else see(network, held.images, device, progress, "reference")
    progress.stage("scoring")
    found = adm_scores(fake, held, real, name=reference.name, digest=digest)
    progress.end_stage()
    return found.to_json()


def adm_scores(fake: Seen, held: Reference, real: Seen | None, *, name: str, digest: str) -> AdmScores:
    """Compare what the network made of samples with a reference, and with what it made of the reference's images."""
    pooled = held.pooled or (real and gaussian(real.pooled))
    spatial = held.spatial or (real and gaussian(real.spatial))
    assert pooled is not None  # a reference has one or the other
    near = real and precision_recall(real.pooled.numpy(), fake.pooled.numpy(), NEIGHBOURS)
    return AdmScores(
        samples=len(fake.pooled),
        fid=frechet(*gaussian(fake.pooled), *pooled),
        sfid=frechet(*gaussian(fake.spatial), *spatial) if spatial else None,
        inception_score=score_of(fake),
        precision=near[0] if near else None,
        recall=near[1] if near else None,
        reference=name,
        weights_sha256=digest,
    )


def gaussian(features: Tensor) -> Gaussian:
    """Mean and covariance of [n, d], in float64."""
    return moments(features.double().numpy())


def see(network: Inception, images: NDArray[np.uint8], device: torch.device, progress: Progress, what: str) -> Seen:
    """Run the network on images [n, H, W, 3]."""
    parts = [torch.from_numpy(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    progress.stage(what, total=len(parts))
    seen = []
    for part in parts:
        seen.append(look(network, part.permute(0, 3, 1, 2), device))
        progress.tick()
    progress.end_stage()
    return Seen(*(torch.cat(column) for column in zip(*seen, strict=True)))


def read_reference(path: Path) -> Reference:
    """Return an ADM reference batch. SD-T941 for a file that is none."""
    try:
        arrays = load_arrays(path, ("mu", "sigma", "mu_s", "sigma_s", "arr_0"))
    except (OSError, ValueError) as fault:
        raise _refusal(path, str(fault)) from fault
    shapes = {"mu": (POOLED,), "sigma": (POOLED, POOLED), "mu_s": (PLACES,), "sigma_s": (PLACES, PLACES)}
    for key, shape in shapes.items():
        if key in arrays and arrays[key].shape != shape:
            raise _refusal(path, f"{key} {arrays[key].shape}, where {shape} was expected")
    images = arrays.get("arr_0")
    if images is not None and (
        images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]
    ):
        raise _refusal(path, f"arr_0 {images.dtype} {images.shape}")
    pooled, spatial = (_gaussian_of(arrays, *names) for names in (("mu", "sigma"), ("mu_s", "sigma_s")))
    if images is not None and len(images) < 2:
        raise _refusal(path, f"{len(images)} images in arr_0, where statistics need at least 2")
    for name, gaussian_of_file in (("mu and sigma", pooled), ("mu_s and sigma_s", spatial)):
        if gaussian_of_file and (found := gaussian_fault(*gaussian_of_file)):
            raise _refusal(path, f"{name}: {found}")
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if (mean in arrays) != (covariance in arrays):
            raise _refusal(path, f"{mean} or {covariance} without the other")
    if pooled is None and images is None:
        raise _refusal(path, f"an npz of {', '.join(arrays) or 'other arrays'}")
    return Reference(_widened(pooled), _widened(spatial), images)


def _gaussian_of(arrays: Mapping[str, NDArray[Any]], mean: str, covariance: str) -> Gaussian | None:
    """Return the statistics as they are in the file, whose types `gaussian_fault` judges."""
    if mean not in arrays or covariance not in arrays:
        return None
    return arrays[mean], arrays[covariance]


def _widened(found: Gaussian | None) -> Gaussian | None:
    return (found[0].astype(np.float64), found[1].astype(np.float64)) if found else None


def _refusal(path: Path, got: str) -> SdditError:
    return error(
        "SD-T941",
        "not a reference batch",
        where=str(path),
        got=got,
        expect="an npz with mu and sigma of 2048 features, or with images arr_0 uint8 [n, H, W, 3]",
    )
