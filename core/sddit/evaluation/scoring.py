"""Score the samples of a run as its recipe asks, or with a mode of a feature extractor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sddit.data.archives import StoredArray
from sddit.data.references import SampleFacts, hashes, mismatches, not_compared, read_reference_file, unchecked
from sddit.data.undecoded import refuse_latents
from sddit.errors import raise_all
from sddit.evaluation.reconstructions import Reconstructions
from sddit.evaluation.sample_images import batches_of, kept_samples
from sddit.evaluation.scores import Scorer, Scores
from sddit.generation import IMAGES, Convert, Request
from sddit.interfaces import Dataset, EvaluateMode, FeatureExtractor
from sddit.interfaces.component import load_attribute
from sddit.interfaces.metric_names import metric_values
from sddit.progress import Progress
from sddit.recipes.real_images import real_images
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import RECIPE, SCORES, RunFolder, read_json, unreadable_error
from sddit.storage.run_result import refuse_other_result
from sddit.training.environment import choose_device

SCORE_AGAIN = "delete it: the same command scores again"


def scorer_of(recipe: Recipe, train_set: Dataset, to_images: Convert, device: torch.device) -> Scorer | None:
    """Return the scorer of a recipe, or None if it names no extractor.

    Args:
        train_set: the training split of the recipe.
        to_images: converts samples to images; of latents, it also makes the reconstructions of held-out images.
        device: where features are extracted.
    """
    if not recipe.features:
        return None
    real = real_images(recipe)
    decoded = recipe.facts.is_latent
    return Scorer(
        real.build(split="train") if decoded else train_set,
        real.build(split="test"),
        build_extractors(recipe, device),
        recipe.evaluate,
        recipe.seed,
        Reconstructions(recipe, to_images).batches if decoded else None,
    )


def score_parts(
    scorer: Scorer | None, parts: Iterable[tuple[Request, Mapping[str, Tensor]]], count: int, *, own: bool = True
) -> dict[str, Scores]:
    """Return the scores of images while they are generated in parts; none without a scorer, as on all other ranks.

    Args:
        count: the number of images.
        own: whether to include the metrics that only some extractors have.
    """
    samples = ((results[IMAGES], torch.tensor(request.labels)) for request, results in parts)
    if scorer is None:
        for _ in samples:  # this rank generates its share
            pass
        return {}
    return scorer.score(samples, count, own=own)


def score_kept(scorer: Scorer, folder: Path, request: Request, batch: int) -> dict[str, Scores]:
    """Return the scores of the samples that a run has kept."""
    labels = torch.split(torch.tensor(request.labels), batch)
    return scorer.score(zip(batches_of(kept_samples(folder), batch), labels, strict=True), len(request.labels))


def build_extractors(recipe: Recipe, device: torch.device) -> dict[str, FeatureExtractor]:
    """Build the feature extractors of the scores, by name."""
    return {name: chosen.build(facts=recipe.facts, device=device) for name, chosen in recipe.features.items()}


def read_scores(folder: Path) -> dict[str, Scores]:
    """Return the scores of a finished run. Raises SD-F704 if they are not what it wrote."""
    path, found = folder / SCORES, {}
    refuse_other_result(folder, SCORES)
    for label, one in read_json(path, fix=SCORE_AGAIN).items():
        try:
            found[label] = TypeAdapter(Scores).validate_python(one)
        except ValidationError as fault:
            raise unreadable_error(path, describe_faults(label, fault), SCORE_AGAIN) from fault
    return found


def describe_faults(label: str, fault: ValidationError, max_named: int = 4) -> str:
    """Return which scores are missing or of the wrong kind."""
    faults = [(".".join([label, *map(str, one["loc"])]), one["type"], one["msg"]) for one in fault.errors()]
    missing = [key for key, kind, _ in faults if kind == "missing"]
    more = f" and {len(missing) - max_named} more" if len(missing) > max_named else ""
    lacks = [f"without {', '.join(missing[:max_named])}{more}"] if missing else []
    return "; ".join([*lacks, *(f"{key}: {what}" for key, kind, what in faults if kind != "missing")][:max_named])


def names_of_non_finite(scores: Mapping[str, Scores]) -> list[str]:
    """Return the scores that are not finite, by their name in `scores.json`."""
    values = ((f"{label}.{key}", value) for label, one in scores.items() for key, value in metric_values(one.to_json()))
    return [name for name, value in values if isinstance(value, float) and not math.isfinite(value)]


def run_mode(
    folder: Path, mode: EvaluateMode, *, paths: Mapping[str, Path], device: str, progress: Progress
) -> dict[str, Any]:
    """Measure the saved samples of the run in `folder`, write the figures to `NAME.json` there, and return them.

    Raises SD-T930 for a run without samples, SD-T912 for a run on latents, SD-T942 for a reference of other images.
    """
    chosen = choose_device(device)
    refuse_latents(folder, f"--{mode.name}")
    samples = kept_samples(folder)
    not_checked = check_reference(folder, samples, mode, paths) if mode.reference else []
    if not_checked:
        progress.warn(not_compared(paths[mode.reference], not_checked))
    figures: dict[str, Any] = load_attribute(mode.function)(samples, device=chosen, progress=progress, **paths)
    if mode.reference:
        figures |= {"not_compared": not_checked}
    with RunFolder(folder) as run:
        run.write_json(f"{mode.name}.json", figures)
    return figures


def check_reference(folder: Path, samples: StoredArray, mode: EvaluateMode, paths: Mapping[str, Path]) -> list[str]:
    """Raise SD-T942 if the samples of a run cannot be compared with a reference. Returns what could not be checked."""
    data = read_json(folder / RECIPE).get("data", {}) if (folder / RECIPE).is_file() else {}
    facts = SampleFacts((samples.shape[1], samples.shape[2]), data.get("crop", ""), data.get("fingerprint", ""))
    reference = read_reference_file(paths[mode.reference])
    files = hashes({name: path for name, path in paths.items() if name != mode.reference})
    raise_all(mismatches(reference, facts, files, where=str(reference.path)))
    return unchecked(reference, facts, files)
