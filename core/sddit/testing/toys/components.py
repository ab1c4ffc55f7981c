"""Implement the toys: every contract of `sddit.interfaces` in its shortest form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sddit import interfaces as face
from sddit.data.codecs import as_images, check_images, check_latents, in_unit_range, run_in_chunks
from sddit.diffusion.masking import draw_mask
from sddit.diffusion.sigma_grids import sigma_grid
from sddit.losses import LossTerm
from sddit.testing.toys import params as settings
from sddit.value_schedules import value_at


class ToySchedule:
    """x = x0 + t eps; the network sees x / sqrt(1 + t^2) and gives x0."""

    def __init__(self, params: settings.ToyScheduleParams) -> None:
        self.outputs = params.outputs
        self.sigma_range = params.t_range

    def t_from_uniform(self, u: Tensor) -> Tensor:
        low, high = self.sigma_range
        return low * (high / low) ** u

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0 + t.to(x0.dtype)[:, None, None, None] * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    snap = t_from_sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        low, high = self.sigma_range
        return ((t / low).log() / math.log(high / low)).clamp(0, 1)

    def scalings(self, t: Tensor) -> face.Scalings:
        return face.Scalings(torch.zeros_like(t), torch.ones_like(t), (1 + t**2).rsqrt(), t.log() / 4)

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        if kind != "native":
            return sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        fall = (sigma_max - sigma_min) / (steps - 1)
        return [*(sigma_max - step * fall for step in range(steps - 1)), sigma_min, 0.0]


class ToyPairs:
    """A noisy student view with hidden tokens, and the same noise at half the level for a teacher."""

    def __init__(self, params: settings.ToyPairsParams, *, grid: tuple[int, int]) -> None:
        self.params, self.grid = params, grid

    def __call__(
        self, batch: face.Batch, draws: face.Draws, schedule: face.NoiseSchedule, ctx: face.Context
    ) -> dict[str, face.View]:
        x0 = batch.x0
        noise = draws.normal("noise", x0.shape[1:]).to(x0)
        t = schedule.t_from_uniform(draws.uniform("level"))
        ratio = value_at(self.params.mask_ratio, ctx.step, ctx.total_steps)
        student = face.View(
            network="student",
            x=schedule.perturb(x0, noise, t),
            t=t,
            labels=batch.labels,
            x0=x0,
            noise=noise,
            visible=draw_mask(draws, "mask", grid=self.grid, ratio=ratio),
        )
        if not self.params.teacher:
            return {"student": student}
        x = schedule.perturb(x0, noise, t / 2)
        return {"student": student, "teacher": replace(student, network="teacher", x=x, t=t / 2, visible=None)}


class ToyLoss(LossTerm):
    """mean (x0_hat - x0)^2 over the student's views."""

    def __init__(self, params: settings.ToyLossParams, **_: object) -> None:
        super().__init__()

    def forward(self, ctx: face.Context, views: Mapping[str, face.View], outputs: Mapping[str, face.Outputs]) -> Tensor:
        errors = []
        for name, view in views.items():
            estimate = outputs[name].x0
            if view.network == "student" and estimate is not None:
                errors.append((estimate - view.x0).square().mean(dim=(1, 2, 3)))  # [B]
        return torch.stack(errors).mean(dim=0)


class ToyAgreement(LossTerm):
    """Distance of a head's student tokens from the EMA head's teacher tokens, minus a running centre."""

    ema_modules = ("head",)
    centre: Tensor

    def __init__(self, params: settings.ToyAgreementParams, *, widths: Mapping[face.Tap, int], **_: object) -> None:
        super().__init__()
        width = widths["encoder"]
        self.momentum = params.momentum
        self.head = nn.Linear(width, width)
        self.register_buffer("centre", torch.zeros(width))
        self.waiting: list[Tensor] = []  # means of the micro-batches, [D] each

    def forward(self, ctx: face.Context, views: Mapping[str, face.View], outputs: Mapping[str, face.Outputs]) -> Tensor:
        student, teacher = outputs["student"].taps["encoder"], outputs["teacher"].taps["encoder"]
        with torch.no_grad():
            target = ctx.ema_modules["head"](teacher.at(student.index))  # [B, K, D]
            self.waiting.append(ctx.mean(target.mean(dim=(0, 1))))
        error: Tensor = (self.head(student.patch) - (target - self.centre)).square().mean(dim=(1, 2))  # [B]
        self.log("centre", self.centre.norm())
        return error

    def after_step(self, ctx: face.Context) -> None:
        if self.waiting:
            self.centre.lerp_(torch.stack(self.waiting).mean(dim=0).to(self.centre), 1 - self.momentum)
        self.discard()

    def staged(self) -> list[Tensor]:
        return self.waiting

    def discard(self) -> None:
        self.waiting.clear()


