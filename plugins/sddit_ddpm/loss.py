"""Define the hybrid loss: squared error of the noise, and the variational bound that trains the variance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sddit.interfaces import Context, Outputs, View
from sddit.losses import LossTerm
from sddit_ddpm.params import HybridParams
from sddit_ddpm.schedule import DDPM, Reverse

HALF_STEP = 1 / 255
"""Half the distance between adjacent values of an image with 256 values in [-1, 1]."""
OUTER_X0 = 0.999
"""An x0 beyond this is in the first or last bin, which is open."""
MIN_LOG_LIKELIHOOD = math.log(1e-12)
"""Minimum log-likelihood of a bin."""


class Hybrid(LossTerm):
    """mse_weight MSE(eps) + vb_weight L_vb, one value per sample [B] (arXiv:2102.09672, eq. 16).

    The network predicts eps and the variance fraction v in about [-1, 1]. L_vb is the chain's bound at the sample's t,
    in bits per dimension: KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t > 0, and -ln p(x0 | x_1), discretised,
    for t = 0. Student views are averaged or summed, according to `over_views`.
    """

    def __init__(self, params: HybridParams, **_: object) -> None:
        super().__init__()
        self.params = params

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        if not isinstance(ctx.schedule, DDPM):
            raise ValueError("the hybrid loss needs the chain of a `ddpm` noise schedule")
        values = torch.stack([self._value(ctx.schedule, view, outputs[name]) for name, view in views.items()])
        return values.sum(0) if self.params.over_views == "sum" else values.mean(0)

    def _value(self, schedule: DDPM, view: View, outputs: Outputs) -> Tensor:
        """Return the loss of one view, [B]."""
        if outputs.raw is None:
            raise ValueError("the hybrid loss needs the network's output, and this view has none")
        error = outputs.raw - view.noise  # [B, C, H, W]
        value = torch.zeros_like(error[:, 0, 0, 0])
        if self.params.mse_weight > 0:
            mse = error.square().mean((1, 2, 3)) * self._weight(schedule, view.t).to(error.dtype)
            self.log("mse", mse)
            value = value + self.params.mse_weight * mse
        if self.params.vb_weight > 0:
            if outputs.extra is None:
                raise ValueError("the variational bound trains a variance, but this model predicts none")
            bound_error = error.detach() if self.params.vb_trains == "variance" else error
            vb = bound(schedule, view, bound_error, outputs.extra)
            self.log("vb", vb)
            value = value + self.params.vb_weight * vb
        return value

    def _weight(self, schedule: DDPM, t: Tensor) -> Tensor:
        """Return the factor on the squared error, [B] float64. The signal-to-noise ratio is 1 / level^2."""
        t = t.double()
        if self.params.weighting == "none":
            return torch.ones_like(t)
        return (self.params.snr_gamma * schedule.scalings(t).c_out ** 2).clamp(max=1)


def bound(schedule: DDPM, view: View, error: Tensor, v: Tensor) -> Tensor:
    """Return L_vb of one view in bits per dimension, [B].

    Args:
        schedule: provides the chain.
        view: provides t and x0.
        error: error of the estimated noise, [B, C, H, W].
        v: variance output of the network; log-variance goes from the posterior's at -1 to ln beta at 1, and beyond.
    """
    reverse = schedule.reverse(view.t)
    fraction = (v + 1) / 2
    level = _per_image(-schedule.scalings(view.t.double()).c_out, error.dtype)
    kl = posterior_kl(reverse, error, fraction)
    first = -log_likelihood(view.x0.to(error.dtype), level * error, reverse, fraction)
    nats = torch.where(_per_image(view.t == 0, torch.bool), first, kl)
    return nats.mean((1, 2, 3)) / math.log(2)


def posterior_kl(reverse: Reverse, error: Tensor, fraction: Tensor) -> Tensor:
    """Return KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) in nats, [B, C, H, W].

    Both are Gaussian. With d the logarithm of the ratio of variances, it is (d - 1 + e^-d + (difference of means)^2 /
    (variance of q) e^-d) / 2. The means differ by the posterior's weight on x0 times the error of x0, and that square
    over the variance of q is the gain of the step times the squared error of the noise. No nearly equal images are
    subtracted.
    """
    d = _per_image(reverse.log_range, error.dtype) * fraction
    return (d + torch.expm1(-d) + _per_image(reverse.gain, error.dtype) * error.square() * torch.exp(-d)) / 2


def log_likelihood(x0: Tensor, difference: Tensor, reverse: Reverse, fraction: Tensor) -> Tensor:
    """Return ln p(bin of x0 | x_1) with 256 bins over [-1, 1]: arXiv:2006.11239, eq. 13. [B, C, H, W].

    `difference` is x0 minus its mean. The normal distribution function is approximated by sigmoid(2 y(a)), y(a) =
    sqrt(2 / pi) (a + 0.044715 a^3), as in published code. The probability sigmoid(p) - sigmoid(m) of a bin is written
    sigmoid(p) sigmoid(-m) (1 - e^(m - p)), with p - m in closed form, so that float32 keeps the tails.
    """
    low, span = (_per_image(each, difference.dtype) for each in (reverse.log_low, reverse.log_range))
    precision = torch.exp(-(low + fraction * span) / 2)
    a, b = precision * (difference + HALF_STEP), precision * (difference - HALF_STEP)
    p, m = _logit(a), _logit(b)
    width = 2 * math.sqrt(2 / math.pi) * 2 * HALF_STEP * precision * (1 + 0.044715 * (a * a + a * b + b * b))  # p - m
    below, above = F.logsigmoid(p), F.logsigmoid(-m)
    inside = below + above + torch.log(-torch.expm1(-width))
    log_p = torch.where(x0 < -OUTER_X0, below, torch.where(x0 > OUTER_X0, above, inside))
    return log_p.clamp(min=MIN_LOG_LIKELIHOOD)


def _logit(a: Tensor) -> Tensor:
    """Approximate ln(Phi / (1 - Phi)) of the standard normal distribution function Phi."""
    return 2 * math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)


def _per_image(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1]."""
    return x.to(dtype)[:, None, None, None]
