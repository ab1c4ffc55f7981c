"""Define guidance rules, which turn a denoiser and labels into one function of (x, sigma)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sddit.interfaces import Denoise, Denoiser, Guidance, NoiseSchedule, Prediction
from sddit_heun.params import AutoguidanceParams, CFGParams, InternalParams, NoGuidanceParams


class NoGuidance:
    """No guidance: the conditional prediction."""

    def __init__(self, params: NoGuidanceParams, **_: object) -> None:
        pass

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        return lambda x, sigma: denoiser(x, sigma, labels)


def is_within(sigma: float, interval: tuple[float, float] | None) -> bool:
    """Return whether a noise level is in an interval; all are in None."""
    return interval is None or interval[0] <= sigma <= interval[1]


class Internal:
    """D_i + scale (D - D_i) within the interval, D elsewhere: Internal Guidance (arXiv:2512.24176).

    D_i is the prediction of an auxiliary head, which comes with D from one evaluation. Classifier-free guidance, if
    any, combines predictions that are guided so.
    """

    def __init__(self, params: InternalParams, *, schedule: NoiseSchedule) -> None:
        self.params = params
        self.outer: Guidance = (
            ClassifierFree(params.cfg, schedule=schedule) if params.cfg else NoGuidance(NoGuidanceParams())
        )

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        return self.outer(HeadGuided(denoiser, self.params), labels)


class HeadGuided:
    """A denoiser whose predictions are moved away from those of one of its auxiliary heads."""

    def __init__(self, denoiser: Denoiser, params: InternalParams) -> None:
        self.denoiser = denoiser
        self.params = params
        self.num_classes = denoiser.num_classes

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        found, scale = self.denoiser(x, sigma, labels), self.params.scale
        if scale == 1 or not is_within(sigma, self.params.interval):
            return found
        inner = found.heads[self.params.head]
        return replace(found, x0=inner + scale * (found.x0 - inner))


class Autoguidance:
    """D_weak + scale (D - D_weak) within the interval, D elsewhere, for the same labels (arXiv:2406.02507)."""

    def __init__(self, params: AutoguidanceParams, *, schedule: NoiseSchedule, second: Denoiser | None = None) -> None:
        if second is None and params.scale != 1:
            raise ValueError("autoguidance compares with a second network: pass it as second")
        self.params = params
        self.weak = second

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        def denoise(x: Tensor, sigma: float) -> Prediction:
            found, scale = denoiser(x, sigma, labels), self.params.scale
            if self.weak is None or scale == 1 or not is_within(sigma, self.params.interval):
                return found
            weak = self.weak(x, sigma, labels).x0
            return replace(found, x0=weak + scale * (found.x0 - weak))

        return denoise


class ClassifierFree:
    """u + scale (c - u) on x0, with c the prediction for the labels and u the one for the null label.

    x0, the noise and the network's output are linear in each other at a given x, so guiding one guides all. Both
    predictions come from one call on a doubled batch, c first; if only one of them is needed, only that one is
    computed. Other outputs (extra channels, further heads) are those for the labels, or those of the only prediction.
    """

    def __init__(self, params: CFGParams, *, schedule: NoiseSchedule) -> None:
        self.params = params
        self.schedule = schedule

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise:
        null = torch.full_like(labels, denoiser.num_classes)

        def denoise(x: Tensor, sigma: float) -> Prediction:
            scale = self.scale_at(sigma)
            if scale == 1:
                return denoiser(x, sigma, labels)
            if scale == 0 and self.params.channels == "all":
                return denoiser(x, sigma, null)
            both = denoiser(torch.cat([x, x]), sigma, torch.cat([labels, null]))
            return self._combine(both, len(x), scale)

        return denoise

    def scale_at(self, sigma: float) -> float:
        """Return the scale at one noise level: 1, which is conditional, outside the interval."""
        scale = self.params.scale
        if not is_within(sigma, self.params.interval):
            return 1.0
        if scale == 1 or self.params.shape == "constant":
            return scale
        return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - self._noise_fraction(sigma)) ** self.params.power)) / 2

    def _noise_fraction(self, sigma: float) -> float:
        """Return t / T at the noise level of the network's input."""
        level = torch.tensor([sigma], dtype=torch.float64)
        t = self.schedule.t_from_sigma(self.schedule.snap(level))
        return self.schedule.noise_fraction(t).item()

    def _combine(self, both: Prediction, batch: int, scale: float) -> Prediction:
        """Combine the prediction for the doubled batch into one for the batch."""
        c, u = both.x0[:batch], both.x0[batch:]
        guided = u + scale * (c - u)
        if self.params.channels != "all":
            n = self.params.channels
            guided = torch.cat([guided[:, :n], c[:, n:]], dim=1)
        extra = None if both.extra is None else both.extra[:batch]
        return Prediction(guided, extra, {name: head[:batch] for name, head in both.heads.items()})
