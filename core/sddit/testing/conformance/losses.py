"""Check what holds for every loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sddit.interfaces import Cost, LossParams, NoiseSchedule, Outputs, Tokens, View, ViewSpec, Want
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings
from sddit.testing.toys.params import ToyBackboneParams

WIDTH = 12
KEPT = 10  # of 16 tokens, in the masked case


@dataclass(slots=True)
class LossTrial:
    """Arguments of a loss, and the leaves that its gradient may reach."""

    views: dict[str, View]
    outputs: dict[str, Outputs]
    schedule: NoiseSchedule
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]


def examine(case: Case, findings: Findings) -> None:
    """Try a loss term on views and outputs made from what its params say it needs."""
    with findings.trying("its params were asked what they need", fix="needs() returns sddit.interfaces.Needs"):
        case.params.needs()
        with findings.trying("it was built"):
            term = built(case)
            if not is_a_term(term, findings):
                return
            if all(examine_value(case, term, findings, masked) for masked in (False, True)):
                examine_gradient(case, term, findings)
                examine_memory(case, findings)
                examine_precision(case, findings)
                examine_cost(case, term, findings)


def built(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Return the term with tiny heads, its parameters filled."""
    needs = case.params.needs()
    taps = (*needs.student.taps, *(needs.teacher.taps if needs.teacher else ()))
    with things.default_dtype(dtype), torch.random.fork_rng(devices=[]):
        term = case.build(
            widths=dict.fromkeys(taps, WIDTH), grid=things.GRID, image=things.IMAGE, num_classes=things.CLASSES
        )
    return things.randomised(term) if isinstance(term, nn.Module) else term


def is_a_term(term: Any, findings: Findings) -> bool:
    """Return a module with the methods that the loop calls, and with the submodules named in `ema_modules`."""
    if not findings.expect(
        isinstance(term, nn.Module),
        "it is not a torch.nn.Module",
        got=type(term).__name__,
        fix="subclass sddit.losses.LossTerm",
    ):
        return False
    methods = ("after_step", "staged", "discard", "diagnostics")
    missing = [name for name in methods if not callable(getattr(term, name, None))]
    findings.expect(not missing, f"it lacks {', '.join(missing)}", fix="subclass sddit.losses.LossTerm")
    children = dict(term.named_modules())
    unknown = [name for name in getattr(term, "ema_modules", ()) if name not in children]
    findings.expect(
        not unknown,
        f"`ema_modules` names what it does not have: {', '.join(unknown)}",
        expect=f"of {', '.join(filter(None, children))}",
    )
    return not missing and not unknown


def scene(
    case: Case, *, masked: bool, dtype: torch.dtype = torch.float32, taps_dtype: torch.dtype | None = None
) -> LossTrial:
    """Student views, and teacher views if it needs them, with outputs that hold exactly what it asks for."""
    made = LossTrial({}, {}, case.runtime.get("schedule") or things.schedule(), {}, {})
    params: LossParams = case.params
    needs = params.needs()
    for name in params.views or (("student", "teacher") if needs.teacher else ("student",)):
        network = "teacher" if "teacher" in name and needs.teacher else "student"
        view = view_of(made.schedule, len(made.views), network, masked, dtype)
        want = needs.student if network == "student" else needs.teacher or Want()
        leaves = made.student if network == "student" else made.teacher
        made.views[name] = view
        made.outputs[name] = outputs_of(made.schedule, name, view, want, leaves, taps_dtype or dtype)
    return made


def view_of(schedule: NoiseSchedule, number: int, network: Any, masked: bool, dtype: torch.dtype) -> View:
    """Return a noisy view of the batch, the second less noisy than the first."""
    batch = things.batch(dtype)
    noise = things.numbers(*batch.x0.shape, key=2, dtype=dtype)
    t = schedule.t_from_uniform(torch.linspace(0.4, 0.7, things.BATCH, dtype=torch.float64) / (1 + number)).to(dtype)
    visible = None
    if masked and network == "student":
        order = things.numbers(things.BATCH, 16, key=3).argsort(dim=1)
        visible = order[:, :KEPT].sort(dim=1).values  # [B, K]
    x = schedule.perturb(batch.x0, noise, t)
    return View(network=network, x=x, t=t, labels=batch.labels, x0=batch.x0, noise=noise, visible=visible)


