"""Test MaskDiT's pair sampler and reconstruction loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import denoise_view
from sddit.errors import SdditError
from sddit.interfaces import Batch, Context, Outputs, View
from sddit.recipes.resolve import resolve
from sddit.value_schedules import Ramp, value_at
from sddit_dit.backbone import DiT
from sddit_dit.blocks import patchify
from sddit_dit.formats import MaskDiTFormat
from sddit_dit.pairs import student_view
from sddit_dit.params import DiTParams
from sddit_edm.loss import Denoising
from sddit_edm.params import DenoisingParams, EDMParams
from sddit_edm.schedule import EDM
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams
from sddit_masking.loss import Reconstruction, normalize_patches
from sddit_masking.pairs import Masked
from sddit_masking.params import MaskedParams, ReconstructionParams

GRID = (4, 4)
RECIPE = """
[backbone]
name = "dit"
depth = 2
width = 16
heads = 2
[backbone.decoder]
depth = 1
width = 12
heads = 1
[noise_schedule]
name = "edm"
sigma_data = "measured"
[pair_sampler]
name = "masked"
[loss.denoise]
name = "denoising"
[loss.reconstruction]
name = "reconstruction"
[dataset]
name = "digits"
[sampler]
name = "heun"
[optimizer]
name = "adamw"
"""
SCHEDULE = EDM(EDMParams())


def context(step: int = 0, total_steps: int = 100) -> Context:
    return Context(
        step=step,
        total_steps=total_steps,
        schedule=SCHEDULE,
        draws=KeyedDraws(0, step, torch.arange(4)),
        num_classes=10,
    )


def batch(count: int = 4) -> Batch:
    labels = torch.arange(count)
    return Batch(
        x0=torch.randn(count, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        labels=labels,
        true_labels=labels,
        ids=labels,
        flipped=torch.zeros(count, dtype=torch.bool),
    )


def reconstruct(view: View, x0: Tensor, **keys: object) -> Tensor:
    term = Reconstruction(ReconstructionParams.model_validate(keys), grid=GRID)
    return term(context(), {"student": view}, {"student": Outputs(x0=x0)})


def stored_view(numbers) -> tuple[View, Tensor]:
    """Return the loss case of maskdit_a and its prediction."""
    inputs, outputs = numbers.inputs, numbers.outputs
    t, x0, noise = outputs["loss/sigma"], inputs["images"], inputs["noise_unit"]
    visible = outputs["mask/ids_keep"].sort(dim=1).values
    labels = torch.zeros(4, dtype=torch.int64)
    view = View(
        network="student", x=SCHEDULE.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise, visible=visible
    )
    return view, outputs["loss/denoised"]


@pytest.mark.parametrize(("name", "normalize"), [("loss/mae", True), ("loss/mae_no_norm", False)])
def test_loss_is_that_of_maskdit(published, name: str, normalize: bool) -> None:
    numbers = published("maskdit_a")
    view, denoised = stored_view(numbers)
    ours, theirs = reconstruct(view, denoised, normalize=normalize), numbers.outputs[name]
    assert theirs.min() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("keys", [{"target": "clean"}, {"normalize": False}])
def test_a_different_target_is_detected(published, keys: dict[str, object]) -> None:
    numbers = published("maskdit_a")
    view, denoised = stored_view(numbers)
    assert (reconstruct(view, denoised, **keys) - numbers.outputs["loss/mae"]).abs().min() > 1e-3


def test_total_is_denoising_plus_a_tenth(published) -> None:
    numbers = published("maskdit_a")
    view, denoised = stored_view(numbers)
    total = numbers.outputs["loss/dsm_masked"] + ReconstructionParams().weight * reconstruct(view, denoised)
    torch.testing.assert_close(total, numbers.outputs["loss/total_masked"], rtol=1e-9, atol=0)


def test_both_terms_have_the_gradients_of_maskdit(published) -> None:
    """Network, schedule and both losses combined as in a run: [sum, norm] of every gradient."""
    numbers = published("maskdit_a")
    described = MaskDiTFormat.describe(numbers.meta["constructor"])
    params, shapes = DiTParams.model_validate(described.backbone), described.shapes
    model = DiT(params, image=shapes.image, num_classes=10, outputs=1, attention=Eager(EagerParams())).double()
    model.load_state_dict(MaskDiTFormat.to_ours(numbers.state))
    view, _ = stored_view(numbers)
    one_hot = numbers.inputs["y"]
    view.labels = torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), 10)

    views, outputs = {"student": view}, {"student": denoise_view(model, SCHEDULE, view)}
    denoise = Denoising(DenoisingParams(tokens="visible"), grid=GRID)(context(), views, outputs)
    rebuild = Reconstruction(ReconstructionParams(), grid=GRID)(context(), views, outputs)
    torch.testing.assert_close(denoise, numbers.outputs["loss/dsm_masked"], rtol=1e-9, atol=0)
    total = denoise + 0.1 * rebuild
    torch.testing.assert_close(total, numbers.outputs["loss/total_masked"], rtol=1e-9, atol=0)
    total.mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    theirs = MaskDiTFormat.to_theirs(grads, params, shapes)
    ours = torch.stack([torch.stack([theirs[n].sum(), theirs[n].norm()]) for n in numbers.meta["grad_names"]])
    torch.testing.assert_close(ours, numbers.outputs["loss/grad_stats"], rtol=1e-9, atol=1e-9)


def test_gradient_is_that_of_the_formula() -> None:
    """d/dx0 of sum_i m_i |x0_i - y_i|^2 / (P sum m) is 2 m (x0 - y) / (P sum m), so visible pixels get none."""
    view = Masked(MaskedParams(), grid=GRID)(batch(), context().draws, SCHEDULE, context())["student"]
    assert view.visible is not None
    x0 = torch.randn(4, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reconstruct(view, x0).sum(), x0)
    hidden = torch.ones(4, 16, 1, dtype=torch.float64).scatter(1, view.visible[:, :, None], 0)
    expected = 2 * hidden * (patchify(x0, GRID) - normalize_patches(patchify(view.x, GRID))) / (16 * 8)
    torch.testing.assert_close(patchify(gradient, GRID), expected, rtol=1e-12, atol=1e-15)


def test_targets_have_mean_0_and_unbiased_variance_1() -> None:
    patches = normalize_patches(5 + 3 * torch.randn(2, 3, 16, dtype=torch.float64))
    assert patches.mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-6, atol=0)


def test_nothing_hidden_gives_a_loss_of_0_with_a_graph() -> None:
    """Without hidden tokens the formula is 0/0; the loss must be 0."""
    view = student_view(batch(), context().draws, SCHEDULE)
    x0 = torch.randn(4, 4, 8, 8, requires_grad=True)
    value = reconstruct(view, x0)
    assert torch.equal(value, torch.zeros(4))
    (gradient,) = torch.autograd.grad(value.sum(), x0)
    assert torch.equal(gradient, torch.zeros_like(x0))


def test_unmasked_views_do_not_dilute_the_loss() -> None:
    views = {
        "masked": Masked(MaskedParams(), grid=GRID)(batch(), context().draws, SCHEDULE, context())["student"],
        "full": student_view(batch(), context().draws, SCHEDULE),
    }
    outputs = {name: Outputs(x0=torch.ones(4, 4, 8, 8, dtype=torch.float64)) for name in views}
    both = Reconstruction(ReconstructionParams(), grid=GRID)(context(), views, outputs)
    assert torch.equal(both, reconstruct(views["masked"], outputs["masked"].x0))


def test_the_masked_view_is_the_plain_one_with_tokens_hidden() -> None:
    """Noise and noise level are those of every other method with this seed."""
    masked = Masked(MaskedParams(mask_ratio=0.25), grid=GRID)(batch(), context().draws, SCHEDULE, context())["student"]
    plain = student_view(batch(), context().draws, SCHEDULE)
    assert torch.equal(masked.x, plain.x) and torch.equal(masked.t, plain.t)
    assert masked.visible is not None and masked.visible.shape == (4, 12)
    assert plain.visible is None
    assert torch.equal(masked.x, masked.x0 + masked.t[:, None, None, None] * masked.noise)


def test_the_ratio_follows_its_schedule() -> None:
    """Unmasking, as in the second stage of MaskDiT: 0.5 cos(pi u / 2)^4."""
    pairs = Masked(MaskedParams(mask_ratio=Ramp(start=0.5, end=0.0, shape="cosine", power=2.0)), grid=GRID)
    counts = []
    for step in (0, 50, 100):
        visible = pairs(batch(), context().draws, SCHEDULE, context(step))["student"].visible
        counts.append(16 if visible is None else visible.shape[1])
    assert counts == [8, 14, 16]


def test_ratio_schedule_is_that_of_maskdit(published) -> None:
    outputs = published("maskdit_a").outputs
    for name, ramp in {
        "cosine4": Ramp(start=0.5, end=0.05, shape="cosine", power=2.0),
        "cosine2": Ramp(start=0.5, end=0.05, shape="cosine"),
        "linear": Ramp(start=0.05, end=0.5),
        "exp": Ramp(start=0.5, end=0.05, shape="exponential"),
    }.items():
        ours = torch.tensor([value_at(ramp, step, 10) for step in range(11)], dtype=torch.float64)
        torch.testing.assert_close(ours, outputs[f"mask_ratio_schedule/{name}"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("ratio", [1.0, -0.1, {"start": 0.5, "end": 1.0}])
def test_a_ratio_out_of_bounds_is_rejected(ratio: object) -> None:
    with pytest.raises(ValueError, match=r"must stay between 0 and 0\.99"):
        MaskedParams.model_validate({"mask_ratio": ratio})


def test_reconstruction_without_hidden_tokens_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    resolve(path, ["pair_sampler.mask_ratio={start = 0.5, end = 0.0}"])
    for overrides in (["pair_sampler.mask_ratio=0.0"], ["pair_sampler.name='single'"]):
        with pytest.raises(SdditError, match="no tokens are hidden") as refused:
            resolve(path, overrides)
        assert [problem.code for problem in refused.value.problems] == ["SD-R108"]


def test_a_patch_of_one_value_cannot_be_normalized(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    with pytest.raises(SdditError, match="a patch of one value") as refused:
        resolve(path, ["backbone.patch=1"])
    (problem,) = refused.value.problems
    assert problem.code == "SD-R108"
    assert problem.where.endswith("(loss.reconstruction.normalize)")
    resolve(path, ["backbone.patch=1", problem.fix.replace(" ", "")])
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert normalize_patches(torch.ones(1, 4, 1)).isnan().all()  # why
    assert not normalize_patches(torch.ones(1, 4, 2)).isnan().any()


def test_the_mask_shape_is_idle_if_nothing_is_hidden(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    block = "pair_sampler.mask_shape=block"
    recipe = resolve(path, ["pair_sampler.mask_ratio=0.0", block, "loss.reconstruction.weight=0"])
    assert "pair_sampler.mask_shape" in recipe.idle
    assert "pair_sampler.mask_shape" not in resolve(path, [block]).idle
    assert "pair_sampler.mask_shape" not in resolve(path, ["pair_sampler.mask_ratio={start=0.5,end=0.0}", block]).idle
