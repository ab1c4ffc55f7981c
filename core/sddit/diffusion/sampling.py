"""Sample images from keyed noise with any sampler, guidance and model. The batch size does not change the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.errors import error
from sddit.interfaces import Denoise, Denoiser, Guidance, NoiseSchedule, Sampler, SamplerParams

Noise = Callable[[int], Tensor]
"""(step) -> the unit noise [B, C, H, W] that a stochastic sampler adds there, keyed by image."""


class StepSampler:
    """Base class of samplers that go from each noise level to the next: write `step`."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        noise: Noise,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return x at the last level, which is 0, from x [B, C, H, W] at sigmas[0], in the same dtype, float64."""
        for i in range(len(sigmas) - 1):
            x = self.step(denoise, x, sigmas, i, noise)
            if callback is not None:
                callback(i, x)
        return x

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        """Return x at sigmas[i + 1] from x at sigmas[i]."""
        raise NotImplementedError


def noise_levels(params: SamplerParams, schedule: NoiseSchedule) -> list[float]:
    """Return the noise levels of a sampler: `steps` decreasing variance-exploding ones, then 0.

    Raises SD-T902, or SD-P220 for what a schedule of a plugin may return instead.
    """
    low, high = params.noise_range(schedule.sigma_range)
    levels = schedule.grid(params.steps, kind=params.grid, sigma_min=low, sigma_max=high, rho=params.rho)
    if not _is_grid(levels, params.steps):
        what = "the noise schedule returned something else than decreasing noise levels that end with 0"
        raise error("SD-P220", what, where="noise_schedule", got=str(levels)[:80], expect=f"{params.steps + 1} numbers")
    return levels


def _is_grid(levels: object, steps: int) -> bool:
    """Return whether levels are `steps` finite numbers that do not grow, then 0. NaN is in no order."""
    return (
        isinstance(levels, Sequence)
        and len(levels) == steps + 1
        and all(isinstance(level, (float, int)) for level in levels)
        and math.inf > levels[0]
        and all(a >= b for a, b in pairwise(levels))
        and levels[-1] == 0
    )


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    *,
    labels: Tensor,
    image_ids: Sequence[int],
    seed: int,
    sampler: Sampler,
    guidance: Guidance,
    sigmas: Sequence[float],
    image: tuple[int, int, int],
    batch: int,
    callback: Callable[[int, Tensor], None] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Sample images [n, C, H, W], float64, on the device of `labels`.

    Args:
        denoiser: the trained network, normally a `ModelDenoiser`.
        labels: [n] int64, from 0 to num_classes, which is the null label; sampling runs on their device.
        image_ids: n numbers. The noise of an image depends only on the seed and its number.
        seed: of the run.
        sampler: solver from noise to images.
        guidance: combines conditional and unconditional predictions.
        sigmas: decreasing levels that end with 0, as from `noise_levels`.
        image: C, H, W.
        batch: images at once; affects only rounding.
        callback: called after each sampler step with (step, x [B, C, H, W]), batch after batch.
        start: unit noise [n, C, H, W] to start from; None: drawn from the seed and the image numbers.

    Raises:
        SdditError: SD-T904 for an unknown label, SD-T905 for a non-finite image.
    """
    _refuse_unknown_labels(labels, denoiser.num_classes)
    ids = torch.as_tensor(image_ids, dtype=torch.int64, device=labels.device)
    images = []
    for begin in range(0, len(ids), batch):
        rows = slice(begin, begin + batch)
        part, part_labels = ids[rows], labels[rows]
        drawn = KeyedDraws(seed, 0, part).normal("sample", image) if start is None else start[rows].to(labels.device)
        x = sampler(
            guidance(denoiser, part_labels),
            drawn.double() * sigmas[0],
            sigmas,
            noise=_fresh_noise(seed, part, image),
            callback=callback,
        )
        _refuse_other_shape(x, (len(part), *image))
        _refuse_not_finite(x, part)
        images.append(x)
    return torch.cat(images)


def _fresh_noise(seed: int, ids: Tensor, image: tuple[int, int, int]) -> Noise:
    return lambda step: KeyedDraws(seed, step, ids).normal("sample/fresh", image)


def _refuse_unknown_labels(labels: Tensor, num_classes: int) -> None:
    unknown = labels[(labels < 0) | (labels > num_classes)]
    if len(unknown):
        raise error(
            "SD-T904",
            "a label to sample does not exist in this model",
            where="labels",
            got=", ".join(map(str, sorted(set(unknown.tolist()))[:5])),
            expect=f"0 to {num_classes - 1}, or {num_classes} for no class" if num_classes else "0, for no class",
        )


def _refuse_other_shape(x: object, shape: tuple[int, ...]) -> None:
    """Raise SD-P220 for what a sampler of a plugin may return instead of the images."""
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        got = str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
        what = "the sampler returned something else than the images"
        raise error("SD-P220", what, where="sampler", got=got, expect=str(shape))


def _refuse_not_finite(x: Tensor, ids: Tensor) -> None:
    broken = ids[~x.isfinite().flatten(1).all(dim=1)]
    if len(broken):
        raise error(
            "SD-T905",
            "sampled images contain NaN or infinity; nothing was saved",
            where="sampling",
            got=f"{len(broken)} of {len(ids)}, image {broken[0].item()} first",
            fix="sample an earlier checkpoint, or a lower guidance scale",
        )
