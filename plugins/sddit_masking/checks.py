"""Measure the reconstruction loss and MDT for `sddit-run verify`, and compare with published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement, View
from sddit.testing import fixtures
from sddit.verify.published import network, parity, published
from sddit_dit.blocks import patchify
from sddit_masking.loss import Reconstruction, normalize_patches
from sddit_masking.params import ReconstructionParams

VISIBLE = torch.tensor([[0, 3, 5, 6, 9, 10]]).expand(fixtures.BATCH, -1)  # [B, K] of 16 tokens


def build_loss(**settings: Any) -> Reconstruction:
    return Reconstruction(ReconstructionParams(**settings), grid=fixtures.GRID)


def view() -> View:
    """Return a masked noisy view, float64."""
    x0, noise = (fixtures.numbers(fixtures.BATCH, *fixtures.IMAGE, key=key, dtype=torch.float64) for key in (1, 2))
    labels, t = torch.zeros(fixtures.BATCH, dtype=torch.int64), torch.ones(fixtures.BATCH, dtype=torch.float64)
    return View(network="student", x=x0 + noise, t=t, labels=labels, x0=x0, noise=noise, visible=VISIBLE)


def target(context: CheckContext) -> Iterator[Measurement]:
    """Measure that only hidden patches are compared, by default with the noisy input at mean 0 and variance 1."""
    masked = view()
    patches = patchify(masked.x, fixtures.GRID)  # [B, N, P]
    mean, variance = normalize_patches(patches).mean(-1), normalize_patches(patches).var(-1)
    yield Measurement("mean of a normalized patch", float(mean.abs().max()), 1e-12)
    # the 1e-6 under the root reduces a variance of about 2 slightly
    yield Measurement("variance of a normalized patch, from 1", float((variance - 1).abs().max()), 1e-4)

    noised = build_loss(normalize=False)
    yield Measurement("loss of the noisy image itself", float(noised.error(masked, masked.x).max()), 0)
    yield Measurement("control: loss of the clean image", float(noised.error(masked, masked.x0).min()), 0.1, ">=")
    clean = build_loss(normalize=False, target="clean")
    yield Measurement("target clean: loss of the clean image itself", float(clean.error(masked, masked.x0).max()), 0)

    guess = fixtures.numbers(*masked.x.shape, key=3, dtype=torch.float64)
    for name, pixel, minimum in (("a visible", (0, 0), 0.0), ("a hidden", (0, 2), 1.0)):
        other = guess.clone()
        other[:, :, pixel[0], pixel[1]] += 1.0
        changed = float((build_loss().error(masked, other) != build_loss().error(masked, guess)).sum()) / fixtures.BATCH
        what = f"fraction of images whose loss changes with {name} pixel"
        yield Measurement(what, changed, minimum, ">=" if minimum else "<=")


def published_reconstruction(context: CheckContext) -> Iterator[Measurement]:
    """Compare the reconstruction loss with the published MaskDiT at the stored estimates."""
    stored = published(context, "maskdit_a")
    x0, noise, sigma = stored.inputs["images"], stored.inputs["noise_unit"], stored.outputs["loss/sigma"]
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    x, labels = x0 + sigma[:, None, None, None] * noise, torch.zeros(len(x0), dtype=torch.int64)
    masked = View(network="student", x=x, t=sigma, labels=labels, x0=x0, noise=noise, visible=visible)
    estimate = stored.outputs["loss/denoised"]
    ours: dict[str, Tensor] = {
        "loss/mae": build_loss().error(masked, estimate),
        "loss/mae_no_norm": build_loss(normalize=False).error(masked, estimate),
    }
    yield from parity("maskdit_a", ours, stored)


@torch.no_grad()
def published_mdt(context: CheckContext) -> Iterator[Measurement]:
    """Compare outputs with the published MDT, second and first version, with and without mask."""
    assert context.component is not None
    for layout in ("mdtv2", "mdtv1"):
        stored = published(context, f"{layout}_a")
        model = network(context.component, layout, stored)
        inputs = stored.inputs["x"], stored.inputs["t"], stored.inputs["y"]
        visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
        ours = {"unmasked": model(*inputs)[0], "masked": model(*inputs, visible=visible)[0]}
        yield from parity(f"{layout}_a", ours, stored)
