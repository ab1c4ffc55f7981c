"""FID, sFID, Inception score, precision and recall as ADM's evaluation suite defines them (arXiv:2105.05233).

For the user's own Inception weights and reference batch. Network and figures agree with published implementations
under made-up weights (`docs/parity.md`); no published FID has been reproduced yet. ADM's suite measures neighbours in
float16, which is not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.archives import StoredArray, load_arrays
from sddit.data.references import ReferenceFile, SampleFacts, mismatches, read_reference_file
from sddit.errors import SdditError, error, raise_all
from sddit.evaluation.metrics import Array, RunningMoments, frechet, gaussian_fault, inception_score, precision_recall
from sddit.evaluation.sample_images import batches_of
from sddit.evaluation.thumbnails import in_chunks
from sddit.interfaces import DataFacts
from sddit.progress import Progress
from sddit_standard.features.inception import CLASSES, PLACES, POOLED, Inception, Seen, load_inception, look, prepared

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
    images: StoredArray | None  # `arr_0`, uint8 [n, H, W, 3]
    file: ReferenceFile | None = None  # what it states about its images


class Observed:
    """What the scores need of the network's outputs for a set of images, which are given in parts.

    Args:
        keep_vectors: whether to keep the pooled features of every image, for precision and recall.
    """

    def __init__(self, *, keep_vectors: bool) -> None:
        self._keep_vectors = keep_vectors
        self._pooled, self._spatial = RunningMoments(), RunningMoments()
        self._vectors: list[Tensor] = []
        self._classes = torch.empty(0, CLASSES)  # of the images of an unfinished part of the Inception score
        self._scores: list[float] = []

    def add(self, seen: Seen) -> None:
        """Take the outputs for the next images."""
        self._pooled.add(seen.pooled.numpy())
        self._spatial.add(seen.spatial.numpy())
        if self._keep_vectors:
            self._vectors.append(seen.pooled)
        self._classes = torch.cat([self._classes, seen.classes]) if len(self._classes) else seen.classes
        while len(self._classes) >= PART:
            self._scores.append(_inception_score(self._classes[:PART]))
            self._classes = self._classes[PART:]

    @property
    def count(self) -> int:
        return self._pooled.count

    @property
    def pooled(self) -> Gaussian:
        return self._pooled.result()

    @property
    def spatial(self) -> Gaussian:
        return self._spatial.result()

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The pooled features of every image, [n, 2048]."""
        return torch.cat(self._vectors).numpy()

    @property
    def inception_score(self) -> float:
        """The mean over parts of 5,000 images; the last part may be smaller."""
        rest = [_inception_score(self._classes)] if len(self._classes) else []
        return float(np.mean(self._scores + rest))


def _inception_score(classes: Tensor) -> float:
    return float(inception_score(classes.double().numpy(), len(classes))[0])


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

    def collect_figures(self) -> InceptionFigures:
        """Return an accumulator of ADM's figures, as far as the reference allows."""
        return InceptionFigures(self._network, self._device, self._reference, self._real, self._name)

    @cached_property
    def _real(self) -> Observed | None:
        """What the network makes of the reference's images, if it has any."""
        if self._reference is None or self._reference.images is None:
            return None
        batches = reference_batches(self._reference.images)
        return observe(self._network, batches, self._device, Progress(), keep_vectors=True)


class InceptionFigures:
    """Collect the outputs of the network for samples."""

    def __init__(
        self, network: Inception, device: torch.device, reference: Reference | None, real: Observed | None, name: str
    ) -> None:
        self._network, self._device, self._reference, self._real, self._name = network, device, reference, real, name
        self._fake = Observed(keep_vectors=real is not None)

    def add(self, images: Tensor) -> None:
        """Take the next samples, uint8 [b, 3, H, W]. Raises SD-T942 for a size that is not that of the reference."""
        if self._reference is not None and self._reference.file is not None:
            samples = SampleFacts((images.shape[2], images.shape[3]), crop="", fingerprint="")
            raise_all(mismatches(self._reference.file, samples, {}, where=self._name))
        self._fake.add(look(self._network, images, self._device))

    def figures(self) -> dict[str, float]:
        """Return ADM's figures."""
        if self._reference is None:
            return {"inception_score": self._fake.inception_score}
        found = adm_scores(self._fake, self._reference, self._real, name=self._name, digest="")
        figures = {
            "fid": found.fid,
            "sfid": found.sfid,
            "inception_score": found.inception_score,
            "precision_adm": found.precision,
            "recall_adm": found.recall,
        }
        return {name: value for name, value in figures.items() if value is not None}


