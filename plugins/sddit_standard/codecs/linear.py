"""Show latents as colours, by the linear map of their cache."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.data.codecs import as_images, check_latents, run_in_chunks
from sddit.errors import error
from sddit.interfaces import DataFacts
from sddit_standard.codecs.params import LinearParams


class LinearCodec:
    """A `sddit.interfaces.Codec` that only decodes: each place of a latent is a square of one colour."""

    def __init__(self, params: LinearParams, *, device: torch.device, facts: DataFacts | None = None) -> None:
        self.facts = params.facts(facts)
        assert facts is not None and facts.colours is not None  # else `params.facts` raised
        self._device = device
        self._weights = torch.tensor(facts.colours.weights, dtype=torch.float32, device=device)  # [3, C]
        self._offset = torch.tensor(facts.colours.offset, dtype=torch.float32, device=device)[:, None, None]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raise SD-D353."""
        fix = "encode with the codec of the cache: sddit-run show codecs"
        raise error("SD-D353", "the codec linear only decodes", where="images", got="images", expect="latents", fix=fix)

    def decode(self, latents: Tensor) -> Tensor:
        image = check_latents(latents, self.facts)
        (images,) = run_in_chunks(self._colours, latents.float(), self._device, image)
        return images

    def _colours(self, latents: Tensor) -> tuple[Tensor]:
        colours = torch.einsum("kc,bchw->bkhw", self._weights, latents) + self._offset
        factor = self.facts.factor
        return (as_images(colours, self.facts.pixel_range).repeat_interleave(factor, 2).repeat_interleave(factor, 3),)
