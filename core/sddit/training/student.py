"""Run the student on the views of a batch and evaluate the losses, in one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sddit.backbones import Backbone
from sddit.diffusion.preconditioning import denoise_view
from sddit.errors import error
from sddit.interfaces import Context, LossParams, NoiseSchedule, Outputs, View, Want
from sddit.interfaces.component import component_boundary
from sddit.losses import Losses, LossTerm
from sddit.recipes.recipe import Recipe
from sddit.training.ema import Teacher
from sddit.value_schedules import step_of, value_at


@dataclass(frozen=True, slots=True)
class ActiveTerm:
    """One active loss, its context, and the views it reads by name."""

    label: str
    ctx: Context
    views: dict[str, View]


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """One view, and the outputs that the losses read for it."""

    view: View
    want: Want


class Student(nn.Module):
    """Backbone and losses: the one root module that is trained."""

    def __init__(
        self,
        backbone: Backbone,
        terms: Mapping[str, LossTerm],
        schedule: NoiseSchedule,
        precision: torch.dtype | None = None,
        component_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.component_names = dict(component_names or {})  # label of a loss -> qualified name of its component
        self.backbone = backbone
        self.terms = Losses(terms)  # the attribute's name is part of the keys of checkpoints
        self.schedule = schedule
        self.precision = precision  # of the backbone's matrix products; the losses keep the dtype of the weights

    def forward(
        self, terms: Sequence[ActiveTerm], requests: Mapping[str, ViewRequest], teacher: Mapping[str, Outputs]
    ) -> dict[str, Tensor]:
        """Run the backbone on every requested view, then the active losses, which also read the teacher's outputs.

        Returns the value of each active loss, [B] or a scalar, before its weight.
        """
        outputs = dict(teacher)
        for name, request in requests.items():
            outputs[name] = run_network(self.backbone, self.schedule, request, self.precision)
        values = {}
        for term in terms:
            with component_boundary(self.component_names.get(term.label, "")), unchanged_views(term):
                read = {name: outputs[name] for name in term.views}
                values[term.label] = self.terms[term.label](term.ctx, term.views, read)
        return values

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        """Return the parameters that are trained: those of the backbone, then those of each loss by its label."""
        owners = {"backbone": self.backbone, **{f"loss.{label}": term for label, term in self.terms.items()}}
        found: dict[Tensor, str] = {}
        for owner, module in owners.items():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    found.setdefault(parameter, owner)  # losses may share a module
        return {owner: [parameter for parameter, name in found.items() if name == owner] for owner in owners}


@contextmanager
def unchanged_views(term: ActiveTerm) -> Iterator[None]:
    """Raise SD-P220 if a loss changes the views, which the other losses read too. Compares no values."""

    def versions() -> dict[str, tuple[int, int]]:
        named = {f"{name}.{key}": t for name, view in term.views.items() for key, t in tensors_of_view(view).items()}
        return {name: (id(t), t._version) for name, t in named.items() if not t.is_inference()}

    before = versions()
    yield
    if changed := sorted(name for name, _ in before.items() ^ versions().items()):
        raise error(
            "SD-P220",
            f"forward changed what it was given: {changed[0]}",
            where=f"loss.{term.label}",
            fix="work on a copy",
        )


def tensors_of_view(view: View) -> dict[str, Tensor]:
    """Return the tensors of a view by name, the extra ones too."""
    named = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)} | view.extras
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def run_network(
    backbone: Backbone, schedule: NoiseSchedule, request: ViewRequest, precision: torch.dtype | None
) -> Outputs:
    """Run one network on one view. Returns its output and the wanted taps in the dtype of the view."""
    view, want = request.view, request.want
    outputs = denoise_view(backbone, schedule, view, taps=want.taps, output=want.output, autocast=precision)
    for tokens in outputs.taps.values():
        tokens.patch = tokens.patch.to(view.x.dtype)
        tokens.cls = None if tokens.cls is None else tokens.cls.to(view.x.dtype)
    return outputs


class Objective:
    """Decide which losses are active at a step, what they read, and how they add up."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.total_steps = recipe.train.steps
        losses = {label: chosen.params for label, chosen in recipe.active_losses.items()}
        # Losses of the network's own output first, then by label: independent of the order in the recipe.
        labels = sorted(losses, key=lambda label: (not losses[label].needs().student.output, label))
        self.params: dict[str, LossParams] = {label: losses[label] for label in labels}
        self.read = {label: [v.name for v in recipe.views_of(params)] for label, params in self.params.items()}
        self.networks = {view.name: view.network for view in recipe.pair_sampler.params.views()}
        self._wants: dict[tuple[str, ...], dict[str, Want]] = {}  # by losses that are active together

    def weights(self, step: int) -> dict[str, float]:
        """Return the weight of each active loss at `step`: none of weight 0, none past its end."""
        return {
            label: weight
            for label, params in self.params.items()
            if step < step_of(params.until, self.total_steps)
            and (weight := value_at(params.weight, step, self.total_steps)) > 0
        }

    def wants(self, labels: Sequence[str], network: str) -> dict[str, Want]:
        """Return what the active losses read from each view of one network."""
        key = tuple(labels)
        if key not in self._wants:
            self._wants[key] = self.recipe.wants(key)
        return {view: want for view, want in self._wants[key].items() if self.networks[view] == network}

    def contexts(self, ctx: Context, labels: Sequence[str], teacher: Teacher | None) -> dict[str, Context]:
        """Return the context of each active loss, with the teacher's copy of its own modules."""
        modules = teacher.modules if teacher else {}
        return {label: dataclasses.replace(ctx, ema_modules=modules.get(label, {})) for label in labels}

    def requests(self, labels: Sequence[str], network: str, views: Mapping[str, View]) -> dict[str, ViewRequest]:
        """Return the views that one network has to process for the active losses, by name."""
        return {name: ViewRequest(views[name], want) for name, want in self.wants(labels, network).items()}

    def active_terms(
        self, labels: Sequence[str], ctx: Context, views: Mapping[str, View], teacher: Teacher | None
    ) -> list[ActiveTerm]:
        """Return the active losses with their contexts and the views they read."""
        return [
            ActiveTerm(label, context, {name: views[name] for name in self.read[label]})
            for label, context in self.contexts(ctx, labels, teacher).items()
        ]

    def apply_window(self, label: str, value: Tensor, t: Tensor) -> Tensor:
        """Return `value` [B] with 0 for each sample whose t [B] is outside the loss's window.

        The mean still runs over all samples, so that the sum over micro-batches equals the mean over the batch.
        """
        if (window := self.params[label].window) is None or self.params[label].couples_samples:
            return value
        low, high = window
        return torch.where((t >= low) & (t <= high), value, torch.zeros_like(value))

    def noise_level(self, label: str, views: Mapping[str, View]) -> Tensor:
        """Return the t [B] of the loss's first student view, used for windows and for the log by noise level."""
        return next(views[name].t for name in self.read[label] if self.networks[name] == "student")


