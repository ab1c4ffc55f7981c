"""The probe: learners with known answers, and tokens that know no label."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sddit.errors import SdditError
from sddit.evaluation import probing
from sddit.evaluation.probe import (
    NEIGHBOURS,
    RIDGE,
    TEMPERATURE,
    Probe,
    linear_accuracy,
    neighbour_accuracy,
    read_probe,
)
from sddit.evaluation.probing import NOISE, Split, levels, pooled, probe_run, split_of
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.reports.charts import as_file
from sddit.reports.run.probe_charts import probe_charts, write_probe
from sddit.runs.pipeline import run
from sddit.storage.run_folder import RunFolder
from sddit.testing.toys.components import ToySchedule
from sddit.testing.toys.params import ToyScheduleParams
from sddit.training.networks import build_backbone

Array = NDArray[np.float64]
Split4 = tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]
LEARNERS = (linear_accuracy, neighbour_accuracy)


def clusters(seed: int, *, classes: int = 4, spread: float = 0.3, n: int = 400, d: int = 12) -> Split4:
    """Training and held-out points around one centre for each class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    labels = np.arange(n) % classes
    points = centres[labels] + spread * rng.normal(size=(n, d))
    return points[: n // 2], labels[: n // 2], points[n // 2 :], labels[n // 2 :]


# Learners ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", LEARNERS)
def test_separable_classes_are_learned_and_others_are_at_chance(learn: Callable[..., float]) -> None:
    train, labels, test, test_labels = clusters(0)
    assert learn(train, labels, test, test_labels) > 0.98
    shuffled = np.random.default_rng(1).permutation(labels)
    chance = learn(train, shuffled, test, test_labels)
    assert abs(chance - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(test))
    noise = np.random.default_rng(2).normal(size=(2, *train.shape))
    blind = learn(noise[0], labels, noise[1], test_labels)
    assert abs(blind - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(test))


def test_the_linear_probe_is_the_least_squares_solution() -> None:
    train, labels, test, test_labels = clusters(3, spread=1.5)
    x = (train - train.mean(axis=0)) / train.std(axis=0)
    penalty = math.sqrt(RIDGE * len(x)) * np.eye(x.shape[1])
    targets = np.eye(4)[labels]
    rows = np.concatenate([x, penalty]), np.concatenate([targets - targets.mean(axis=0), np.zeros((x.shape[1], 4))])
    weights = np.linalg.lstsq(*rows, rcond=None)[0]
    scores = (test - train.mean(axis=0)) / train.std(axis=0) @ weights + targets.mean(axis=0)
    expected = (scores.argmax(axis=1) == test_labels).mean()
    assert 0.3 < expected < 0.95
    assert linear_accuracy(train, labels, test, test_labels) == expected
    scaled = train * np.resize([1e-6, 1, 1e6], 12), test * np.resize([1e-6, 1, 1e6], 12)
    assert linear_accuracy(scaled[0] + 5, labels, scaled[1] + 5, test_labels) == expected
    flat = [np.concatenate([part, np.full((len(part), 1), 7.0)], axis=1) for part in (train, test)]
    assert linear_accuracy(flat[0], labels, flat[1], test_labels) == expected  # a feature that never changes


def test_neighbours_vote_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, test_labels = clusters(4, spread=1.5)
    correct = 0
    for point, label in zip(test, test_labels, strict=True):
        cosines = train @ point / np.linalg.norm(train, axis=1) / np.linalg.norm(point)
        votes = np.zeros(4)
        for i in np.argsort(-cosines)[:NEIGHBOURS]:
            votes[labels[i]] += math.exp(cosines[i] / TEMPERATURE)
        correct += votes.argmax() == label
    assert neighbour_accuracy(train, labels, test, test_labels) == correct / len(test)
    assert 0.3 < correct / len(test) < 0.95
    monkeypatch.setattr("sddit.evaluation.probe.CHUNK", 7)
    assert neighbour_accuracy(train, labels, test, test_labels) == correct / len(test)
    few = train[:3], np.array([0, 1, 1])
    assert neighbour_accuracy(*few, train[:3], few[1]) == 1.0  # fewer images than neighbours


# Tokens --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(toy_recipe: Path, tmp_path: Path) -> Path:
    """A run of toys that ended."""
    recipe = resolve(toy_recipe, ["dataset.images=90", "train.steps=4"])
    return run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder


def test_a_run_is_probed_and_its_probe_is_kept(finished: Path) -> None:
    found = probe_run(finished, device="cpu", progress=Progress())
    with RunFolder(finished) as folder:
        write_probe(folder, found)
    assert read_probe(finished) == found
    for name, chart in probe_charts(found).items():
        assert (finished / f"probe-{name}.svg").read_text(encoding="utf-8") == as_file(chart)
    assert (found.weights, found.training, found.heldout, found.classes) == ("student", 90, 30, 3)
    assert found.chance == pytest.approx(1 / 3)
    assert (found.noise, found.blocks) == (NOISE, (1, 2))
    for table in (found.linear, found.neighbours, found.linear_untrained, found.neighbours_untrained):
        assert np.shape(table) == (len(NOISE), 2)
        assert 0 <= np.min(table) <= np.max(table) <= 1
    accuracy, block, noise = found.best(found.linear)
    assert found.linear[found.noise.index(noise)][found.blocks.index(block)] == accuracy == np.max(found.linear)
    assert accuracy > 0.6  # the class is the shade
    again = probe_run(finished, device="cpu", progress=Progress())
    assert again == found
    assert read_probe(finished.parent) is None


def test_a_run_that_asks_for_it_is_probed_at_its_end(toy_recipe: Path, tmp_path: Path) -> None:
    def finish(*overrides: str) -> tuple[Path, bool]:
        recipe = resolve(toy_recipe, ["dataset.images=90", "train.steps=4", *overrides])
        result = run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress())
        return result.folder, result.already_finished

    folder, _ = finish()
    weights = (folder / "checkpoints" / "step-000004" / "model.safetensors").read_bytes()
    assert read_probe(folder) is None
    assert "Class information" not in (folder / "report.html").read_text(encoding="utf-8")
    assert finish("evaluate.probe=true") == (folder, False)  # the same run: only the probe is added
    found = read_probe(folder)
    assert found is not None
    assert "Class information in the tokens" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "checkpoints" / "step-000004" / "model.safetensors").read_bytes() == weights
    assert finish("evaluate.probe=true") == (folder, True)
    assert probe_run(folder, device="cpu", progress=Progress()) == found


