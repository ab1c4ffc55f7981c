"""Guidance rules: from a denoiser and labels to one function of (x, sigma)."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.interfaces import Denoise, Denoiser, Prediction
from sddit_heun import CFGParams, NoGuidanceParams


class NoGuidance:
    """The conditional prediction."""

    def __init__(self, params: NoGuidanceParams, **_: object) -> None:
        pass

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        return lambda x, sigma: denoiser(x, sigma, labels)


class ClassifierFree:
    """u + scale (c - u) on x0, with c the prediction for the labels and u the one for the null label.

    x0, the noise and the network's own output are linear in one another at a given x, so guiding one guides all. Both
    predictions come from one call on a doubled batch, c first; where only one of them counts, only that one is made.
    What stands beside x0 (extra channels, further heads) is that of the labels.
    """

    def __init__(self, params: CFGParams, **_: object) -> None:
        self.params = params

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        null = torch.full_like(labels, denoiser.num_classes)

        def denoise(x: Tensor, sigma: float) -> Prediction:
            if self.params.scale == 1 or not self._acts(sigma):
                return denoiser(x, sigma, labels)
            if self.params.scale == 0 and self.params.channels == "all":
                return denoiser(x, sigma, null)
            both = denoiser(torch.cat([x, x]), sigma, torch.cat([labels, null]))
            return self._combine(both, len(x))

        return denoise

    def _acts(self, sigma: float) -> bool:
        interval = self.params.interval
        return interval is None or interval[0] <= sigma <= interval[1]

    def _combine(self, both: Prediction, batch: int) -> Prediction:
        """One prediction for a batch from the one for the doubled batch."""
        c, u = both.x0[:batch], both.x0[batch:]
        guided = u + self.params.scale * (c - u)
        if self.params.channels != "all":
            n = self.params.channels
            guided = torch.cat([guided[:, :n], c[:, n:]], dim=1)
        extra = None if both.extra is None else both.extra[:batch]
        return Prediction(guided, extra, {name: head[:batch] for name, head in both.heads.items()})
