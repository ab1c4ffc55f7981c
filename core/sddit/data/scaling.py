"""Scale images to the network's inputs, and compute the standard deviation of those. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, pvariance

from sddit.errors import error
from sddit.interfaces import DataFacts, DatasetParams

STANDARD_STD = 0.5
"""Standard deviation of every channel for `normalize = "standard"`: EDM's sigma_data (arXiv:2206.00364, table 1)."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Inputs of the network are scale * v + shift per channel, for images v in [-1, 1]."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]


def scaling(params: DatasetParams, facts: DataFacts) -> Scaling:
    """Return the scaling for the setting `normalize`."""
    if params.normalize == "range":
        return Scaling((1.0,) * len(facts.mean), (0.0,) * len(facts.mean))
    scale = tuple(STANDARD_STD / std for std in facts.std)
    shift = tuple(-s * mean for s, mean in zip(scale, facts.mean, strict=True))
    return Scaling(scale, shift)


def seen_moments(params: DatasetParams, facts: DataFacts) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of what the network sees in the training split.

    `facts` describe images in [-1, 1] for every `normalize`; here the two are combined.
    """
    seen = scaling(params, facts)
    means = [s * m + b for s, m, b in zip(seen.scale, facts.mean, seen.shift, strict=True)]
    return means, [s * std for s, std in zip(seen.scale, facts.std, strict=True)]


def seen_std(params: DatasetParams, facts: DataFacts) -> float:
    """Return the standard deviation of everything the network sees in the training split, with its channels pooled.

    This is EDM's sigma_data (arXiv:2206.00364): the standard deviation about the mean, not the root mean square about
    zero.
    """
    means, stds = seen_moments(params, facts)
    return math.sqrt(fmean(std**2 for std in stds) + pvariance(means))


def refuse_constant(params: DatasetParams, facts: DataFacts) -> None:
    """Raise SD-D309 if the training images have no spread, or one channel has none and would be divided by it."""
    flat = [channel for channel, std in enumerate(facts.std) if std == 0]
    if flat and (params.normalize == "standard" or len(flat) == len(facts.std)):
        raise error(
            "SD-D309",
            "the training images do not vary",
            where=facts.source,
            got=f"standard deviation 0 in channel {', '.join(map(str, flat))}",
            expect="images that differ from one flat colour",
        )
