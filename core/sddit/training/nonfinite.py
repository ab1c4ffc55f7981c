"""Detect non-finite steps on all ranks, and skip them or stop."""

from __future__ import annotations

import torch

from sddit.data.order import batch_ids
from sddit.errors import Problem, SdditError
from sddit.training.optimization import forget_untouched
from sddit.training.session import Session
from sddit.training.step_metrics import StepResult


def not_finite(session: Session, result: StepResult) -> list[str]:
    """What of a step holds a NaN or an infinity: losses, the gradient, what terms staged, on any rank.

    The one read of the device in a step, and the one message by which ranks agree on what to do with it.
    """
    values = {f"loss.{label}": [value] for label, value in result.terms.items()}
    values["the gradient"] = [result.grad_norm]
    values |= {f"what loss.{label} staged": list(term.staged()) for label, term in session.student.terms.items()}  # type: ignore[operator]
    names = [name for name, tensors in values.items() for _ in tensors]
    here = ~torch.stack([torch.isfinite(tensor).all() for tensors in values.values() for tensor in tensors])
    bad, touched = session.world.synchronize_status(here, result.touched)
    forget_untouched(session.root, session.optimizer, touched)
    if not bool(bad.any()):
        return []
    return list(dict.fromkeys(name for name, flag in zip(names, bad.tolist(), strict=True) if flag))


def forget_step(session: Session) -> None:
    """Drop what a step left behind that is not taken: gradients, what terms staged and measured."""
    session.optimizer.zero_grad(set_to_none=True)
    for term in session.student.terms.values():
        term.discard()  # type: ignore[operator]
        term.diagnostics()  # type: ignore[operator]


def skip_step(session: Session, bad: list[str]) -> None:
    """Go on to the next step with nothing changed. Raises NonFinite once the recipe allows no more of this."""
    allowed = session.recipe.train.skip_non_finite
    if len(session.skipped) == allowed:
        raise NonFinite(session, bad)
    session.skipped.append(session.step)
    session.step += 1


class NonFinite(SdditError):
    """A step whose numbers were not finite, and that the recipe does not let be skipped. Nothing was changed by it."""

    def __init__(self, session: Session, bad: list[str]) -> None:
        ids, _ = batch_ids(session.recipe.seed, session.step, session.recipe.train.batch, len(session.dataset))
        before = f", after {len(session.skipped)} skipped steps" if session.skipped else ""
        self.bad = bad
        super().__init__(
            Problem(
                "SD-N501",
                f"a non-finite value at step {session.step}{before}; nothing was changed by it",
                where=f"samples {', '.join(map(str, ids[:8]))}, ...",
                got=f"{', '.join(bad)}: not finite",
                expect="finite losses and gradients",
                fix="lower optimizer.lr, set optimizer.clip, or train.precision=fp32; look at these samples",
            )
        )
