"""Compute distances and fractions between two sets of feature vectors, in float64. Rows are images.

None of these is FID: that name belongs to one Inception network. A metric made here carries its extractor's name.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sddit.errors import SdditError, error

Array = NDArray[np.float64]

NEAREST = 0.05  # fraction of unseen real images that are as close to a training image as a sample that counts as copied
LARGEST = 1e40  # absolute value of a feature: sums of its powers stay finite
ROUNDING = 1e-6  # relative, of statistics that were stored as float32
CHUNK = 256  # rows of a matrix of pairs that are in memory at once


def moments(features: ArrayLike) -> tuple[Array, Array]:
    """Return mean [d] and covariance [d, d] of [n, d] vectors, with n - 1 in the denominator.

    Raises SD-T906 for a single vector, SD-T907 for a non-finite one.
    """
    x = _vectors(features)
    mean = x.mean(axis=0)
    centred = np.subtract(x, mean, out=None if x is features else x)  # a copy is not copied again
    return mean, centred.T @ centred / (len(x) - 1)


class RunningMoments:
    """Mean and covariance, as from `moments`, of vectors that are given in parts (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._products = np.zeros(0)  # sum of (x - mean)(x - mean)^T

    def add(self, features: ArrayLike) -> None:
        """Take further vectors, [n, d]. Raises SD-T907 for a non-finite one."""
        x = _vectors(features, least=1)
        mean = x.mean(axis=0)
        centred = x - mean
        products = centred.T @ centred
        if self.count:
            shift, total = mean - self._mean, self.count + len(x)
            products += self._products + np.outer(shift, shift) * (self.count * len(x) / total)
            mean = self._mean + shift * (len(x) / total)
        self.count, self._mean, self._products = self.count + len(x), mean, products

    def result(self) -> tuple[Array, Array]:
        """Return mean [d] and covariance [d, d]. Raises SD-T906 for fewer than two vectors."""
        _refuse_fewer(2, self.count)
        return self._mean, self._products / (self.count - 1)


def frechet(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """Return the squared Frechet distance of two Gaussians (Dowson and Landau 1982; for images, arXiv:1706.08500).

    |mu1 - mu2|^2 + tr(S1 + S2) - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2). The root of the symmetric product has the trace of
    (S1 S2)^(1/2) and is always real: no square root of an unsymmetric matrix, no imaginary part.

    Raises SD-T909 for means and covariances of no distribution.
    """
    for mean, covariance in ((mu1, sigma1), (mu2, sigma2)):
        if fault := gaussian_fault(mean, covariance):
            raise _degenerate("these statistics are of no distribution", fault, "a finite mean and a covariance")
    eigenvalues, vectors = np.linalg.eigh(sigma1)
    root1 = (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T  # what is below zero is rounding
    product = root1 @ sigma2 @ root1
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = np.sqrt(eigenvalues.clip(min=0)).sum()  # what is below zero is rounding: both are covariances
    shift = mu1 - mu2
    distance = _finite(float(shift @ shift + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap))
    return max(0.0, distance)  # equal Gaussians: rounding again


def gaussian_fault(mean: Array, covariance: Array) -> str:
    """Return what is wrong with the statistics of a Gaussian, such as those read from a file, or an empty string.

    A covariance is symmetric and positive semi-definite, up to the rounding of float32. Fewer bits than those of
    float32 change a distance.
    """
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        return f"a mean of shape {mean.shape}, a covariance of shape {covariance.shape}"
    for name, values, largest in (("mean", mean, LARGEST), ("covariance", covariance, LARGEST**2)):
        if values.dtype not in (np.float32, np.float64):
            return f"a {name} of {values.dtype}, where float64 or float32 was expected"
        if bad := int((~np.isfinite(values)).sum()):
            return f"a {name} with {bad} of {values.size} values NaN or infinite"
        if (highest := float(np.abs(values).max())) > largest:
            return f"a {name} with a value of {highest:.3g}, above {largest:.0e}"
    rounding = ROUNDING * float(np.abs(covariance).sum(axis=1).max())  # of its norm
    if np.abs(covariance - covariance.T).max() > rounding:
        return "a covariance that is not symmetric"
    try:
        np.linalg.cholesky((covariance + covariance.T) / 2 + (rounding or 1.0) * np.eye(len(mean)))
    except np.linalg.LinAlgError:
        return "a covariance with a negative variance in some direction"
    return ""


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to [n, d] and [m, d] vectors.

    Biased upward by about 1/n: compare only at equal n, and against the same distance between real images.
    """
    a, b = _pair(a, b)
    return frechet(*moments(a), *moments(b))


def mmd2(a: ArrayLike, b: ArrayLike) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv:1801.01401).

    It may be negative.
    """
    a, b = _pair(a, b)
    return _finite(_within(a) + _within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def kid(a: ArrayLike, b: ArrayLike, *, subsets: int, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return mean and std of `mmd2` over random subsets of `size` vectors from each set (arXiv:1801.01401)."""
    a, b = _pair(a, b)
    _refuse_fewer(size, min(len(a), len(b)))
    draws = ([x[rng.choice(len(x), size, replace=False)] for x in (a, b)] for _ in range(subsets))
    values = [mmd2(*pair) for pair in draws]
    return _finite(float(np.mean(values))), _finite(float(np.std(values)))


def _within(x: Array) -> float:
    """Return the mean of (x.y / d + 1)^3 over all pairs of different rows."""
    n = len(x)
    diagonal = float((((x * x).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(x, x) - diagonal) / (n * (n - 1))


def _kernel_sum(a: Array, b: Array) -> float:
    """Return the sum of (x.y / d + 1)^3 over all pairs."""
    return float(sum((((rows @ b.T) / a.shape[1] + 1) ** 3).sum() for _, rows in _chunks(a)))


def precision_recall(real: ArrayLike, fake: ArrayLike, k: int) -> tuple[float, float]:
    """Return improved precision and recall (arXiv:1904.06991), in [0, 1].

    Precision: fraction of fakes inside at least one ball around a real sample, reaching to its k-th nearest other real
    sample. Recall: the same with the roles exchanged. Compare both at equal sizes of the sets only.
    """
    real, fake = _pair(real, fake)
    fake_hits, _ = _balls(real, fake, k)
    real_hits, _ = _balls(fake, real, k)
    return float((fake_hits > 0).mean()), float((real_hits > 0).mean())


def density_coverage(real: ArrayLike, fake: ArrayLike, k: int) -> tuple[float, float]:
    """Return density and coverage (arXiv:2002.09797).

    Density: mean number of real balls around a fake, over k; 1 is expected of equal distributions, more is possible.
    Coverage: fraction of real balls that hold at least one fake.
    """
    real, fake = _pair(real, fake)
    hits, held = _balls(real, fake, k)
    return float(hits.mean() / k), float(held.mean())


def nearest(points: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Return index [n] and Euclidean distance [n] of the nearest vector of `reference` for each of n points."""
    x, y = _pair(points, reference)
    origin = y.mean(axis=0)
    centred = y - origin
    index, distance = np.empty(len(x), dtype=np.int64), np.empty(len(x))
    for start, rows in _chunks(x):
        found = _squared_distances(rows - origin, centred).argmin(axis=1)
        index[start : start + len(rows)] = found
        squared = ((rows - y[found]) ** 2).sum(axis=1)  # without the rounding of the norms
        distance[start : start + len(rows)] = np.sqrt(squared)
    return index, distance


def copied_fraction(distances: ArrayLike, unseen: ArrayLike) -> tuple[float, float]:
    """Return the fraction of samples that are near copies of training images, and its floor.

    A sample is a near copy if it is as close to a training image as the closest `NEAREST` of the unseen real images. A
    model that learned the distribution has about that fraction, one that stores training images has more. The
    comparison of two sets of distances follows Meehan et al. (arXiv:2004.05675), here in the tail where copies are.
    Samples near the centre of the data are close to many training images and count as well: look at the images.

    Args:
        distances: [n] of each sample to its nearest training image.
        unseen: [m] the same of held-out real images.
    """
    distances, unseen = (_vectors(np.reshape(x, (-1, 1)), least=1)[:, 0] for x in (distances, unseen))
    near = np.quantile(unseen, NEAREST)
    return float((distances <= near).mean()), float((unseen <= near).mean())


def _balls(centres: Array, points: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how many balls hold each point [points], and whether each ball holds any point [centres].

    The ball around a centre reaches to its k-th nearest other centre.
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    _refuse_fewer(k + 1, len(centres))
    origin = centres.mean(axis=0)  # small norms round less
    centres, points = centres - origin, points - origin
    tie = 1e-13 * max(_squared_norms(centres).max(), _squared_norms(points).max())  # rounding must not part equal ones
    hits = np.zeros(len(points), dtype=np.int64)
    held = np.zeros(len(centres), dtype=np.bool_)
    for start, rows in _chunks(centres):
        to_centres = _squared_distances(rows, centres)
        to_centres[np.arange(len(rows)), np.arange(start, start + len(rows))] = np.inf  # a centre is not its neighbour
        radii = np.partition(to_centres, k - 1, axis=1)[:, k - 1]  # [rows], squared
        inside = _squared_distances(rows, points) <= radii[:, None] + tie  # [rows, points]
        hits += inside.sum(axis=0)
        held[start : start + len(rows)] = inside.any(axis=1)
    return hits, held


def _squared_norms(x: Array) -> Array:
    return np.asarray((x * x).sum(axis=1))


def _squared_distances(a: Array, b: Array) -> Array:
    return _squared_norms(a)[:, None] + _squared_norms(b)[None, :] - 2 * (a @ b.T)


def inception_score(probabilities: ArrayLike, size: int) -> Array:
    """Return the Inception scores of consecutive parts of `size` images (arXiv:1606.03498); the last may be smaller.

    A score is exp of the mean over images of KL(p(y|x) || p(y)), p(y) the mean within the part. `probabilities` is
    [n, classes].
    """
    p = _vectors(probabilities)
    sums = p.sum(axis=1)
    if p.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
        got = f"values from {p.min():.3g} to {p.max():.3g}, sums from {sums.min():.3g} to {sums.max():.3g}"
        raise _degenerate("these rows are not probabilities of classes", got, "rows from 0 to 1 with the sum 1")
    return np.array([np.exp(_divergence(part).mean()) for _, part in _chunks(p, size)])


def _divergence(p: Array) -> Array:
    """Return KL(p(y|x) || p(y)) of each row of p [n, classes], p(y) the mean of the rows. 0 log 0 = 0."""
    ratio = np.divide(p, p.mean(axis=0), out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(axis=1))


def _chunks(x: Array, size: int | None = None) -> Iterator[tuple[int, Array]]:
    """Yield (index of the first row, rows), `CHUNK` rows at a time by default."""
    size = size or CHUNK
    for start in range(0, len(x), size):
        yield start, x[start : start + size]


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _vectors(a), _vectors(b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of different widths: {first.shape[1]} and {second.shape[1]}")
    return first, second


def _finite(value: float) -> float:
    """Return a metric that is a number. Raises SD-T909 if finite features overflowed on the way."""
    if not np.isfinite(value):
        raise _degenerate("a metric is not finite", f"{value} from finite features", "features of usual size")
    return value


def _degenerate(what: str, got: str, expect: str) -> SdditError:
    return error("SD-T909", what, where="features", got=got, expect=expect)


def _vectors(features: ArrayLike, least: int = 2) -> Array:
    """Return features as float64 [n, d]. Raises SD-T906 for fewer than `least` rows, SD-T907 for a non-finite one."""
    given = np.asarray(features)
    if given.dtype.kind not in "fiub":
        raise _degenerate("features are not real numbers", str(given.dtype), "real numbers [n, d]")
    x = given.astype(np.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"expected features [n, d], got shape {x.shape}")
    _refuse_fewer(least, len(x))
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise error(
            "SD-T907",
            "features of an image are not finite",
            where=f"image {bad[0]}",
            got=f"{len(bad)} of {len(x)} images with NaN or infinity",
            expect="finite features",
            fix="look at these images; a broken extractor gives this for all of them",
        )
    if (largest := float(max(x.max(initial=0), -x.min(initial=0)))) > LARGEST:
        raise _degenerate("features are too large to be compared", f"{largest:.3g}", f"at most {LARGEST:.0e}")
    return x


def _refuse_fewer(least: int, count: int) -> None:
    if count < least:
        raise error(
            "SD-T906",
            "too few images for a statistic",
            where="evaluate.samples",
            got=str(count),
            expect=f"at least {least}",
            fix="raise evaluate.samples; held-out images count as well",
        )
