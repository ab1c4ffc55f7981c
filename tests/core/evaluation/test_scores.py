"""Scores on toy images whose distances are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.evaluation.metrics import frechet_distance
from sddit.evaluation.scores import Scorer, Scores
from sddit.interfaces import DataFacts
from sddit.recipes.settings import EvaluateSettings

SETTINGS = EvaluateSettings(samples=90, batch=16, kid_subsets=10, kid_subset_size=30)


def toy_images(seed: int, n: int, brightness: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of four grey levels, one level a class."""
    labels = torch.arange(n) % 4
    noise = torch.from_numpy(np.random.default_rng(seed).integers(0, 40, (n, 3, 4, 4)))
    return (noise + 50 * labels[:, None, None, None] + brightness).clamp(0, 255).to(torch.uint8), labels


@dataclass
class Toy:
    """A split whose network space is [-1, 1]."""

    images: Tensor
    labels: Tensor
    facts: DataFacts

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(list(ids))
        return self.images[index].float() / 127.5 - 1, self.labels[index]

    def to_images(self, x: Tensor) -> Tensor:
        return ((x + 1) * 127.5).round().to(torch.uint8)


def toy(seed: int, n: int) -> Toy:
    images, labels = toy_images(seed, n)
    facts = DataFacts((3, 4, 4), ("a", "b", "c", "d"), n, n, "toy", (0.0,) * 3, (1.0,) * 3, "made up")
    return Toy(images, labels, facts)


@dataclass
class Pixels:
    """Means of the quarters of an image; reads the class from its brightness."""

    title: str = "Quarters"
    dimensions: int = 4
    classifies: bool = True

    def features(self, images: Tensor) -> Tensor:
        return images.float().mean(1).view(-1, 4, 4).mean(-1)

    def classes(self, images: Tensor) -> Tensor | None:
        level = (images.float().mean((1, 2, 3)) - 20) / 50
        return level.round().long() if self.classifies else None


def score(
    samples: Tensor, labels: Tensor, *, settings: EvaluateSettings = SETTINGS, seed: int = 0, **extractor
) -> Scores:
    found = Scorer(toy(1, 200), toy(2, 60), {"q": Pixels(**extractor)}, settings, seed).score(
        [(samples, labels)], len(samples)
    )
    return found["q"]


def test_real_samples_score_like_the_floor():
    real = score(*toy_images(3, 90))
    assert (real.n, real.samples, real.training, real.dimensions) == (60, 90, 200, 4)
    assert 0.2 < real.times_floor < 5
    assert real.fd_name == "FD-Quarters"
    assert real.kid_name == "KID-Quarters"
    assert real.class_accuracy == real.class_accuracy_floor == 1.0
    assert real.precision > 0.8 * real.precision_floor
    brighter = score(*toy_images(3, 90, brightness=60))
    assert brighter.times_floor > 100
    assert brighter.class_accuracy == 0.0
    assert brighter.precision < 0.9 * real.precision
    assert brighter.kid > real.kid + 5 * real.kid_spread
    assert brighter.fd_floor == real.fd_floor


def test_distances_are_of_the_first_n_and_of_all():
    samples, labels = toy_images(3, 90)
    found = score(samples, labels)
    features = {k: Pixels().features(v) for k, v in {"fake": samples, "real": toy(1, 200).images}.items()}
    assert found.fd == pytest.approx(frechet_distance(features["real"], features["fake"][:60]), rel=1e-12)
    assert found.fd_all == pytest.approx(frechet_distance(features["real"], features["fake"]), rel=1e-12)
    assert found.fd != found.fd_all


def test_fewer_samples_than_heldout_images_shrink_the_floor_alike():
    found = score(*toy_images(3, 40))
    assert found.n == found.samples == 40
    assert found.fd == found.fd_all
    assert found.fd_floor != score(*toy_images(3, 60)).fd_floor
    assert score(*toy_images(3, 20)).kid_subset_size == 20  # no larger than what there is, and on record


def test_scores_do_not_depend_on_the_batch_and_are_keyed_by_the_seed():
    samples = toy_images(3, 90)
    first = score(*samples)
    assert score(*samples, settings=SETTINGS.model_copy(update={"batch": 7})) == first
    other = score(*samples, seed=1)
    assert other.kid != first.kid
    assert other.fd == first.fd


def test_scores_survive_json():
    found = score(*toy_images(3, 90))
    assert Scores(**json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_scores_of_earlier_versions_are_read():
    found = score(*toy_images(3, 90))
    later = {f"{name}{end}" for name in ("density", "coverage", "copied") for end in ("", "_floor")}
    old = {key: value for key, value in found.to_json().items() if key not in later}
    assert Scores(**old) == replace(found, **dict.fromkeys(later))


def test_density_coverage_and_copies_stand_next_to_their_floors():
    honest = score(*toy_images(3, 90))
    assert honest.density == pytest.approx(honest.density_floor, rel=0.3)
    assert honest.coverage > 0.7 * honest.coverage_floor
    assert honest.copied < 0.2
    assert honest.copied_floor == 0.05
    one = toy(1, 200).images[:1].repeat(90, 1, 1, 1)  # the same training image over and over
    collapsed = score(one, torch.zeros(90, dtype=torch.int64))
    assert collapsed.copied == 1.0
    assert collapsed.coverage < 0.3 * honest.coverage
    assert (collapsed.copied_floor, collapsed.density_floor) == (honest.copied_floor, honest.density_floor)


def test_class_accuracy_is_omitted_where_it_says_nothing():
    samples, labels = toy_images(3, 90)
    assert score(samples, labels, classifies=False).class_accuracy is None
    assert score(samples, torch.full_like(labels, 4)).class_accuracy is None  # the null label asks for no class
    half = torch.where(torch.arange(90) < 45, labels, 4)
    assert score(samples, half).class_accuracy == 1.0
    single = toy(1, 200)
    single.facts = replace(single.facts, class_names=())
    found = Scorer(single, toy(2, 60), {"q": Pixels()}, SETTINGS, 0).score([(samples, labels * 0)], len(samples))
    assert found["q"].class_accuracy is None


def test_sets_too_small_are_refused_by_name():
    samples, labels = toy_images(3, 3)
    with pytest.raises(SdditError) as caught:
        Scorer(toy(1, 200), toy(2, 0), {"q": Pixels()}, SETTINGS, 0).score([(samples, labels)], len(samples))
    assert [problem.code for problem in caught.value.problems] == ["SD-T906", "SD-T906"]
    assert "samples" in caught.value.problems[0].what
    assert "held-out images" in caught.value.problems[1].what


@pytest.mark.parametrize(("offset", "scale", "refused"), [(0.0, 0.0, True), (5.0, 1e-9, True), (5.0, 1e-3, False)])
def test_an_extractor_that_sees_no_images_is_refused_by_name(offset, scale, refused):
    class Blind(Pixels):
        def features(self, images: Tensor) -> Tensor:
            return offset + scale * super().features(images)

    samples, labels = toy_images(3, 60)
    scorer = Scorer(toy(1, 200), toy(2, 60), {"q": Pixels(), "blind": Blind()}, SETTINGS, 0)
    with pytest.raises(SdditError) if refused else nullcontext() as caught:
        scorer.score([(samples, labels)], len(samples))
    if refused:
        assert [(problem.code, problem.where) for problem in caught.value.problems] == [
            ("SD-T909", "features of 'blind'")
        ]
