"""The toys themselves: every contract of `sddit.interfaces` in its shortest honest form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sddit.interfaces import (
    NOTHING,
    Attention,
    Batch,
    Context,
    DataFacts,
    Denoise,
    Denoiser,
    Draws,
    NoiseSchedule,
    Outputs,
    Prediction,
    Scalings,
    Shapes,
    Tap,
    Tokens,
    View,
)
from sddit.sampling import spaced
from sddit.terms import LossTerm
from sddit.testing.toys import (
    SHADE,
    ToyAgreementParams,
    ToyAttentionParams,
    ToyBackboneParams,
    ToyDatasetParams,
    ToyFeatureParams,
    ToyGuidanceParams,
    ToyLossParams,
    ToyPairsParams,
    ToySamplerParams,
    ToyScheduleParams,
    ToyTrackerParams,
)
from sddit.values import value_at


class ToyBlock(nn.Module):
    """A residual block: each token sees itself and the mean of its group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(2 * width, width)
        self.down = nn.Linear(width, 2 * width)
        self.width = width

    def forward(self, tokens: Tensor, mixing: Tensor) -> Tensor:
        """tokens [B, n, D]; mixing [B, n, n], rows of sum 1."""
        x: Tensor = self.norm(tokens)  # [B, n, D]
        hidden = F.gelu(self.up(torch.cat([x, mixing @ x], dim=-1)))  # [B, n, D]
        gain, shift = self.down(hidden).chunk(2, dim=-1)
        update: Tensor = torch.tanh(gain) + shift
        return tokens + update


