"""The samples of a run and their scores: what is drawn, with which weights, and what looks at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sddit.distributed.world import World
from sddit.evaluation.scores import Scorer, Scores
from sddit.generation import LABELS, Request, draw_images
from sddit.interfaces import Dataset, FeatureExtractor, NoiseSchedule
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import SCORES, read_json, unreadable_error
from sddit.training.session import Session

SAMPLES = "samples/samples.npz"


def begin_sampling(recipe: Recipe, progress: Progress, world: World) -> None:
    """The stage of the samples of the end, a unit for each step of the sampler in each batch of this rank."""
    own = len(range(recipe.evaluate.samples)[world.partition(recipe.evaluate.samples)])
    batches = -(-own // recipe.evaluate.batch)
    progress.stage("sampling", total=batches * recipe.sampler.params.steps)


def draw_of(
    session: Session, count: int, callback: Callable[[int, Tensor], None] | None = None
) -> tuple[Request, Tensor]:
    """The first `count` of the images that are scored, with the weights as they are now."""
    weights = session.weights(session.recipe.sampled_weights)
    return draw(
        weights, session.schedule, session.recipe, session.dataset, session.device, session.world, count, callback
    )


def draw(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    world: World,
    count: int,
    callback: Callable[[int, Tensor], None] | None = None,
) -> tuple[Request, Tensor]:
    """The images that are scored, of the classes that the recipe asks for, uint8 [count, 3, H, W] on the main rank."""
    request = LABELS[recipe.evaluate.labels](recipe.shapes.num_classes, count, recipe.seed)
    images = draw_images(backbone, schedule, recipe, dataset, request, device=device, world=world, callback=callback)
    return request, images


def scorer_of(recipe: Recipe, train_set: Dataset, device: torch.device) -> Scorer | None:
    """What scores the samples of a recipe; None where it names no extractor."""
    if not recipe.features:
        return None
    test_set = recipe.dataset.build(split="test")
    return Scorer(train_set, test_set, extractors(recipe, device), recipe.evaluate, recipe.seed)


def score_images(scorer: Scorer | None, request: Request, images: Tensor, *, own: bool = True) -> dict[str, Scores]:
    """The scores of the images that were asked for; `own`: also those that only some extractors measure.

    Without a scorer there are none.
    """
    return {} if scorer is None else scorer.score(images, torch.tensor(request.labels), own=own)


def extractors(recipe: Recipe, device: torch.device) -> dict[str, FeatureExtractor]:
    """The feature extractors of the scores, by name."""
    return {name: chosen.build(facts=recipe.facts, device=device) for name, chosen in recipe.features.items()}


def read_scores(folder: Path) -> dict[str, Scores]:
    """The scores of a finished run."""
    fix = "delete it: the same command scores again"
    try:
        return {label: Scores(**one) for label, one in read_json(folder / SCORES, fix=fix).items()}
    except TypeError as fault:
        raise unreadable_error(folder / SCORES, str(fault)[:160], fix) from fault