class Toy:
    """A toy that is built from its settings alone."""

    def __init__(self, params: Any, **_: object) -> None:
        self.params = params


class ToySampler(Toy):
    """Euler's method on dx/dsigma = (x - D(x, sigma)) / sigma."""

    def __call__(
        self, denoise: face.Denoise, x: Tensor, sigmas: Sequence[float], *, callback: Any = None, **_: object
    ) -> Tensor:
        for step, (sigma, lower) in enumerate(pairwise(sigmas)):
            x = x + (lower - sigma) * (x - denoise(x, sigma).x0.to(x)) / sigma
            if callback is not None:
                callback(step, x)
        return x


class ToyGuidance(Toy):
    """The denoiser as it is."""

    def __call__(self, denoiser: face.Denoiser, labels: Tensor) -> face.Denoise:
        return lambda x, sigma: denoiser(x, sigma, labels)


class ToyOptimizer(Toy):
    """Adam without weight decay of biases and norms."""

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        parts = []
        for group in groups:
            matrices = [p for p in group["params"] if p.ndim > 1]
            vectors = [p for p in group["params"] if p.ndim <= 1]
            for members, decay in ((matrices, self.params.weight_decay), (vectors, 0.0)):
                if members:
                    parts.append({**group, "params": members, "weight_decay": decay})
        return torch.optim.AdamW(parts, lr=value_at(self.params.lr, 0, 1), fused=True)


class ToyDataset:
    """One split: the class gives the shade, the index a fixed texture."""

    def __init__(self, params: settings.ToyDatasetParams, *, split: Literal["train", "test"]) -> None:
        self.facts, self.texture = params.facts(), params.texture
        self.first = 0 if split == "train" else self.facts.train_size
        self.size = self.facts.train_size if split == "train" else self.facts.test_size

    def __len__(self) -> int:
        return self.size

    def labels(self) -> Tensor:
        return (torch.arange(len(self)) + self.first) % max(1, self.facts.num_classes)

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        channels, height, width = self.facts.image
        index = torch.tensor(ids, dtype=torch.int64) + self.first  # [n]
        classes = max(1, self.facts.num_classes)
        labels = index % classes
        shade = (2 * labels + 1) / classes - 1  # [n] in (-1, 1)
        place = torch.arange(channels * height * width).reshape(1, channels, height, width)
        texture = self.texture * torch.sin((index[:, None, None, None] + 1) * (place + 1.0))
        return (settings.SHADE * shade[:, None, None, None] + texture).float(), labels

    def to_images(self, x: Tensor) -> Tensor:
        grey = x[:, :1].expand(-1, 3, -1, -1)
        return ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ToyCodec:
    """The mean colour of each square, and squares of one colour."""

    def __init__(
        self, params: settings.ToyCodecParams, *, device: torch.device, facts: face.DataFacts | None = None
    ) -> None:
        self.facts, self.side, self.device = params.facts(facts), params.side, device

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        image = (3, *images.shape[2:])
        check_images(images, self.facts)
        (mean,) = run_in_chunks(self._means, images, self.device, image)
        return mean, torch.full_like(mean, 0.01)

    def decode(self, latents: Tensor) -> Tensor:
        image = check_latents(latents, self.facts)
        (images,) = run_in_chunks(self._squares, latents.float(), self.device, image)
        return images

    def _means(self, images: Tensor) -> tuple[Tensor]:
        return (F.avg_pool2d(in_unit_range(images, self.facts.pixel_range), self.side),)

    def _squares(self, latents: Tensor) -> tuple[Tensor]:
        return (
            as_images(latents, self.facts.pixel_range).repeat_interleave(self.side, 2).repeat_interleave(self.side, 3),
        )


class ToyFeatures(Toy):
    """Mean and standard deviation of each channel."""

    title = "channel moments"
    dimensions = 6

    def features(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)

    def classes(self, images: Tensor) -> Tensor | None:
        return None


class ToyTracker:
    """Keep (step, values) in `rows`."""

    def __init__(self, params: settings.ToyTrackerParams, *, folder: Path) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True