class ToyBackbone(nn.Module):
    """Patches, blocks on visible tokens, hidden places filled with their input token, a linear output."""

    def __init__(
        self,
        params: ToyBackboneParams,
        *,
        image: tuple[int, int, int],
        num_classes: int,
        outputs: int,
        attention: Attention,
    ) -> None:
        super().__init__()
        channels = image[0]
        self.params, self.image_shape = params, image
        self.grid = params.grid(Shapes(image, num_classes, outputs))
        self.checkpointing = False
        patch, width = channels * params.patch**2, params.hidden
        self.embed = nn.Linear(patch, width)
        self.position = nn.Parameter(0.5 * torch.randn(math.prod(self.grid), width))
        self.level = nn.Linear(1, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.cls = nn.Parameter(torch.randn(width)) if params.cls else None
        self.blocks = nn.ModuleList(ToyBlock(width) for _ in range(params.depth))
        self.head: nn.Linear | None = nn.Linear(width, outputs * patch)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor,
        *,
        taps: Sequence[Tap] = (),
        output: bool = True,
        visible: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        condition = self.level(c_noise[:, None]) + self.label(labels)  # [B, D]
        tokens = self.embed(self.patches(x)) + self.position + condition[:, None]  # [B, N, D]
        inner, mixing = self.select(tokens, visible, groups)
        depths = {tap: self.params.block_of(tap) for tap in taps}
        read: dict[Tap, Tokens] = {}
        for depth, block in enumerate(self.blocks, start=1):
            inner = (
                checkpoint(block, inner, mixing, use_reentrant=False) if self.checkpointing else block(inner, mixing)
            )
            read |= {tap: self.tokens(inner, visible) for tap, at in depths.items() if at == depth}
            if not output and depth == max(depths.values(), default=0):
                return None, {}, read
        if not output:
            return None, {}, read
        if self.head is None:
            raise RuntimeError("this backbone was truncated: it has no output")
        patch = self.tokens(inner, visible).patch
        if visible is not None:
            patch = tokens.scatter(1, visible[:, :, None].expand_as(patch), patch)  # [B, N, D]
        return self.image(self.head(patch)), {}, read

    def truncate(self, taps: Sequence[Tap]) -> None:
        deepest = max(self.params.block_of(tap) for tap in taps)
        self.blocks = self.blocks[:deepest]
        self.head = None

    def set_checkpointing(self, on: bool) -> None:
        self.checkpointing = on

    @staticmethod
    def init_parameter(name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def select(self, tokens: Tensor, visible: Tensor | None, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens that run, class token first, and who sees whom: [B, n, D], [B, n, n]."""
        batch, count, width = tokens.shape
        groups = torch.zeros(batch, count, dtype=torch.int64, device=tokens.device) if groups is None else groups
        if visible is not None:
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, width))
            groups = groups.gather(1, visible)
        same = groups[:, :, None] == groups[:, None, :]
        if self.cls is not None:  # the class token sees all and is seen by none but itself
            tokens = torch.cat([self.cls.expand(batch, 1, width), tokens], dim=1)
            same = F.pad(same, (1, 0, 1, 0))
            same[:, 0] = True
        return tokens, same / same.sum(dim=-1, keepdim=True).to(tokens.dtype)

    def tokens(self, inner: Tensor, visible: Tensor | None) -> Tokens:
        """What a tap gives of the running tokens."""
        if self.cls is None:
            return Tokens(inner, visible)
        return Tokens(inner[:, 1:], visible, inner[:, 0])

    def patches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, C p p]."""
        side = self.params.patch
        return F.unfold(x, side, stride=side).transpose(1, 2)

    def image(self, patches: Tensor) -> Tensor:
        """[B, N, outputs C p p] -> [B, outputs C, H, W]."""
        side = self.params.patch
        return F.fold(patches.transpose(1, 2), self.image_shape[1:], side, stride=side)


@dataclass(frozen=True, slots=True)
class ToyDescription:
    """A network of the toy layout in our terms."""

    backbone: dict[str, Any]
    shapes: Shapes
    noise_schedule: tuple[str, dict[str, Any]]
    recipe: dict[str, Any]


class ToyFormat:
    """A published layout: every name begins with `net.`, the label table lies on its side, and no tensor tells `patch`."""

    files = ("config.json", "model.safetensors")
    note = ""
    idle = ("dropout",)

    @staticmethod
    def describe(config: Mapping[str, Any]) -> ToyDescription:
        settings = {name: config[name] for name in ("hidden", "depth", "patch", "cls")}
        shapes = Shapes((config["channels"], config["side"], config["side"]), config["classes"])
        tables = {table: {"name": "toy"} for table in ("pair_sampler", "guidance", "attention")}
        trained = {"loss": {"denoise": {"name": "toy"}}, "sampler": {"name": "toy", "steps": 4}}
        return ToyDescription(settings, shapes, ("toy", {}), {**tables, **trained})

    @staticmethod
    def config(params: ToyBackboneParams, shapes: Shapes, schedule: Mapping[str, Any]) -> dict[str, Any]:
        channels, height, width = shapes.image
        if height != width:
            raise ValueError("it has no place for an image that is no square")
        if shapes.outputs > 1:
            raise ValueError("it has no place for a learned variance")
        sizes = {"channels": channels, "side": height, "classes": shapes.num_classes}
        return {**params.model_dump(), **sizes}

    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[dict[str, Any], dict[str, Any]]:
        hidden, values = state["net.embed.weight"].shape
        side = math.isqrt(len(state["net.position"]))
        told = {
            "hidden": hidden,
            "depth": len({name.split(".")[2] for name in state if name.startswith("net.blocks.")}),
            "cls": "net.cls" in state,
            "classes": state["net.label.weight"].shape[1] - 1,
        }
        return told, {"patch": 4, "channels": values // 16, "side": 4 * side}

    @staticmethod
    def to_ours(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> dict[str, Tensor]:
        if unknown := [name for name in state if not name.startswith("net.")]:
            raise KeyError(f"no such parameter in this format: {unknown[0]}")
        ours = {name.removeprefix("net."): tensor for name, tensor in state.items()}
        return {**ours, "label.weight": ours["label.weight"].T.contiguous()}

    @staticmethod
    def to_theirs(state: Mapping[str, Tensor], params: ToyBackboneParams, shapes: Shapes) -> dict[str, Tensor]:
        theirs = {f"net.{name}": tensor for name, tensor in state.items()}
        return {**theirs, "net.label.weight": state["label.weight"].T.contiguous()}


class ToySchedule:
    """x = x0 + t eps; the network sees x / sqrt(1 + t^2) and gives x0."""

    def __init__(self, params: ToyScheduleParams) -> None:
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

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma

    def share(self, t: Tensor) -> Tensor:
        low, high = self.sigma_range
        return ((t / low).log() / math.log(high / low)).clamp(0, 1)

    def scalings(self, t: Tensor) -> Scalings:
        return Scalings(torch.zeros_like(t), torch.ones_like(t), (1 + t**2).rsqrt(), t.log() / 4)

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        if kind != "native":
            return spaced(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        fall = (sigma_max - sigma_min) / (steps - 1)
        return [*(sigma_max - step * fall for step in range(steps - 1)), sigma_min, 0.0]


class ToyPairs:
    """A noisy student view with hidden tokens, and the same noise at half the level for a teacher."""

    def __init__(self, params: ToyPairsParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.tokens = math.prod(grid)

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        noise = draws.normal("noise", batch.x0.shape[1:]).to(batch.x0)
        t = schedule.t_from_uniform(draws.uniform("level"))
        views = {"student": self.view("student", batch, noise, t, schedule)}
        views["student"].visible = self.visible(draws, ctx)
        if self.params.teacher:
            views["teacher"] = self.view("teacher", batch, noise, t / 2, schedule)
        return views

    def view(
        self, network: Literal["student", "teacher"], batch: Batch, noise: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> View:
        x = schedule.perturb(batch.x0, noise, t)
        return View(network=network, x=x, t=t, labels=batch.labels, x0=batch.x0, noise=noise)

    def visible(self, draws: Draws, ctx: Context) -> Tensor | None:
        ratio = value_at(self.params.mask_ratio, ctx.step, ctx.total_steps)
        kept = max(1, math.floor(self.tokens * (1 - ratio) + 1e-9))
        if kept == self.tokens:
            return None
        scores = draws.uniform("mask", (self.tokens,))  # [B, N]
        return scores.argsort(dim=1)[:, :kept].sort(dim=1).values  # [B, K]


class ToyLoss(LossTerm):
    """mean (x0_hat - x0)^2 over the student's views."""

    def __init__(self, params: ToyLossParams, **_: object) -> None:
        super().__init__()

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        errors = []
        for name, view in views.items():
            estimate = outputs[name].x0
            if view.network == "student" and estimate is not None:
                errors.append((estimate - view.x0).square().mean(dim=(1, 2, 3)))  # [B]
        return torch.stack(errors).mean(dim=0)


class ToyAgreement(LossTerm):
    """Tokens of a student head against the averaged head's view of the teacher's tokens, minus a running centre."""

    averaged = ("head",)
    centre: Tensor

    def __init__(self, params: ToyAgreementParams, *, widths: Mapping[Tap, int], **_: object) -> None:
        super().__init__()
        width = widths["encoder"]
        self.momentum = params.momentum
        self.head = nn.Linear(width, width)
        self.register_buffer("centre", torch.zeros(width))
        self.waiting: list[Tensor] = []  # means of the micro-batches, [D] each

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        student, teacher = outputs["student"].taps["encoder"], outputs["teacher"].taps["encoder"]
        with torch.no_grad():
            target = ctx.averaged["head"](teacher.at(student.index))  # [B, K, D]
            self.waiting.append(ctx.mean(target.mean(dim=(0, 1))))
        error: Tensor = (self.head(student.patch) - (target - self.centre)).square().mean(dim=(1, 2))  # [B]
        self.log("centre", self.centre.norm())
        return error

    def after_step(self, ctx: Context) -> None:
        if self.waiting:
            self.centre.lerp_(torch.stack(self.waiting).mean(dim=0).to(self.centre), 1 - self.momentum)
        self.discard()

    def staged(self) -> list[Tensor]:
        return self.waiting

    def discard(self) -> None:
        self.waiting.clear()


class ToySampler:
    """Euler's method on dx/dsigma = (x - D(x, sigma)) / sigma."""

    def __init__(self, params: ToySamplerParams, *, schedule: NoiseSchedule) -> None:
        self.params = params

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        noise: Callable[[int], Tensor],
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        for step, (sigma, lower) in enumerate(pairwise(sigmas)):
            x = x + (lower - sigma) * (x - denoise(x, sigma).x0.to(x)) / sigma
            if callback is not None:
                callback(step, x)
        return x


class ToyGuidance:
    """The denoiser as it is."""

    def __init__(self, params: ToyGuidanceParams, *, schedule: NoiseSchedule) -> None:
        self.params = params

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        def denoise(x: Tensor, sigma: float) -> Prediction:
            return denoiser(x, sigma, labels)

        return denoise


class ToyAttention:
    """softmax(q k^T / sqrt(d) + bias) v, groups apart."""

    def __init__(self, params: ToyAttentionParams) -> None:
        self.params = params

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [B, heads, N, N]
        if bias is not None:
            scores = scores + bias
        if groups is not None:
            scores = scores.masked_fill((groups[:, :, None] != groups[:, None, :])[:, None], -math.inf)
        return scores.softmax(dim=-1) @ v


class ToyDataset:
    """One split: the class gives the shade, the index a fixed texture."""

    def __init__(self, params: ToyDatasetParams, *, split: Literal["train", "test"]) -> None:
        self.facts, self.texture = params.facts(), params.texture
        self.first, self.count = (
            (0, self.facts.train_size) if split == "train" else (self.facts.train_size, self.facts.test_size)
        )

    def __len__(self) -> int:
        return self.count

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        channels, height, width = self.facts.image
        index = torch.tensor(ids, dtype=torch.int64) + self.first  # [n]
        classes = max(1, self.facts.num_classes)
        labels = index % classes
        shade = (2 * labels + 1) / classes - 1  # [n] in (-1, 1)
        place = torch.arange(channels * height * width).reshape(1, channels, height, width)
        texture = self.texture * torch.sin((index[:, None, None, None] + 1) * (place + 1.0))
        return (SHADE * shade[:, None, None, None] + texture).float(), labels

    def to_images(self, x: Tensor) -> Tensor:
        grey = x[:, :1].expand(-1, 3, -1, -1)
        return ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ToyFeatures:
    """Mean and standard deviation of each channel."""

    title = "channel moments"
    dimensions = 6

    def __init__(self, params: ToyFeatureParams, *, facts: DataFacts, device: torch.device) -> None:
        self.params = params

    def features(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)

    def classes(self, images: Tensor) -> Tensor | None:
        return None


class ToyTracker:
    """Keeps (step, values) in `rows`."""

    def __init__(self, params: ToyTrackerParams, *, folder: Path) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True
