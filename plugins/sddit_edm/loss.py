"""Define the denoising loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sddit.diffusion.preconditioning import raw_target
from sddit.interfaces import Context, NoiseSchedule, Outputs, View
from sddit.losses import LossTerm
from sddit_edm.flow import Flow
from sddit_edm.params import DenoisingParams


class Denoising(LossTerm):
    """Mean squared error per sample [B], averaged over the views that it reads.

    The network regresses to R* = (x0 - c_skip x) / c_out. At a given x all other quantities are linear in R, so the
    spaces and the weighting are factors on the squared error of R, with SNR = alpha^2 / sigma^2:

        x0       c_out^2                    x0 = c_skip x + c_out R
        eps      c_out^2 SNR                eps = (x - alpha x0) / sigma
        v        c_out^2 (SNR + 1)          v = (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2), arXiv:2202.00512
        velocity c_out^2 (sqrt(SNR) + 1)^2  velocity = eps - x0 of straight paths, arXiv:2209.03003
        min_snr  c_out^2 min(SNR, gamma)    arXiv:2303.09556, one objective for all spaces

    EDM's weight lambda(sigma) = 1 / c_out^2 on the error of x0 (arXiv:2206.00364, eq. 8) is therefore `native`. So is
    the velocity of a flow schedule that predicts it. A flow schedule that predicts x0 or noise limits the factors:
    1 / t becomes 1 / max(t, t_floor). The page docs/prediction.md lists all combinations.

    For the same reason a target that is moved by w (D - D_i) in x0 is moved by w (R - R_i) in R: Internal Guidance in
    training (arXiv:2512.24176).
    """

    def __init__(self, params: DenoisingParams, *, grid: tuple[int, int], **_: object) -> None:
        super().__init__()
        self.params = params
        self.grid = grid

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        return torch.stack([self._error(ctx.schedule, view, outputs[name]) for name, view in views.items()]).mean(0)

    def _error(self, schedule: NoiseSchedule, view: View, outputs: Outputs) -> Tensor:
        """Return the error of one view, [B]."""
        if outputs.raw is None:
            raise ValueError("the denoising loss needs the network's output, and this view has none")
        raw = outputs.heads[self.params.head][0] if self.params.head else outputs.raw
        target = native_target(schedule, view, raw.dtype)
        if self.params.target_head:
            moved = self.params.target_scale * (raw - outputs.heads[self.params.target_head][0]).detach()
            self.log("target_shift", moved.square().mean((1, 2, 3)) / target.square().mean((1, 2, 3)))
            target = target + moved
        error = self._mean_square(raw - target, view)
        if self.params.head:
            of_output = self._mean_square(outputs.raw.detach() - target, view)
            self.log("error_ratio", error.detach() / of_output)  # of each sample: their mean is that of any processes
        return error * self._weight(schedule, view.t).to(error.dtype)

    def _mean_square(self, difference: Tensor, view: View) -> Tensor:
        """Return the mean square of a difference [B, C, H, W] over the tokens of the loss, [B]."""
        squared = difference**2
        if self.params.tokens == "visible" and view.visible is not None:
            return per_token(squared, self.grid).gather(1, view.visible).mean(1)
        return squared.mean((1, 2, 3))

    def _weight(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Return the factor on the squared error of R, [B], limited if the schedule is a flow that limits it."""
        weight = self._exact_weight(schedule, t)
        if isinstance(schedule, Flow) and schedule.max_factor is not None:
            return weight.clamp(max=schedule.max_factor**2)
        return weight

    def _exact_weight(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Return the factor on the squared error of R that makes it the error of the chosen quantity, [B]."""
        t = t.double()
        x0_weight = schedule.scalings(t).c_out ** 2
        snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
        if self.params.weighting == "min_snr":
            return x0_weight * snr.clamp(max=self.params.snr_gamma)
        match self.params.space:
            case "native":
                return torch.ones_like(t)
            case "x0":
                return x0_weight
            case "v":
                return x0_weight * (snr + 1)
            case "velocity":
                return x0_weight * (snr.sqrt() + 1) ** 2
            case "eps" | "noise":
                return x0_weight * snr


def native_target(schedule: NoiseSchedule, view: View, dtype: torch.dtype) -> Tensor:
    """Return the target of the network for a view, R* = (x0 - c_skip x) / c_out, [B, C, H, W]."""
    return raw_target(schedule, view.x0, view.noise, view.t, dtype)


def per_token(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average each patch over its pixels and channels: [B, C, H, W] -> [B, N], row by row."""
    (rows, columns), (batch, channels, height, width) = grid, image.shape
    patches = image.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return patches.mean((1, 3, 5)).flatten(1)
