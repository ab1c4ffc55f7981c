"""Train, save and restore small sessions of toys, for checks and tests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import BrokenCheckpoint, verify
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.loop import accumulate_gradients, take_step, training_mode
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore


def toy_session(*overrides: str, device: str = "cpu", steps: int = 0) -> Session:
    """Return a session after `steps` steps, with a masked student, a teacher, two losses and an EMA."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "toy.toml"
        file.write_text(TOY_PAIR_RECIPE, encoding="utf-8")
        recipe = resolve(file, ["ema.main.decay=0.9", *overrides], host=toy_host())
    session = build_session(recipe, torch.device(device))
    advance(session, steps)
    return session


def advance(session: Session, steps: int) -> None:
    """Take training steps."""
    with training_mode(session):
        for _ in range(steps):
            take_step(session)


def gradient(session: Session) -> Tensor:
    """Return the student's gradient of the first step, flattened to one float64 vector on the CPU."""
    with training_mode(session):
        accumulate_gradients(session, session.objective.weights(0))
    return torch.cat([p.grad.double().flatten() for p in session.student.parameters() if p.grad is not None]).cpu()


def state_of(session: Session) -> dict[str, Tensor]:
    """Return every tensor on which the next step depends, by name."""
    parts: dict[str, Mapping[str, Tensor]] = {"student": session.student.state_dict()}
    parts |= {f"ema.{label}": ema.module.state_dict() for label, ema in session.emas.items()}
    if session.teacher is not None:
        parts["teacher"] = session.teacher.tensors()
    moments = session.optimizer.state_dict()["state"]
    parts |= {f"optimizer.{i}": {k: torch.as_tensor(v) for k, v in entry.items()} for i, entry in moments.items()}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def save(session: Session, folder: Path) -> Path:
    """Save a checkpoint and return its path."""
    return Store(folder, keep=2).save(session.step, checkpoint_files(session, {}))


def restore_latest(session: Session, folder: Path) -> None:
    """Restore the newest intact checkpoint. Raises SdditError (SD-C402) if none is intact."""
    found = Store(folder, keep=2).latest()
    assert found is not None
    restore(session, found)


def is_intact(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint is as it was written."""
    try:
        verify(checkpoint)
    except BrokenCheckpoint:
        return False
    return True
