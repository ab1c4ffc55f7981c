"""Precondition a network: F and a noise schedule form a denoiser D, in training and sampling alike.

D(x) = c_skip x + c_out F(c_in x, c_noise): EDM (arXiv:2206.00364), eq. 7. Every schedule has this form; its scalings
define the meaning of the network's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sddit.interfaces import NoiseSchedule, Outputs, Path, Prediction, Tap, View


def precondition(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    *,
    taps: Sequence[Tap] = (),
    output: bool = True,
    visible: Tensor | None = None,
    groups: Tensor | None = None,
    dense_path: Tensor | bool | None = None,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> Outputs:
    """Evaluate F and D at x [B, C, H, W], each sample at its own time t [B], in the schedule's own coordinates.

    Args:
        backbone: F; `labels`, `taps`, `output`, `visible` and `groups` are those of `sddit.Backbone.forward`.
        dense_path: samples [B] that skip the sparse span of a backbone that supports it, or True for all of them.
        schedule: defines the meaning of its input and output.
        x: the noisy images.
        t: their noise levels.
        dtype: of the inputs of F; None: that of x.
        autocast: precision of F alone; None: the caller's setting.

    Returns:
        raw, x0 and extra in float32 or wider, and the taps as F returned them.
    """
    c = schedule.scalings(t.double())
    c_in, c_skip, c_out = (_over_image(each, x) for each in (c.c_in, c.c_skip, c.c_out))
    input_dtype = dtype or x.dtype
    with torch.autocast(x.device.type, autocast) if autocast else nullcontext():
        raw, heads, tokens = backbone(
            (c_in * x).to(input_dtype),
            c.c_noise.to(input_dtype),
            labels,
            taps=taps,
            output=output,
            visible=visible,
            groups=groups,
            **({} if dense_path is None else {"dense_path": dense_path}),  # not every backbone takes it
        )
    if raw is None:
        return Outputs(taps=tokens)
    channels = x.shape[1]
    own, extra = _widened(raw[:, :channels]), _widened(raw[:, channels:])
    further = {name: _widened(head) for name, head in heads.items()}
    return Outputs(
        raw=own,
        x0=c_skip * x + c_out * own,
        extra=extra if schedule.outputs > 1 else None,
        heads={name: (head, c_skip * x + c_out * head) for name, head in further.items()},
        taps=tokens,
    )


def denoise_view(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    view: View,
    taps: Sequence[Tap] = (),
    output: bool = True,
    *,
    autocast: torch.dtype | None = None,
) -> Outputs:
    """Apply `precondition` to one view of a batch."""
    return precondition(
        backbone,
        schedule,
        view.x,
        view.t,
        view.labels,
        taps=taps,
        output=output,
        visible=view.visible,
        groups=view.groups,
        dense_path=view.dense_path,
        autocast=autocast,
    )


def raw_target(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the output of the network that gives D(x) = x0, R* = (x0 - c_skip x) / c_out, [B, C, H, W] in `dtype`.

    With x = alpha x0 + sigma eps inserted, no nearly equal images are subtracted at small sigma; the remaining
    difference, 1 - c_skip alpha, is one number per sample and is computed in float64.
    """
    t = t.double()
    c = schedule.scalings(t)
    x0_factor = (1 - c.c_skip * schedule.alpha(t)) / c.c_out  # [B]
    noise_factor = c.c_skip * schedule.sigma(t) / c.c_out
    return x0_factor.to(dtype)[:, None, None, None] * x0 - noise_factor.to(dtype)[:, None, None, None] * noise


class ModelDenoiser:
    """A trained network as D(x; sigma, labels) in variance-exploding coordinates, for any schedule.

    x is x_t / alpha(t) and sigma is sigma(t) / alpha(t); a level is snapped to a trained one. The network runs in
    evaluation mode and in the dtype of its weights; everything else uses the dtype of x, float64 in a sampler.

    Args:
        backbone: called as `sddit.Backbone.forward`.
        schedule: the noise schedule of its training.
        num_classes: of its training data; also the null label.
        autocast: precision of the network, such as torch.bfloat16; None: that of its weights.
    """

    def __init__(
        self, backbone: nn.Module, schedule: NoiseSchedule, num_classes: int, *, autocast: torch.dtype | None = None
    ) -> None:
        self.backbone = backbone
        self.schedule = schedule
        self.num_classes = num_classes
        self.autocast = autocast
        self.dtype = next((weight.dtype for weight in backbone.parameters()), torch.float64)

    def __call__(
        self, x: Tensor, sigma: float, labels: Tensor, visible: Tensor | None = None, *, path: Path = "full"
    ) -> Prediction:
        """Predict x0 and the other outputs of the network for x [B, C, H, W] at one noise level, labels [B].

        The tokens `visible` [B, K] are those that the network does not hide; None: all.
        """
        level = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        t = self.schedule.t_from_sigma(self.schedule.snap(level))
        native = _over_image(self.schedule.alpha(t), x) * x
        training = self.backbone.training
        if training:
            self.backbone.eval()
        try:
            with torch.autocast(x.device.type, enabled=False):  # that of the caller: samples do not depend on it
                out = precondition(
                    self.backbone,
                    self.schedule,
                    native,
                    t,
                    labels,
                    visible=visible,
                    dense_path=True if path == "dense" else None,
                    dtype=self.dtype,
                    autocast=self.autocast,
                )
        finally:
            if training:
                self.backbone.train()
        if out.x0 is None:
            raise ValueError("the network is truncated and has no output")
        return Prediction(out.x0, out.extra, {name: x0 for name, (_, x0) in out.heads.items()})


def _over_image(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1], in the dtype of x or float32, the wider one."""
    return coefficient.to(torch.promote_types(x.dtype, torch.float32))[:, None, None, None]


def _widened(x: Tensor) -> Tensor:
    """Return x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
