"""Measure the moments of latents, and judge whether they are what a cache says they are. No torch.

Moments are refused as implausible (SD-D344) by rules that real encoders satisfy. Their log-variances are mostly far
below 0: about -10 to -20 for Stable Diffusion's VAE, whose means have a standard deviation of about 5.5 before scaling;
and 0 for a channel that carries nothing. Standard deviations (EDM2) are small against those of the means, or 0.

- If no log-variance is below 0, they are standard deviations or variances.
- A log-variance above 20 is not one: encoders clamp them there.
- The two halves of the channel axis differ, in mean or in spread: one holds means, the other standard deviations or
  log-variances. If they are alike, and the last axis either explains a quarter of the variance or is the only axis of
  another length, the moments are NHWC; if the channels of each half explain a quarter, the two kinds alternate.
- The standard deviation of the posterior is at most ten times that of its means: beyond, almost nothing but noise is
  trained on. Halves that are swapped are found by this rule.
- Every channel varies.
- Scaled latents have a standard deviation from 0.25 to 2.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Layout = Literal["mean+logvar", "mean+std"]

LOG_VARIANCE = (-30.0, 20.0)  # range to which MaskDiT and the VAE clamp it
PLAUSIBLE = (0.25, 2.5)  # standard deviation of scaled latents; outside, the scale is missing or was applied twice
MAX_WIDTH = 10  # of the posterior, in standard deviations of the means
MAX_EXPLAINED = 0.25  # fraction of the variance that one axis may explain where the halves are alike
MIN_STD = 1e-6  # of one channel, relative to all of them

Finding = tuple[str, str, str]
"""What is implausible, what was found, and how to correct it."""


def mean_and_std(moments: NDArray[Any], layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and standard deviations, each [n, C, h, w], before scaling."""
    mean, second = np.split(moments.astype(np.float64), 2, axis=1)
    return mean, np.exp(np.clip(second, *LOG_VARIANCE) / 2) if layout == "mean+logvar" else second


def is_finite(values: NDArray[Any]) -> bool:
    """Return whether floats are finite, from their bits: NumPy is slow on half precision."""
    bits = {2: (np.uint16, 0x7C00), 4: (np.uint32, 0x7F800000)}.get(values.dtype.itemsize)
    if bits is None:
        return bool(np.isfinite(values).all())
    kind, exponent = bits
    return not bool(((np.ascontiguousarray(values).view(kind) & kind(exponent)) == exponent).any())


def _zero() -> NDArray[np.float64]:
    return np.zeros(1)


