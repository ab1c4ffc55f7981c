"""Test alignment in recipes: rules between slots, the effect of a weight of 0, and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.recipes.resolve import resolve
from sddit.testing.sessions import advance, restore_latest, save, state_of
from sddit.training.build import build_session
from sddit.training.inputs import context_of, make_batch
from sddit.training.session import Session
from sddit_alignment.loss import Align
from sddit_standard.datasets.image_datasets import MemorySplit
from sddit_standard.datasets.params import DigitsParams

SMALL = ["backbone.depth=4", "backbone.width=16", "backbone.heads=2", "train.batch=8", "train.steps=100"]
CPU = torch.device("cpu")


def session(name: str, *overrides: str, steps: int = 0) -> Session:
    built = build_session(resolve(f"digits/{name}", [*SMALL, *overrides]), CPU)
    advance(built, steps)
    return built


@pytest.mark.parametrize("name", ["layersync", "sra", "sra2"])
def test_a_weight_of_0_at_first_leaves_the_network_of_the_baseline(name: str) -> None:
    """Bit for bit, with the head and its optimizer there; a step with a weight above 0 changes it."""
    plain = session("dit", steps=3)
    late = session(name, "loss.align.weight={ start = 0.0, end = 0.5, shape = 'step', until = 3 }", steps=3)
    ours, theirs = late.student.backbone.state_dict(), plain.student.backbone.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    advance(plain, 2)
    advance(late, 2)
    ours, theirs = late.student.backbone.state_dict(), plain.student.backbone.state_dict()
    assert any(not torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("normalize", ["range", "standard"])
def test_the_loss_gets_the_moments_of_what_the_network_sees(normalize: str) -> None:
    built = session("sra2", f"dataset.normalize={normalize}")
    images, _ = built.dataset.fetch(range(len(built.dataset)))
    term = built.student.terms["align"]
    assert isinstance(term, Align)
    assert term.mean == pytest.approx(images.double().mean((0, 2, 3)).tolist(), abs=1e-6)
    assert term.std == pytest.approx(images.double().std((0, 2, 3), correction=0).tolist(), rel=1e-5)
    assert {"range": 0.75, "standard": 0.5}[normalize] == pytest.approx(term.std[0], abs=0.01)


def test_micro_batches_give_the_gradient_of_the_batch() -> None:
    whole = session("sra", "train.precision=fp64", steps=2)
    parts = session("sra", "train.precision=fp64", "train.micro_batch=2", steps=2)
    for one, other in zip(whole.student.parameters(), parts.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    keys = ["pair_sampler.mask_ratio=0.0", "loss.align.permute=tokens"]
    through = session("sra", *keys, steps=4)
    first = session("sra", *keys, steps=2)
    save(first, tmp_path)
    second = session("sra", *keys)
    restore_latest(second, tmp_path)
    advance(second, 2)
    ours, theirs = state_of(second), state_of(through)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(ours["student.backbone.patch.weight"], state_of(first)["student.backbone.patch.weight"])


def test_another_width_without_a_head_is_refused() -> None:
    with pytest.raises(SdditError, match="targets of another width without a head"):
        resolve("digits/sra2", ["loss.align.head=none"])
    with pytest.raises(SdditError, match="targets of another width without a head"):
        resolve("quickstart", ["loss.discrimination=false", *LAYERSYNC, "backbone.decoder.width=32"])
    resolve("quickstart", ["loss.discrimination=false", *LAYERSYNC])


LAYERSYNC = [
    "loss.align.name=align",
    "loss.align.source=self",
    "loss.align.tap=2",
    "loss.align.target_tap=decoder",
    "loss.align.head=none",
]


def test_taps_on_both_sides_of_the_mask_are_matched_by_place() -> None:
    built = build_session(resolve("quickstart", ["loss.discrimination=false", *LAYERSYNC, "train.batch=8"]), CPU)
    advance(built, 1)
    assert built.teacher is None


def test_the_plan_names_the_blocks_of_the_taps(sddit_run: Callable[..., Any]) -> None:
    shown = sddit_run("-n", "digits/sra", "loss.align.tap=0.29", "loss.align.target_tap=0.9").stdout
    assert "student at block 2 of 6, teacher at block 5 of 6" in shown


def with_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the digits have features: the image itself in two channels, the second one negative."""

    def targets(self: Any, ids: list[int], flipped: torch.Tensor) -> dict[str, torch.Tensor]:
        images = self.fetch(ids)[0]
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return {"itself": torch.cat([images, -images], dim=1)}

    monkeypatch.setattr(MemorySplit, "targets", targets, raising=False)
    monkeypatch.setattr(DigitsParams, "targets", lambda self: {"itself": (2, 8, 8)})


EXTERNAL = ["loss.align.source=external", "loss.align.features=itself", "loss.align.feature_width=2"]


def test_features_of_the_data_set_reach_the_loss_flipped_like_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with_features(monkeypatch)
    built = session("sra2", *EXTERNAL, "loss.align.target_norm=none", "dataset.flip=true", steps=1)
    ids = list(range(8))
    ctx = context_of(built, ids, [0] * 8)
    batch = make_batch(built, ids, ctx.draws)
    assert torch.equal(batch.extras["itself"], torch.cat([batch.x0, -batch.x0], dim=1))
    assert batch.flipped.any() and not batch.flipped.all()
    views = built.pair_sampler(batch, ctx.draws, built.schedule, ctx)
    assert views["student"].extras["itself"] is batch.extras["itself"]


def test_features_that_the_data_set_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    external = [*EXTERNAL, "loss.align.target_norm=none"]
    with pytest.raises(SdditError, match="the data set has no features 'itself'"):
        resolve("digits/sra2", external)
    with_features(monkeypatch)
    resolve("digits/sra2", external)
    with pytest.raises(SdditError, match="the features of the data set have another width"):
        resolve("digits/sra2", [*external[:2], "loss.align.feature_width=3", external[3]])


def test_tokens_compared_with_themselves_are_warned_of() -> None:
    assert any("with themselves" in text for text in resolve("digits/layersync", ["loss.align.target_tap=2"]).warnings)
    assert not any("with themselves" in text for text in resolve("digits/layersync").warnings)


def test_keys_without_effect_are_idle() -> None:
    idle = resolve("digits/sra2", ["loss.align.axis=token", "loss.align.target_tap=3"]).idle
    assert {"loss.align.axis", "loss.align.target_tap"} <= set(idle)
    assert "loss.align.beta" not in resolve("digits/sra2", ["loss.align.beta=0.1"]).idle
