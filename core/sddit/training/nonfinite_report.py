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

from sddit.data.order import batch_ids
from sddit.storage.run_folder import RECIPE
from sddit.training.loop import accumulate_gradients, training_mode
from sddit.training.nonfinite import discard_step
from sddit.training.session import Session
from sddit.training.step_metrics import noise_edges


@dataclass(slots=True)
class Trace:
    """Where a step first had a number that is not finite; empty: nowhere."""

    inputs: list[int]  # samples that come so out of the data set
    output: str = ""  # the first module with such an output
    gradient: str = ""  # the first module, going backward, with such a gradient at its output

    @property
    def began(self) -> str:
        """Where it began, in a few words; empty: unknown."""
        return (
            f"samples {', '.join(map(str, self.inputs))} of the data" if self.inputs else self.output or self.gradient
        )


def evidence(session: Session, bad: list[str], run: Path, checkpoint: Path) -> dict[str, Any]:
    """The facts of the step that the session stands before, for `non-finite-STEP.json` of its run folder."""
    ids, epochs = batch_ids(session.recipe.seed, session.step, session.recipe.train.batch, len(session.dataset))
    trace = retrace(session)
    return {
        "step": session.step,
        "seed": session.recipe.seed,
        "samples": ids,
        "epochs": epochs,
        "not_finite": bad,
        "began_in": trace.began,
        "samples_not_finite": trace.inputs,
        "first_output": trace.output,
        "first_gradient": trace.gradient,
        "skipped_before": session.skipped,
        "state_before": str(checkpoint.relative_to(run)),
        "repeat": repeat(session, run),
    }


def repeat(session: Session, run: Path) -> str:
    """The command that takes the step again: it continues from the state before it."""
    command = ["sddit-run", str(run / RECIPE), "--resume", str(run)]
    return shlex.join([*command, *(["--device", "cuda"] if session.device.type == "cuda" else [])])


def retrace(session: Session) -> Trace:
    """Take the step once more, up to its gradient, and watch every module. The session is afterwards as it was."""
    ids, _ = batch_ids(session.recipe.seed, session.step, session.recipe.train.batch, len(session.dataset))
    x0, _ = session.dataset.fetch(ids)  # [B, C, H, W]
    trace = Trace([i for i, fine in zip(ids, x0.isfinite().flatten(1).all(dim=1).tolist(), strict=True) if not fine])
    with training_mode(session), torch.compiler.set_stance("force_eager"), watched(session, trace):
        accumulate_gradients(session, session.objective.weights(session.step), noise_edges(session))
    discard_step(session)
    trace.output, trace.gradient = (
        next(filter(None, session.world.from_all(name)), "") for name in (trace.output, trace.gradient)
    )
    return trace


@contextmanager
def watched(session: Session, trace: Trace) -> Iterator[None]:
    """Note in `trace` the first module with a bad output, and the first with a bad gradient at its output."""

    def watch(name: str, module: nn.Module) -> Any:
        def seen(module: nn.Module, inputs: Any, outputs: Any) -> None:
            for tensor in tensors_in(outputs):
                if not trace.output and not finite(tensor):
                    trace.output = name
                if tensor.requires_grad:
                    tensor.register_hook(came_back)  # type: ignore[no-untyped-call]  # torch left it untyped

        def came_back(gradient: Tensor) -> None:
            if not trace.gradient and not finite(gradient):
                trace.gradient = name

        return module.register_forward_hook(seen)

    hooks = [watch(name, module) for name, module in modules_of(session)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def modules_of(session: Session) -> Iterator[tuple[str, nn.Module]]:
    """Every module that takes part in a step, by a name that says whose it is."""
    roots: dict[str, nn.Module] = {"backbone": session.student.backbone}
    roots |= {f"loss.{label}": term for label, term in session.student.terms.items()}
    if session.teacher is not None:
        roots["teacher"] = session.teacher.backbone
        for label, modules in session.teacher.modules.items():
            roots |= {f"teacher.{label}.{name}": module for name, module in modules.items()}
    for root, module in roots.items():
        yield from module.named_modules(prefix=root)


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returned."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from tensors_in(value)
    elif is_dataclass(outputs):
        for name in outputs.__dataclass_fields__:
            yield from tensors_in(getattr(outputs, name))


def finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
