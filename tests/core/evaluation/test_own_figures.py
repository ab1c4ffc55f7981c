"""Figures that an extractor measures on its own stand among its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sddit.ablations.analysis.results import scores_of
from sddit.evaluation.scores import Scorer, Scores
from sddit.evaluation.scoring import build_extractors
from sddit.interfaces import FigureExtractor
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.reports.run.score_table import score_rows


class Brightness:
    """Collect the sum and the count of all values."""

    total = count = 0

    def add(self, images: Tensor) -> None:
        self.total, self.count = self.total + int(images.sum()), self.count + images.numel()

    def figures(self) -> Mapping[str, float]:
        return {"fid": self.total / self.count}


class Bright:
    """An extractor with a figure of its own."""

    title, dimensions = "bright", 2

    def features(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        return torch.stack([x.mean(dim=(1, 2, 3)), x.std(dim=(1, 2, 3))], dim=1)

    def classes(self, images: Tensor) -> None:
        return None

    def collect_figures(self) -> Brightness:
        return Brightness()


def test_figures_of_an_extractors_own_stand_among_its_scores(toy_recipe: Path, tmp_path: Path) -> None:
    recipe: Recipe = resolve(toy_recipe, ['evaluate.features=["toy"]', "evaluate.samples=12", "dataset.images=60"])
    train, test = (recipe.dataset.build(split=name) for name in ("train", "test"))
    plain = build_extractors(recipe, torch.device("cpu"))
    assert isinstance(Bright(), FigureExtractor)
    assert not isinstance(plain["toy"], FigureExtractor)
    scorer = Scorer(train, test, {**plain, "bright": Bright()}, recipe.evaluate, 0)
    images = torch.full((12, 3, 8, 8), 51, dtype=torch.uint8) + torch.arange(12, dtype=torch.uint8)[:, None, None, None]
    labels = torch.arange(12) % 3
    samples = list(zip(images.split(5), labels.split(5), strict=True))
    found = scorer.score(samples, 12)
    assert found["bright"].own == {"fid": 56.5}
    assert found["toy"].own == {}
    assert "own" not in found["toy"].to_json()
    assert Scores(**json.loads(json.dumps(found["bright"].to_json()))) == found["bright"]
    assert "FID" in [row.name for row in score_rows(found["bright"])]
    assert {label: one.own for label, one in scorer.score(samples, 12, own=False).items()} == {
        "toy": {},
        "bright": {},
    }
    (tmp_path / "scores.json").write_text(json.dumps({label: one.to_json() for label, one in found.items()}))
    assert scores_of(tmp_path)["bright.fid"] == 56.5
    assert "toy.fid" not in scores_of(tmp_path)
    assert replace(found["bright"], own={}).to_json().keys() == found["toy"].to_json().keys()
