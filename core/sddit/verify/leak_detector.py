"""Detect target leaks: trained modules that can see the clean image other than through its noisy view.

A view contains x_t = alpha(t) x0 + sigma(t) eps. Changing x0 by d and eps by -(alpha / sigma) d leaves x_t unchanged.
Without a leak, the student then receives the same inputs and makes the same predictions, although its target has
changed. The detector makes this change for each student view, over the entire image and at hidden tokens only, and
compares three things: the network's inputs, its predictions, and the inputs of the losses' own trained modules while
the student's outputs stay fixed.

It works for any recipe, since the response of a view to its draws is measured. It cannot detect a loss that mixes its
target into a parameter without calling a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import generator
from sddit.interfaces import CheckContext, CheckSkipped, Dataset, Draws, Measurement, Outputs, View
from sddit.recipes.recipe import Recipe
from sddit.training.build import build_session
from sddit.training.inputs import context_of, make_batch
from sddit.training.loop import teacher_outputs
from sddit.training.session import Session
from sddit.training.student import run_network

IMAGES = 4
MOMENTS = (0.0, 0.5)  # fractions of the run, since ramps and losses that start late change what is trained
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
MIN_CHANGE = 1e-3  # of a prediction when x_t changes: below it, an unchanged prediction would prove nothing
VIEW_INPUTS = ("x", "t", "labels", "visible", "groups", "dense_path")  # fields of a view that a network receives


def leak(recipe: Recipe, context: CheckContext | None = None, *, images: Dataset | None = None) -> list[Measurement]:
    """Test a recipe's pair sampler, backbone and losses for leaks. A measurement that fails names the leak's location.

    All weights of the network are random, since layers that start at zero would hide a leak behind them. It computes in
    float64 if its attention kernel supports that.

    Args:
        recipe: the recipe to test.
        context: sets the device; None: the CPU.
        images: replace the recipe's own data, with the same shapes.

    Raises:
        CheckSkipped: if the recipe's attention kernel does not run on the device.
    """
    device = torch.device((context or CheckContext()).device)
    if device.type not in recipe.attention.params.devices:
        raise CheckSkipped(f"attention kernel {recipe.attention.component.name!r} does not run on {device.type}")
    session = build_session(simplified_recipe(recipe), device)
    if images is not None:
        session.dataset = images
    fill(session.student)
    found = LeakFindings()
    for moment in MOMENTS:
        examine(LeakScene(session, int(moment * recipe.train.steps)), found)
    tolerance = TOLERANCE[next(session.student.parameters()).dtype]
    held = [found.measurement(recipe.name, what, tolerance) for what in found.held]
    control = Measurement(f"{recipe.name}: control, the prediction when x_t moves too", found.moved, MIN_CHANGE, ">=")
    return [*held, control]


def simplified_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without compilation, EMAs and low precision, which cost memory or digits and cannot leak."""
    exact = "fp64" if "fp64" in recipe.attention.params.dtypes else "fp32"
    changes = {"precision": exact, "compile": False, "activation_checkpointing": False}
    return replace(recipe, train=recipe.train.model_copy(update=changes), ema={})


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Fill every parameter with random numbers, scaled so that activations stay near 1."""
    for name, parameter in module.named_parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator(0, name)) / math.sqrt(fan))


@dataclass(slots=True)
class LeakFindings:
    """Largest changes so far."""

    held: dict[str, dict[str, float]] = field(default_factory=dict)  # with x_t fixed: quantity -> location -> change
    moved: float = math.inf  # smallest change of a prediction when x_t changes too

    def add(self, what: str, where: str, change: float) -> None:
        """Keep a change if it is the largest at its location."""
        changes = self.held.setdefault(what, {})
        changes[where] = max(changes.get(where, 0.0), math.inf if math.isnan(change) else change)

    def measurement(self, recipe: str, what: str, tolerance: float) -> Measurement:
        """Return the largest change, with the locations where it exceeds the tolerance."""
        changes = self.held[what]
        leaking = sorted(where for where, change in changes.items() if change > tolerance)
        named = f": {', '.join(leaking)}" if leaking else ""
        return Measurement(f"{recipe}: {what}{named}", max(changes.values()), tolerance)


class ShiftedDraws:
    """Draws of a batch with `shift` [B, C, H, W] added to every normal draw of an image's shape."""

    def __init__(self, draws: Draws, shift: Tensor) -> None:
        self.draws, self.shift = draws, shift

    def normal(self, purpose: str, shape: Sequence[int] = (), *, scope: Literal["sample", "step"] = "sample") -> Tensor:
        drawn = self.draws.normal(purpose, shape, scope=scope)
        return drawn + self.shift if drawn.shape == self.shift.shape else drawn

    def uniform(
        self, purpose: str, shape: Sequence[int] = (), *, scope: Literal["sample", "step"] = "sample"
    ) -> Tensor:
        return self.draws.uniform(purpose, shape, scope=scope)


