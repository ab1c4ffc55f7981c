"""The samples of a run and their scores: what is drawn, with which weights, and what looks at it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sddit.evaluation.scores import Scorer, Scores
from sddit.generation import Request
from sddit.interfaces import Dataset, FeatureExtractor
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import SCORES, read_json, unreadable_error

SAMPLES = "samples/samples.npz"


def scorer_of(recipe: Recipe, train_set: Dataset, device: torch.device) -> Scorer | None:
    """Return the scorer of a recipe, or None if it names no extractor."""
    if not recipe.features:
        return None
    test_set = recipe.dataset.build(split="test")
    return Scorer(train_set, test_set, extractors(recipe, device), recipe.evaluate, recipe.seed)


def score_images(scorer: Scorer | None, request: Request, images: Tensor, *, own: bool = True) -> dict[str, Scores]:
    """Return the scores of the images that were asked for; `own`: also those that only some extractors measure.

    Without a scorer there are none.
    """
    return {} if scorer is None else scorer.score(images, torch.tensor(request.labels), own=own)


def extractors(recipe: Recipe, device: torch.device) -> dict[str, FeatureExtractor]:
    """Return the feature extractors of the scores, by name."""
    return {name: chosen.build(facts=recipe.facts, device=device) for name, chosen in recipe.features.items()}


def read_scores(folder: Path) -> dict[str, Scores]:
    """Return the scores of a finished run."""
    fix = "delete it: the same command scores again"
    try:
        return {label: Scores(**one) for label, one in read_json(folder / SCORES, fix=fix).items()}
    except TypeError as fault:
        raise unreadable_error(folder / SCORES, str(fault)[:160], fix) from fault
