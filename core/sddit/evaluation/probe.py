"""Probe the class information in tokens: a linear probe and nearest neighbours, by depth and noise level. Torch-free.

Features are mean-pooled patch tokens; the network gets the null label, so the class must come from the image. Every
accuracy is reported next to that of the same network with its initial weights: even random features beat chance. Where
blocks are identities at first (adaLN-Zero), initial features hold no more than the mean patch, and a few steps improve
them: compare methods with another trained network, not with this floor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import read_json, unreadable_error

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Table = tuple[tuple[float, ...], ...]

PROBE = "probe.json"
RIDGE = 1e-3  # penalty on the squared weights of the linear probe, per training image, for features of std 1
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes of neighbours
CHUNK = 512  # rows of a matrix of pairs that are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Accuracies on held-out images, ready for JSON. Tables have a row per noise level and a column per block."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    weights: str  # `student` or the label of an [ema]
    training: int  # images
    heldout: int
    classes: int
    chance: float  # fraction of the most frequent class among the held-out images
    noise: tuple[float, ...]  # noise levels as sigma / (sigma + std of the data): 0 clean, 1 nothing but noise
    sigmas: tuple[float, ...]  # the same in variance-exploding coordinates
    blocks: tuple[int, ...]  # whose output tokens are probed, counted from 1
    linear: Table
    neighbours: Table
    linear_untrained: Table  # of the network as it was initialised
    neighbours_untrained: Table

    def best(self, table: Table) -> tuple[float, int, float]:
        """Return (accuracy, block, noise level) of the best entry; the shallowest of equal ones."""
        accuracy, column, row = max((value, -j, -i) for i, values in enumerate(table) for j, value in enumerate(values))
        return accuracy, self.blocks[-column], self.noise[-row]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lacks_probe(folder: Path, recipe: Recipe) -> bool:
    """Return whether the probe that the recipe asks for is missing in a run folder."""
    return recipe.evaluate.probe and not (folder / PROBE).is_file()


def read_probe(folder: Path) -> Probe | None:
    """Return the probe of a run folder; None if it has none. Raises SD-F704 if its file is damaged."""
    path = folder / PROBE
    if not path.is_file():
        return None
    fix = "sddit-run evaluate RUN --probe   writes it again"
    held = read_json(path, fix=fix)
    try:
        return TypeAdapter(Probe).validate_python(held)
    except ValidationError as fault:
        first = fault.errors()[0]
        raise unreadable_error(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", fix) from fault


def linear_accuracy(train: Array, labels: Integers, test: Array, test_labels: Integers) -> float:
    """Return the accuracy of ridge regression on class indicators, in closed form.

    Args:
        train, test: [n, d] and [m, d].
        labels, test_labels: [n] and [m], classes from 0.
    """
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale <= 1e-12 * np.abs(train).max(axis=0)] = np.inf  # a feature that never changes
    x, z = (train - mean) / scale, (test - mean) / scale
    indicators = np.eye(int(labels.max()) + 1)[labels]  # [n, classes]
    means = indicators.mean(axis=0)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (indicators - means))  # [d, classes]
    return float(((z @ weights + means).argmax(axis=1) == test_labels).mean())


def neighbour_accuracy(train: Array, labels: Integers, test: Array, test_labels: Integers) -> float:
    """Return the accuracy of the 20 nearest training images by cosine, each with weight exp(cosine / 0.07).

    The rule is that of arXiv:1805.01978; the arguments are those of `linear_accuracy`.
    """
    x, z = _unit(train), _unit(test)
    k = min(NEIGHBOURS, len(x))
    correct = 0
    for start in range(0, len(z), CHUNK):
        cosines = z[start : start + CHUNK] @ x.T  # [rows, n]
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        weights = np.exp((np.take_along_axis(cosines, near, axis=1) - 1) / TEMPERATURE)
        votes = np.zeros((len(cosines), int(labels.max()) + 1))
        np.add.at(votes, (np.arange(len(cosines))[:, None], labels[near]), weights)
        correct += int((votes.argmax(axis=1) == test_labels[start : start + CHUNK]).sum())
    return correct / len(z)


def _unit(x: Array) -> Array:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300))
