"""What `sddit-run verify` measures of the reconstruction loss and of MDT, beside published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement, View
from sddit.testing import fixtures as things
from sddit.verify.published import network, parity, published
from sddit_dit.blocks import patchify
from sddit_masking.loss import Reconstruction, normalised
from sddit_masking.params import ReconstructionParams

KEPT = torch.tensor([[0, 3, 5, 6, 9, 10]]).expand(things.BATCH, -1)  # [B, K] of 16 tokens


def term(**settings: Any) -> Reconstruction:
    return Reconstruction(ReconstructionParams(**settings), grid=things.GRID)


def view() -> View:
    """A masked noisy view, float64."""
    x0, noise = (things.numbers(things.BATCH, *things.IMAGE, key=key, dtype=torch.float64) for key in (1, 2))
    labels, t = torch.zeros(things.BATCH, dtype=torch.int64), torch.ones(things.BATCH, dtype=torch.float64)
    return View(network="student", x=x0 + noise, t=t, labels=labels, x0=x0, noise=noise, visible=KEPT)


def target(context: CheckContext) -> Iterator[Measurement]:
    """Hidden patches are compared, with the noisy input unless told otherwise, each with mean 0 and variance 1."""
    seen = view()
    patches = patchify(seen.x, things.GRID)  # [B, N, P]
    mean, variance = normalised(patches).mean(-1), normalised(patches).var(-1)
    yield Measurement("mean of a normalised patch", float(mean.abs().max()), 1e-12)
    # the 1e-6 under the root takes away that part of a variance of about 2, and never the whole of it
    yield Measurement("variance of a normalised patch, from 1", float((variance - 1).abs().max()), 1e-4)

    noised = term(normalize=False)
    yield Measurement("loss of the noisy image itself", float(noised.error(seen, seen.x).max()), 0)
    yield Measurement("control: loss of the clean image", float(noised.error(seen, seen.x0).min()), 0.1, ">=")
    clean = term(normalize=False, target="clean")
    yield Measurement("target clean: loss of the clean image itself", float(clean.error(seen, seen.x0).max()), 0)

    guess = things.numbers(*seen.x.shape, key=3, dtype=torch.float64)
    for name, place, least in (("a visible", (0, 0), 0.0), ("a hidden", (0, 2), 1.0)):
        other = guess.clone()
        other[:, :, place[0], place[1]] += 1.0
        changed = float((term().error(seen, other) != term().error(seen, guess)).sum()) / things.BATCH
        shown = f"share of images whose loss {name} pixel changes"
        yield Measurement(shown, changed, least, ">=" if least else "<=")


def published_reconstruction(context: CheckContext) -> Iterator[Measurement]:
    """The published MaskDiT's reconstruction loss at the stored estimates."""
    stored = published(context, "maskdit_a")
    x0, noise, sigma = stored.inputs["images"], stored.inputs["noise_unit"], stored.outputs["loss/sigma"]
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    x, labels = x0 + sigma[:, None, None, None] * noise, torch.zeros(len(x0), dtype=torch.int64)
    seen = View(network="student", x=x, t=sigma, labels=labels, x0=x0, noise=noise, visible=visible)
    estimate = stored.outputs["loss/denoised"]
    ours: dict[str, Tensor] = {
        "loss/mae": term().error(seen, estimate),
        "loss/mae_no_norm": term(normalize=False).error(seen, estimate),
    }
    yield from parity("maskdit_a", ours, stored)


@torch.no_grad()
def published_mdt(context: CheckContext) -> Iterator[Measurement]:
    """Outputs of the published MDT, second and first version, with and without the mask."""
    assert context.component is not None
    for layout in ("mdtv2", "mdtv1"):
        stored = published(context, f"{layout}_a")
        model = network(context.component, layout, stored)
        given = stored.inputs["x"], stored.inputs["t"], stored.inputs["y"]
        visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
        ours = {"unmasked": model(*given)[0], "masked": model(*given, visible=visible)[0]}
        yield from parity(f"{layout}_a", ours, stored)
