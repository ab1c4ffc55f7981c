"""Register the views, reconstruction loss and backbone of MaskDiT (arXiv:2306.09305) and MDT (arXiv:2303.14389)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, Optimizer, PairSampler
from sddit_masking.params import AdanParams, MaskedAndFullParams, MaskedParams, MDTParams, ReconstructionParams

if TYPE_CHECKING:
    from sddit import Backbone


@hookimpl
def register_backbones(registry: Registry[Backbone]) -> None:
    registry.add(
        "mdt",
        "sddit_masking.mdt:MDT",
        params=MDTParams,
        summary="Masked diffusion transformer with relative positions and a block that interpolates hidden tokens.",
        paper="arXiv:2303.14389",
        formats={"mdtv1": "sddit_masking.formats:MDTv1Format", "mdtv2": "sddit_masking.formats:MDTv2Format"},
        checks={"the published MDT": "sddit_masking.checks:published_mdt"},
    )


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "masked",
        "sddit_masking.pairs:Masked",
        params=MaskedParams,
        summary="One noisy view of each image with a fraction of its tokens hidden.",
        paper="arXiv:2306.09305",
    )
    registry.add(
        "masked_and_full",
        "sddit_masking.pairs:MaskedAndFull",
        params=MaskedAndFullParams,
        summary="Two noisy views of each image at one noise level: one full, one with a fraction of tokens hidden.",
        paper="arXiv:2303.14389",
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "reconstruction",
        "sddit_masking.loss:Reconstruction",
        params=ReconstructionParams,
        summary="Mean squared error of the hidden patches, predicted from the visible ones.",
        paper="arXiv:2306.09305",
        checks={
            "targets of hidden patches": "sddit_masking.checks:target",
            "the published MaskDiT": "sddit_masking.checks:published_reconstruction",
        },
    )


@hookimpl
def register_optimizers(registry: Registry[Optimizer]) -> None:
    registry.add(
        "adan",
        "sddit_masking.optimizer:Adan",
        params=AdanParams,
        summary="Adam with Nesterov momentum estimated from gradient differences: MDTv2's optimizer.",
        paper="arXiv:2208.06677",
        requires=("pytorch-optimizer",),
        extra="sddit[adan]",
    )
