"""Check what holds for every loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sddit.interfaces import LossParams, NoiseSchedule, Outputs, Tokens, View, ViewSpec, Want
from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.testing.toys.params import ToyBackboneParams

WIDTH = 12
KEPT = 10  # of 16 tokens, in the masked case


class Scene:
    """Views, and outputs that hold exactly what a loss asks for. Each tensor of the outputs is a leaf of the graph."""

    def __init__(
        self, case: Case, *, masked: bool, dtype: torch.dtype = torch.float32, taps_dtype: torch.dtype | None = None
    ) -> None:
        self.schedule: NoiseSchedule = case.runtime.get("schedule") or fixtures.schedule()
        self.leaves: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        self.views: dict[str, View] = {}
        self.outputs: dict[str, Outputs] = {}
        params: LossParams = case.params
        needs = params.needs()
        for name in params.views or (("student", "teacher") if needs.teacher else ("student",)):
            teacher = needs.teacher if "teacher" in name else None
            view = self.views[name] = self.view("teacher" if teacher else "student", masked, dtype)
            self.outputs[name] = self.outputs_of(name, view, teacher or needs.student, taps_dtype or dtype)

    def view(self, network: Literal["student", "teacher"], masked: bool, dtype: torch.dtype) -> View:
        """Return a noisy view of the batch, the second less noisy than the first."""
        batch = fixtures.batch(dtype)
        noise = fixtures.numbers(*batch.x0.shape, key=2, dtype=dtype)
        u = torch.linspace(0.4, 0.7, fixtures.BATCH, dtype=torch.float64) / (1 + len(self.views))
        t = self.schedule.t_from_uniform(u).to(dtype)
        visible = fixtures.visible(16, KEPT) if masked and network == "student" else None  # [B, K]
        x = self.schedule.perturb(batch.x0, noise, t)
        return View(network=network, x=x, t=t, labels=batch.labels, x0=batch.x0, noise=noise, visible=visible)

    def outputs_of(self, name: str, view: View, want: Want, taps_dtype: torch.dtype) -> Outputs:
        """Return the wanted outputs for a view."""
        leaves = self.leaves[view.network]

        def leaf(what: str, *shape: int, dtype: torch.dtype = view.x.dtype) -> Tensor:
            key = 100 + len(leaves) + 50 * (view.network == "teacher")
            leaves[f"{name}.{what}"] = fixtures.numbers(*shape, key=key, dtype=dtype).requires_grad_()
            return leaves[f"{name}.{what}"]

        outputs = Outputs()
        if want.output:
            scalings = self.schedule.scalings(view.t)
            outputs.raw = leaf("raw", *view.x.shape)
            c_skip, c_out = (c[:, None, None, None] for c in (scalings.c_skip, scalings.c_out))
            outputs.x0 = c_skip * view.x + c_out * outputs.raw
            if self.schedule.outputs > 1:
                outputs.extra = leaf("extra", *view.x.shape)
        count = 16 if view.visible is None else KEPT
        for tap in want.taps:
            cls = leaf(f"taps[{tap!r}].cls", fixtures.BATCH, WIDTH, dtype=taps_dtype) if want.cls else None
            patch = leaf(f"taps[{tap!r}].patch", fixtures.BATCH, count, WIDTH, dtype=taps_dtype)
            outputs.taps[tap] = Tokens(patch, view.visible, cls)
        return outputs

    def value_of(self, term: Any) -> Any:
        """Return the value of a loss."""
        copies = {name: copy.deepcopy(term.get_submodule(name)).requires_grad_(False) for name in term.ema_modules}
        context = replace(fixtures.context(ema_modules=copies), schedule=self.schedule)
        return term(context, self.views, self.outputs)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a loss must not change."""
        keys = ("x", "t", "x0", "noise", "labels")
        views = {f"{name}.{key}": getattr(view, key) for name, view in self.views.items() for key in keys}
        return {**views, **self.leaves["student"], **self.leaves["teacher"]}


def examine(case: Case) -> None:
    """Check a loss on views and outputs made from what its params say it needs."""
    with case.trying("its params were asked what they need", fix="needs() returns sddit.interfaces.Needs"):
        case.params.needs()
        with case.trying("it was built"):
            term = built(case)
            if is_term(case, term) and all(examine_value(case, term, masked) for masked in (False, True)):
                examine_gradient(case, term)
                examine_memory(case)
                examine_precision(case)
                examine_cost(case, term)


