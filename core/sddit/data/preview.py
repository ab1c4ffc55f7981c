"""Convert network-space tensors to images, also for a data set that only declares its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sddit.data.declared import DeclaredParams, no_images
from sddit.data.scaling import scaling
from sddit.errors import error
from sddit.interfaces import DataFacts, DatasetParams

MAX_STD = 3.0
"""Number of standard deviations of a latent channel between grey and black or white."""


class Preview:
    """Convert network-space tensors to uint8 previews without a decoder."""

    def __init__(self, params: DatasetParams, facts: DataFacts) -> None:
        seen = scaling(params, facts)
        self._facts = facts
        self._scale = over_image(seen.scale)
        self._shift = over_image(seen.shift)

    def pixels(self, x: Tensor) -> Tensor:
        """Convert x [n, 1 or 3, H, W] to pixels by undoing the scaling; returns uint8 [n, 3, H, W]."""
        return as_bytes(self._unscaled(x))

    def latents(self, x: Tensor) -> Tensor:
        """Convert three channels of x [n, C, H, W], repeated if C < 3, each centred; returns uint8 [n, 3, H, W]."""
        mean, std = (over_image(values).to(x.device) for values in (self._facts.mean, self._facts.std))
        unit = (self._unscaled(x) - mean) / (MAX_STD * std.clamp_min(1e-12))
        return as_bytes(unit[:, [channel % x.shape[1] for channel in range(3)]])

    def _unscaled(self, x: Tensor) -> Tensor:
        return (x.float() - self._shift.to(x.device)) / self._scale.to(x.device)


def encoder_units(x: Tensor, params: DatasetParams, facts: DataFacts) -> Tensor:
    """Return samples x [n, C, H, W] of the network as latents of the encoder: normalisation and scale are undone.

    Raises SD-T913 for data that are not latents, and for latents whose scale is not known.
    """
    if not facts.is_latent:
        what, fix = "the samples of this run are images, not latents", "leave out latents=True"
        raise error("SD-T913", what, where="latents", got=facts.source, fix=fix)
    if facts.latent_scale is None:
        raise error(
            "SD-T913",
            "the scale of these latents is not known, so they cannot be returned in the units of the encoder",
            where="dataset.latent_scale",
            got=facts.source,
            expect="the scale in latents.json of the cache: 0.18215 for Stable Diffusion's first VAE",
            fix='restore the cache, or sddit.sample(..., overrides=["dataset.latent_scale=0.18215"]) with your number',
        )
    return kept_latents(x, params, facts)


def kept_latents(x: Tensor, params: DatasetParams, facts: DataFacts) -> Tensor:
    """Return `encoder_units`, or if the scale is not known, these scaled and shifted: only normalisation is undone."""
    seen = scaling(params, facts)
    scale, shift = (torch.tensor(v, dtype=torch.float64)[:, None, None].to(x.device) for v in (seen.scale, seen.shift))
    scaled = (x.double() - shift) / scale
    return scaled / facts.latent_scale + facts.latent_shift if facts.latent_scale else scaled


def over_image(values: Sequence[float]) -> Tensor:
    """Return one number per channel as a tensor [C, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def as_bytes(unit: Tensor) -> Tensor:
    """Convert [-1, 1] to 0..255, clipped; a single channel is repeated to three."""
    images = ((unit + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def declared(params: DeclaredParams, *, split: Literal["train", "test"]) -> DeclaredSplit:
    """Return a split without images; both splits are equal."""
    return DeclaredSplit(params)


class DeclaredSplit:
    """A split without images, which can only convert samples to images."""

    def __init__(self, params: DeclaredParams) -> None:
        self.facts = params.facts()
        self._preview = Preview(params, self.facts)

    def __len__(self) -> int:
        raise no_images()

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raise SD-D340."""
        raise no_images()

    def to_images(self, x: Tensor) -> Tensor:
        """Return uint8 [n, 3, H, W]: pixels, or three channels of latents."""
        return self._preview.latents(x) if self.facts.is_latent else self._preview.pixels(x)
