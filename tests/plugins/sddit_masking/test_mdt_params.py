"""Test the settings of the MDT backbone and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sddit.errors import SdditError
from sddit.interfaces import Shapes
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.session import Session
from sddit_dit.params import DiTParams
from sddit_flash.params import EagerParams
from sddit_masking.params import MDTParams

RECIPE = """
[backbone]
name = "mdt"
depth = 4
width = 16
heads = 2
decoder_depth = 2
[noise_schedule]
name = "edm"
sigma_data = "measured"
[pair_sampler]
name = "masked_and_full"
mask_spread = 0.2
label_drop = 0.1
[loss.full]
name = "denoising"
views = ["full"]
[loss.masked]
name = "denoising"
views = ["masked"]
[attention]
name = "eager"
[dataset]
name = "digits"
[sampler]
name = "heun"
[optimizer]
name = "adamw"
lr = 1e-2
[train]
steps = 3
batch = 8
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return resolve(path, overrides)


def structure(**settings: Any) -> tuple[int, int, bool | None, bool | None]:
    params = MDTParams(**settings)
    return params.encoder_depth, len(params.block_sizes), params.long_skips, params.input_skips


def error_message(**settings: Any) -> str:
    """Return the error message of contradictory settings."""
    with pytest.raises(ValidationError) as caught:
        MDTParams(**settings)
    return caught.value.errors()[0]["msg"]


# Settings


def test_a_version_sets_the_structure() -> None:
    assert structure() == (8, 12, True, True)
    assert structure(version="v1") == (10, 12, False, False)
    assert structure(size="XL") == (24, 28, True, True)
    assert structure(version="v1", input_skips=True, decoder_depth=3) == (9, 12, False, True)
    dumped = MDTParams(version="v1").model_dump(by_alias=True)
    assert (dumped["decoder_depth"], dumped["long_skips"], dumped["size"]) == (2, False, "S")


@pytest.mark.parametrize("settings", [{}, {"version": "v1"}, {"size": "B", "decoder_depth": 6}, {"long_skips": False}])
def test_a_resolved_recipe_reads_back_as_itself(settings: dict[str, Any]) -> None:
    params = MDTParams(**settings)
    assert MDTParams(**params.model_dump(mode="json", by_alias=True)) == params


def test_contradictions_are_rejected_with_a_reason() -> None:
    numbers = {"depth": 7, "width": 16, "heads": 2}
    assert "an encoder of 5 blocks, 7 - 2, cannot be halved" in error_message(**numbers, decoder_depth=2)
    assert structure(**numbers, decoder_depth=2, long_skips=False) == (5, 7, False, True)
    assert "decoder_depth 7 leaves no encoder" in error_message(**numbers, decoder_depth=7, version="v1")
    assert "set a size or numbers, not both" in error_message(size="S", depth=2)
    assert "Input should be 'v1' or 'v2'" in error_message(version="v3")
    assert "Input should be 'v1' or 'v2'" in error_message(version=["v1"])


def test_skips_begin_in_the_second_half() -> None:
    params = MDTParams(depth=6, width=16, heads=2, decoder_depth=2)
    assert [params.takes_skip(number) for number in range(1, 7)] == [False, False, True, True, True, True]
    params = MDTParams(depth=6, width=16, heads=2, decoder_depth=2, input_skips=False)
    assert [params.takes_skip(number) for number in range(1, 7)] == [False, False, True, True, False, False]


def test_taps_and_requirements() -> None:
    params = MDTParams()
    assert [params.block_of(tap) for tap in ("encoder", "decoder", 0.5, 3)] == [8, 12, 6, 3]
    assert params.supports_masking
    assert params.needs_bias
    assert not params.has_cls


def test_two_passes_have_the_derived_cost_at_published_sizes() -> None:
    """A step of two passes over one of DiT, size L and 256 tokens: 1.76 in v1, 1.86 in v2 at its mean ratio."""
    shapes = Shapes((4, 32, 32), 1000, outputs=2)
    for version, kept, ratio in (("v1", 179, 1.76), ("v2", 153, 1.86)):
        full, masked = (MDTParams(size="L", version=version).cost(shapes, num_kept=k).flops for k in (256, kept))
        assert (full + masked) / DiTParams(size="L").cost(shapes, num_kept=256).flops == pytest.approx(ratio, abs=0.02)


# Within a recipe


class Silent:
    def logged(self, session: Session, row: object) -> None:
        pass

    def stepped(self, session: Session) -> None:
        pass


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_it_trains_under_edm_and_every_parameter_moves(tmp_path: Path, version: str) -> None:
    session = build_session(recipe(tmp_path, f"backbone.version={version}"), torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in session.student.named_parameters()}
    train(session, Silent())
    still = [name for name, p in session.student.named_parameters() if torch.equal(p, before[name])]
    assert session.step == 3
    assert still == []


def test_a_kernel_without_bias_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tmp_path)
    monkeypatch.setattr(EagerParams, "takes_bias", False)
    with pytest.raises(SdditError, match="adds a bias to its attention, which kernel 'eager' does not support"):
        recipe(tmp_path)


def test_an_indivisible_image_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match="cannot be cut into patches"):
        recipe(tmp_path, "backbone.patch=3")


def test_its_plan_counts_both_views(tmp_path: Path) -> None:
    views = {p.view: p for p in plan(recipe(tmp_path)).passes}
    assert list(views) == ["full", "masked"]
    assert views["masked"].kept < views["full"].kept
    assert views["masked"].backbone_flops is not None
    assert views["full"].backbone_flops is not None
    single = {p.view: p for p in plan(recipe(tmp_path, "loss.masked=false")).passes}
    assert list(single) == ["full"]