@pytest.mark.parametrize(
    ("overrides", "code"), [(["dataset.classes=0"], "SD-T931"), (["dataset.images=6", "train.batch=4"], "SD-T906")]
)
def test_what_cannot_be_probed_is_refused_before_it_trains(toy_recipe: Path, overrides: list[str], code: str) -> None:
    resolve(toy_recipe, [*overrides, "evaluate.features=[]"])
    with pytest.raises(SdditError, match=code):
        resolve(toy_recipe, [*overrides, "evaluate.features=[]", "evaluate.probe=true"])


def test_tokens_know_the_image_and_not_the_label(toy_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(toy_recipe, ["dataset.images=40"])
    network = build_backbone(recipe, device="cpu")
    schedule = ToySchedule(ToyScheduleParams())
    split = split_of(recipe, "train")
    asked: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, given: asked.append(given[2]))
    found, labels = pooled(network, schedule, split, 0.5, (1, 2), seed=0)
    assert torch.cat(asked).eq(3).all()  # the null label of three classes
    assert labels.tolist() == [i % 3 for i in range(40)]
    assert {block: part.shape for block, part in found.items()} == {1: (40, 16), 2: (40, 16)}
    with torch.no_grad():
        network.label.weight[:3] += 10  # type: ignore[union-attr, operator, index]
    relabelled, _ = pooled(network, schedule, split, 0.5, (1, 2), seed=0)
    assert all(np.array_equal(relabelled[block], found[block]) for block in found)
    monkeypatch.setattr(probing, "BATCH", 7)
    parted, _ = pooled(network, schedule, split, 0.5, (1, 2), seed=0)
    few, _ = pooled(network, schedule, Split("train", split.dataset, split.ids[3:5]), 0.5, (1, 2), seed=0)
    for block in found:
        assert parted[block] == pytest.approx(found[block], abs=1e-5)
        assert few[block] == pytest.approx(found[block][3:5], abs=1e-5)
    other, _ = pooled(network, schedule, split, 0.5, (1, 2), seed=1)
    assert not np.allclose(other[2], found[2], atol=1e-3)
    clean, _ = pooled(network, schedule, Split("test", split.dataset, split.ids), 0.5, (1, 2), seed=0)
    assert not np.allclose(clean[2], found[2], atol=1e-3)  # another split has other noise


