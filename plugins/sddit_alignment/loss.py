"""Define the align loss: tokens of the student against targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sddit.evaluation.token_spread import token_spread
from sddit.interfaces import Context, Outputs, Tap, Tokens, View
from sddit.losses import LossTerm
from sddit_alignment import head, targets
from sddit_alignment.head import Head
from sddit_alignment.params import AlignParams
from sddit_dit.blocks import patchify


def cosines(student: Tensor, target: Tensor, dim: int) -> Tensor:
    """Return the cosine similarities of tokens [B, n, D] along one dimension; 0 for a vector of zeros."""
    return (F.normalize(student, dim=dim, eps=1e-12) * F.normalize(target, dim=dim, eps=1e-12)).sum(dim)


def distance(params: AlignParams, student: Tensor, target: Tensor) -> Tensor:
    """Return the mean distance of the tokens [B, n, D] of each sample from their targets, [B]."""
    if params.metric == "cosine":
        return 1 - cosines(student, target, dim=-1 if params.axis == "channel" else 1).mean(dim=1)
    if params.metric == "smooth_l1":
        return F.smooth_l1_loss(student, target, beta=params.beta, reduction="none").mean(dim=(1, 2))
    return (student - target).square().mean(dim=(1, 2))


class Align(LossTerm):
    """L_i = mean over tokens d(g(h_i), sg y_i), with the student's tokens h at `tap`, a head g and targets y.

    With d = 1 - cos this is LayerSync (arXiv:2510.12581) for y of a deeper block, SRA (arXiv:2505.02831) for y of a
    teacher; with the smooth L1 distance SRA 2 (arXiv:2601.17830) for patches of the clean image. Published cosines are
    negative similarities: this loss is larger by 1, so that 0 is its minimum.

    Compared are the tokens that the student's view shows, each with the target at its place. Each student view is
    compared with its own targets, or with those of each teacher view; the mean is taken.
    """

    def __init__(
        self,
        params: AlignParams,
        *,
        widths: Mapping[Tap, int],
        grid: tuple[int, int],
        image: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.params = params
        self.grid = grid
        tokens = math.prod(grid)
        if params.source == "clean":
            width = math.prod(image) // tokens
        else:
            width = params.feature_width or widths[params.target_tap]
        if params.target_norm == "data" and (mean is None or std is None):
            raise ValueError("target_norm = 'data' needs mean and std of the channels of the data")
        self.mean, self.std = tuple(mean or ()), tuple(std or ())
        self.head = Head(params, widths[params.tap], width, grid)
        if params.permute != "none":
            order = targets.random_order(tokens if params.permute == "tokens" else width)
            self.register_buffer("order", order, persistent=False)
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialize one parameter."""
        head.init_parameter(name, parameter, generator)

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        with torch.autocast(next(iter(views.values())).x.device.type, enabled=False):
            distances: list[Tensor] = []  # of [B]
            for name, view in students.items():
                tokens = widened(outputs[name].taps[self.params.tap], view).at(view.visible)  # [B, K, D]
                self.log_spread(ctx, tokens)
                mapped = self.head(tokens, view.visible)
                found = self.targets(name, views, outputs)
                distances += [self.compare(mapped, target.at(view.visible)) for target in found]
        return torch.stack(distances).mean(dim=0)

    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance [B] of mapped tokens from targets [B, K, D], and log their similarity."""
        with torch.no_grad():
            self.log("similarity", cosines(student, target, dim=-1))
            self.log("target_std", target.flatten(0, 1).std(dim=0, correction=0))
        return distance(self.params, student, target)

    @torch.no_grad()
    def targets(self, name: str, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Iterator[Tokens]:
        """Yield the targets of one student view, without gradient."""
        for read in self.read_targets(name, views, outputs):
            tokens = Tokens(read.patch.detach(), read.index)
            if self.params.target_norm == "sample":
                tokens = Tokens(targets.normalize_over_tokens(tokens.patch), tokens.index)
            if self.params.permute == "tokens":
                tokens = targets.permute_tokens(tokens, self.get_buffer("order"))
            elif self.params.permute == "channels":
                tokens = targets.permute_channels(tokens, self.get_buffer("order"))
            yield tokens

    def read_targets(self, name: str, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Iterator[Tokens]:
        """Yield the targets of one student view as they are read: of its own pass or image, or of each teacher view.

        Guided targets are those of two teacher views, with the label and with the null label, in this order.
        """
        if self.params.source == "clean":
            yield Tokens(self.clean_patches(views[name].x0))
            return
        if self.params.source == "external":
            yield Tokens(targets.tokens_of(views[name].extras, self.params.features, self.grid).to(views[name].x))
            return
        own = self.params.source == "self"
        names = [name] if own else [other for other, view in views.items() if view.network == "teacher"]
        read = [widened(outputs[other].taps[self.params.target_tap], views[other]) for other in names]
        if self.params.guidance == 1:
            yield from read
        else:
            with_label, null = read
            guided = null.patch + self.params.guidance * (with_label.patch - null.patch)
            yield Tokens(guided, with_label.index)

    def clean_patches(self, x0: Tensor) -> Tensor:
        """Return the patches of clean images, [B, N, C p p]."""
        if self.params.target_norm == "data":
            x0 = targets.normalize_channels(x0, self.mean, self.std)
        return patchify(x0, self.grid)

    @torch.no_grad()
    def log_spread(self, ctx: Context, tokens: Tensor) -> None:
        """Log how much the student's tokens differ from each other."""
        for name, value in token_spread(tokens, mean=ctx.mean, gather=ctx.gather).items():
            self.log(name, value)


def widened(tokens: Tokens, view: View) -> Tokens:
    """Return tokens in the dtype of the view, or in float32 if that is wider."""
    return Tokens(tokens.patch.to(torch.promote_types(view.x.dtype, torch.float32)), tokens.index)
