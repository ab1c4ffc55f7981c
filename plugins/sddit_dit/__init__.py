"""A built-in plugin."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import PairSampler, PairSamplerParams, ViewSpec


class SingleParams(PairSamplerParams):
    """The `single` pair sampler has nothing to set."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec("student"),)


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "single",
        "sddit_dit.pairs:Single",
        params=SingleParams,
        summary="One noisy view of each image, every token seen.",
        paper="arXiv:2212.09748",
    )
