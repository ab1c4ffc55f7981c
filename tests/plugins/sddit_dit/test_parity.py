"""Parity with the published implementations of DiT and MaskDiT: their stored numbers, float64, 1e-9 relative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import Shapes
from sddit_dit.backbone import DiT
from sddit_dit.formats import DiTFormat, MaskDiTFormat
from sddit_dit.params import DiTParams
from sddit_flash.kernels import Eager, Sdpa
from sddit_flash.params import EagerParams, SdpaParams

Read = Callable[[str], Any]
Format = type[DiTFormat] | type[MaskDiTFormat]
SIGMA_DATA = 0.5


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-9 of max(1, |theirs|), of outputs that do not vanish."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item() < 1e-9


def load(
    layout: Format, config: Mapping[str, Any], state: Mapping[str, Tensor], kernel: Any = None
) -> tuple[DiT, DiTParams, Shapes]:
    """Our network with their weights, float64."""
    description = layout.describe(config)
    params, shapes = DiTParams(**description.backbone), description.shapes
    attention = kernel or Eager(EagerParams())
    model = DiT(params, image=shapes.image, num_classes=shapes.num_classes, outputs=shapes.outputs, attention=attention)
    ours_before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model = model.double()
    model.load_state_dict(layout.to_ours(state))
    for name, table in model.named_buffers():
        assert torch.equal(table, ours_before[name].double()), f"{name} is not the published table"
    return model, params, shapes


def gradient_stats(layout: Format, model: DiT, params: DiTParams, shapes: Shapes, names: list[str]) -> Tensor:
    """Sum and norm of each gradient, under their names and in their order."""
    theirs = layout.to_theirs({name: p.grad for name, p in model.named_parameters()}, params, shapes)
    return torch.stack([torch.stack([theirs[name].sum(), theirs[name].norm()]) for name in names])


def labels_of(one_hot: Tensor) -> Tensor:
    """MaskDiT's rows as labels; the zero row is the null label."""
    return torch.where(one_hot.any(dim=1), one_hot.argmax(dim=1), one_hot.shape[1])


def denoised(model: DiT, x: Tensor, sigma: Tensor, labels: Tensor, visible: Tensor | None = None) -> Tensor:
    """D(x; sigma) of EDM (arXiv:2206.00364, eq. 7); sigma [B]."""
    s, total = sigma[:, None, None, None], sigma[:, None, None, None] ** 2 + SIGMA_DATA**2
    raw = model(x / total.sqrt(), sigma.log() / 4, labels, visible=visible)[0]
    out: Tensor = SIGMA_DATA**2 / total * x + s * SIGMA_DATA / total.sqrt() * raw
    return out


# DiT


@pytest.mark.parametrize("kernel", [Eager(EagerParams()), Sdpa(SdpaParams())], ids=["eager", "sdpa"])
def test_dit_forward_and_gradients(published: Read, kernel: Any) -> None:
    stored = published("dit_a")
    model, params, shapes = load(DiTFormat, stored.meta["constructor"], stored.state, kernel)
    x = stored.inputs["x"].requires_grad_()
    raw, _, taps = model(x, stored.inputs["t"], stored.inputs["y"], taps=(1, 2, 3))
    close(raw, stored.outputs["forward"])
    for number in (1, 2, 3):
        close(taps[number].patch[:1], stored.outputs[f"mid/block{number - 1}"])
    (raw * stored.inputs["grad_out"]).sum().backward()
    close(x.grad, stored.outputs["grad_x"])
    stats = gradient_stats(DiTFormat, model, params, shapes, stored.meta["grad_names"])
    close(stats, stored.outputs["grad_stats"])


def test_dit_embeddings(published: Read) -> None:
    stored = published("dit_a")
    model, _, _ = load(DiTFormat, stored.meta["constructor"], stored.state)
    assert model.label is not None
    close(model.timestep(stored.inputs["t"][:1]), stored.outputs["mid/t_emb"])
    close(model.label(stored.inputs["y"][:1]), stored.outputs["mid/y_emb"])


def test_parity_detects_wrong_networks(published: Read) -> None:
    """The gate refuses one bias moved by 1e-5, and positions with the row first."""
    stored = published("dit_a")
    model, _, _ = load(DiTFormat, stored.meta["constructor"], stored.state)
    inputs = stored.inputs["x"], stored.inputs["t"], stored.inputs["y"]
    model.blocks[1].mlp.up.bias.data[3] += 1e-5
    with pytest.raises(AssertionError):
        close(model(*inputs)[0], stored.outputs["forward"])
    model.blocks[1].mlp.up.bias.data[3] -= 1e-5
    close(model(*inputs)[0], stored.outputs["forward"])
    rows, columns = model.grid
    model.positions.table.copy_(model.positions.table.unflatten(0, (rows, columns)).transpose(0, 1).flatten(0, 1))
    with pytest.raises(AssertionError):
        close(model(*inputs)[0], stored.outputs["forward"])


