"""From keyed noise to images: any sampler, any guidance, any trained model, the same pictures at any batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sddit.diffusion.draws import Draws
from sddit.errors import error
from sddit.interfaces import Denoise, Denoiser, Guidance, NoiseSchedule, Sampler, SamplerParams

Noise = Callable[[int], Tensor]
"""(step) -> unit noise [B, C, H, W], keyed by image."""


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
        """Return x at the last level, which is 0, from x [B, C, H, W] at sigmas[0]. The dtype of x, float64, is kept."""
        for i in range(len(sigmas) - 1):
            x = self.step(denoise, x, sigmas, i, noise)
            if callback is not None:
                callback(i, x)
        return x

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        """Return x at sigmas[i + 1] from x at sigmas[i]."""
        raise NotImplementedError


def noise_levels(params: SamplerParams, schedule: NoiseSchedule) -> list[float]:
    """The levels that a sampler's settings ask of a schedule: `steps` falling ones and 0, variance-exploding."""
    low, high = params.noise_range(schedule.sigma_range)
    return schedule.grid(params.steps, kind=params.grid, sigma_min=low, sigma_max=high, rho=params.rho)


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
) -> Tensor:
    """Images [n, C, H, W], float64, on the device of `labels`.

    Args:
        denoiser: the trained network, normally a `ModelDenoiser`.
        labels: [n] int64, from 0 to num_classes, which is the null label; where they lie is where sampling is done.
        image_ids: n numbers. The noise of an image is a function of the seed and its number alone.
        seed: of the run.
        sampler: how to go from noise to images.
        guidance: how labels act.
        sigmas: falling levels that end with 0, such as `noise_levels` gives.
        image: C, H, W.
        batch: images at once; it changes nothing but rounding.
        callback: called after each sampler step with (step, x [B, C, H, W]), batch after batch.

    Raises:
        SdditError: SD-T904 for a label that does not exist, SD-T905 for an image that is not finite.
    """
    _refuse_unknown_labels(labels, denoiser.num_classes)
    ids = torch.as_tensor(image_ids, dtype=torch.int64, device=labels.device)
    images = []
    for part, part_labels in zip(torch.split(ids, batch), torch.split(labels, batch), strict=True):
        x = sampler(
            guidance(denoiser, part_labels),
            Draws(seed, 0, part).normal("sample", image).double() * sigmas[0],
            sigmas,
            noise=_fresh_noise(seed, part, image),
            callback=callback,
        )
        _refuse_not_finite(x, part)
        images.append(x)
    return torch.cat(images)


def _fresh_noise(seed: int, ids: Tensor, image: tuple[int, int, int]) -> Callable[[int], Tensor]:
    """Sampler step -> the unit noise that a stochastic sampler adds there, [B, C, H, W]."""
    return lambda step: Draws(seed, step, ids).normal("sample/fresh", image)


def _refuse_unknown_labels(labels: Tensor, num_classes: int) -> None:
    unknown = labels[(labels < 0) | (labels > num_classes)]
    if len(unknown):
        raise error(
            "SD-T904",
            "a label to sample does not exist in this model",
            where="labels",
            got=", ".join(str(label) for label in sorted(set(unknown.tolist()))[:5]),
            expect=f"0 to {num_classes - 1}, or {num_classes} for no class" if num_classes else "0, for no class",
        )


def _refuse_not_finite(x: Tensor, ids: Tensor) -> None:
    broken = ids[~x.isfinite().flatten(1).all(dim=1)]
    if len(broken):
        raise error(
            "SD-T905",
            "sampled images hold NaN or infinity; nothing was saved",
            where="sampling",
            got=f"{len(broken)} of {len(ids)}, image {broken[0].item()} first",
            fix="sample an earlier checkpoint, or a lower guidance scale",
        )
