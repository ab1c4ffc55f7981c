"""Test the losses in recipes: rules between slots, micro-batches, and their effect on the shared part of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sddit.errors import SdditError
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.session import Session

RECIPE = """
[backbone]
name = "dit"
depth = 4
width = 16
heads = 2
[noise_schedule]
name = "edm"
sigma_data = "measured"
[pair_sampler]
name = "single"
[loss.denoise]
name = "denoising"
[loss.regularizer]
name = "{name}"
{keys}
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
steps = 4
batch = 16
"""
MASKED = """
[backbone.decoder]
depth = 2
width = 16
heads = 2
"""
MASK = ["pair_sampler.name=masked", "pair_sampler.mask_ratio=0.5"]
SMALL = {"repulsor": "queue = 40\ndimension = 8"}
NAMES = ["dispersive", "repulsor", "contrastive", "diversity"]
COUPLED = ["dispersive", "contrastive"]


def recipe(folder: Path, name: str, *overrides: str, masked: bool = False) -> Recipe:
    path = folder / "tiny.toml"
    text = RECIPE.format(name=name, keys=SMALL.get(name, ""))
    path.write_text(text + (MASKED if masked else ""), encoding="utf-8")
    return resolve(path, overrides)


class Silent:
    def logged(self, session: Session, row: object) -> None:
        pass

    def stepped(self, session: Session) -> None:
        pass


def trained(folder: Path, name: str, *overrides: str) -> Session:
    session = build_session(recipe(folder, name, *overrides), torch.device("cpu"))
    train(session, Silent())
    return session


def problem(folder: Path, name: str, *overrides: str, masked: bool = False) -> tuple[str, str]:
    """Return code and key of the only problem of a recipe."""
    with pytest.raises(SdditError) as refused:
        recipe(folder, name, *overrides, masked=masked)
    (found,) = refused.value.problems
    return found.code, found.where.rpartition("(")[2].removesuffix(")")


@pytest.mark.parametrize("name", COUPLED)
def test_micro_batches_and_windows_are_refused_for_a_loss_of_the_entire_batch(tmp_path: Path, name: str) -> None:
    assert problem(tmp_path, name, "train.micro_batch=8") == ("SD-R108", "train.micro_batch")
    assert problem(tmp_path, name, "loss.regularizer.window=[0.1, 1.0]") == ("SD-R108", "loss.regularizer.window")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COUPLED])
def test_micro_batches_equal_the_batch_for_the_others(tmp_path: Path, name: str) -> None:
    precise = "train.precision=fp64"
    whole = trained(tmp_path, name, precise).student.state_dict()
    parts = trained(tmp_path, name, precise, "train.micro_batch=4").student.state_dict()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-9, atol=1e-9)
    other = trained(tmp_path, name, precise, "loss.regularizer=false").student.state_dict()
    assert any((other[key] - whole[key]).abs().max() > 1e-6 for key in other)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_stays_0_leaves_the_network_as_without_the_loss(tmp_path: Path, name: str) -> None:
    """The ramp is 0 in all four steps, 0 to 3; a constant 0, and the loss removed, give the same bits."""
    ramp = "loss.regularizer.weight={start=0.0, end=1.0, from=3, until=4}"
    runs = {
        "ramp": [ramp],
        "zero": ["loss.regularizer.weight=0.0"],
        "absent": ["loss.regularizer=false"],
        "some": ["loss.regularizer.weight=0.5"],
    }
    found = {run: trained(tmp_path, name, *given).student.backbone.state_dict() for run, given in runs.items()}
    for run in ("ramp", "zero"):
        assert all(torch.equal(value, found["absent"][key]) for key, value in found[run].items())
    assert not all(torch.equal(value, found["absent"][key]) for key, value in found["some"].items())


@pytest.mark.parametrize(
    ("name", "overrides", "where"),
    [
        ("contrastive", ["train.batch=1"], "train.batch"),
        ("diversity", ["loss.regularizer.taps=[1, 0.25]"], "loss.regularizer.taps"),
        ("diversity", ["backbone.depth=2"], "loss.regularizer.taps"),
    ],
)
def test_incompatible_settings_are_one_problem(tmp_path: Path, name: str, overrides: list[str], where: str) -> None:
    assert problem(tmp_path, name, *overrides) == ("SD-R108", where)


def test_another_class_needs_classes(tmp_path: Path) -> None:
    declared = [
        "dataset.name=declared",
        "dataset.image=[1, 8, 8]",
        "dataset.classes=0",
        "noise_schedule.sigma_data=0.5",
    ]
    given = [*declared, "loss.regularizer.partner=other_class"]
    assert problem(tmp_path, "contrastive", *given) == ("SD-R108", "loss.regularizer.partner")
    recipe(tmp_path, "contrastive", *declared)


def test_images_that_hide_different_tokens_are_not_compared_position_by_position(tmp_path: Path) -> None:
    assert problem(tmp_path, "dispersive", *MASK, masked=True) == ("SD-R108", "loss.regularizer.tap")
    recipe(tmp_path, "dispersive", *MASK, "loss.regularizer.tap=decoder", masked=True)
    recipe(tmp_path, "dispersive", "pair_sampler.name=masked", "pair_sampler.mask_ratio=0.0", masked=True)


def test_blocks_of_different_widths_are_refused(tmp_path: Path) -> None:
    widths = ["backbone.decoder.width=8", "loss.regularizer.taps=[1, 'decoder']"]
    assert problem(tmp_path, "diversity", *widths, masked=True) == ("SD-R108", "loss.regularizer.taps")
    recipe(tmp_path, "diversity", "loss.regularizer.taps=[1, 'decoder']", *MASK, masked=True)


def test_a_gate_that_does_not_rise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match="gate_low must be below gate_high"):
        recipe(tmp_path, "diversity", "loss.regularizer.gate_low=0.6")


@pytest.mark.parametrize(
    ("without", "key", "effect"),
    [("variant=l2", "margin=0.5", "variant=hinge"), ("variant=covariance", "temperature=0.7", "variant=cosine")],
)
def test_a_key_without_effect_gives_a_warning(tmp_path: Path, without: str, key: str, effect: str) -> None:
    def idle(*keys: str) -> tuple[str, ...]:
        return recipe(tmp_path, "dispersive", *(f"loss.regularizer.{given}" for given in keys)).idle

    assert idle(without, key) == (f"loss.regularizer.{key.partition('=')[0]}",)
    assert idle(effect, key) == ()


@pytest.mark.parametrize(
    ("name", "override", "fine"),
    [
        ("dispersive", "train.batch=8", "train.batch=16"),
        ("contrastive", "loss.regularizer.weight=1.0", "loss.regularizer.weight=0.9"),
    ],
)
def test_a_probable_mistake_gives_a_warning(tmp_path: Path, name: str, override: str, fine: str) -> None:
    assert len(recipe(tmp_path, name, override).warnings) == 1
    assert recipe(tmp_path, name, fine).warnings == ()


def test_the_repulsor_head_is_not_exported_and_a_fixed_one_not_trained(tmp_path: Path) -> None:
    fixed = "loss.regularizer.projection=fixed"
    begin = build_session(recipe(tmp_path, "repulsor", fixed), torch.device("cpu")).student.terms.state_dict()
    end = trained(tmp_path, "repulsor", fixed).student.terms.state_dict()
    assert torch.equal(begin["regularizer.head.weight"], end["regularizer.head.weight"])
    assert not torch.equal(begin["regularizer.queue"], end["regularizer.queue"])
    learned = trained(tmp_path, "repulsor").student
    assert not any("head" in name or "queue" in name for name in learned.backbone.state_dict())
    assert "regularizer.head.2.weight" in learned.terms.state_dict()
