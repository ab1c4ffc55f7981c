"""Define the contrastive term of contrastive flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.preconditioning import raw_target
from sddit.interfaces import Context, NoiseSchedule, Outputs, View
from sddit.losses import LossTerm
from sddit_regularizers.params import ContrastiveParams

PURPOSE = "regularizers/contrastive/partner"


class Contrastive(LossTerm):
    """-|F_i - F*_ij|^2, the second term of contrastive flow matching (arXiv:2506.05350), averaged over the batch.

    The denoising loss is the first term, |F_i - F*_i|^2, and the weight of this loss is the paper's lambda. The target
    F*_ij is that of another image j of the global batch, with its own noise, at the noise level of image i. F is either

        native    R, the network's own output. Its target has unit variance in the EDM schedule.
        velocity  eps - x0, that of the linear path through the same noisy image. In the flow schedule this is R.

    The derivative dx/dsigma = (x - x0) / sigma of EDM is the noise alone: no image of the partner is in it.

    The minimum of both terms is F = (E[F* | x] - lambda E[F*_ij]) / (1 - lambda): samples are pushed away from the
    mean. The sum is bounded below if lambda is below the weight of the denoising loss.
    """

    def __init__(self, params: ContrastiveParams, **_: Any) -> None:
        super().__init__()
        self.params = params

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        return torch.stack([self.repulsion(ctx, view, outputs[name]) for name, view in students.items()]).mean()

    def repulsion(self, ctx: Context, view: View, outputs: Outputs) -> Tensor:
        """Return the loss of one view on this rank."""
        assert outputs.raw is not None, "needs() asks for the output"
        raw = outputs.raw
        partner, has_partner = self.partners(ctx, view)
        x0, noise = ctx.gather(view.x0)[partner], ctx.gather(view.noise)[partner]
        errors = (raw - raw_target(ctx.schedule, x0, noise, view.t, raw.dtype)).square().mean(dim=(1, 2, 3))  # [b]
        errors = errors * (self.factor(ctx.schedule, view.t).to(errors) * has_partner)
        with torch.no_grad():
            self.log("second_term", errors)
            self.log("paired", has_partner.to(errors))
        return -errors.mean()

    def partners(self, ctx: Context, view: View) -> tuple[Tensor, Tensor]:
        """Draw the position in the global batch of the partner of each image [b], and return whether it has one [b].

        All candidates are equally likely: images that differ, and with `other_class` of another class, both known.
        """
        images = view.x0.flatten(1)
        candidates = torch.cdist(images, ctx.gather(images), p=1) > 0  # [b, B], False for itself and its copies
        if self.params.partner == "other_class":
            own, labels = view.labels[:, None], ctx.gather(view.labels)
            candidates &= (own != labels) & (own != ctx.num_classes) & (labels != ctx.num_classes)
        count = candidates.sum(dim=1)
        chosen = (ctx.draws.uniform(PURPOSE).to(count.device) * count).long()
        position = (candidates.cumsum(dim=1) <= chosen[:, None]).sum(dim=1)  # of the candidate number `chosen`
        return position.clamp(max=candidates.shape[1] - 1), count > 0

    def factor(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Return the factor on the squared error of R, [B], of the space and of the weighting."""
        t = t.double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        factor = torch.ones_like(t)
        if self.params.space == "velocity":
            # With x = alpha x0 + sigma eps, eps - x0 = x / sigma - (alpha / sigma + 1) x0, and x0 = c_skip x + c_out R.
            factor = ((alpha / sigma + 1) * schedule.scalings(t).c_out).square()
        if self.params.weighting == "linear":
            factor = factor * sigma / (alpha + sigma)
        return factor