def score_samples(
    samples: StoredArray, *, inception: Path, reference: Path, device: torch.device, progress: Progress
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
    progress.stage("samples", total=batch_count(samples))
    fake = observe(network, batches_of(samples, BATCH), device, progress, keep_vectors=held.images is not None)
    real = None
    if held.images is not None:
        progress.stage("reference", total=batch_count(held.images))
        real = observe(network, reference_batches(held.images), device, progress, keep_vectors=True)
    progress.stage("scoring")
    found = adm_scores(fake, held, real, name=reference.name, digest=digest)
    progress.end_stage()
    return found.to_json()


def real_statistics(images: Iterable[Tensor], *, inception: Path, device: torch.device) -> dict[str, Array]:
    """Return the statistics of a reference batch, for `sddit-run reference SOURCE OUT.npz --inception FILE`.

    Args:
        images: real images, uint8 [b, 3, H, W] each.
        inception: weights of FID's Inception network.
        device: where the network runs.

    Raises:
        SdditError: SD-T940 for other weights, SD-T906 for fewer than two images.
    """
    network, _ = load_inception(inception, device)
    real = observe(network, images, device, Progress(), keep_vectors=False)
    (mu, sigma), (mu_s, sigma_s) = real.pooled, real.spatial
    return {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}


def adm_scores(fake: Observed, held: Reference, real: Observed | None, *, name: str, digest: str) -> AdmScores:
    """Compare what the network made of samples with a reference, and with what it made of the reference's images."""
    pooled = held.pooled or (real.pooled if real else None)
    spatial = held.spatial or (real.spatial if real else None)
    assert pooled is not None  # a reference has one or the other
    near = precision_recall(real.vectors, fake.vectors, NEIGHBOURS) if real else None
    return AdmScores(
        samples=fake.count,
        fid=frechet(*fake.pooled, *pooled),
        sfid=frechet(*fake.spatial, *spatial) if spatial else None,
        inception_score=fake.inception_score,
        precision=near[0] if near else None,
        recall=near[1] if near else None,
        reference=name,
        weights_sha256=digest,
    )


def observe(
    network: Inception, batches: Iterable[Tensor], device: torch.device, progress: Progress, *, keep_vectors: bool
) -> Observed:
    """Run the network on images, uint8 [b, 3, H, W] each."""
    observed = Observed(keep_vectors=keep_vectors)
    for images in batches:
        observed.add(look(network, images, device))
        progress.tick()
    return observed


def batch_count(images: StoredArray) -> int:
    return -(-len(images) // BATCH)  # rounded up


def reference_batches(images: StoredArray) -> Iterator[Tensor]:
    """Yield the images of a reference, uint8 [b, 3, H, W]. Raises SD-T941 for a damaged file."""
    try:
        for batch in images.batches(BATCH):
            yield torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
    except (OSError, ValueError) as fault:
        raise _refusal(images.path, str(fault)) from fault


def read_reference(path: Path) -> Reference:
    """Return an ADM reference batch. SD-T941 for a file that is none."""
    try:
        arrays = load_arrays(path, ("mu", "sigma", "mu_s", "sigma_s"))
        images = StoredArray.find(path, "arr_0")
    except (OSError, ValueError) as fault:
        raise _refusal(path, str(fault)) from fault
    shapes = {"mu": (POOLED,), "sigma": (POOLED, POOLED), "mu_s": (PLACES,), "sigma_s": (PLACES, PLACES)}
    for key, shape in shapes.items():
        if key in arrays and arrays[key].shape != shape:
            raise _refusal(path, f"{key} {arrays[key].shape}, where {shape} was expected")
    if images is not None and (
        images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] != 3 or 0 in images.shape[1:]
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
    return Reference(_widened(pooled), _widened(spatial), images, read_reference_file(path))


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