def refuse_malformed(label: str, params: LossParams, value: Tensor, batch: int) -> None:
    """Check shape, type and gradient of what a loss returns, at every step, without a device sync. Raises SD-P220."""
    expected, fix = () if params.couples_samples else (batch,), ""
    if not isinstance(value, Tensor):
        what, got = "did not return a tensor", type(value).__name__
        expect = "one number per sample, a tensor [B]" if expected else "a scalar tensor"
    elif tuple(value.shape) != expected:
        what, got = "returned a tensor of the wrong shape", str(tuple(value.shape))
        expect, fix = "(): a scalar, since its params set couples_samples", "return value.mean()"
        if expected:
            expect = f"{expected}: one value per sample"
            fix = "average over all but the first dimension: value.flatten(1).mean(1)"
    elif not value.is_floating_point():
        what, got, expect = "returned integers", str(value.dtype), "a floating-point tensor"
    elif not value.requires_grad:
        what, got = "has no gradient", "a value detached from the student's outputs"
        expect = "a value computed from outputs of a student view"
        fix = "look for .detach(), .item(), torch.no_grad() or a use of labels alone"
    else:
        return
    raise error("SD-P220", f"loss {label!r} {what}", where=f"loss.{label}", got=got, expect=expect, fix=fix)


def refuse_untrained(student: Student, trained: Mapping[str, list[Tensor]]) -> None:
    """Check that the optimizer has every parameter of a loss that takes a gradient. Raises SD-P227."""
    known = {parameter for parameters in trained.values() for parameter in parameters}
    for label, term in student.terms.items():
        if late := [name for name, p in term.named_parameters() if p.requires_grad and p not in known]:
            raise error(
                "SD-P227",
                f"loss {label!r} has parameters that are not trained, although they take a gradient",
                where=f"loss.{label}",
                got=f"created or unfrozen after __init__: {', '.join(late)}",
                expect="the parameters that take a gradient after __init__",
                fix="create and unfreeze all layers in __init__; a weight that is 0 at first delays training",
            )
