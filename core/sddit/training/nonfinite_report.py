"""Diagnose a non-finite step: affected samples, the first module with a NaN, and a command that reproduces it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sddit.storage.run_folder import RECIPE
from sddit.training.inputs import step_samples
from sddit.training.loop import accumulate_gradients, training_mode
from sddit.training.nonfinite import discard_step
from sddit.training.session import Session
from sddit.training.step_metrics import noise_edges


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
        "repeat": reproduction_command(session, run),
    }


def reproduction_command(session: Session, run: Path) -> str:
    """Return the command that takes the step again, from the state before it."""
    command = ["sddit-run", str(run / RECIPE), "--resume", str(run)]
    return shlex.join([*command, *(["--device", "cuda"] if session.device.type == "cuda" else [])])


def retrace(session: Session) -> Trace:
    """Repeat the step up to its gradient while watching every module. The session does not change."""
    ids, _ = step_samples(session)
    x0, _ = session.dataset.fetch(ids)  # [B, C, H, W]
    intact = x0.isfinite().flatten(1).all(dim=1).tolist()
    trace = Trace([i for i, finite in zip(ids, intact, strict=True) if not finite])
    with training_mode(session), torch.compiler.set_stance("force_eager"), watching(session, trace):
        accumulate_gradients(session, session.objective.weights(session.step), noise_edges(session))
    discard_step(session)
    trace.output, trace.gradient = (
        next(filter(None, session.world.from_all(name)), "") for name in (trace.output, trace.gradient)
    )
    return trace


@contextmanager
def watching(session: Session, trace: Trace) -> Iterator[None]:
    """Record in `trace` the first module with a non-finite output, and the first with such a gradient at its output."""

    def watch(name: str, module: nn.Module) -> Any:
        def check_outputs(module: nn.Module, inputs: Any, outputs: Any) -> None:
            for tensor in tensors_in(outputs):
                if not trace.output and not is_finite(tensor):
                    trace.output = name
                if tensor.requires_grad:
                    tensor.register_hook(check_gradient)  # type: ignore[no-untyped-call]  # torch left it untyped

        def check_gradient(gradient: Tensor) -> None:
            if not trace.gradient and not is_finite(gradient):
                trace.gradient = name

        return module.register_forward_hook(check_outputs)

    hooks = [watch(name, module) for name, module in modules_of(session)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a module returned."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
        return
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    elif is_dataclass(outputs):
        outputs = [getattr(outputs, name) for name in outputs.__dataclass_fields__]
    if isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from tensors_in(value)


def is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
