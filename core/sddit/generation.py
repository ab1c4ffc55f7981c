"""Images from a trained network, as a run, a command or a notebook asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import Draws
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.diffusion.sampling import noise_levels, sample
from sddit.distributed.world import World
from sddit.errors import memory_errors
from sddit.interfaces import Dataset, NoiseSchedule
from sddit.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Request:
    """Which images: image number i is a function of the seed, i and its label, whatever else is asked for beside it."""

    labels: tuple[int, ...]  # one per image; num_classes is the null label
    ids: tuple[int, ...]  # image numbers
    seed: int

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.ids):
            raise ValueError("one label per image number")

    def part(self, rows: slice) -> Request:
        """Some of the images."""
        return Request(self.labels[rows], self.ids[rows], self.seed)


def balanced(num_classes: int, count: int, seed: int) -> Request:
    """`count` images, class after class in turn: image i is of class i mod num_classes."""
    classes = max(num_classes, 1)
    return Request(tuple(i % classes for i in range(count)), tuple(range(count)), seed)


def random_labels(num_classes: int, count: int, seed: int) -> Request:
    """`count` images, each of a class drawn for it: the label of image i is a function of the seed and i alone."""
    ids = torch.arange(count)
    drawn = Draws(seed, 0, ids).uniform("sample/label") * max(num_classes, 1)
    return Request(tuple(drawn.long().tolist()), tuple(ids.tolist()), seed)


LABELS = {"balanced": balanced, "random": random_labels}
"""What `evaluate.labels` may say, and the request it stands for."""


def of_classes(classes: Sequence[int], per_class: int, num_classes: int, seed: int) -> Request:
    """`per_class` images of each class, class by class, with the numbers that `balanced` gives them."""
    turn = max(num_classes, 1)
    pairs = [(label, label % turn + column * turn) for label in classes for column in range(per_class)]
    return Request(tuple(label for label, _ in pairs), tuple(number for _, number in pairs), seed)


def generate(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    request: Request,
    *,
    device: torch.device,
    batch: int | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample with the recipe's sampler, guidance and precision: [n, C, H, W] float64 on the CPU, as the network sees images."""
    denoiser = ModelDenoiser(
        backbone,
        schedule,
        recipe.shapes.num_classes,
        autocast=torch.bfloat16 if recipe.train.precision == "bf16" else None,
    )
    at_once = batch or recipe.evaluate.batch
    less = f"evaluate.batch = {max(1, at_once // 2)}: the images stay the same"
    with memory_errors("sampling", got=f"{at_once} images at once", fix=less):
        images = sample(
            denoiser,
            labels=torch.tensor(request.labels, dtype=torch.int64, device=device),
            image_ids=request.ids,
            seed=request.seed,
            sampler=recipe.sampler.build(schedule=schedule),
            guidance=recipe.guidance.build(schedule=schedule),
            sigmas=noise_levels(recipe.sampler.params, schedule),
            image=recipe.shapes.image,
            batch=at_once,
            callback=callback,
        )
        return images.cpu()


def draw_images(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    dataset: Dataset,
    request: Request,
    *,
    device: torch.device,
    world: World,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """What a person looks at, uint8 [n, 3, H, W]: each rank draws its share, the main rank returns all, the others none."""
    count = len(request.ids)
    share = range(count)[world.partition(count)]
    own = request.part(slice(share.start, share.stop) if share else slice(0, 1))  # with nothing to do, any image serves
    x = generate(backbone, schedule, recipe, own, device=device, callback=callback)
    return world.collect(dataset.to_images(x)[: len(share)], count)
