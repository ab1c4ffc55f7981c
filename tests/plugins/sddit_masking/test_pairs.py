"""Test MDT's two views, and the mask ratio drawn at each step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sddit.diffusion import masking as masks
from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Batch, Context, View
from sddit.recipes.resolve import resolve
from sddit.testing import ConformanceError, check
from sddit.value_schedules import Ramp
from sddit_dit.pairs import student_view
from sddit_edm.params import EDMParams
from sddit_edm.schedule import EDM
from sddit_masking.pairs import Masked, MaskedAndFull
from sddit_masking.params import MaskedAndFullParams, MaskedParams

GRID = (4, 4)
COUNT, CLASSES = 512, 10
SCHEDULE = EDM(EDMParams())


def batch(dropped: bool = False) -> Batch:
    labels = torch.arange(COUNT) % CLASSES
    x0 = torch.randn(COUNT, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = torch.full_like(labels, CLASSES) if dropped else labels
    return Batch(x0=x0, labels=seen, true_labels=labels, ids=torch.arange(COUNT), flipped=labels > CLASSES)


def context(step: int = 0) -> Context:
    draws = KeyedDraws(0, step, torch.arange(COUNT))
    return Context(step=step, total_steps=100, schedule=SCHEDULE, draws=draws, num_classes=CLASSES)


def two(step: int = 0, given: Batch | None = None, **keys: Any) -> tuple[View, View]:
    """Return the full and the masked view."""
    ctx = context(step)
    views = MaskedAndFull(MaskedAndFullParams(**keys), grid=GRID)(given or batch(), ctx.draws, SCHEDULE, ctx)
    assert list(views) == [spec.name for spec in MaskedAndFullParams(**keys).views()] == ["full", "masked"]
    return views["full"], views["masked"]


def test_the_full_view_is_that_of_every_other_method() -> None:
    full, _ = two()
    plain = student_view(batch(), context().draws, SCHEDULE)
    assert torch.equal(full.x, plain.x)
    assert torch.equal(full.t, plain.t)
    assert full.labels is not None
    assert full.visible is None


def test_the_masked_view_has_the_level_and_image_of_the_full_one_and_noise_of_its_own() -> None:
    full, masked = two()
    assert masked.t is full.t
    assert masked.x0 is full.x0
    assert masked.network == full.network == "student"
    assert masked.visible is not None
    assert masked.visible.shape == (COUNT, 11)
    torch.testing.assert_close(masked.x, SCHEDULE.perturb(masked.x0, masked.noise, masked.t))
    both = torch.stack([full.noise.flatten(), masked.noise.flatten()])
    assert abs(both.corrcoef()[0, 1]) < 4 / both.shape[1] ** 0.5
    full, masked = two(shared_noise=True)
    assert torch.equal(masked.noise, full.noise)
    assert torch.equal(masked.x, full.x)


def test_both_methods_hide_the_same_tokens_of_a_seed() -> None:
    ctx = context()
    single = Masked(MaskedParams(mask_ratio=0.3), grid=GRID)(batch(), ctx.draws, SCHEDULE, ctx)["student"]
    assert single.visible is not None
    assert torch.equal(two()[1].visible, single.visible)


def test_labels_are_shared_or_dropped_independently() -> None:
    full, masked = two()
    assert masked.labels is full.labels
    full, masked = two(label_drop=0.3)
    dropped = masked.labels == CLASSES
    assert abs(dropped.double().mean() - 0.3) < 4 * (0.21 / COUNT) ** 0.5
    assert torch.equal(masked.labels[~dropped], full.labels[~dropped])
    assert not (full.labels == CLASSES).any()
    _, masked = two(given=batch(dropped=True), label_drop=0.0)
    assert torch.equal(masked.labels, batch().true_labels)  # even where the full view dropped them


def test_a_spread_ratio_is_drawn_once_per_step() -> None:
    """v2: r = 0.3 + 0.2 U(0, 1); 16 (1 - r) tokens stay, 11 down to 8."""
    shapes = [two(step, mask_spread=0.2)[1].visible.shape for step in range(40)]
    assert {shape[0] for shape in shapes} == {COUNT}
    assert {shape[1] for shape in shapes} == {8, 9, 10, 11}
    assert [two(step, mask_spread=0.2)[1].visible.shape for step in range(3)] == shapes[:3]
    assert {two(step)[1].visible.shape[1] for step in range(5)} == {11}


def test_the_spread_is_added_to_the_schedule() -> None:
    pairs = Masked(MaskedParams(mask_ratio=Ramp(start=0.5, end=0.0), mask_spread=0.1), grid=GRID)
    shapes = []
    for step in (0, 100):
        visible = pairs(batch(), context(step).draws, SCHEDULE, context(step))["student"].visible
        shapes.append(16 if visible is None else visible.shape[1])
    assert shapes[0] in (6, 7, 8)
    assert shapes[1] in (14, 15, 16)


def test_views_report_their_mask_ratios() -> None:
    full, masked = MaskedAndFullParams(mask_spread=0.2).views()
    assert not full.is_masked
    assert (masked.mask_ratio, masked.mask_spread) == (0.3, 0.2)
    assert masked.is_masked
    assert MaskedParams(mask_ratio=0.0, mask_spread=0.1).views()[0].is_masked
    assert not MaskedParams(mask_ratio=0.0).views()[0].is_masked


def dense_paths(step: int = 0, **keys: Any) -> torch.Tensor | None:
    """Return the samples of the masked pair sampler that skip the sparse span."""
    ctx = context(step)
    return Masked(MaskedParams(**keys), grid=GRID)(batch(), ctx.draws, SCHEDULE, ctx)["student"].dense_path


def test_paths_are_dropped_for_the_stated_fraction_of_samples() -> None:
    found = [dense_paths(step, path_drop=0.1) for step in range(20)]
    dropped = torch.stack([one for one in found if one is not None]).double()
    assert dropped.shape == (20, COUNT)
    assert abs(dropped.mean() - 0.1) < 4 * (0.09 / dropped.numel()) ** 0.5
    assert len(set(dropped.sum(dim=1).tolist())) > 3  # drawn per sample and step, not a fixed part of the batch
    assert dense_paths() is None
    falling = {"path_drop": Ramp(start=0.5, end=0.0)}
    assert dense_paths(100, **falling) is None and dense_paths(0, **falling) is not None


def test_a_dropped_path_changes_nothing_else_of_the_view() -> None:
    plain, dropping = two()[1], two(path_drop=0.5)[1]
    assert dropping.dense_path is not None and plain.dense_path is None
    assert all(torch.equal(getattr(plain, key), getattr(dropping, key)) for key in ("x", "t", "labels", "visible"))
    assert two(path_drop=0.5)[0].dense_path is None  # the full view
    assert [view.drops_path for view in MaskedAndFullParams(path_drop=0.5).views()] == [False, True]


RECIPE = """
[backbone]
name = "dit"
depth = 3
width = 16
heads = 2
[backbone.decoder]
style = "split"
depth = 1
[noise_schedule]
name = "edm"
[pair_sampler]
name = "masked_and_full"
[loss.denoise]
name = "denoising"
[dataset]
name = "digits"
[sampler]
name = "heun"
[optimizer]
name = "adamw"
"""


def test_two_views_work_with_other_backbones_and_report_idle_keys(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    shape, spread = "pair_sampler.mask_shape=block", "pair_sampler.mask_spread=0.1"
    assert "pair_sampler.mask_shape" in resolve(path, ["pair_sampler.mask_ratio=0.0", shape]).idle
    assert "pair_sampler.mask_shape" not in resolve(path, ["pair_sampler.mask_ratio=0.0", spread, shape]).idle
    assert "pair_sampler.label_drop" not in resolve(path, ["pair_sampler.label_drop=0.1"]).idle
    unlabelled: Any = SimpleNamespace(facts=SimpleNamespace(num_classes=0))
    assert list(MaskedAndFullParams().idle(unlabelled)) == ["label_drop"]


@pytest.mark.parametrize("keys", [{"mask_spread": -0.1}, {"mask_spread": 1.0}, {"label_drop": 1.5}])
def test_values_out_of_bounds_are_rejected(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="should be"):
        MaskedAndFullParams(**keys)


def test_the_kit_rejects_more_hidden_tokens_than_the_spread_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    check("masked_and_full", mask_spread=0.2)
    monkeypatch.setattr(masks, "draw_ratio", lambda draws, ratio, spread: ratio + 2 * spread)
    with pytest.raises(ConformanceError, match="visible of view 'masked' has a wrong shape"):
        check("masked_and_full", mask_spread=0.2)
