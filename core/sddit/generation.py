"""Generate images with a trained network, for runs, commands and notebooks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from sddit.data.preview import encoder_units, kept_latents
from sddit.data.undecoded import CAPTION
from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.diffusion.sampling import noise_levels, sample
from sddit.distributed.world import World
from sddit.errors import error, memory_errors
from sddit.interfaces import Codec, Dataset, GuidanceParams, NoiseSchedule, Params
from sddit.plugins.host import registry
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.training.second_network import load_second_network
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class Request:
    """The images to generate. Image number i depends only on the seed, i and its label, not on the other images."""

    labels: tuple[int, ...]  # one per image; num_classes is the null label
    ids: tuple[int, ...]  # image numbers
    seed: int

    def digest(self) -> str:
        """Return a sha256 of the request."""
        return hashlib.sha256(repr((self.labels, self.ids, self.seed)).encode()).hexdigest()

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
    second: nn.Module | None = None,
) -> Tensor:
    """Sample with the recipe's sampler, guidance and precision, on the device of the network.

    `second` is the second network of the guidance, if it names one. Returns [n, C, H, W] float64 on the CPU, in network
    space.
    """
    autocast = torch.bfloat16 if recipe.train.precision == "bf16" else None
    denoiser, *others = (
        ModelDenoiser(network, schedule, recipe.shapes.num_classes, autocast=autocast)
        for network in (backbone, second)
        if network is not None
    )
    more = {"second": others[0]} if others else {}
    batch = recipe.evaluate.batch
    less = f"evaluate.batch = {max(1, batch // 2)}: the images stay the same"
    with memory_errors("sampling", got=f"{batch} images at once", fix=less):
        images = sample(
            denoiser,
            labels=torch.tensor(request.labels, dtype=torch.int64, device=next(backbone.parameters()).device),
            image_ids=request.ids,
            seed=request.seed,
            sampler=recipe.sampler.build(schedule=schedule),
            guidance=recipe.guidance.build(schedule=schedule, **more),
            sigmas=noise_levels(recipe.sampler.params, schedule),
            image=recipe.shapes.image,
            batch=batch,
            callback=callback,
        )
        return images.cpu()


PART_BYTES = 4 * 2**20  # of the samples of one part; decoded images take up to twelve times as much
IMAGES, LATENTS = "images", "latents"
Convert = Callable[[Tensor], Tensor]
"""Makes a result [n, ...] of samples [n, C, H, W] in network space."""


def image_converter(recipe: Recipe, dataset: Dataset, device: torch.device) -> Convert:
    """Return the conversion of samples x [n, C, H, W] in network space to images, uint8 [n, 3, H, W].

    Latents are decoded by the codec of the recipe. Without one, three channels are shown.
    """
    return dataset.to_images if recipe.codec is None else Decoder(recipe, device)


class Decoder:
    """Decode latents in network space with the codec of a recipe, which is built when it is first used."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device

    def __call__(self, x: Tensor) -> Tensor:
        """Return images, uint8 [n, 3, H, W], of samples x [n, C, h, w] in network space."""
        return self._codec.decode(encoder_units(x, self._recipe.dataset.params, self._recipe.facts).float())

    @cached_property
    def _codec(self) -> Codec:
        assert self._recipe.codec is not None
        return cast(Codec, self._recipe.codec.build(device=self._device, facts=self._recipe.facts))


def caption_of(recipe: Recipe) -> str:
    """Return what a grid of samples has to say under it: that what it shows of latents are not images."""
    if recipe.facts.gives_images:
        return ""
    return CAPTION if recipe.codec is None else f"{recipe.codec.component.name}: a preview of latents, not an image"


