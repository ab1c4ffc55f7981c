"""Diagnose a non-finite step: affected samples, the first module with a NaN, and a command that reproduces it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sddit.storage.run_folder import RECIPE
from sddit.training.inputs import step_samples
from sddit.training.loop import accumulate_gradients, training_mode
from sddit.training.nonfinite import discard_step
from sddit.training.nonfinite_origin import tensors_in
from sddit.training.session import Session


@dataclass(slots=True)
class Trace:
    """Origin of the first non-finite number of a step; empty if it had none."""

    inputs: list[int]  # samples that are non-finite in the data set
    output: str = ""  # the first module with a non-finite output
    gradient: str = ""  # the first module, going backward, with a non-finite gradient at its output

    @property
    def origin(self) -> str:
        """Location of the first non-finite number, in a few words; empty if unknown."""
        if self.inputs:
            return f"samples {', '.join(map(str, self.inputs))} of the data"
        return self.output or self.gradient


def nonfinite_report(session: Session, bad: list[str], run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the contents of `non-finite-STEP.json` for the step that the session is about to take."""
    ids, epochs = step_samples(session)
    trace = retrace(session)
    device = ["--device", "cuda"] if session.device.type == "cuda" else []
    return {
        "step": session.step,
        "seed": session.recipe.seed,
        "samples": ids,
        "epochs": epochs,
        "not_finite": bad,
        "began_in": trace.origin,
        "samples_not_finite": trace.inputs,
        "first_output": trace.output,
        "first_gradient": trace.gradient,
        "skipped_before": session.skipped,
        "state_before": str(checkpoint.relative_to(run)),
        "repeat": shlex.join(["sddit-run", str(run / RECIPE), "--resume", str(run), *device]),
    }


def retrace(session: Session) -> Trace:
    """Repeat the step up to its gradient while watching every module. The session does not change."""
    ids, _ = step_samples(session)
    x0, _ = session.dataset.fetch(ids)  # [B, C, H, W]
    intact = x0.isfinite().flatten(1).all(dim=1).tolist()
    trace = Trace([i for i, finite in zip(ids, intact, strict=True) if not finite])
    with training_mode(session), torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
        for name, module in modules_of(session):
            hooks.enter_context(module.register_forward_hook(partial(record_nonfinite, trace, name)))
        accumulate_gradients(session, session.objective.weights(session.step))
    discard_step(session)
    trace.output, trace.gradient = (
        next(filter(None, session.world.from_all(name)), "") for name in (trace.output, trace.gradient)
    )
    return trace


def record_nonfinite(trace: Trace, name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
    """Record module `name` in `trace` if its outputs, or the gradients that arrive at them, are the first non-finite
    ones. For use as a forward hook.
    """

    def check_gradient(gradient: Tensor) -> None:
        if not trace.gradient and not bool(gradient.isfinite().all()):
            trace.gradient = name

    for tensor in tensors_in(outputs):
        if not trace.output and not bool(tensor.isfinite().all()):
            trace.output = name
        if tensor.requires_grad:
            tensor.register_hook(check_gradient)  # type: ignore[no-untyped-call]  # untyped in torch


def modules_of(session: Session) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that takes part in a step, with a name that includes its owner."""
    roots: dict[str, nn.Module] = {"backbone": session.student.backbone}
    roots |= {f"loss.{label}": term for label, term in session.student.terms.items()}
    if session.teacher is not None:
        roots["teacher"] = session.teacher.backbone
        for label, modules in session.teacher.modules.items():
            roots |= {f"teacher.{label}.{name}": module for name, module in modules.items()}
    for root, module in roots.items():
        yield from module.named_modules(prefix=root)
