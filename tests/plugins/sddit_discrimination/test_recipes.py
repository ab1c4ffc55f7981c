"""Test SD-DiT in a recipe: rules between slots, and its effect on the shared part of the model."""

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
depth = 2
width = 16
heads = 2
cls_token = true
[backbone.decoder]
depth = 1
width = 12
heads = 1
[noise_schedule]
name = "edm"
sigma_data = "measured"
[pair_sampler]
name = "pf_ode"
[loss.denoise]
name = "denoising"
[loss.discrimination]
name = "discrimination"
prototypes = 12
hidden = 16
bottleneck = 4
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
batch = 8
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return resolve(path, overrides)


class Silent:
    def logged(self, session: Session, row: object) -> None:
        pass

    def stepped(self, session: Session) -> None:
        pass


def trained(folder: Path, *overrides: str) -> Session:
    session = build_session(recipe(folder, *overrides), torch.device("cpu"))
    train(session, Silent())
    return session


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["pair_sampler.teacher_sigma=0.001"], "pair_sampler.teacher_sigma"),
        (["pair_sampler.teacher_sigma=100.0"], "pair_sampler.teacher_sigma"),
        (["pair_sampler.teacher_label='null'", "dataset.label_drop=0.0"], "pair_sampler.teacher_label"),
        (["loss.discrimination.teacher_tap='decoder'"], "loss.discrimination.teacher_tap"),
        (["pair_sampler.name='masked'"], "loss.discrimination"),
        (["backbone.cls_token=false"], "loss.discrimination"),
    ],
)
def test_incompatible_settings_are_one_problem(tmp_path: Path, overrides: list[str], where: str) -> None:
    with pytest.raises(SdditError) as refused:
        recipe(tmp_path, *overrides)
    assert [problem.code for problem in refused.value.problems] == ["SD-R108"]
    assert where in refused.value.problems[0].where


@pytest.mark.parametrize(
    "overrides",
    [
        ["pair_sampler.teacher_noise='same'"],
        ["pair_sampler.teacher_label='null'"],
        ["backbone.cls_token=false", "loss.discrimination.cls_source='mean'"],
        ["backbone.cls_token=false", "loss.discrimination.cls_weight=0.0"],
        ["loss.discrimination.tap=1", "loss.discrimination.teacher_tap=2"],
    ],
)
def test_compatible_settings_train(tmp_path: Path, overrides: list[str]) -> None:
    session = trained(tmp_path, *overrides, "train.steps=1")
    assert all(parameter.isfinite().all() for parameter in session.student.parameters())


@pytest.mark.parametrize(
    ("without", "key", "effect"),
    [
        ("pair_sampler.mask_ratio=0.0", "pair_sampler.mask_shape=block", "pair_sampler.mask_ratio=0.5"),
        ("pair_sampler.mask_ratio=0.0", "pair_sampler.teacher_mask=visible", "pair_sampler.mask_ratio=0.5"),
        (
            "loss.discrimination.centering=none",
            "loss.discrimination.center_momentum=0.5",
            "loss.discrimination.centering=mean",
        ),
        (
            "loss.discrimination.cls_weight=0.0",
            "loss.discrimination.cls_source=mean",
            "loss.discrimination.cls_weight=0.5",
        ),
    ],
)
def test_a_key_without_effect_gives_a_warning(tmp_path: Path, without: str, key: str, effect: str) -> None:
    assert recipe(tmp_path, without, key).idle == (key.partition("=")[0],)
    assert recipe(tmp_path, effect, key).idle == ()
    assert recipe(tmp_path, without).idle == ()


@pytest.mark.parametrize("ratio", ["0.0", "0.2"])
def test_weight_0_equals_removing_the_loss(tmp_path: Path, ratio: str) -> None:
    """The teacher and the loss do not change shared draws; with a weight they change the backbone."""
    masked = f"pair_sampler.mask_ratio={ratio}"
    zero = trained(tmp_path, masked, "loss.discrimination.weight=0.0").student.backbone.state_dict()
    absent = trained(tmp_path, masked, "loss.discrimination=false").student.backbone.state_dict()
    some = trained(tmp_path, masked, "loss.discrimination.weight=0.1").student.backbone.state_dict()
    assert all(torch.equal(value, absent[name]) for name, value in zero.items())
    assert not all(torch.equal(value, absent[name]) for name, value in some.items())


def test_the_discrimination_loss_trains_only_the_encoder(tmp_path: Path) -> None:
    """Without the denoising loss the decoder is unchanged; the encoder, the head and the centers change."""
    begin = build_session(recipe(tmp_path), torch.device("cpu")).student.state_dict()
    overrides = ["loss.denoise=false", "loss.discrimination.freeze_last=0"]
    end = trained(tmp_path, *overrides).student.state_dict()
    moved = {name for name, value in end.items() if not torch.equal(value, begin[name])}
    assert not any("decoder_input" in name or "final" in name or "blocks.2" in name for name in moved)
    assert any("blocks.1" in name for name in moved)
    assert {"terms.discrimination.center_cls", "terms.discrimination.head.mlp.0.weight"} <= moved
    assert "terms.discrimination.head.last.weight_v" in moved


def test_the_teacher_has_the_head_and_no_decoder(tmp_path: Path) -> None:
    session = trained(tmp_path)
    assert session.teacher is not None
    names = set(session.teacher.tensors())
    assert any(name.startswith("discrimination.head.last") for name in names)
    assert not any("decoder_input" in name or "final" in name or "blocks.2" in name for name in names)
    assert not any("mask_token" in name for name, _ in session.student.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in session.teacher.backbone.parameters())