def outputs_of(
    schedule: NoiseSchedule, name: str, view: View, want: Want, leaves: dict[str, Tensor], taps_dtype: torch.dtype
) -> Outputs:
    """Outputs that hold exactly what was asked for, each a leaf of the graph."""

    def leaf(what: str, *shape: int, dtype: torch.dtype = view.x.dtype) -> Tensor:
        key = 100 + len(leaves) + 50 * (view.network == "teacher")
        leaves[f"{name}.{what}"] = things.numbers(*shape, key=key, dtype=dtype).requires_grad_()
        return leaves[f"{name}.{what}"]

    made = Outputs()
    batch = len(view.x)
    if want.output:
        scalings = schedule.scalings(view.t)
        made.raw = leaf("raw", *view.x.shape)
        c_skip, c_out = (c[:, None, None, None] for c in (scalings.c_skip, scalings.c_out))
        made.x0 = c_skip * view.x + c_out * made.raw
        if schedule.outputs > 1:
            made.extra = leaf("extra", *view.x.shape)
    count = 16 if view.visible is None else view.visible.shape[1]
    for tap in want.taps:
        cls = leaf(f"taps[{tap!r}].cls", batch, WIDTH, dtype=taps_dtype) if want.cls else None
        patch = leaf(f"taps[{tap!r}].patch", batch, count, WIDTH, dtype=taps_dtype)
        made.taps[tap] = Tokens(patch, view.visible, cls)
    return made


def called(term: Any, scene: LossTrial, step: int = things.STEP) -> Any:
    """Return the term's value in a scene."""
    ema_modules = {name: things.copy_of(term.get_submodule(name)) for name in term.ema_modules}
    context = replace(things.context(step, ema_modules=ema_modules), schedule=scene.schedule)
    return term(context, scene.views, scene.outputs)


def examine_value(case: Case, term: Any, findings: Findings, masked: bool) -> bool:
    """Shape, finiteness, repeatability, and that nothing it was given is changed."""
    shown = "a masked view" if masked else "a full view"
    shape = () if case.params.couples_samples else (things.BATCH,)
    fix = (
        "return a scalar, or drop couples_samples"
        if not shape
        else "mean over every dimension but the first; a scalar needs couples_samples"
    )
    with findings.trying(f"forward saw {shown}", fix="does needs() declare all that forward reads?"):
        given = scene(case, masked=masked)
        before = things.copied(tensors_of(given))
        with things.no_global_randomness(findings, "forward"):
            value = called(term, given)
            again = called(term, given)
        things.unchanged(findings, before, tensors_of(given), "forward changed what it was given", "work on a copy")
        if not things.is_shaped(findings, value, shape, f"what forward returns for {shown}", fix):
            return False
        if not findings.expect(value.is_floating_point(), "forward returns whole numbers", got=things.shape_of(value)):
            return False
        return findings.expect(
            torch.equal(value, again), "forward gives another value for the same input", fix="draw from ctx.draws"
        )
    return False


def tensors_of(given: LossTrial) -> dict[str, Tensor]:
    """Return all that a term may not change."""
    views = {
        f"{name}.{key}": getattr(view, key)
        for name, view in given.views.items()
        for key in ("x", "t", "x0", "noise", "labels")
    }
    return {**views, **given.student, **given.teacher}


def examine_gradient(case: Case, term: nn.Module, findings: Findings) -> None:
    """Check gradients: to the student and to every own weight, not to the teacher, not across samples."""
    given = scene(case, masked=True)
    value = called(term, given)
    if not findings.expect(
        value.requires_grad, "the loss has no gradient", got="a value detached from the student's outputs",
        fix="look for .detach(), .item(), torch.no_grad(), or a use of labels alone",
    ):  # fmt: skip
        return
    value.sum().backward()
    reached = [name for name, leaf in given.student.items() if leaf.grad is not None]
    findings.expect(
        bool(reached),
        "the loss has no gradient to the student's outputs",
        expect=f"one to any of {', '.join(given.student)}",
    )
    leaking = [name for name, leaf in given.teacher.items() if leaf.grad is not None]
    findings.expect(
        not leaking,
        f"the loss has a gradient to the teacher: {', '.join(leaking)}",
        fix="compute targets under torch.no_grad()",
    )
    idle = [name for name, parameter in term.named_parameters() if parameter.requires_grad and parameter.grad is None]
    findings.expect(
        not idle,
        f"weights of its own get no gradient: {', '.join(idle)}",
        fix="use them in forward, or requires_grad_(False)",
    )
    if not case.params.couples_samples:
        examine_independence(case, term, findings)


def examine_independence(case: Case, term: nn.Module, findings: Findings) -> None:
    """Check that the value of the first sample has no gradient to the others."""
    given = scene(case, masked=True)
    called(term, given)[0].backward()
    mixed = [name for name, leaf in given.student.items() if leaf.grad is not None and bool(leaf.grad[1:].any())]
    findings.expect(
        not mixed, "the value of one sample depends on other samples", got=f"a gradient to {', '.join(mixed)} of "
                                                                           f"the others",
        fix="declare couples_samples and return a scalar",
    )  # fmt: skip


