"""Check what holds for every loss: the rules of the first training step, and more, on tiny tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sddit.interfaces import LossParams, Needs, NoiseSchedule, Outputs, Tokens, View, ViewSpec, Want
from sddit.plugins.mistakes import DTYPE
from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.testing.toys.params import ToyBackboneParams
from sddit.training import loss_checks
from sddit.training.findings import is_initialized
from sddit.training.loss_checks import Scene
from sddit.training.simulated_ranks import check_ranks

WIDTH = 12
KEPT = 10  # of 16 tokens, in the masked case
OTHER_DTYPE = "float64 outputs give another dtype"


def scene_of(
    case: Case,
    term: nn.Module,
    *,
    masked: bool,
    dtype: torch.dtype = torch.float32,
    taps_dtype: torch.dtype | None = None,
) -> Scene:
    """Return views, and outputs that hold exactly what a loss asks for."""
    schedule: NoiseSchedule = case.runtime.get("schedule") or fixtures.schedule()
    params: LossParams = case.params
    needs = params.needs()
    views: dict[str, View] = {}
    outputs: dict[str, Outputs] = {}
    for name in params.views or (("student", "teacher") if needs.teacher else ("student",)):
        teacher = needs.teacher if "teacher" in name else None
        view = views[name] = view_of(schedule, "teacher" if teacher else "student", masked, dtype, len(views))
        outputs[name] = outputs_of(schedule, view, teacher or needs.student, taps_dtype or dtype)
    modules = {name: copy.deepcopy(term.get_submodule(name)).requires_grad_(False) for name in ema_modules(term)}
    return Scene(replace(fixtures.context(ema_modules=modules), schedule=schedule), views, outputs)


def ema_modules(term: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = term.ema_modules
    return names


def view_of(
    schedule: NoiseSchedule, network: Literal["student", "teacher"], masked: bool, dtype: torch.dtype, earlier: int
) -> View:
    """Return a noisy view of the batch, less noisy than the earlier ones."""
    batch = fixtures.batch(dtype)
    noise = fixtures.numbers(*batch.x0.shape, key=2, dtype=dtype)
    u = torch.linspace(0.4, 0.7, fixtures.BATCH, dtype=torch.float64) / (1 + earlier)
    t = schedule.t_from_uniform(u).to(dtype)
    visible = fixtures.visible(16, KEPT) if masked and network == "student" else None  # [B, K]
    x = schedule.perturb(batch.x0, noise, t)
    return View(network=network, x=x, t=t, labels=batch.labels, x0=batch.x0, noise=noise, visible=visible)


def outputs_of(schedule: NoiseSchedule, view: View, want: Want, taps_dtype: torch.dtype) -> Outputs:
    """Return the wanted outputs for a view; the scene computes x0 of the raw output."""
    keys = iter(range(100 + 50 * (view.network == "teacher"), 1000))

    def numbers(*shape: int, dtype: torch.dtype = view.x.dtype) -> Tensor:
        return fixtures.numbers(*shape, key=next(keys), dtype=dtype)

    outputs = Outputs()
    if want.output:
        outputs.raw = numbers(*view.x.shape)
        if schedule.outputs > 1:
            outputs.extra = numbers(*view.x.shape)
        for head in want.heads:  # the scene computes their x0
            raw = numbers(*view.x.shape)
            outputs.heads[head] = raw, raw
    count = 16 if view.visible is None else KEPT
    for tap in want.taps:
        cls = numbers(fixtures.BATCH, WIDTH, dtype=taps_dtype) if want.cls else None
        patch = numbers(fixtures.BATCH, count, WIDTH, dtype=taps_dtype)
        outputs.taps[tap] = Tokens(patch, view.visible, cls)
    return outputs


def examine(case: Case) -> None:
    """Check a loss on views and outputs made from what its params say it needs."""
    with case.trying("its params were asked what they need", fix="needs() returns sddit.interfaces.Needs"):
        needs = case.params.needs()
        if not case.instance(needs, Needs, "needs() returns no Needs", "return Needs(student=Want(...))"):
            return
        with case.trying("it was built"):
            term = built(case)
            if is_term(case, term) and all(examine_value(case, masked) for masked in (False, True)):
                examine_gradient(case, term)
                examine_memory(case)
                examine_precision(case)
                examine_processes(case)
                examine_cost(case, term)


def built(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Return the loss with tiny heads, its parameters filled."""
    needs = case.params.needs()
    taps = (*needs.student.taps, *(needs.teacher.taps if needs.teacher else ()))
    with fixtures.default_dtype(dtype), torch.random.fork_rng(devices=[]):
        widths = dict.fromkeys(taps, WIDTH)
        term = case.build(widths=widths, grid=fixtures.GRID, image=fixtures.IMAGE, num_classes=fixtures.CLASSES)
        if not isinstance(term, nn.Module) or not is_initialized(term):
            return term
        return fixtures.randomised(term).train()  # frozen modules stay in evaluation mode


