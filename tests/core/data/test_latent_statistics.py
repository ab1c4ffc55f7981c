"""Moments of real encoders are plausible, and those of another layout are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sddit.data.latent_statistics import Layout, MomentStatistics, is_finite, mean_and_std, scaled_findings

RNG = np.random.default_rng(0)


def statistics(moments: NDArray[Any], layout: Layout) -> MomentStatistics:
    found = MomentStatistics()
    for part in np.array_split(moments, min(3, len(moments))):
        found.add(part, layout)
    return found


def what(moments: NDArray[Any], layout: Layout = "mean+logvar", scale: float | None = None) -> str:
    """Return what is implausible about moments, scaled to standard deviation 1 by default."""
    found = statistics(moments, layout)
    scale = scale or 1 / float(moments[:, : moments.shape[1] // 2].astype(np.float64).std())
    _, std, spread = found.scaled(scale)
    return "; ".join(
        part[0] for part in (*found.findings(layout, moments.shape[1:]), *scaled_findings(std, spread, scale))
    )


def smooth(n: int, channels: int, height: int, width: int) -> NDArray[Any]:
    """Unit noise with neighbours alike, as in images."""
    coarse = RNG.standard_normal((n, channels, -(-height // 4), -(-width // 4)))
    fine = RNG.standard_normal((n, channels, height, width))
    return np.asarray(0.9 * coarse.repeat(4, 2).repeat(4, 3)[:, :, :height, :width] + 0.4 * fine)


def stable_diffusion(height: int = 32, width: int = 32, n: int = 12) -> NDArray[Any]:
    centre, std = np.array([5.81, 3.25, 0.12, -2.15]), np.array([4.17, 4.62, 3.71, 3.28])
    mean = centre[:, None, None] + std[:, None, None] * smooth(n, 4, height, width)
    return np.concatenate([mean, -14 + 4 * smooth(n, 4, height, width)], axis=1).astype(np.float32)


def as_stds(moments: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(mean_and_std(moments, "mean+logvar"), axis=1).astype(np.float32)


def wide(channels: int, height: int, width: int) -> NDArray[Any]:
    """Moments of an encoder of many channels; half of them carry nothing: mean near 0, log-variance near 0."""
    mean, logvar = smooth(12, channels, height, width), -8 + smooth(12, channels, height, width)
    mean[:, ::2] *= 0.05
    logvar[:, ::2] = 0.01 * smooth(12, channels // 2, height, width)
    return np.concatenate([mean, logvar], axis=1).astype(np.float32)


REAL: dict[str, tuple[NDArray[Any], Layout]] = {
    "stable diffusion": (stable_diffusion(), "mean+logvar"),
    "half precision": (stable_diffusion().astype(np.float16), "mean+logvar"),
    "wide images": (stable_diffusion(8, 16), "mean+logvar"),
    "one image": (stable_diffusion(n=1), "mean+logvar"),
    "edm2": (as_stds(stable_diffusion()), "mean+std"),
    "edm2, wide images": (as_stds(stable_diffusion(8, 16)), "mean+std"),
    "16 channels, 32 rows": (wide(16, 32, 24), "mean+logvar"),
    "dead channels": (wide(64, 8, 8), "mean+logvar"),
    "low variance": (stable_diffusion() * np.float32(0.01) - np.float32(9), "mean+logvar"),
    "no posterior": (np.concatenate([smooth(12, 4, 8, 8), np.zeros((12, 4, 8, 8))], 1), "mean+std"),
    "clamped": (np.concatenate([smooth(12, 4, 8, 8), np.full((12, 4, 8, 8), -40.0)], 1), "mean+logvar"),
}


@pytest.mark.parametrize(("moments", "layout"), REAL.values(), ids=REAL)
def test_real_layouts_are_plausible(moments: NDArray[Any], layout: Layout) -> None:
    assert what(moments, layout) == ""


def nhwc(moments: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(moments.transpose(0, 2, 3, 1))


def swapped(moments: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(np.split(moments, 2, axis=1)[::-1], axis=1)


def interleaved(moments: NDArray[Any]) -> NDArray[Any]:
    return moments[:, [0, 4, 1, 5, 2, 6, 3, 7]]


WRONG: dict[str, tuple[Callable[[], NDArray[Any]], str]] = {
    "standard deviations": (lambda: as_stds(stable_diffusion()), "no log-variance is below 0"),
    "zeros": (lambda: as_stds(stable_diffusion()) * np.repeat([1, 0], 4)[:, None, None], "no log-variance is below 0"),
    "nhwc": (lambda: nhwc(stable_diffusion()), "NHWC"),
    "nhwc, as many rows as channels": (lambda: nhwc(stable_diffusion(8, 8)), "NHWC"),
    "nhwc, not square": (lambda: nhwc(stable_diffusion(32, 24)), "NHWC"),
    "nhwc, noise": (lambda: RNG.normal(size=(12, 32, 32, 8)) * 5.5, "NHWC"),
    "nhwc, many channels": (lambda: nhwc(wide(32, 16, 16)), "NHWC"),
    "swapped": (lambda: swapped(stable_diffusion()), "more than 10 times that of its means"),
    "interleaved": (lambda: interleaved(stable_diffusion()), "alternated"),
    "above the clamp": (lambda: stable_diffusion() + np.repeat([0, 40], 4)[:, None, None], "above 20"),
    "a constant channel": (lambda: stable_diffusion() * np.array([1, 0, *[1] * 6])[:, None, None], "does not vary"),
}


@pytest.mark.parametrize(("moments", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_layout_is_refused(moments: Callable[[], NDArray[Any]], words: str) -> None:
    assert words in what(moments())


def test_a_wrong_scale_is_refused() -> None:
    for scale, found in ((1.0, "scale is missing"), (0.18, ""), (0.18**2, "scale is missing")):
        said = what(stable_diffusion(), scale=scale)
        assert found in said if found else said == ""


def test_parts_and_json_change_nothing() -> None:
    moments = stable_diffusion().astype(np.float64)
    whole = MomentStatistics()
    whole.add(moments, "mean+logvar")
    again = MomentStatistics.from_json(statistics(moments, "mean+logvar").to_json())
    for one, other in zip(whole.scaled(0.5), again.scaled(0.5), strict=True):
        assert np.allclose(one, other, rtol=1e-12)
    mean, std = mean_and_std(moments, "mean+logvar")
    assert np.allclose(whole.scaled(1.0)[1], mean.std(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(whole.scaled(1.0)[2], np.sqrt((std**2).mean(axis=(0, 2, 3))), rtol=1e-12)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_finite_numbers_are_known_by_their_bits(kind: str) -> None:
    info = np.finfo(kind)
    values = np.array([0, -0.0, 1, -3, info.max, info.min, info.tiny, info.smallest_subnormal], dtype=kind)
    assert is_finite(values)
    assert is_finite(values[::2])
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        assert not is_finite(np.append(values, bad).astype(kind))