class LeakScene:
    """A few training images at one step of a run."""

    def __init__(self, session: Session, step: int) -> None:
        session.step = step
        self.session = session
        ids = list(range(min(IMAGES, len(session.dataset))))
        self.context = context_of(session, ids, [0] * len(ids))
        self.draws = self.context.draws
        self.batch = make_batch(session, ids, self.draws)
        self.labels = list(session.objective.weights(step))  # of the active losses

    def views(self, draws: Draws, change: Tensor | None = None) -> dict[str, View]:
        """Return the views for these draws, with `change` [B, C, H, W] added to x0."""
        batch = self.batch if change is None else replace(self.batch, x0=self.batch.x0 + change)
        return self.session.pair_sampler(batch, draws, self.session.schedule, replace(self.context, draws=draws))

    def predict(self, name: str, views: Mapping[str, View]) -> Outputs:
        """Return the student's outputs for one view."""
        request = self.session.objective.requests(self.labels, "student", views)[name]
        return run_network(self.session.student.backbone, self.session.schedule, request, None)

    def compensating_draws(self, name: str, view: View, change: Tensor) -> Draws:
        """Return draws that keep x_t of a view unchanged when x0 changes: eps changes by -(alpha / sigma) change.

        A view's noise may be a multiple or a mixture of draws, so its response to a shift is measured at the same x0.
        Noise that does not respond cannot compensate; the draws are then returned unchanged, and x_t shows the change.
        """
        schedule, t = self.session.schedule, view.t.double()
        needed = -(schedule.alpha(t) / schedule.sigma(t)).to(change)[:, None, None, None] * change
        response = self.views(ShiftedDraws(self.draws, needed))[name].noise - view.noise
        gain = float((response * needed).sum() / needed.square().sum())
        return ShiftedDraws(self.draws, needed / gain) if abs(gain) > 1e-6 else self.draws


@torch.no_grad()
def examine(scene: LeakScene, found: LeakFindings) -> None:
    """Compare each student view that is read before and after a change of x0 that keeps x_t."""
    views = scene.views(scene.draws)
    wants = scene.session.objective.wants(scene.labels, "student")
    outputs = {name: scene.predict(name, views) for name in views if name in wants}
    for name, before in outputs.items():
        view = views[name]
        for change in changes(scene, view):
            draws = scene.compensating_draws(name, view, change)
            held = scene.views(draws, change)
            for key in VIEW_INPUTS:
                difference = distance(getattr(view, key), getattr(held[name], key))
                found.add("what the student is given, x_t held", f"{key} of view {name!r}", difference)
            for what, one, two in outputs_of(before, scene.predict(name, held)):
                found.add("what the student predicts, x_t held", f"{what} of view {name!r}", distance(one, two))
            # the outputs are those of the tokens that were visible before the change
            moved = {other: replace(now, visible=views[other].visible) for other, now in held.items()}
            for label in scene.labels:
                original = module_inputs(scene, label, views, scene.draws, outputs)
                shifted = module_inputs(scene, label, moved, draws, outputs)
                compare_inputs(label, original, shifted, found)
        after = scene.predict(name, scene.views(scene.draws, unit(view.x)))
        largest = max(distance(one, two) for _, one, two in outputs_of(before, after))
        found.moved = min(found.moved, largest)


def compare_inputs(label: str, one: Mapping[str, Tensor], two: Mapping[str, Tensor], found: LeakFindings) -> None:
    """Compare the inputs of a loss's trained modules while only the target changes, not the student's outputs."""
    if one.keys() != two.keys():
        found.add("what the terms' heads are given", f"other calls in loss {label!r}", math.inf)
    for call in one.keys() & two.keys():
        found.add("what the terms' heads are given", f"{call} of loss {label!r}", distance(one[call], two[call]))


def module_inputs(
    scene: LeakScene, label: str, views: Mapping[str, View], draws: Draws, student: Mapping[str, Outputs]
) -> dict[str, Tensor]:
    """Return every tensor that a loss's trained modules receive, by number and module."""
    session, given = scene.session, dict[str, Tensor]()

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in tensors_in((args, kwargs)):
            given[f"input {len(given) + 1} to {name}"] = tensor.detach().clone()

    outputs = {**student, **teacher_outputs(session, views, scene.labels)}
    (active,) = session.objective.active_terms([label], replace(scene.context, draws=draws), views, session.teacher)
    term = session.student.terms[label]
    with ExitStack() as stack:
        stack.callback(term.discard)
        for name, module in term.named_modules():
            if name and any(p.requires_grad for p in module.parameters()):
                stack.enter_context(module.register_forward_pre_hook(partial(record, name), with_kwargs=True))
        term(active.ctx, active.views, {name: outputs[name] for name in active.views})
    return given


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in tensors_in(item))


def changes(scene: LeakScene, view: View) -> Iterator[Tensor]:
    """Yield changes of x0, [B, C, H, W]: of every pixel, and of the pixels of hidden tokens only if there are any.

    Each image becomes the next one plus noise, so that even a leak of a few bits, such as the brightness, is visible.
    """
    change = view.x0.roll(1, dims=0) - view.x0 + unit(view.x0)
    yield change
    if view.visible is not None:
        rows, columns = scene.session.recipe.backbone.params.grid(scene.session.recipe.shapes)
        hidden = torch.ones(len(change), rows * columns, device=change.device, dtype=change.dtype)
        hidden = hidden.scatter(1, view.visible, 0.0).view(-1, 1, rows, columns)
        side = (change.shape[2] // rows, change.shape[3] // columns)
        yield change * hidden.repeat_interleave(side[0], dim=2).repeat_interleave(side[1], dim=3)


def unit(x: Tensor) -> Tensor:
    """Return standard normal numbers of the shape of x, the same in each call."""
    return torch.randn(x.shape, generator=generator(0, "leak"), dtype=torch.float64).to(x)


def outputs_of(one: Outputs, two: Outputs) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Yield (name, tensor, tensor) for each pair of tensors in two outputs, without the noisy image."""
    yield "raw", one.raw, two.raw
    for tap, tokens in one.taps.items():
        yield f"tap {tap!r}", tokens.patch, two.taps[tap].patch
        yield f"class token at {tap!r}", tokens.cls, two.taps[tap].cls


def distance(one: Tensor | None, two: Tensor | None) -> float:
    """Return the largest difference relative to the largest value; for integers, the fraction that differs."""
    if one is None or two is None or one.shape != two.shape:
        return 0.0 if one is None and two is None else math.inf
    if not one.is_floating_point():
        return float((one != two).double().mean())
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-30))
