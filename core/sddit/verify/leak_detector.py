"""The target-leak detector: whether what is trained can see the clean image other than through its noisy view.

A view shows x_t = alpha(t) x0 + sigma(t) eps. Move x0 by d and eps by -(alpha / sigma) d, and x_t stays where it was: a
student that is honest is then given the same, and predicts the same, while its target has moved. So each student view
is held in this way, everywhere and at its hidden tokens alone, and compared: what the network is given, what it
predicts, and what the terms' own trained modules are given when the student's outputs are held too.

It works on any recipe: the noise of a view is found by moving the draws and watching. What it cannot see is a term that
mixes its target into a parameter without calling a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws, generator
from sddit.interfaces import (
    Batch,
    CheckContext,
    Context,
    Dataset,
    Draws,
    Measurement,
    NotHereError,
    Outputs,
    View,
    Want,
)
from sddit.recipes.recipe import Recipe
from sddit.training.build import build_session
from sddit.training.inputs import make_batch
from sddit.training.loop import teacher_outputs
from sddit.training.session import Session
from sddit.training.student import ViewRequest, run_network

IMAGES = 4
MOMENTS = (0.0, 0.5)  # of the run: ramps and late terms show more than one face
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SEEN = 1e-3  # a prediction changes at least so much when x_t does: else holding x_t would prove nothing
Look = tuple[dict[str, View], Draws]
"""Views, and the draws they were made of."""
GIVEN = ("x", "t", "labels", "visible", "groups")  # what a network is given of a view


def leak(recipe: Recipe, context: CheckContext | None = None, *, images: Dataset | None = None) -> list[Measurement]:
    """Look for a leak in a recipe's pair sampler, backbone and loss terms. Each measurement that fails names where it
    is.

    The network has random weights throughout, since layers that start at zero would hide what is behind them, and
    computes in float64 if its attention kernel does.

    Args:
        recipe: what is looked at.
        context: the device; None: the CPU.
        images: in place of the recipe's own data, of the same shapes.

    Raises:
        NotHereError: if the recipe's attention kernel does not run on the device.
    """
    device = torch.device((context or CheckContext()).device)
    if device.type not in recipe.attention.params.devices:
        raise NotHereError(f"attention kernel {recipe.attention.component.name!r} does not run on {device.type}")
    session = build_session(plain(recipe), device)
    if images is not None:
        session.dataset = images
    fill(session.student)
    found = LeakFindings()
    for moment in MOMENTS:
        examine(LeakScene(session, int(moment * recipe.train.steps)), found)
    tolerance = TOLERANCE[next(session.student.parameters()).dtype]
    held = [found.measurement(recipe.name, what, tolerance) for what in found.held]
    control = Measurement(f"{recipe.name}: control, the prediction when x_t moves too", found.moved, SEEN, ">=")
    return [*held, control]


def plain(recipe: Recipe) -> Recipe:
    """Return the recipe without what costs memory or digits and leaks nothing: compilation, averages, low precision."""
    exact = "fp64" if "fp64" in recipe.attention.params.dtypes else "fp32"
    changes = {"precision": exact, "compile": False, "activation_checkpointing": False}
    return replace(recipe, train=recipe.train.model_copy(update=changes), ema={})


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random numbers in every parameter, of a size that keeps activations about 1."""
    for name, parameter in module.named_parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator(0, name)) / math.sqrt(fan))


@dataclass(slots=True)
class LeakFindings:
    """The largest changes so far."""

    held: dict[str, dict[str, float]] = field(default_factory=dict)  # what -> where -> change
    moved: float = math.inf  # of a prediction when x_t moves too

    def add(self, what: str, where: str, change: float) -> None:
        """Keep a change if it is the largest there."""
        places = self.held.setdefault(what, {})
        places[where] = max(places.get(where, 0.0), math.inf if math.isnan(change) else change)

    def measurement(self, recipe: str, what: str, tolerance: float) -> Measurement:
        """Return the largest change; the places are named where they are too large."""
        places = self.held[what]
        leaking = sorted(where for where, change in places.items() if change > tolerance)
        named = f": {', '.join(leaking)}" if leaking else ""
        return Measurement(f"{recipe}: {what}{named}", max(places.values()), tolerance)