def examine_memory(case: Case, findings: Findings) -> None:
    """Buffers change only in after_step, from what forward staged; discard forgets that; the state can be restored."""
    fix = "stage statistics in forward, and change buffers in after_step"
    term = built(case)
    before = things.copied(dict(term.named_buffers()))
    called(term, scene(case, masked=False))
    things.unchanged(findings, before, dict(term.named_buffers()), "a buffer changed in forward", fix)
    with findings.trying("a step was discarded, and the next one finished"):
        term.discard()
        term.after_step(things.context())
        things.unchanged(
            findings,
            before,
            dict(term.named_buffers()),
            "discard did not forget what forward staged",
            "clear it in discard()",
        )
    with findings.trying("a step was finished"):
        called(term, scene(case, masked=False))
        term.after_step(things.context())
        finite = all(bool(value.isfinite().all()) for value in term.buffers() if value.is_floating_point())
        findings.expect(finite, "a buffer is not finite after after_step")
        examine_diagnostics(term.diagnostics(), findings)
    with findings.trying("what it staged was not finite", fix="yield in staged() all that after_step reads"):
        examine_staging(case, findings)
    with findings.trying("its state was restored"):
        built(case).load_state_dict(term.state_dict())


def examine_staging(case: Case, findings: Findings) -> None:
    """Check that what would make a buffer non-finite is in staged(), before after_step."""
    term, given = built(case), scene(case, masked=False)
    with torch.no_grad():
        for leaf in (*given.student.values(), *given.teacher.values()):
            leaf.fill_(float("nan"))
    called(term, given)
    seen = not all(bool(tensor.isfinite().all()) for tensor in term.staged())
    term.after_step(things.context())
    corrupted = not all(bool(value.isfinite().all()) for value in term.buffers() if value.is_floating_point())
    findings.expect(
        seen or not corrupted,
        "a NaN reaches a buffer, and staged() does not show it",
        fix="yield in staged() all that after_step reads: a step with a NaN in it is then not taken",
    )


def examine_diagnostics(read: Any, findings: Findings) -> None:
    """Scalars by name."""
    if findings.expect(isinstance(read, Mapping), "diagnostics() returns no dict", got=type(read).__name__):
        for name, value in read.items():
            things.is_shaped(findings, value, (), f"the diagnostic {name!r}", 'self.log("name", value) does this')


def examine_precision(case: Case, findings: Findings) -> None:
    """float64 in, float64 out and the same value; bf16 tokens under autocast, still a float32 value."""
    single = called(built(case), scene(case, masked=True))
    with findings.trying("it computed in float64", fix="never name a dtype: take that of the input"):
        value = called(built(case, torch.float64), scene(case, masked=True, dtype=torch.float64))
        findings.expect(value.dtype == torch.float64, "float64 outputs give another dtype", got=things.shape_of(value))
        findings.expect(
            torch.allclose(value.float(), single.float(), rtol=1e-2, atol=1e-4), "float64 and float32 disagree",
            got=f"{value.flatten()[0].item():.6g} and {single.flatten()[0].item():.6g}",
        )  # fmt: skip
    with findings.trying("it computed under bf16 autocast", fix="compute softmax, logarithms and norms in float32"):
        with torch.autocast("cpu", torch.bfloat16):
            value = called(built(case), scene(case, masked=True, taps_dtype=torch.bfloat16))
        findings.expect(
            value.dtype == torch.float32,
            "under bf16 the loss is not float32",
            got=things.shape_of(value),
            fix="outputs.float() first",
        )
        findings.expect(bool(value.isfinite().all()), "under bf16 the loss is not finite")


def examine_cost(case: Case, term: nn.Module, findings: Findings) -> None:
    """Check that the stated parameters are those it has."""
    backbone = ToyBackboneParams(hidden=WIDTH, patch=2)
    shapes = things.shapes()
    stated = [
        cost for view in specs(case.params) if isinstance(cost := case.params.cost(backbone, shapes, view, 16), Cost)
    ]
    count = sum(parameter.numel() for parameter in term.parameters())
    wrong = stated and abs(max(cost.parameters for cost in stated) - count) > 0.01 * count
    findings.expect(
        not wrong, "cost() states another number of parameters than it has",
        got=str(max((cost.parameters for cost in stated), default=0)), expect=str(count),
    )  # fmt: skip


def specs(params: LossParams) -> Iterator[ViewSpec]:
    """Yield the views of a scene as a recipe knows them."""
    yield ViewSpec("student")
    if params.needs().teacher is not None:
        yield ViewSpec("teacher", "teacher")