def is_term(case: Case, term: Any) -> bool:
    """Return whether it is a module with the methods that the loop calls and the submodules of `ema_modules`."""
    fix = "subclass sddit.losses.LossTerm"
    if not case.instance(term, nn.Module, "it is not a torch.nn.Module", fix) or not case.initialized(term):
        return False
    methods = ("after_step", "staged", "discard", "diagnostics")
    missing = [name for name in methods if not callable(getattr(term, name, None))]
    case.expect(not missing, f"it lacks {', '.join(missing)}", fix=fix)
    children = dict(term.named_modules())
    unknown = [name for name in getattr(term, "ema_modules", ()) if name not in children]
    what = f"`ema_modules` names what it does not have: {', '.join(unknown)}"
    case.expect(not unknown, what, expect=f"of {', '.join(filter(None, children))}")
    return not missing and not unknown


def examine_value(case: Case, masked: bool) -> bool:
    """Check shape, finiteness and repeatability, and that nothing it was given is changed."""
    term = built(case)
    scene = scene_of(case, term, masked=masked)
    with case.trying(f"forward saw {scene.shown}", fix="correct the line above", masked=scene.masked):
        return loss_checks.check_value(case, term, case.params, scene)
    return False


def examine_gradient(case: Case, term: nn.Module) -> None:
    """Check gradients: to the student and to every own weight, not to the teacher, not across samples."""
    scene = scene_of(case, term, masked=True)
    teacher = scene.leaves["teacher"]
    with case.trying("its gradient was computed"):
        if not loss_checks.check_gradient(case, term, case.params, scene):
            return
        scene.value_of(term).sum().backward()
        leaking = ", ".join(name for name, leaf in teacher.items() if leaf.grad is not None)
        what = f"the loss has a gradient to the teacher: {leaking}"
        case.expect(not leaking, what, fix="compute targets under torch.no_grad()")
        idle = ", ".join(name for name, p in term.named_parameters() if p.requires_grad and p.grad is None)
        what = f"weights of its own get no gradient: {idle}"
        case.expect(not idle, what, fix="use them in forward, or requires_grad_(False)")
        if case.params.couples_samples:
            return
        scene = scene_of(case, term, masked=True)
        scene.value_of(term)[0].backward()
        gradients = {name: leaf.grad for name, leaf in scene.leaves["student"].items() if leaf.grad is not None}
        mixed = ", ".join(name for name, gradient in gradients.items() if bool(gradient[1:].any()))
        got = f"a gradient to {mixed} of the others"
        case.expect(not mixed, loss_checks.COUPLED, got=got, fix=loss_checks.DECLARE_COUPLED)


def examine_memory(case: Case) -> None:
    """Check that buffers change only in after_step, from what forward staged, and that the state can be restored."""
    term = built(case)

    def buffers() -> dict[str, Tensor]:
        return dict(term.named_buffers())

    scene_of(case, term, masked=False).value_of(term)
    forgotten = case.unchanged(buffers, "discard did not forget what forward staged", "clear it in discard()")
    with case.trying("a step was discarded, and the next one finished"), forgotten:
        term.discard()
        term.after_step(fixtures.context())
    with case.trying("a step was finished"):
        scene_of(case, term, masked=False).value_of(term)
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
    scene = scene_of(case, term, masked=False)
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
    term = built(case)
    single = scene_of(case, term, masked=True).value_of(term)
    with case.trying("it computed in float64", fix=DTYPE):
        term = built(case, torch.float64)
        value = scene_of(case, term, masked=True, dtype=torch.float64).value_of(term)
        case.expect(value.dtype == torch.float64, OTHER_DTYPE, got=value, fix=DTYPE)
        close = torch.allclose(value.float(), single.float(), rtol=1e-2, atol=1e-4)
        got = f"{value.flatten()[0].item():.6g} and {single.flatten()[0].item():.6g}"
        case.expect(close, "float64 and float32 disagree", got=got, fix=DTYPE)
    fix = "compute softmax, logarithms and norms in float32"
    with case.trying("it computed under bf16 autocast", fix=fix):
        term = built(case)
        scene = scene_of(case, term, masked=True, taps_dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value = scene.value_of(term)
        case.expect(value.dtype == torch.float32, "under bf16 the loss is not float32", got=value, fix=DTYPE)
        case.expect(bool(value.isfinite().all()), "under bf16 the loss is not finite", fix=fix)


def examine_processes(case: Case) -> None:
    """Check in float64 that a value depends neither on other samples nor on the number of processes."""
    known = {problem.what for problem in case.problems}
    if known & {OTHER_DTYPE, loss_checks.COUPLED, "the gradient of the loss is not finite"}:
        return
    with case.trying("its samples were divided among two processes", masked=True):
        term = built(case, torch.float64)
        scene = scene_of(case, term, masked=True, dtype=torch.float64)
        if loss_checks.check_independence(case, term, case.params, scene):
            check_ranks(case, term, case.params, scene)


def examine_cost(case: Case, term: nn.Module) -> None:
    """Check that the stated parameters are those it trains, and the frozen ones, if stated, those it does not."""
    specs = [ViewSpec("student")]
    if case.params.needs().teacher is not None:
        specs.append(ViewSpec("teacher", "teacher"))
    backbone, shapes = ToyBackboneParams(hidden=WIDTH, patch=2), fixtures.shapes()
    with case.trying("its params were asked what it costs", fix="return a Cost, or None for not stated"):
        costs = [case.params.cost(backbone, shapes, spec, 16) for spec in specs]
        loss_checks.check_parameters(case, term, costs)