class Moved:
    """The keyed draws of a batch, with every normal draw of an image's shape moved by `shift` [B, C, H, W]."""

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
        self.session, self.step = session, step
        ids = list(range(min(IMAGES, len(session.dataset))))
        keyed = KeyedDraws(session.recipe.seed, step, torch.tensor(ids, device=session.device))
        self.draws: Draws = keyed
        self.batch = make_batch(session, ids, keyed)
        self.labels = list(session.objective.weights(step))  # of the terms that are active
        self.wants: dict[str, Want] = session.objective.wants(self.labels, "student")

    def context(self, draws: Draws) -> Context:
        """Return the context of a step whose randomness is `draws`."""
        session = self.session
        return Context(
            step=self.step,
            total_steps=session.total_steps,
            schedule=session.schedule,
            draws=draws,
            num_classes=session.recipe.shapes.num_classes,
        )

    def views(self, draws: Draws, change: Tensor | None = None) -> dict[str, View]:
        """Return the views of these draws, with x0 moved by `change` [B, C, H, W]."""
        batch: Batch = self.batch if change is None else replace(self.batch, x0=self.batch.x0 + change)
        return self.session.pair_sampler(batch, draws, self.session.schedule, self.context(draws))

    def predicted(self, name: str, view: View) -> Outputs:
        """Return the student's outputs for a view."""
        request = ViewRequest(view, self.wants[name])
        return run_network(self.session.student.backbone, self.session.schedule, request, None)

    def holding(self, name: str, view: View, change: Tensor) -> Draws:
        """Return the draws that keep x_t of a view where it was: eps moves by -(alpha / sigma) change.

        A view's noise may be a multiple of what was drawn, or a mixture: how it answers is measured at the same x0. One
        that does not answer is held by nothing, and what follows x0 then shows.
        """
        schedule, t = self.session.schedule, view.t.double()
        needed = -(schedule.alpha(t) / schedule.sigma(t)).to(change)[:, None, None, None] * change
        answer = self.views(Moved(self.draws, needed))[name].noise - view.noise
        share = float((answer * needed).sum() / needed.square().sum())
        return Moved(self.draws, needed / share) if abs(share) > 1e-6 else self.draws


@torch.no_grad()
def examine(scene: LeakScene, found: LeakFindings) -> None:
    """Hold each student view that is read, and compare."""
    views = scene.views(scene.draws)
    outputs = {name: scene.predicted(name, views[name]) for name in scene.wants}
    for name, view in views.items():
        if name not in scene.wants:
            continue
        for change in changes(scene, view):
            draws = scene.holding(name, view, change)
            held_views = scene.views(draws, change)
            held = held_views[name]
            for key in GIVEN:
                apart = distance(getattr(view, key), getattr(held, key))
                found.add("what the student is given, x_t held", f"{key} of view {name!r}", apart)
            again = scene.predicted(name, held)
            for what, one, two in outputs_of(outputs[name], again):
                found.add("what the student predicts, x_t held", f"{what} of view {name!r}", distance(one, two))
            examine_terms(scene, (views, scene.draws), (held_views, draws), outputs, found)
        moved = scene.predicted(name, scene.views(scene.draws, unit(view.x))[name])
        largest = max(distance(one, two) for _, one, two in outputs_of(outputs[name], moved))
        found.moved = min(found.moved, largest)


def examine_terms(
    scene: LeakScene, base: Look, held: Look, outputs: Mapping[str, Outputs], found: LeakFindings
) -> None:
    """Check that trained modules of a loss get equal inputs when only the target moves."""
    views, moved = base[0], held[0]
    moved = {
        name: replace(view, visible=views[name].visible) for name, view in moved.items()
    }  # as the outputs name them
    for label in scene.labels:
        one, two = (given_to_modules(scene, label, look, outputs) for look in (base, (moved, held[1])))
        if one.keys() != two.keys():
            found.add("what the terms' heads are given", f"other calls in loss {label!r}", math.inf)
        for call in one.keys() & two.keys():
            found.add("what the terms' heads are given", f"{call} of loss {label!r}", distance(one[call], two[call]))


def given_to_modules(scene: LeakScene, label: str, look: Look, student: Mapping[str, Outputs]) -> dict[str, Tensor]:
    """Return every tensor that the trained modules of a term are called with, by module and number of the call."""
    views, draws = look
    session, term = scene.session, scene.session.student.terms[label]
    outputs = {**student, **teacher_outputs(session, views, scene.labels)}
    read = session.objective.read[label]
    given: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for tensor in tensors_in((args, kwargs)):
                given[f"input {len(given) + 1} to {name}"] = tensor.detach().clone()

        return hook

    trained = [(name, m) for name, m in term.named_modules() if name and any(p.requires_grad for p in m.parameters())]
    hooks = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in trained]
    contexts = session.objective.contexts(scene.context(draws), [label], session.teacher)
    try:
        term(contexts[label], {name: views[name] for name in read}, {name: outputs[name] for name in read})
    finally:
        for handle in hooks:
            handle.remove()
        term.discard()
    return given


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in tensors_in(item))


def changes(scene: LeakScene, view: View) -> Iterator[Tensor]:
    """Yield changes of x0 [B, C, H, W]: of every pixel, and of hidden tokens alone if there are any.

    Each image becomes the next one plus some noise: a leak by a few bits, such as a brightness, shows as well.
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
    """Standard normal numbers of the shape of x, always the same."""
    return torch.randn(x.shape, generator=generator(0, "leak"), dtype=torch.float64).to(x)


def outputs_of(one: Outputs, two: Outputs) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Yield the tensors of two outputs side by side, with a name. The noisy image itself is not among them."""
    yield "raw", one.raw, two.raw
    for tap, tokens in one.taps.items():
        yield f"tap {tap!r}", tokens.patch, two.taps[tap].patch
        yield f"class token at {tap!r}", tokens.cls, two.taps[tap].cls


def distance(one: Tensor | None, two: Tensor | None) -> float:
    """Return a distance: relative to the largest for floats, the fraction that differs for integers."""
    if one is None or two is None or one.shape != two.shape:
        return 0.0 if one is None and two is None else math.inf
    if not one.is_floating_point():
        return float((one != two).double().mean())
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-30))