def part_size(recipe: Recipe, world: World) -> int:
    """Return the number of images in a part: a multiple of the images that all ranks generate at once."""
    at_once = recipe.evaluate.batch * world.size
    sample_bytes = math.prod(recipe.shapes.image) * torch.float64.itemsize
    return at_once * max(1, PART_BYTES // (at_once * sample_bytes))


def generate_parts(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    converts: Mapping[str, Convert],
    request: Request,
    world: World,
    progress: Progress | None = None,
    start: int = 0,
    second: nn.Module | None = None,
) -> Iterator[tuple[Request, dict[str, Tensor]]]:
    """Generate images part by part, each divided among the ranks, and yield what is asked for of each part.

    Args:
        converts: the results that are asked for, by name.
        progress: shows the sampler steps of this rank as a stage.
        start: images at the beginning of the request that exist already.
        second: the second network of the guidance, if it names one.

    Yields the request of a part, and its results on the main rank; they are empty on the others.
    """
    count, size = len(request.ids), part_size(recipe, world)
    parts = [slice(begin, min(begin + size, count)) for begin in range(start, count, size)]
    owned = [world.partition(part.stop - part.start) for part in parts]
    batches = sum(-(-(rows.stop - rows.start) // recipe.evaluate.batch) for rows in owned)  # each rounded up
    shown = progress or Progress()
    shown.stage("sampling", total=batches * recipe.sampler.params.steps)
    for part, rows in zip(parts, owned, strict=True):
        wanted = request.part(part)
        own = wanted.part(rows if rows.stop > rows.start else slice(0, 1))  # without work, generate any image
        x = generate(backbone, schedule, recipe, own, lambda step, x: shown.tick(), second)
        results = {name: convert(x)[: rows.stop - rows.start] for name, convert in converts.items()}
        yield wanted, {name: world.collect(result, part.stop - part.start) for name, result in results.items()}


def joined(parts: Iterable[tuple[Request, Mapping[str, Tensor]]], name: str) -> Tensor:
    """Return one result of all parts, for a few images. It is empty on all ranks but the main one."""
    return torch.cat([results[name] for _, results in parts])


def latents_of(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """Return the conversion of samples to latents of the encoder, float16 [n, C, H, W] as they are kept."""
    return lambda x: kept_latents(x, recipe.dataset.params, recipe.facts).half()


def scoring_request(recipe: Recipe, count: int) -> Request:
    """Return the request for the first `count` images that are scored, with the labels that the recipe asks for."""
    return LABELS[recipe.evaluate.labels](recipe.shapes.num_classes, count, recipe.seed)


def sample_session(
    session: Session,
    request: Request,
    converts: Mapping[str, Convert],
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[tuple[Request, dict[str, Tensor]]]:
    """Apply `generate_parts` to the weights of a session as they are now."""
    weights = session.weights(session.recipe.evaluate.weights)
    schedule, recipe, world = session.schedule, session.recipe, session.world
    second = second_network(session)
    return generate_parts(weights, schedule, recipe, converts, request, world, progress, start, second)


def second_network(session: Session) -> nn.Module | None:
    """Return the second network of the guidance, if it names one. Call it on all ranks."""
    recipe = session.recipe
    named = recipe.guidance.params.second_network
    if named is None:
        return None
    if not named.run:
        return session.weights(named.weights or recipe.evaluate.weights)
    if session.second is None:
        session.second = load_second_network(recipe, session.device)
    return session.second


@dataclass(frozen=True, slots=True)
class Sampling:
    """Samples of a run that are asked for, with what generates them."""

    backbone: nn.Module
    schedule: NoiseSchedule
    recipe: Recipe
    request: Request
    second: nn.Module | None = None  # the second network of the guidance

    def identity(self) -> dict[str, str]:
        """Return what samples depend on besides their request: the weights, and the id of the recipe."""
        second = {} if self.second is None else {"second_weights_sha256": weights_digest(self.second)}
        return {"weights_sha256": weights_digest(self.backbone), **second, "recipe": self.recipe.run_id}

    def x(self) -> Tensor:
        """Return the samples in network space, [n, C, H, W] float64."""
        return generate(self.backbone, self.schedule, self.recipe, self.request, second=self.second)

    def latents(self) -> Tensor:
        """Return latents of the encoder [n, C, H, W] float64. Raises SD-T913 where the samples are not latents."""
        return encoder_units(self.x(), self.recipe.dataset.params, self.recipe.facts)

    def parts(
        self, converts: Mapping[str, Convert], progress: Progress, start: int = 0
    ) -> Iterator[tuple[Request, dict[str, Tensor]]]:
        """Generate them in parts, see `generate_parts`."""
        return generate_parts(
            self.backbone, self.schedule, self.recipe, converts, self.request, World(), progress, start, self.second
        )


def weights_digest(network: nn.Module) -> str:
    """Return a sha256 of names and values of the weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def guidance_overrides(recipe: Recipe, scale: float) -> list[str]:
    """Return the overrides for a guidance scale: of the recipe's rule, else of the only rule for which it suffices."""
    if "scale" in type(recipe.guidance.params).model_fields:
        return [f"guidance.scale={scale}"]
    scaled = [c.qualified for c in registry("guidances") if compares_labels(c.params)]
    if len(scaled) != 1:
        what = "several guidance rules have a scale" if scaled else "no guidance rule has a scale"
        expect = f"a recipe whose [guidance] is one of {', '.join(scaled)}" if scaled else "a plugin with such a rule"
        raise error("SD-T923", what, where="guidance", got=str(scale), expect=expect)
    return [f"guidance.name={scaled[0]}", f"guidance.scale={scale}"]


def compares_labels(params: type[Params]) -> bool:
    """Return whether a rule with a scale compares with the null label, which any network with classes may have.

    Other rules need more than a scale, such as an auxiliary head or a second network.
    """
    if "scale" not in params.model_fields:
        return False
    settings: dict[str, Any] = {"scale": 2.0}
    rule = params.model_construct(**settings)
    return isinstance(rule, GuidanceParams) and rule.needs_null_label