def test_noise_levels_are_shares_of_a_linear_path() -> None:
    assert levels(ToySchedule(ToyScheduleParams()), 0.5) == pytest.approx([u / (1 - u) / 2 for u in NOISE])
    narrow = ToySchedule(ToyScheduleParams(t_min=0.1, t_max=0.4))
    assert levels(narrow, 0.5) == pytest.approx([0.1, 0.5 * 0.3 / 0.7, 0.4, 0.4])


@pytest.mark.parametrize(("change", "code"), [("dataset.classes=0", "SD-T931"), ("dataset.images=8", "SD-T906")])
def test_data_without_classes_or_held_out_images_is_not_probed(
    change: str, code: str, toy_recipe: Path, tmp_path: Path
) -> None:
    recipe = resolve(toy_recipe, [change])
    folder = run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    with pytest.raises(SdditError, match=code):
        probe_run(folder, device="cpu", progress=Progress())


# On paper ------------------------------------------------------------------------------------------------------------


def made_up(**changed: Any) -> Probe:
    values: dict[str, Any] = {
        "weights": "main", "training": 90, "heldout": 30, "classes": 3, "chance": 0.25, "noise": (0.1, 0.5),
        "sigmas": (0.05, 0.5), "blocks": (1, 2, 3), "linear": ((0.5, 0.9, 0.7), (0.4, 0.9, 0.5)),
        "neighbours": ((0.5, 0.6, 0.7), (0.4, 0.4, 0.3)), "linear_untrained": ((0.4,) * 3, (0.3,) * 3),
        "neighbours_untrained": ((0.35,) * 3, (0.3,) * 3),
    }  # fmt: skip
    return Probe(**(values | changed))


def test_charts_show_depth_noise_and_floors() -> None:
    linear, neighbours = (str(probe_charts(made_up())[name]) for name in ("linear", "neighbours"))
    assert "Linear probe: held-out accuracy" in linear
    assert "20 nearest neighbours" in neighbours
    for text in ("noise 0.1", "noise 0.5", "chance = 0.25", "best of the untrained network = 0.4"):
        assert text in linear
    assert "best of the untrained network = 0.35" in neighbours
    assert ElementTree.fromstring(as_file(probe_charts(made_up())["linear"])).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_best_of_equal_entries_is_the_shallowest_and_cleanest() -> None:
    assert made_up().best(made_up().linear) == (0.9, 2, 0.1)


@pytest.mark.parametrize("text", ["[1]", '{"weights": "main"}', "{"])
def test_a_damaged_probe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text, encoding="utf-8")
    with pytest.raises(SdditError, match="SD-F704"):
        read_probe(tmp_path)


def test_a_probe_survives_json(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(json.dumps(made_up().to_json()), encoding="utf-8")
    assert read_probe(tmp_path) == made_up()
