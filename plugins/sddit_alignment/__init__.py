"""Register alignment: a loss that compares tokens with targets of five kinds, and the pair of views of SRA."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, PairSampler
from sddit_alignment.pair_params import OffsetPairParams
from sddit_alignment.params import AlignParams


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "offset_pair",
        "sddit_alignment.pairs:OffsetPair",
        params=OffsetPairParams,
        summary="A noisy student view, and a teacher view with the same noise at a randomly earlier time.",
        paper="arXiv:2505.02831",
        checks={"the teacher's times": "sddit_alignment.checks:times"},
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "align",
        "sddit_alignment.loss:Align",
        params=AlignParams,
        summary="Alignment of tokens with those of a teacher, of a deeper block or of the clean image.",
        paper="arXiv:2505.02831",
        checks={
            "tokens of the same pass (LayerSync)": "sddit_alignment.checks:same_pass",
            "tokens of a teacher (SRA)": "sddit_alignment.checks:teacher",
            "patches of the clean image (SRA 2)": "sddit_alignment.checks:clean",
            "the published SRA and REPA": "sddit_alignment.checks:published_alignment",
        },
    )
