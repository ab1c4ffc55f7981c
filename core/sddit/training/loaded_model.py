"""A trained network with its noise schedule, as `sddit.load` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sddit.backbones import Backbone
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.errors import error, one_of
from sddit.interfaces import Dataset, NoiseSchedule, Shapes, Split
from sddit.recipes.recipe import Recipe
from sddit.training.arguments import (
    images_argument,
    labels_argument,
    levels_argument,
    named_refusal,
    network_input,
    sigmas_argument,
    visible_argument,
)


@dataclass(slots=True)
class Model:
    """A trained network F with its noise schedule, which defines the meaning of its output."""

    backbone: Backbone
    schedule: NoiseSchedule | None
    shapes: Shapes
    recipe: Recipe | None = None  # of its run, if any
    loaded_tables: frozenset[str] = frozenset()  # fixed tables that its weights contained
    step: int | None = None  # of its checkpoint, if it was loaded from one

    @property
    def num_classes(self) -> int:
        """Number of classes, which is also the null label."""
        return self.shapes.num_classes

    @property
    def grid(self) -> tuple[int, int] | None:
        """Numbers of tokens along H and W, where the backbone states them."""
        return getattr(self.backbone, "grid", None)

    @torch.no_grad()
    def raw(self, x: Tensor, t: Tensor, labels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the raw network output for its raw inputs: x [B, C, H, W], t [B] integer steps or c_noise."""
        x = network_input(x, "x", self.shapes.image, self.backbone)
        t, labels = levels_argument(t, "t", len(x)), labels_argument(labels, len(x), self.num_classes)
        tokens = visible_argument(visible, len(x), self.grid)
        with named_refusal("visible"):
            output, _, _ = self.backbone(x, t.to(x.dtype), labels, visible=tokens)
        return torch.as_tensor(output)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float | Tensor, labels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Estimate x0 [B, C, H, W] from x at variance-exploding noise level sigma: one number, or one per image [B].

        The numbers `visible` [B, K] of tokens, ascending, are those that the network does not hide; None: all.
        """
        denoiser = ModelDenoiser(self.backbone, self.require_schedule(), self.num_classes)
        x = images_argument(x, "x", self.shapes.image)
        labels, sigmas = labels_argument(labels, len(x), self.num_classes), sigmas_argument(sigma, len(x))
        tokens = visible_argument(visible, len(x), self.grid)
        whole = not (isinstance(sigma, Tensor) and sigma.dim())
        parts = [slice(None)] if whole else [slice(i, i + 1) for i in range(len(x))]
        with named_refusal("visible"):
            return torch.cat(
                [
                    denoiser(x[part], s, labels[part], None if tokens is None else tokens[part]).x0
                    for part, s in zip(parts, sigmas, strict=False)
                ]
            )

    def dataset(self, split: str = "test") -> Dataset:
        """Return the data set of its run: its split `train` or `test`."""
        if split not in get_args(Split):
            expect = one_of(str(split), get_args(Split))
            raise error("SD-T925", f"no split {split!r}", where="split", got=repr(split), expect=expect)
        dataset: Dataset = self.require_recipe().dataset.build(split=split)
        return dataset

    def require_schedule(self) -> NoiseSchedule:
        """Return the noise schedule. Raises SD-C442 for weights without one, as in some published layouts."""
        if self.schedule is None:
            raise error("SD-C442", "these weights have no noise schedule", where="model.schedule", fix="use model.raw")
        return self.schedule

    def require_recipe(self) -> Recipe:
        """Return the recipe of its run. Raises SD-C443 for weights that are not from a run."""
        if self.recipe is None:
            raise error("SD-C443", "these weights have no recipe", where="model.recipe", fix="load a run folder")
        return self.recipe


def with_rounded_tables(model: Model) -> Model:
    """Round the tables that are not saved with the weights to float32. Raises SD-T925 unless these are float64."""
    weight = next(model.backbone.parameters())
    if weight.dtype != torch.float64:
        expect = "weights in float64, such as dtype=torch.float64"
        raise error("SD-T925", "only float64 is rounded", where="round_tables", got=str(weight.dtype), expect=expect)
    saved = model.backbone.state_dict().keys() | model.loaded_tables
    for name, table in model.backbone.named_buffers():
        if name not in saved and table.is_floating_point():
            table.copy_(table.float())
    return model
