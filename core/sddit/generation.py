"""Generate images with a trained network, for runs, commands and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.diffusion.sampling import noise_levels, sample
from sddit.distributed.world import World
from sddit.errors import memory_errors
from sddit.interfaces import Dataset, NoiseSchedule
from sddit.recipes.recipe import Recipe
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class Request:
    """The images to generate. Image number i depends only on the seed, i and its label, not on the other images."""

    labels: tuple[int, ...]  # one per image; num_classes is the null label
    ids: tuple[int, ...]  # image numbers
    seed: int

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.ids):
            raise ValueError("one label per image number")

    def part(self, rows: slice) -> Request:
        """Return the request for some of the images."""
        return Request(self.labels[rows], self.ids[rows], self.seed)


def balanced(num_classes: int, count: int, seed: int) -> Request:
    """Request `count` images, cycling through the classes: image i has class i mod num_classes."""
    classes = max(num_classes, 1)
    return Request(tuple(i % classes for i in range(count)), tuple(range(count)), seed)


def random_labels(num_classes: int, count: int, seed: int) -> Request:
    """Request `count` images of random classes. The label of image i depends only on the seed and i."""
    ids = torch.arange(count)
    drawn = KeyedDraws(seed, 0, ids).uniform("sample/label") * max(num_classes, 1)
    return Request(tuple(drawn.long().tolist()), tuple(ids.tolist()), seed)


LABELS = {"balanced": balanced, "random": random_labels}
"""{value of `evaluate.labels`: function that makes the request}."""


def of_classes(classes: Sequence[int], per_class: int, num_classes: int, seed: int) -> Request:
    """Request `per_class` images of each class, class by class, with the image numbers of `balanced`."""
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
    """Sample with the recipe's sampler, guidance and precision.

    Returns [n, C, H, W] float64 on the CPU, in network space.
    """
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


def generate_images(
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
    """Generate images uint8 [n, 3, H, W], divided among the ranks. The main rank returns all, the others none."""
    count = len(request.ids)
    own = range(count)[world.partition(count)]
    part = request.part(slice(own.start, own.stop) if own else slice(0, 1))  # without work, generate any image
    x = generate(backbone, schedule, recipe, part, device=device, callback=callback)
    return world.collect(dataset.to_images(x)[: len(own)], count)


def scoring_request(recipe: Recipe, count: int) -> Request:
    """Return the request for the first `count` images that are scored, with the labels that the recipe asks for."""
    return LABELS[recipe.evaluate.labels](recipe.shapes.num_classes, count, recipe.seed)


def sample_session(
    session: Session, count: int, callback: Callable[[int, Tensor], None] | None = None
) -> tuple[Request, Tensor]:
    """Generate the first `count` images that are scored, with the weights of a session as they are now."""
    recipe = session.recipe
    request, weights = scoring_request(recipe, count), session.weights(recipe.evaluate.weights)
    images = generate_images(
        weights,
        session.schedule,
        recipe,
        session.dataset,
        request,
        device=session.device,
        world=session.world,
        callback=callback,
    )
    return request, images


def sampling_steps(recipe: Recipe, world: World) -> int:
    """Return the sampler steps that this rank takes for the final samples, counted once per batch."""
    own = len(range(recipe.evaluate.samples)[world.partition(recipe.evaluate.samples)])
    return -(-own // recipe.evaluate.batch) * recipe.sampler.params.steps
