"""Implement a toy backbone with its attention and weight layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sddit.backbones import Backbone
from sddit.interfaces import NOTHING, Shapes, Tap, Tokens
from sddit.testing.toys.params import ToyAttentionParams, ToyBackboneParams


class ToyBlock(nn.Module):
    """A residual block: each token sees itself and the mean of its group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(2 * width, width)
        self.down = nn.Linear(width, 2 * width)

    def forward(self, tokens: Tensor, mixing: Tensor) -> Tensor:
        """tokens [B, n, D]; mixing [B, n, n], rows of sum 1."""
        x: Tensor = self.norm(tokens)  # [B, n, D]
        hidden = F.gelu(self.up(torch.cat([x, mixing @ x], dim=-1)))  # [B, n, D]
        gain, shift = self.down(hidden).chunk(2, dim=-1)
        update: Tensor = torch.tanh(gain) + shift
        return tokens + update


class ToyBackbone(Backbone):
    """Patches, blocks on visible tokens, hidden places filled with their input token, a linear output."""

    def __init__(
        self, params: ToyBackboneParams, *, image: tuple[int, int, int], num_classes: int, outputs: int, **_: object
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
        deepest = len(self.blocks) if output else max(depths.values(), default=0)
        for depth, block in enumerate(self.blocks[:deepest], start=1):
            run = partial(checkpoint, block, use_reentrant=False) if self.checkpointing else block
            inner = run(inner, mixing)
            read |= {tap: self.tokens(inner, visible) for tap, at in depths.items() if at == depth}
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
        """Return the visible tokens, class token first, [B, n, D], and the mean over those each sees, [B, n, n]."""
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
        """Return the tokens of a tap."""
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


class ToyFormat:
    """A published layout: names start with `net.`, the label table is transposed, and no tensor implies `patch`."""

    files = ("config.json", "model.safetensors")
    note = ""
    idle = ("dropout",)

    @staticmethod
    def describe(config: Mapping[str, Any]) -> SimpleNamespace:
        settings = {name: config[name] for name in ("hidden", "depth", "patch", "cls")}
        shapes = Shapes((config["channels"], config["side"], config["side"]), config["classes"])
        tables = {table: {"name": "toy"} for table in ("pair_sampler", "guidance", "attention", "optimizer")}
        trained = {"loss": {"denoise": {"name": "toy"}}, "sampler": {"name": "toy", "steps": 4}}
        return SimpleNamespace(
            backbone=settings, shapes=shapes, noise_schedule=("toy", {}), recipe={**tables, **trained}
        )

    @staticmethod
    def config(params: ToyBackboneParams, shapes: Shapes, schedule: Mapping[str, Any]) -> dict[str, Any]:
        channels, height, width = shapes.image
        if height != width:
            raise ValueError("it has no place for an image that is not square")
        if shapes.outputs > 1:
            raise ValueError("it has no place for a learned variance")
        sizes = {"channels": channels, "side": height, "classes": shapes.num_classes}
        return {**params.model_dump(), **sizes}

    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[dict[str, Any], dict[str, Any]]:
        hidden, values = state["net.embed.weight"].shape
        side = math.isqrt(len(state["net.position"]))
        described = {
            "hidden": hidden,
            "depth": len({name.split(".")[2] for name in state if name.startswith("net.blocks.")}),
            "cls": "net.cls" in state,
            "classes": state["net.label.weight"].shape[1] - 1,
        }
        return described, {"patch": 4, "channels": values // 16, "side": 4 * side}

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
