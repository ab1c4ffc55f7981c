"""Register the DiT backbone, plain or with a decoder and tokens that skip the encoder, and the plain pair sampler.

Other plugins may use the building blocks of transformers (`blocks`, `frame`, `formats`, `cost`,
`params.TransformerParams`) and of pair samplers (`pairs`, `view_params`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sddit import Registry, hookimpl
from sddit.interfaces import PairSampler
from sddit_dit.params import DiTParams
from sddit_dit.view_params import SingleParams

if TYPE_CHECKING:
    from sddit import Backbone


@hookimpl
def register_backbones(registry: Registry[Backbone]) -> None:
    registry.add(
        "dit",
        "sddit_dit.backbone:DiT",
        params=DiTParams,
        summary="Diffusion transformer with adaLN-Zero; optional decoder, class token and masked encoder.",
        paper="arXiv:2212.09748",
        formats={
            "dit": "sddit_dit.formats:DiTFormat",
            "maskdit": "sddit_dit.formats:MaskDiTFormat",
            "diffusers": "sddit_dit.diffusers_format:DiffusersFormat",
        },
        checks={
            "what hidden tokens reach": "sddit_dit.checks:spans",
            "what fills hidden positions": "sddit_dit.checks:fill",
            "auxiliary heads": "sddit_dit.checks:heads",
            "the decoder's gradient of the encoder": "sddit_dit.checks:encoder_gradient",
            "the published DiT": "sddit_dit.checks:published_dit",
            "the published MaskDiT": "sddit_dit.checks:published_maskdit",
        },
    )


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "single",
        "sddit_dit.pairs:Single",
        params=SingleParams,
        summary="One noisy view of each image, no token hidden.",
        paper="arXiv:2212.09748",
    )
