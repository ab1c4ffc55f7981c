"""Extractors with settings and figures of their own: the tables [features.LABEL], and Inception among them."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from sddit.ablations.planning.arms import expand
from sddit.data.archives import StoredArray
from sddit.errors import SdditError
from sddit.evaluation.metrics import moments
from sddit.interfaces.metric_names import KNOWN_METRICS
from sddit.plugins.host import Host
from sddit.recipes.differences import differences
from sddit.recipes.merge import load
from sddit.recipes.resolve import resolve
from sddit_standard.features import adm
from sddit_standard.features.adm import InceptionFeatures, Reference
from sddit_standard.features.inception import Inception, Seen
from sddit_standard.features.params import InceptionParams

ASKED = (
    'features.fid={ name = "inception", weights = "files/w.pth", reference = "files/r.npz" }',
    'evaluate.features=["fid", "toy"]',
    "evaluate.samples=12",
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files that a dry run has no more to know of than their hashes."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "w.pth").write_bytes(b"weights")
    (folder / "r.npz").write_bytes(b"reference")
    return folder


def code(overrides: tuple[str, ...], recipe: Path) -> str:
    with pytest.raises(SdditError) as refused:
        resolve(recipe, overrides)
    return refused.value.problems[0].code


def test_a_table_gives_an_extractor_its_settings(toy_recipe: Path, files: Path, tmp_path: Path) -> None:
    recipe = resolve(toy_recipe, ASKED)
    assert list(recipe.features) == ["toy", "fid"]
    params = recipe.features["fid"].params
    assert isinstance(params, InceptionParams)
    assert (params.weights, params.weights_sha256) == (str(files / "w.pth"), sha256(b"weights").hexdigest())
    stated = tmp_path / "recipe.resolved.json"
    stated.write_text(json.dumps(recipe.to_json()), encoding="utf-8")
    again = resolve(stated)
    assert again.run_id == recipe.run_id
    assert again.features["fid"] == recipe.features["fid"]


def test_a_table_that_has_no_name_is_called_by_its_label(toy_recipe: Path, files: Path) -> None:
    recipe = resolve(toy_recipe, ['features.inception.weights="files/w.pth"', 'evaluate.features=["inception"]'])
    assert isinstance(recipe.features["inception"].params, InceptionParams)
    with pytest.raises(SdditError, match=r"'features\.inception\.weights' is missing"):
        resolve(toy_recipe, ['evaluate.features=["inception"]'])


def test_recipes_without_such_a_table_say_nothing_of_it(toy_recipe: Path) -> None:
    assert "features" not in resolve(toy_recipe, ['evaluate.features=["toy"]', "evaluate.samples=12"]).to_json()


def test_the_content_of_a_file_counts_and_its_place_does_not(toy_recipe: Path, files: Path, tmp_path: Path) -> None:
    recipe = resolve(toy_recipe, ASKED)
    shutil.copytree(files, tmp_path / "elsewhere")
    moved = resolve(toy_recipe, [text.replace("files/", "elsewhere/") for text in ASKED])
    assert moved.run_id == recipe.run_id
    assert {kind for *_, kind in differences(recipe.to_json(), moved.to_json())} == {"free"}
    (files / "w.pth").write_bytes(b"other weights")
    other = resolve(toy_recipe, ASKED)
    assert other.run_id != recipe.run_id
    found = differences(recipe.to_json(), other.to_json())
    assert [(key, kind) for key, *_, kind in found] == [("features.fid.weights_sha256", "numeric")]


def test_files_that_are_missing_or_others_are_refused(toy_recipe: Path, files: Path) -> None:
    stated = (ASKED[0].replace("w.pth", "none.pth"), *ASKED[1:])
    assert code(stated, toy_recipe) == "SD-T940"
    assert code((ASKED[0].replace("r.npz", "none.npz"), *ASKED[1:]), toy_recipe) == "SD-T941"
    assert code((*ASKED, f"features.fid.weights_sha256={'0' * 64}"), toy_recipe) == "SD-T940"
    assert code((ASKED[0].replace("weights", "weighs"), *ASKED[1:]), toy_recipe) == "SD-R109"
    assert code(("features.fid={ weights = 'w' }", *ASKED[1:]), toy_recipe) == "SD-R110"
    assert code(('evaluate.features=["inception"]',), toy_recipe) == "SD-R109"  # which needs a file


def test_a_table_that_is_not_used_is_idle(toy_recipe: Path, files: Path) -> None:
    recipe = resolve(toy_recipe, [ASKED[0]])
    assert "features.fid.weights" in recipe.idle
    assert "features" not in recipe.to_json()


def test_only_what_an_extractor_measures_is_a_metric(toy_recipe: Path, files: Path) -> None:
    def asked(metric: str) -> tuple[str, ...]:
        return expand(load(toy_recipe, [*ASKED, f'ablation.metrics=["{metric}"]'])).metrics

    assert asked("fid.fid") == ("fid.fid",)
    assert asked("fid.fd") == ("fid.fd",)
    with pytest.raises(SdditError, match=r"no metric 'toy\.fid'"):
        asked("toy.fid")
    with pytest.raises(SdditError, match=r"no metric 'fid\.sfid'"):
        expand(load(toy_recipe, [*ASKED, "features.fid.reference=''", 'ablation.metrics=["fid.sfid"]']))


def test_the_page_names_every_figure_and_every_extractor() -> None:
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    known = [*KNOWN_METRICS, *(component.name for component in Host().registries.features)]
    assert [name for name in known if f"`{name}`" not in page] == []


def made_up(seed: int, n: int = 40) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    pooled, spatial, logits = (torch.randn(n, d, generator=generator) for d in (5, 4, 7))
    return Seen(pooled, spatial, logits.softmax(dim=1))


def test_inception_measures_what_the_reference_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(adm, "look", lambda network, images, device: made_up(len(images)))
    images, device = torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.device("cpu")
    network, real = Inception(), made_up(1)
    np.savez(tmp_path / "r.npz", arr_0=np.zeros((5, 8, 8, 3), dtype=np.uint8))

    def figures(reference: Reference | None) -> dict[str, float]:
        collected = InceptionFeatures(network, reference, "r.npz", device).collect_figures()
        for part in images.split(6):
            collected.add(part)
        return collected.figures()

    assert figures(None).keys() == {"inception_score"}
    assert figures(Reference(moments(real.pooled), None, None)).keys() == {"fid", "inception_score"}
    whole = figures(Reference(None, None, StoredArray.find(tmp_path / "r.npz", "arr_0")))
    assert whole.keys() == {"fid", "sfid", "inception_score", "precision_adm", "recall_adm"}
    params = InceptionParams(weights="w", reference="r")
    assert set(params.own_figures) == whole.keys()
    assert set(InceptionParams(weights="w").own_figures) == {"inception_score"}
