"""Probe a run: read the tokens of every block at a few noise levels, and measure the class information in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sddit.api import load_run_with_data
from sddit.backbones import Backbone
from sddit.data import seen_std
from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import precondition
from sddit.errors import error
from sddit.evaluation.probe import Array, Integers, Probe, linear_accuracy, neighbour_accuracy
from sddit.evaluation.scores import choose, refuse_few
from sddit.interfaces import Dataset, NoiseSchedule
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.training.environment import choose_device
from sddit.training.networks import build_backbone

NOISE = (0.1, 0.3, 0.5, 0.7)
"""sigma / (sigma + std of the data): the time of a linear path from data to noise, for any schedule."""
MAX_IMAGES = 10_000  # of a split; of a larger one this many are drawn, keyed by the seed
BATCH = 256


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one split that are probed."""

    name: str
    dataset: Dataset
    ids: Integers  # [n]


def probe_run(folder: Path, *, device: str, progress: Progress) -> Probe:
    """Probe the weights that a run samples with, at its newest good checkpoint.

    Raises:
        SdditError: SD-C407 for data that changed, SD-T931 for data without classes, SD-T906 for data without held-out
            images.
    """
    chosen = choose_device(device)
    model = load_run_with_data(folder)
    recipe = model.require_recipe()
    if recipe.facts.num_classes < 2:
        raise error(
            "SD-T931",
            "no classes to probe",
            where="dataset",
            got=f"{recipe.facts.num_classes} classes",
            expect="a data set with labels",
        )
    return probe(model.backbone.to(chosen), model.require_schedule(), recipe, progress)


def probe(trained: Backbone, schedule: NoiseSchedule, recipe: Recipe, progress: Progress) -> Probe:
    """Probe a network on the data of its recipe, and the same network untrained."""
    untrained = build_backbone(recipe, device=next(trained.parameters()).device).eval()
    training, heldout = (split_of(recipe, name) for name in ("train", "test"))
    refuse_few({"training images": training.ids, "held-out images": heldout.ids}, recipe.evaluate.neighbours)
    blocks = range(1, 1 + len(trained.blocks))
    sigmas = levels(schedule, seen_std(recipe.dataset.params, recipe.facts))
    tables: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    progress.stage("probing", total=2 * len(sigmas))
    for sigma in sigmas:
        for ending, network in (("", trained), ("_untrained", untrained)):
            train, labels = pooled(network, schedule, training, sigma, blocks, recipe.seed)
            test, test_labels = pooled(network, schedule, heldout, sigma, blocks, recipe.seed)
            for kind, accuracy in (("linear", linear_accuracy), ("neighbours", neighbour_accuracy)):
                tables[kind + ending].append(tuple(accuracy(train[b], labels, test[b], test_labels) for b in blocks))
            progress.tick()
    progress.end_stage()
    return Probe(
        weights=recipe.evaluate.weights,
        training=len(training.ids),
        heldout=len(heldout.ids),
        classes=recipe.facts.num_classes,
        chance=float(np.bincount(test_labels).max() / len(test_labels)),
        noise=NOISE,
        sigmas=tuple(sigmas),
        blocks=tuple(blocks),
        **{name: tuple(rows) for name, rows in tables.items()},
    )


def split_of(recipe: Recipe, name: str) -> Split:
    """Return a split of the recipe's data, with at most `MAX_IMAGES` images."""
    dataset: Dataset = recipe.dataset.build(split=name)
    return Split(name, dataset, choose(MAX_IMAGES, len(dataset), recipe.seed, f"probe/{name}"))


def levels(schedule: NoiseSchedule, data_std: float) -> list[float]:
    """Return `NOISE` in variance-exploding coordinates: the nearest levels that were trained."""
    low, high = schedule.sigma_range
    asked = torch.tensor([noise / (1 - noise) * data_std for noise in NOISE], dtype=torch.float64)
    return [float(sigma) for sigma in schedule.snap(asked.clamp(low, high))]


@torch.no_grad()
def pooled(
    network: nn.Module, schedule: NoiseSchedule, split: Split, sigma: float, blocks: Sequence[int], seed: int
) -> tuple[dict[int, Array], Integers]:
    """Return the mean of the patch tokens after each block, [n, D] by block, at one noise level, and the labels [n].

    The noise of an image depends only on the seed, its split and its number. The network gets the null label.
    """
    weight = next(network.parameters())
    tokens: dict[int, list[Array]] = {block: [] for block in blocks}
    labels: list[Tensor] = []
    for start in range(0, len(split.ids), BATCH):
        ids = split.ids[start : start + BATCH]
        x0, true = split.dataset.fetch(ids.tolist())
        noise = KeyedDraws(seed, 0, torch.from_numpy(ids)).normal(f"probe/noise/{split.name}", x0.shape[1:])
        t = schedule.t_from_sigma(torch.full((len(ids),), sigma, dtype=torch.float64))
        x = schedule.perturb(x0.double(), noise.double(), t).to(weight.device)
        null = torch.full((len(ids),), split.dataset.facts.num_classes, device=weight.device)
        t = t.to(weight.device)
        out = precondition(network, schedule, x, t, null, taps=blocks, output=False, dtype=weight.dtype)
        for block in blocks:
            tokens[block].append(out.taps[block].patch.double().mean(dim=1).cpu().numpy())
        labels.append(true)
    return {block: np.concatenate(parts) for block, parts in tokens.items()}, torch.cat(labels).numpy()
