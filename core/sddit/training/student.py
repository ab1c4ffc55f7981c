"""The objective of one batch: views, teacher, student, terms. Everything that has a gradient stands in one forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sddit.diffusion.preconditioning import denoise_view
from sddit.errors import error
from sddit.interfaces import Backbone, Context, LossParams, NoiseSchedule, Outputs, Selected, View, Want
from sddit.interfaces.component import component_boundary
from sddit.recipes.recipe import Recipe
from sddit.training.ema import Teacher
from sddit.value_schedules import step_of, value_at


class Student(nn.Module):
    """Backbone and loss terms: the one root module that is trained."""

    def __init__(
        self,
        backbone: nn.Module,
        terms: Mapping[str, nn.Module],
        schedule: NoiseSchedule,
        precision: torch.dtype | None = None,
        offered: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.offered = dict(offered or {})  # term -> qualified name of its component
        self.backbone = backbone
        self.terms = nn.ModuleDict(terms)
        self.schedule = schedule
        self.precision = precision  # of the backbone's matrix products; the terms keep the dtype of the weights

    def forward(
        self,
        contexts: Mapping[str, Context],
        views: Mapping[str, View],
        wants: Mapping[str, Want],
        seen: Mapping[str, Outputs],
        read: Mapping[str, Sequence[str]],
    ) -> dict[str, Tensor]:
        """All student views, then all terms.

        Args:
            contexts: for each active term, what it may know.
            views: every view by name.
            wants: for each student view that is read, what is read from it.
            seen: the teacher's outputs by view.
            read: for each active term, the views it reads.

        Returns:
            Each active term, [B] or a scalar, before its weight.
        """
        outputs = dict(seen)
        for name, want in wants.items():
            outputs[name] = observe(self.backbone, self.schedule, views[name], want, self.precision)
        values = {}
        for label, ctx in contexts.items():
            with component_boundary(self.offered.get(label, "")):
                term_outputs = {name: outputs[name] for name in read[label]}
                values[label] = self.terms[label](ctx, {name: views[name] for name in read[label]}, term_outputs)
        return values


def observe(
    backbone: nn.Module, schedule: NoiseSchedule, view: View, want: Want, precision: torch.dtype | None
) -> Outputs:
    """One network on one view: its output and the wanted taps, in the dtype of the view whatever the network ran in."""
    outputs = denoise_view(
        cast(Backbone, backbone), schedule, view, taps=want.taps, output=want.output, autocast=precision
    )
    for tokens in outputs.taps.values():
        tokens.patch = tokens.patch.to(view.x.dtype)
        tokens.cls = None if tokens.cls is None else tokens.cls.to(view.x.dtype)
    return outputs


class Objective:
    """Which terms are active when, what they read, and how they add up."""

    def __init__(self, recipe: Recipe) -> None:
        self.total_steps = recipe.train.steps
        self.params: dict[str, LossParams] = {label: chosen.params for label, chosen in in_order(recipe.active_losses)}
        self.read = {label: [v.name for v in recipe.views_of(params)] for label, params in self.params.items()}
        self.networks = {view.name: view.network for view in recipe.pair_sampler.params.views()}

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each term that counts at `step`: a term of weight 0, or past its end, is left out."""
        return {
            label: weight
            for label, params in self.params.items()
            if step < step_of(params.until, self.total_steps)
            and (weight := value_at(params.weight, step, self.total_steps)) > 0
        }

    def wants(self, labels: Sequence[str], network: str) -> dict[str, Want]:
        """What the active terms read from each view of one network."""
        wants: dict[str, Want] = {}
        for label in labels:
            needs = self.params[label].needs()
            for view in self.read[label]:
                if self.networks[view] == network:
                    want = needs.student if network == "student" else needs.teacher or Want()
                    wants[view] = wants.get(view, Want()) | want
        return wants

    def contexts(self, ctx: Context, labels: Sequence[str], teacher: Teacher | None) -> dict[str, Context]:
        """The context of each active term, with the teacher's copy of its own modules."""
        modules = teacher.modules if teacher else {}
        return {label: dataclasses.replace(ctx, averaged=modules.get(label, {})) for label in labels}

    def reduce(self, label: str, value: Tensor, view: View, share: float) -> Tensor:
        """The part of the batch's mean that this micro-batch of `share` of the batch contributes; a scalar.

        A sample whose noise lies outside the term's window counts 0; the mean still runs over all samples, so that the
        sum over micro-batches is the same as in one piece.
        """
        if self.params[label].couples_samples:
            return value * share
        return inside(self.params[label].window, view.t, value).mean() * share

    def student_view(self, label: str) -> str:
        """The view whose noise level stands for the sample in windows and in the log by noise level."""
        return next(view for view in self.read[label] if self.networks[view] == "student")


def in_order(terms: Mapping[str, Selected[LossParams]]) -> list[tuple[str, Selected[LossParams]]]:
    """Terms of the network's own output first, then by label: what leads does not depend on the order in a file."""
    return sorted(terms.items(), key=lambda item: (not item[1].params.needs().student.output, item[0]))


def inside(window: tuple[float, float] | None, t: Tensor, value: Tensor) -> Tensor:
    """`value` [B] where t [B] lies in the window, 0 elsewhere."""
    if window is None:
        return value
    low, high = window
    return torch.where((t >= low) & (t <= high), value, torch.zeros_like(value))


def refuse_malformed(label: str, params: LossParams, value: Tensor, batch: int) -> None:
    """What a term returns is checked at every step, without a read of the device: shape, type, gradient."""
    expected = () if params.couples_samples else (batch,)
    where = f"loss.{label}"
    if not isinstance(value, Tensor):
        raise error(
            "SD-P220",
            f"loss {label!r} returned no tensor",
            where=where,
            got=type(value).__name__,
            expect="a scalar tensor" if params.couples_samples else "one number per sample, a tensor [B]",
        )
    if tuple(value.shape) != expected:
        what = "one value per sample" if expected else "a scalar, since its params say couples_samples"
        raise error(
            "SD-P220",
            f"loss {label!r} returned a wrong shape",
            where=where,
            got=str(tuple(value.shape)),
            expect=f"{expected}: {what}",
            fix="return value.mean()"
            if not expected
            else "average over all but the first dimension: value.flatten(1).mean(1)",
        )
    if not value.is_floating_point():
        raise error(
            "SD-P220",
            f"loss {label!r} returned whole numbers",
            where=where,
            got=str(value.dtype),
            expect="a floating-point tensor",
        )
    if not value.requires_grad:
        raise error(
            "SD-P220",
            f"loss {label!r} has no gradient",
            where=where,
            got="a value cut off from the student's outputs",
            expect="a value computed from outputs of a student view",
            fix="look for .detach(), .item(), torch.no_grad() or a use of labels alone",
        )