# MaskDiT


def test_maskdit_forward_masked_and_not(published: Read) -> None:
    stored = published("maskdit_a")
    model, _, _ = load(MaskDiTFormat, stored.meta["constructor"], stored.state)
    x, level, labels = stored.inputs["x"], stored.inputs["raw_c_noise"], labels_of(stored.inputs["y"])
    close(model(x, level, labels)[0], stored.outputs["raw/eval_unmasked"])
    close(denoised(model, x, stored.inputs["sigma"], labels), stored.outputs["precond/eval_unmasked"])

    shuffled = stored.outputs["mask/ids_keep"]
    visible, order = shuffled.sort(dim=1)
    u: list[Tensor] = []
    model.blocks[model.params.encoder_depth].register_forward_pre_hook(lambda _, args: u.append(args[0]))
    raw, _, taps = model(x, level, labels, taps=("encoder", "decoder"), visible=visible)
    close(raw, stored.outputs["raw/train_masked"])
    close(taps["encoder"].patch[:1], stored.outputs["mid/encoder_out"][:, order[0]])
    close(u[0][:1], stored.outputs["mid/decoder_in"])
    close(taps["decoder"].patch[:1], stored.outputs["mid/decoder_out"])
    close(denoised(model, x, stored.inputs["sigma"], labels, visible), stored.outputs["precond/train_masked"])


def test_maskdit_gradients_of_its_loss(published: Read) -> None:
    """Their full loss, written out: EDM's weight on visible tokens plus 0.1 of the reconstruction of hidden ones."""
    stored = published("maskdit_a")
    model, params, shapes = load(MaskDiTFormat, stored.meta["constructor"], stored.state)
    clean, labels, hidden = stored.inputs["images"], labels_of(stored.inputs["y"]), stored.outputs["mask/mask"]
    sigma = (-1.2 + 1.2 * stored.inputs["rnd_normal"].flatten()).exp()
    noisy = clean + sigma[:, None, None, None] * stored.inputs["noise_unit"]
    d = denoised(model, noisy, sigma, labels, stored.outputs["mask/ids_keep"].sort(dim=1).values)
    close(d, stored.outputs["loss/denoised"])

    def tokens(image: Tensor) -> Tensor:
        return torch.nn.functional.unfold(image, 2, stride=2).transpose(1, 2)  # [B, N, 16]

    weight = ((sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2)[:, None]
    error = tokens((d - clean) ** 2).mean(dim=2) * weight
    target = tokens(noisy)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    mae = ((tokens(d) - target) ** 2).mean(dim=2)
    total = (error * (1 - hidden)).sum(1) / (1 - hidden).sum(1) + 0.1 * (mae * hidden).sum(1) / hidden.sum(1)
    close(total, stored.outputs["loss/total_masked"])
    total.mean().backward()
    stats = gradient_stats(MaskDiTFormat, model, params, shapes, stored.meta["grad_names"])
    close(stats, stored.outputs["loss/grad_stats"])


# Registered sizes, formula weights


def full_size(layout: Format, stored: Any, formula_weights: Any) -> DiT:
    """A registered class of theirs with the formula's weights."""
    description = layout.describe(stored.meta["constructor"])
    params, shapes = DiTParams(**description.backbone), description.shapes
    model = DiT(
        params,
        image=shapes.image,
        num_classes=shapes.num_classes,
        outputs=shapes.outputs,
        attention=Sdpa(SdpaParams()),
    )
    sizes = {name: tensor.shape for name, tensor in layout.to_theirs(model.state_dict(), params, shapes).items()}
    model.load_state_dict(layout.to_ours(formula_weights(stored, sizes)))
    return model.double()


@pytest.mark.slow
def test_dit_s2_as_registered(published: Read, formula_weights: Any) -> None:
    stored = published("full_dit_s2")
    model = full_size(DiTFormat, stored, formula_weights)
    with torch.no_grad():
        close(model(stored.inputs["x"], stored.inputs["t"], stored.inputs["y"])[0], stored.outputs["forward"])


@pytest.mark.slow
def test_maskdit_s2_as_registered(published: Read, formula_weights: Any) -> None:
    stored = published("full_maskdit_s2")
    model = full_size(MaskDiTFormat, stored, formula_weights)
    inputs = stored.inputs["x"], stored.inputs["sigma"], labels_of(stored.inputs["y"])
    with torch.no_grad():
        close(denoised(model, *inputs), stored.outputs["eval_unmasked"])
        visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
        close(denoised(model, *inputs, visible), stored.outputs["train_masked"])