@dataclass(slots=True)
class MomentStatistics:
    """Statistics of moments [n, 2C, h, w], accumulated over parts (Chan et al. 1979)."""

    count: int = 0  # of values in each channel
    mean: NDArray[np.float64] = field(default_factory=_zero)  # [2C] of both halves as stored
    squares: NDArray[np.float64] = field(default_factory=_zero)  # [2C] sums of squared distances from `mean`
    spread: NDArray[np.float64] = field(default_factory=_zero)  # [C] sums of squared standard deviations
    columns: NDArray[np.float64] = field(default_factory=_zero)  # [w] sums of all values
    low: float = np.inf  # of the second half
    high: float = -np.inf
    finite: bool = True

    def add(self, moments: NDArray[Any], layout: Layout) -> None:
        """Add moments [n, 2C, h, w]."""
        values = moments.astype(np.float64)
        second = values[:, values.shape[1] // 2 :]
        axes = (0, 2, 3)
        with np.errstate(invalid="ignore", over="ignore"):
            part = MomentStatistics(
                count=values.size // values.shape[1],
                mean=values.mean(axis=axes),
                squares=values.var(axis=axes) * (values.size // values.shape[1]),
                spread=(mean_and_std(values, layout)[1] ** 2).sum(axis=axes),
                columns=values.sum(axis=(0, 1, 2)),
                low=float(second.min()),
                high=float(second.max()),
                finite=is_finite(moments),
            )
            self.merge(part)

    def merged(self, other: MomentStatistics) -> MomentStatistics:
        """Return these statistics after `merge`."""
        self.merge(other)
        return self

    def merge(self, other: MomentStatistics) -> None:
        """Add the statistics of another part."""
        total, step = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + step**2 * (self.count * other.count / total)
        self.mean = self.mean + step * (other.count / total)
        self.spread, self.columns = self.spread + other.spread, self.columns + other.columns
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.finite, self.count = self.finite and other.finite, total

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON can hold them."""
        arrays = {key: getattr(self, key).tolist() for key in ("mean", "squares", "spread", "columns")}
        return {**arrays, "count": self.count, "low": self.low, "high": self.high, "finite": self.finite}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the statistics that `to_json` gave."""
        arrays = {key: np.array(values[key]) for key in ("mean", "squares", "spread", "columns")}
        return cls(**{**values, **arrays})

    def scaled(self, scale: float, shift: float = 0.0) -> list[tuple[float, ...]]:
        """Return mean, standard deviation and spread of (latents - shift) * scale per channel, each [C]."""
        half = len(self.mean) // 2
        std, spread = np.sqrt(self.squares[:half] / self.count), np.sqrt(self.spread / self.count)
        return [tuple((scale * values).tolist()) for values in (self.mean[:half] - shift, std, spread)]

    def findings(self, layout: Layout, shape: Sequence[int]) -> Iterator[Finding]:
        """Yield what is implausible about moments of `shape` (2C, h, w), apart from their scale."""
        yield from self._order(shape)
        if layout != "mean+logvar":
            return
        if self.low >= 0:
            got = f"second half of the channels from {self.low:.4g} to {self.high:.4g}"
            fix = 'layout "mean+std" if these are standard deviations; the logarithm of variances'
            yield "no log-variance is below 0, as if they were standard deviations or variances", got, fix
        if self.high > LOG_VARIANCE[1]:
            fix = "check the encoder, and the order of the two halves"
            yield f"a log-variance is above {LOG_VARIANCE[1]:g}", f"{self.high:.4g}", fix

    def _order(self, shape: Sequence[int]) -> Iterator[Finding]:
        """Yield moments whose axes are in another order, such as NHWC."""
        channels, height, width = shape
        half, values = channels // 2, float(self.count)
        means = [float(part.mean()) for part in (self.mean[:half], self.mean[half:])]
        between = self.mean.reshape(2, half) - np.array(means)[:, None]
        variances = (self.squares.reshape(2, half) / values + between**2).mean(axis=1)  # [2] of the halves
        pooled = float(variances.mean()) + (means[0] - means[1]) ** 2 / 4
        alike = abs(means[0] - means[1]) < pooled**0.5 / 2 and 0.5 < (variances[0] / (variances[1] or 1e-30)) < 2
        columns = self.columns / (values * channels / width)
        explained = float(columns.var()) / (pooled or 1.0)
        got = f"both halves of {channels} channels with mean {means[0]:.3g} and {means[1]:.3g}, std "
        got += f"{variances[0] ** 0.5:.3g} and {variances[1] ** 0.5:.3g}; {height} x {width} in space"
        if alike and width % 2 == 0 and (explained > MAX_EXPLAINED or channels == height != width):
            fix = f"if these are NHWC, moments of {channels} x {height} with {width} channels: transpose(0, 3, 1, 2)"
            yield "the two halves of the channels look alike, as if channels were the last axis (NHWC)", got, fix
        elif alike and float((between**2).mean()) > MAX_EXPLAINED * pooled:
            fix = "all means first, then all log-variances or standard deviations"
            yield "the two halves of the channels look alike, as if they alternated", got, fix


def scaled_findings(std: Sequence[float], spread: Sequence[float], scale: float) -> Iterator[Finding]:
    """Yield what is implausible about the standard deviation and the posterior's spread of scaled latents, each [C]."""
    pooled, width = (float(np.sqrt(np.mean(np.square(values)))) for values in (std, spread))
    low, high = PLAUSIBLE
    if not low <= pooled <= high:
        got = f"scale = {scale:g}, which gives a standard deviation of {pooled:.3g}"
        fix = (
            f"scale = {scale / pooled:.4g}, for a standard deviation of 1"
            if pooled
            else "check the encoder: these latents do not vary"
        )
        what = f"the standard deviation of scaled latents is outside of {low:g} to {high:g}"
        yield f"{what}: the scale is missing or was applied twice", got, fix
    if flat := [str(channel) for channel, value in enumerate(std) if not value > MIN_STD * pooled]:
        yield "a channel does not vary", f"std 0 in channel {', '.join(flat)}", "check the encoder, or drop the channel"
    if width > MAX_WIDTH * pooled:
        got = f"{width:.3g} and {pooled:.3g}, both scaled"
        fix = "check the layout, and the order of the two halves: means first"
        what = f"the standard deviation of the posterior is more than {MAX_WIDTH} times that of its means"
        yield what, got, fix
