"""The hybrid loss: squared error of the noise, and the variational bound that trains the variance."""

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
"""Half the distance of two of the 256 values of an image in [-1, 1]."""
BEYOND = 0.999
"""An x0 further out than this is in the first or last bin, which is open."""
LEAST = math.log(1e-12)
"""No bin counts as less likely than this."""


class Hybrid(LossTerm):
    """mse_weight MSE(eps) + vb_weight L_vb, one value per sample [B] (arXiv:2102.09672, eq. 16).

    The network gives eps and the variance's fraction v in about [-1, 1]. L_vb is the chain's bound at the sample's t, in
    bits per dimension: KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t > 0, and -ln p(x0 | x_1), discretised, for t = 0.
    Student views are averaged or added, as `over_views` says.
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
        """The loss of one view, [B]."""
        if outputs.raw is None:
            raise ValueError("the hybrid loss reads the network's output, and this view has none")
        error = outputs.raw - view.noise  # [B, C, H, W]
        value = torch.zeros_like(error[:, 0, 0, 0])
        if self.params.mse_weight > 0:
            mse = error.square().mean((1, 2, 3)) * self._weight(schedule, view.t).to(error.dtype)
            self.log("mse", mse)
            value = value + self.params.mse_weight * mse
        if self.params.vb_weight > 0:
            if outputs.extra is None:
                raise ValueError("the variational bound trains a variance, and this model gives none")
            held = error.detach() if self.params.vb_trains == "variance" else error
            vb = bound(schedule, view, held, outputs.extra)
            self.log("vb", vb)
            value = value + self.params.vb_weight * vb
        return value

    def _weight(self, schedule: DDPM, t: Tensor) -> Tensor:
        """The factor on the squared error, [B] float64. The signal-to-noise ratio is 1 / level^2."""
        t = t.double()
        if self.params.weighting == "none":
            return torch.ones_like(t)
        return (self.params.snr_gamma * schedule.scalings(t).c_out ** 2).clamp(max=1)


def bound(schedule: DDPM, view: View, error: Tensor, v: Tensor) -> Tensor:
    """L_vb of one view in bits per dimension, [B].

    Args:
        schedule: whose chain it is.
        view: t and x0.
        error: what the estimated noise is off, [B, C, H, W].
        v: the network's variance output; the log-variance runs from the posterior's at -1 to ln beta at 1, and beyond.
    """
    reverse = schedule.reverse(view.t)
    fraction = (v + 1) / 2
    level = _spread(-schedule.scalings(view.t.double()).c_out, error.dtype)
    kl = posterior_kl(reverse, error, fraction)
    first = -log_likelihood(view.x0.to(error.dtype), level * error, reverse, fraction)
    nats = torch.where(_spread(view.t == 0, torch.bool), first, kl)
    return nats.mean((1, 2, 3)) / math.log(2)


def posterior_kl(reverse: Reverse, error: Tensor, fraction: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) in nats, [B, C, H, W].

    Both are Gaussian. With d the logarithm of their variances' ratio it is (d - 1 + e^-d + (difference of means)^2 / (variance
    of q) e^-d) / 2. The means differ by the posterior's weight on x0 times the error of x0, and that square over the variance
    of q is the gain of the step times the squared error of the noise: two near images are never subtracted.
    """
    d = _spread(reverse.log_range, error.dtype) * fraction
    return (d + torch.expm1(-d) + _spread(reverse.gain, error.dtype) * error.square() * torch.exp(-d)) / 2


def log_likelihood(x0: Tensor, difference: Tensor, reverse: Reverse, fraction: Tensor) -> Tensor:
    """ln of what p(x0 | x_1) gives to the bin of x0, one of 256 over [-1, 1]: arXiv:2006.11239, eq. 13. [B, C, H, W].

    `difference` is x0 less its mean. The normal distribution function is taken as sigmoid(2 y(a)), y(a) = sqrt(2 / pi) (a +
    0.044715 a^3), as published code does. A bin's share sigmoid(p) - sigmoid(m) is written sigmoid(p) sigmoid(-m) (1 -
    e^(m - p)), with p - m in closed form: no tail is lost in float32.
    """
    low, span = (_spread(each, difference.dtype) for each in (reverse.log_low, reverse.log_range))
    precision = torch.exp(-(low + fraction * span) / 2)
    a, b = precision * (difference + HALF_STEP), precision * (difference - HALF_STEP)
    p, m = _logit(a), _logit(b)
    width = 2 * math.sqrt(2 / math.pi) * 2 * HALF_STEP * precision * (1 + 0.044715 * (a * a + a * b + b * b))  # p - m
    below, above = F.logsigmoid(p), F.logsigmoid(-m)
    inside = below + above + torch.log(-torch.expm1(-width))
    share = torch.where(x0 < -BEYOND, below, torch.where(x0 > BEYOND, above, inside))
    return share.clamp(min=LEAST)


def _logit(a: Tensor) -> Tensor:
    """ln(Phi / (1 - Phi)) of the standard normal distribution function, approximately."""
    return 2 * math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)


def _spread(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return x.to(dtype)[:, None, None, None]