def built(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Return the loss with tiny heads, its parameters filled."""
    needs = case.params.needs()
    taps = (*needs.student.taps, *(needs.teacher.taps if needs.teacher else ()))
    with fixtures.default_dtype(dtype), torch.random.fork_rng(devices=[]):
        widths = dict.fromkeys(taps, WIDTH)
        term = case.build(widths=widths, grid=fixtures.GRID, image=fixtures.IMAGE, num_classes=fixtures.CLASSES)
    return fixtures.randomised(term).train() if isinstance(term, nn.Module) else term  # frozen modules: eval mode


def is_term(case: Case, term: Any) -> bool:
    """Return whether it is a module with the methods that the loop calls and the submodules of `ema_modules`."""
    fix = "subclass sddit.losses.LossTerm"
    if not case.instance(term, nn.Module, "it is not a torch.nn.Module", fix):
        return False
    methods = ("after_step", "staged", "discard", "diagnostics")
    missing = [name for name in methods if not callable(getattr(term, name, None))]
    case.expect(not missing, f"it lacks {', '.join(missing)}", fix=fix)
    children = dict(term.named_modules())
    unknown = [name for name in getattr(term, "ema_modules", ()) if name not in children]
    what = f"`ema_modules` names what it does not have: {', '.join(unknown)}"
    case.expect(not unknown, what, expect=f"of {', '.join(filter(None, children))}")
    return not missing and not unknown


def examine_value(case: Case, term: Any, masked: bool) -> bool:
    """Check shape, finiteness and repeatability, and that nothing it was given is changed."""
    shown = "a masked view" if masked else "a full view"
    shape: tuple[int, ...] = (fixtures.BATCH,)
    fix = "mean over every dimension but the first; a scalar needs couples_samples"
    if case.params.couples_samples:
        shape = ()
        fix = "return a scalar, or drop couples_samples"
    with case.trying(f"forward saw {shown}", fix="does needs() declare all that forward reads?"):
        scene = Scene(case, masked=masked)
        unchanged = case.unchanged(scene.tensors, "forward changed what it was given", "work on a copy")
        with case.no_global_randomness("forward"), unchanged:
            value = scene.value_of(term)
            again = scene.value_of(term)
        if not case.shaped(value, shape, f"what forward returns for {shown}", fix):
            return False
        if not case.expect(value.is_floating_point(), "forward returns whole numbers", got=value):
            return False
        what = "forward gives another value for the same input"
        return case.expect(torch.equal(value, again), what, fix="draw from ctx.draws")
    return False


def examine_gradient(case: Case, term: nn.Module) -> None:
    """Check gradients: to the student and to every own weight, not to the teacher, not across samples."""
    scene = Scene(case, masked=True)
    student, teacher = scene.leaves["student"], scene.leaves["teacher"]
    value = scene.value_of(term)
    got = "a value detached from the student's outputs"
    fix = "look for .detach(), .item(), torch.no_grad(), or a use of labels alone"
    if not case.expect(value.requires_grad, "the loss has no gradient", got=got, fix=fix):
        return
    value.sum().backward()
    reached = any(leaf.grad is not None for leaf in student.values())
    expect = f"one to any of {', '.join(student)}"
    case.expect(reached, "the loss has no gradient to the student's outputs", expect=expect)
    leaking = ", ".join(name for name, leaf in teacher.items() if leaf.grad is not None)
    what = f"the loss has a gradient to the teacher: {leaking}"
    case.expect(not leaking, what, fix="compute targets under torch.no_grad()")
    idle = ", ".join(name for name, p in term.named_parameters() if p.requires_grad and p.grad is None)
    what = f"weights of its own get no gradient: {idle}"
    case.expect(not idle, what, fix="use them in forward, or requires_grad_(False)")
    if not case.params.couples_samples:
        scene = Scene(case, masked=True)
        scene.value_of(term)[0].backward()
        gradients = {name: leaf.grad for name, leaf in scene.leaves["student"].items() if leaf.grad is not None}
        mixed = ", ".join(name for name, gradient in gradients.items() if bool(gradient[1:].any()))
        got = f"a gradient to {mixed} of the others"
        fix = "declare couples_samples and return a scalar"
        case.expect(not mixed, "the value of one sample depends on other samples", got=got, fix=fix)


def examine_memory(case: Case) -> None:
    """Check that buffers change only in after_step, from what forward staged, and that the state can be restored."""
    term = built(case)

    def buffers() -> dict[str, Tensor]:
        return dict(term.named_buffers())

    fix = "stage statistics in forward, and change buffers in after_step"
    with case.unchanged(buffers, "a buffer changed in forward", fix):
        Scene(case, masked=False).value_of(term)
    forgotten = case.unchanged(buffers, "discard did not forget what forward staged", "clear it in discard()")
    with case.trying("a step was discarded, and the next one finished"), forgotten:
        term.discard()
        term.after_step(fixtures.context())
    with case.trying("a step was finished"):
        Scene(case, masked=False).value_of(term)
        term.after_step(fixtures.context())
        case.expect(has_finite_buffers(term), "a buffer is not finite after after_step")
        diagnostics = term.diagnostics()
        if case.instance(diagnostics, Mapping, "diagnostics() returns no dict"):
            for name, value in diagnostics.items():
                case.shaped(value, (), f"the diagnostic {name!r}", 'self.log("name", value) does this')
    with case.trying("what it staged was not finite", fix="yield in staged() all that after_step reads"):
        examine_staging(case)
    with case.trying("its state was restored"):
        built(case).load_state_dict(term.state_dict())


def has_finite_buffers(term: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in term.buffers())


def examine_staging(case: Case) -> None:
    """Check that what would make a buffer non-finite is in staged(), before after_step."""
    term = built(case)
    scene = Scene(case, masked=False)
    with torch.no_grad():
        for leaf in (*scene.leaves["student"].values(), *scene.leaves["teacher"].values()):
            leaf.fill_(float("nan"))
    scene.value_of(term)
    staged = not all(bool(tensor.isfinite().all()) for tensor in term.staged())
    term.after_step(fixtures.context())
    fix = "yield in staged() all that after_step reads: a step with a NaN in it is then not taken"
    what = "a NaN reaches a buffer, and staged() does not show it"
    case.expect(staged or has_finite_buffers(term), what, fix=fix)


def examine_precision(case: Case) -> None:
    """Check that float64 outputs give the same value in float64, and bf16 tokens under autocast a float32 value."""
    single = Scene(case, masked=True).value_of(built(case))
    with case.trying("it computed in float64", fix="never name a dtype: take that of the input"):
        value = Scene(case, masked=True, dtype=torch.float64).value_of(built(case, torch.float64))
        case.expect(value.dtype == torch.float64, "float64 outputs give another dtype", got=value)
        close = torch.allclose(value.float(), single.float(), rtol=1e-2, atol=1e-4)
        got = f"{value.flatten()[0].item():.6g} and {single.flatten()[0].item():.6g}"
        case.expect(close, "float64 and float32 disagree", got=got)
    with case.trying("it computed under bf16 autocast", fix="compute softmax, logarithms and norms in float32"):
        with torch.autocast("cpu", torch.bfloat16):
            value = Scene(case, masked=True, taps_dtype=torch.bfloat16).value_of(built(case))
        what = "under bf16 the loss is not float32"
        case.expect(value.dtype == torch.float32, what, got=value, fix="outputs.float() first")
        case.expect(bool(value.isfinite().all()), "under bf16 the loss is not finite")


def examine_cost(case: Case, term: nn.Module) -> None:
    """Check that the stated parameters are those it trains, and the frozen ones, if stated, those it does not."""
    specs = [ViewSpec("student")]
    if case.params.needs().teacher is not None:
        specs.append(ViewSpec("teacher", "teacher"))
    backbone, shapes = ToyBackboneParams(hidden=WIDTH, patch=2), fixtures.shapes()
    costs = [cost for spec in specs if (cost := case.params.cost(backbone, shapes, spec, 16)) is not None]
    for key, trained in (("parameters", True), ("frozen", False)):
        stated = max((getattr(cost, key) for cost in costs), default=None)
        count = sum(parameter.numel() for parameter in term.parameters() if parameter.requires_grad == trained)
        right = stated is None or abs(stated - count) <= 0.01 * count or (not trained and stated == 0)
        what = f"cost() states another number of {'' if trained else 'frozen '}parameters than it has"
        fix = "parameters: those that take a gradient; frozen: the others; FLOPs: of all"
        case.expect(right, what, got=stated, expect=count, fix=fix)
