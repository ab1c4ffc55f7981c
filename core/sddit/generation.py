"""Generate images with a trained network, for runs, commands and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sddit.data.preview import encoder_units, kept_latents
from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.diffusion.sampling import noise_levels, sample
from sddit.distributed.world import World
from sddit.errors import error, memory_errors
from sddit.interfaces import NoiseSchedule
from sddit.plugins.host import registry
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class Request:
    """The images to generate. Image number i depends only on the seed, i and its label, not on the other images."""

    labels: tuple[int, ...]  # one per image; num_classes is the null label
    ids: tuple[int, ...]  # image numbers
    seed: int

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


LABELS = {"balanced": balanced, "random": random_labels}  # {value of `evaluate.labels`: function of the request}


def of_classes(classes: Sequence[int], per_class: int, num_classes: int, seed: int) -> Request:
    """Request `per_class` images of each class, class by class, with the image numbers of `balanced`."""
    turn = max(num_classes, 1)
    ids = [label % turn + column * turn for label in classes for column in range(per_class)]
    return Request(tuple(label for label in classes for _ in range(per_class)), tuple(ids), seed)


def generate(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    request: Request,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample with the recipe's sampler, guidance and precision, on the device of the network.

    Returns [n, C, H, W] float64 on the CPU, in network space.
    """
    autocast = torch.bfloat16 if recipe.train.precision == "bf16" else None
    denoiser = ModelDenoiser(backbone, schedule, recipe.shapes.num_classes, autocast=autocast)
    batch = recipe.evaluate.batch
    less = f"evaluate.batch = {max(1, batch // 2)}: the images stay the same"
    with memory_errors("sampling", got=f"{batch} images at once", fix=less):
        images = sample(
            denoiser,
            labels=torch.tensor(request.labels, dtype=torch.int64, device=next(backbone.parameters()).device),
            image_ids=request.ids,
            seed=request.seed,
            sampler=recipe.sampler.build(schedule=schedule),
            guidance=recipe.guidance.build(schedule=schedule),
            sigmas=noise_levels(recipe.sampler.params, schedule),
            image=recipe.shapes.image,
            batch=batch,
            callback=callback,
        )
        return images.cpu()


def generate_images(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    convert: Callable[[Tensor], Tensor],
    request: Request,
    world: World,
    progress: Progress | None = None,
) -> Tensor:
    """Generate images and return what `convert` makes of them, divided among the ranks.

    Args:
        convert: makes the result [n, ...] of samples in network space, such as `Dataset.to_images`.
        progress: shows the sampler steps of this rank as a stage.

    Returns all on the main rank, none on the others.
    """
    count = len(request.ids)
    own = range(count)[world.partition(count)]
    part = request.part(slice(own.start, own.stop) if own else slice(0, 1))  # without work, generate any image
    shown = progress or Progress()
    batches = -(-len(own) // recipe.evaluate.batch)  # rounded up
    shown.stage("sampling", total=batches * recipe.sampler.params.steps)
    x = generate(backbone, schedule, recipe, part, lambda step, x: shown.tick())
    return world.collect(convert(x)[: len(own)], count)


def latents_of(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """Return the conversion of samples to latents of the encoder, float16 [n, C, H, W] as they are kept."""
    return lambda x: kept_latents(x, recipe.dataset.params, recipe.facts).half()


def scoring_request(recipe: Recipe, count: int) -> Request:
    """Return the request for the first `count` images that are scored, with the labels that the recipe asks for."""
    return LABELS[recipe.evaluate.labels](recipe.shapes.num_classes, count, recipe.seed)


def sample_session(
    session: Session, request: Request, progress: Progress | None = None, *, latents: bool = False
) -> Tensor:
    """Apply `generate_images` to the weights of a session as they are now: images, or latents of the encoder."""
    recipe = session.recipe
    weights = session.weights(recipe.evaluate.weights)
    convert = latents_of(recipe) if latents else session.dataset.to_images
    return generate_images(weights, session.schedule, recipe, convert, request, session.world, progress)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of a run in network space, and the request and recipe that they were drawn with."""

    x: Tensor  # [n, C, H, W] float64
    request: Request
    recipe: Recipe

    def latents(self) -> Tensor:
        """Return latents of the encoder [n, C, H, W] float64. Raises SD-T913 where the samples are not latents."""
        return encoder_units(self.x, self.recipe.dataset.params, self.recipe.facts)


def guidance_overrides(recipe: Recipe, scale: float) -> list[str]:
    """Return the overrides for a guidance scale: of the recipe's rule, else of the only rule that has a scale."""
    if "scale" in type(recipe.guidance.params).model_fields:
        return [f"guidance.scale={scale}"]
    scaled = [c.qualified for c in registry("guidances") if "scale" in c.params.model_fields]
    if len(scaled) != 1:
        what = "several guidance rules have a scale" if scaled else "no guidance rule has a scale"
        expect = f"a recipe whose [guidance] is one of {', '.join(scaled)}" if scaled else "a plugin with such a rule"
        raise error("SD-T923", what, where="guidance", got=str(scale), expect=expect)
    return [f"guidance.name={scaled[0]}", f"guidance.scale={scale}"]
