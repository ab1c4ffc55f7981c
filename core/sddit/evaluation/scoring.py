"""Score the samples of a run as its recipe asks, or with a mode of a feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddit.data.undecoded import refuse_latents
from sddit.evaluation.sample_images import kept_samples
from sddit.evaluation.scores import Scorer, Scores
from sddit.generation import Request
from sddit.interfaces import Dataset, EvaluateMode, FeatureExtractor
from sddit.interfaces.component import load_attribute
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import SCORES, RunFolder, read_json, unreadable_error
from sddit.training.environment import choose_device


def scorer_of(recipe: Recipe, train_set: Dataset, device: torch.device) -> Scorer | None:
    """Return the scorer of a recipe, or None if it names no extractor."""
    if not recipe.features:
        return None
    test_set = recipe.dataset.build(split="test")
    return Scorer(train_set, test_set, build_extractors(recipe, device), recipe.evaluate, recipe.seed)


def score_images(scorer: Scorer | None, request: Request, images: Tensor, *, own: bool = True) -> dict[str, Scores]:
    """Return the scores of generated images, none without a scorer; `own` adds those that only some extractors have."""
    return {} if scorer is None else scorer.score(images, torch.tensor(request.labels), own=own)


def build_extractors(recipe: Recipe, device: torch.device) -> dict[str, FeatureExtractor]:
    """Build the feature extractors of the scores, by name."""
    return {name: chosen.build(facts=recipe.facts, device=device) for name, chosen in recipe.features.items()}


def read_scores(folder: Path) -> dict[str, Scores]:
    """Return the scores of a finished run."""
    fix = "delete it: the same command scores again"
    try:
        return {label: Scores(**one) for label, one in read_json(folder / SCORES, fix=fix).items()}
    except TypeError as fault:
        raise unreadable_error(folder / SCORES, str(fault)[:160], fix) from fault


def run_mode(
    folder: Path, mode: EvaluateMode, *, paths: Mapping[str, Path], device: str, progress: Progress
) -> dict[str, Any]:
    """Measure the saved samples of the run in `folder`, write the figures to `NAME.json` there, and return them.

    Raises SD-T930 for a run without samples, SD-T912 for a run on latents.
    """
    chosen = choose_device(device)
    refuse_latents(folder, f"--{mode.name}")
    samples = kept_samples(folder)
    figures: dict[str, Any] = load_attribute(mode.function)(samples, device=chosen, progress=progress, **paths)
    with RunFolder(folder) as run:
        run.write_json(f"{mode.name}.json", figures)
    return figures
