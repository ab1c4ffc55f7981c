"""Train a list of cases as one rank of several, or alone, and store the results: the program of `on_ranks`.

torchrun's environment, python tests/ranks.py CASES.json FOLDER
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sddit.distributed import processes, rendezvous
from sddit.distributed.parallel import full_tensor
from sddit.distributed.rendezvous import join_processes
from sddit.distributed.world import DistributedWorld, World
from sddit.generation import balanced, generate
from sddit.plugins.host import host
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.testing.toys import plugin as toys
from sddit.training import build, loop
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.nonfinite import NonFinite
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

IMAGES = 7


class Until:
    """Callbacks that stop after a number of steps, and keep the rows of the log."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[dict[str, float]] = []

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        self.rows.append({key: value for key, value in row.items() if "seconds" not in key})

    def stepped(self, session: Session) -> None:
        if session.step == self.step or session.world.stop.requested:
            raise StopIteration


def alone(student: Any, *others: Any) -> Any:
    """Return the student without the wrapper that averages its gradients."""
    return student


def own(self: World, x: Tensor) -> Tensor:
    """Return x, without a mean over ranks."""
    return x


DEFECTS: Mapping[str, tuple[Any, str, Any]] = {
    "gradients are not averaged": (build, "wrap_parallel", alone),
    "means are of one rank": (DistributedWorld, "mean", own),
    "all take the same rows": (
        DistributedWorld,
        "rows",
        lambda self, begin, count: slice(begin, begin + count // self.size),
    ),
    "untouched gradients stay zero": (loop, "drop_unused_gradients", lambda root, optimizer, used: None),
}
"""Defects that an equality test must detect."""


def corrupt_staged(world: World, session: Session) -> None:
    """Plant a NaN on the second rank only, in the staged statistics of a loss."""
    if world.rank == 1 and session.step == 3:
        for staged in session.student.terms["agree"].staged():
            staged.fill_(math.nan)


def send_stop(world: World, session: Session) -> None:
    """Send a stop signal to the second rank only."""
    if world.rank == 1 and session.step == 3:
        world.stop.received = signal.SIGTERM


FAULTS: Mapping[str, Callable[[World, Session], None]] = {"nan": corrupt_staged, "signal": send_stop}
"""Faults of one rank after the forward pass of a step."""


def main(cases: list[dict[str, Any]], folder: Path) -> None:
    """Train each case in turn, in one process group."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    host().add("toy", toys)
    with join_processes(torch.device("cpu"), 60.0) as world:
        gradient = coupled_gradient(world)
        if world.main:
            save_file({"gradient": gradient}, folder / f"coupled-{world.size}.safetensors")
        for case in cases:
            result = trained(case, world, folder)
            keep(result, folder / case["name"])


def coupled_gradient(world: World) -> Tensor:
    """Return the gradient of a loss that compares each row with the rows of all ranks, and with their mean."""
    x = torch.sin(torch.arange(24.0, dtype=torch.float64)).view(8, 3)
    weight = torch.eye(3, dtype=torch.float64).requires_grad_()
    rows = world.rows(0, 8)
    z = x[rows] @ weight  # [8 / ranks, 3]
    places = torch.arange(8)[rows]
    contrast = torch.nn.functional.cross_entropy(z @ world.gather(z).T, places)
    spread = (z - world.mean(z.mean(dim=0))).square().mean()
    torch.autograd.backward(contrast + spread)
    assert weight.grad is not None
    return world.mean(weight.grad)


def trained(case: Mapping[str, Any], world: World, folder: Path) -> tuple[Session, Until]:
    """Return the session of a case after its steps, with a planted defect if the case names one."""
    recipe = resolve(Path(case["recipe"]), case["overrides"])
    until = Until(case["steps"])
    owner, name, value = DEFECTS.get(case.get("defect", ""), (rendezvous, "JOIN", rendezvous.JOIN))
    whole = getattr(owner, name)
    setattr(owner, name, value)
    try:
        session = build_session(recipe, torch.device("cpu"), world=world)
        if begin := case.get("begin"):
            found = Store(folder / begin / "checkpoints", keep=1).latest()
            assert found is not None
            restore(session, found)
        with suppress(StopIteration, NonFinite), happening(case.get("fault"), session):
            train(session, until)
    finally:
        setattr(owner, name, whole)
    return session, until


@contextmanager
def happening(fault: str | None, session: Session) -> Iterator[None]:
    """Let a fault happen after each forward pass."""
    if fault is None:
        yield
        return
    hook = session.student.register_forward_hook(lambda *_: FAULTS[fault](session.world, session))
    try:
        yield
    finally:
        hook.remove()


def keep(result: tuple[Session, Until], folder: Path) -> None:
    """Store the rows, the weights and a checkpoint."""
    session, until = result
    files, tensors = checkpoint_files(session, {}), tensors_of(session)  # each rank may hold a part of them
    images = sampled(session)
    if session.world.main:
        folder.mkdir(parents=True)
        (folder / "rows.json").write_text(json.dumps(until.rows))
        Store(folder / "checkpoints", keep=1).save(session.step, files)
        save_file({**tensors, "images": images}, folder / "tensors.safetensors")


def sampled(session: Session) -> Tensor:
    """Return images before rounding, an odd number of them; each rank samples a part."""
    request = balanced(session.recipe.shapes.num_classes, IMAGES, session.recipe.seed)
    weights = session.weights(session.recipe.evaluate.weights)
    own = request.part(session.world.partition(IMAGES))
    return session.world.collect(generate(weights, session.schedule, session.recipe, own), IMAGES).contiguous()


def tensors_of(session: Session) -> dict[str, Tensor]:
    """Return copies of all tensors that the next steps depend on."""
    found = {f"student.{k}": v for k, v in session.student.state_dict().items()}
    if session.teacher is not None:
        found |= {f"teacher.{k}": v for k, v in session.teacher.tensors().items()}
    for label, ema in session.emas.items():
        found |= {f"ema.{label}.{k}": v for k, v in ema.module.state_dict().items()}
    for index, entries in session.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
    return {name: full_tensor(found[name].detach()).clone().contiguous() for name in sorted(found)}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    processes.exit_process(0)
