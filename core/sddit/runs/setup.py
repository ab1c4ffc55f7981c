"""What comes before the first step of a run: its folder is brought in order, and a session stands where it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sddit.distributed import processes
from sddit.distributed.world import World
from sddit.errors import Problem, SdditError, one_of, raise_all
from sddit.evaluation.probe import PROBE, lacks_probe
from sddit.progress import Progress
from sddit.recipes.differences import differences
from sddit.recipes.recipe import Recipe
from sddit.storage.checkpoints import Checkpoint, Store
from sddit.storage.metrics_log import logged_steps
from sddit.storage.run_folder import (
    CHANGES,
    ENVIRONMENT,
    METRICS,
    RECIPE,
    REPORT,
    SCORES,
    RunFolder,
    read_changes,
    read_json,
    refuse_changed,
)
from sddit.training.build import build_session
from sddit.training.environment import configure, describe_environment, device_name
from sddit.training.session import Session
from sddit.training.state import restore

ASIDE = "aside-"  # where --fresh moves what a run folder held


def begin(
    recipe: Recipe,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    *,
    fresh: bool,
    allow: Sequence[str],
    resumed: bool,
) -> bool:
    """Say what is to be run, and bring the folder in order for it. Returns whether all is done already."""
    announce(recipe, folder, device, progress)
    processes.remove_failures(folder.path)
    if fresh:
        set_aside(folder.path)
    changed = accept_changes(folder, recipe, allow, resumed=resumed)
    whole = all((folder.path / name).is_file() for name in (REPORT, SCORES))
    return whole and not changed and not lacks_probe(folder.path, recipe)


def announce(recipe: Recipe, folder: RunFolder, device: torch.device, progress: Progress) -> None:
    """The first lines of a run: what, on which data, where, with which kernel, and what was noticed."""
    facts = recipe.facts
    classes = f"{facts.num_classes} classes" if facts.num_classes else "no classes"
    kernel = f"attention {recipe.attention.component.name}, {recipe.train.precision}"
    progress.note(f"{recipe.name}: {facts.source}, {classes}")
    progress.note(f"run folder {folder.path}, {device_name(device)}, {kernel}")
    if folder.killed:
        progress.note(f"the last process here, {folder.killed}, ended without a word: killed, or out of memory")
    for warning in recipe.warnings:
        progress.warn(warning)
    if (sibling := newest_sibling(folder.path, recipe.name)) and not (folder.path / RECIPE).is_file():
        with suppress(SdditError):  # a damaged neighbour is no matter of this run
            for key, old, new, _ in differences(read_json(sibling / RECIPE), recipe.to_json()):
                progress.note(f"other than {sibling.name}: {key} {old} -> {new}")


def newest_sibling(folder: Path, name: str) -> Path | None:
    """The newest other run of a recipe of this name."""
    others = [path for path in folder.parent.glob(f"{name}-*") if path != folder and (path / RECIPE).is_file()]
    return max(others, key=lambda path: (path / RECIPE).stat().st_mtime, default=None)


def set_aside(folder: Path) -> None:
    """Move what a run folder holds into `aside-N` within it; nothing is deleted."""
    held = [path for path in folder.iterdir() if path.name != "run.lock" and not path.name.startswith(ASIDE)]
    if not held:
        return
    numbers = [int(rest) for path in folder.glob(f"{ASIDE}*") if (rest := path.name.removeprefix(ASIDE)).isdecimal()]
    aside = folder / f"{ASIDE}{1 + max(numbers, default=0)}"
    aside.mkdir()
    for path in held:
        path.rename(aside / path.name)


def accept_changes(folder: RunFolder, recipe: Recipe, allow: Sequence[str], *, resumed: bool) -> bool:
    """Whether this recipe changes the numbers of the run in the folder. Raises unless each such key is allowed."""
    if not (folder.path / RECIPE).is_file():
        return False
    refuse_changed(folder.path / RECIPE)
    found = [change for change in differences(read_json(folder.path / RECIPE), recipe.to_json()) if change[3] != "free"]
    raise_all(refused(folder.path, found, allow, resumed=resumed))
    if not found:
        return False
    folder.write_json(
        CHANGES, read_changes(folder.path) + [{"key": key, "from": old, "to": new} for key, old, new, _ in found]
    )
    for stale in (REPORT, SCORES, PROBE):
        (folder.path / stale).unlink(missing_ok=True)
    return True


def refused(
    folder: Path, changes: Sequence[tuple[str, Any, Any, str]], allow: Sequence[str], *, resumed: bool
) -> Iterator[Problem]:
    """A problem for every change that needs permission, and for every one that no permission makes possible."""
    elsewhere = "run without --resume: it gets its own folder" if resumed else "begin anew with --fresh"
    known = [key for key, *_ in changes]
    for key in allow:
        if not any(covers(key, changed) for changed in known):
            yield Problem(
                "SD-R161",
                f"nothing to allow: {key!r} does not differ",
                where="--allow-change",
                got=key,
                expect=one_of(key, known) if known else "no key: nothing differs",
            )
    for key, old, new, kind in changes:
        got = f"{old} -> {new}"
        if kind == "structural":
            yield Problem(
                "SD-C410", f"the checkpoint is of another model: {key}", where=str(folder), got=got, fix=elsewhere
            )
        elif key == "train.steps" and old is not None and new < old:
            yield Problem(
                "SD-C422",
                "a run cannot be made shorter",
                where=str(folder),
                got=got,
                expect=f"at least {old}",
                fix=elsewhere,
            )
        elif not any(covers(given, key) for given in allow):
            fix = f"--allow-change {key}, or {elsewhere}" if resumed else elsewhere
            yield Problem("SD-C420", f"the recipe differs from the run's: {key}", where=str(folder), got=got, fix=fix)


def covers(given: str, key: str) -> bool:
    """Whether permission for `given` is permission for `key`: the same key, or a table around it."""
    return key == given or key.startswith(f"{given}.")


def prepare(
    recipe: Recipe, folder: RunFolder, store: Store, device: torch.device, progress: Progress, world: World
) -> tuple[Session, int]:
    """A session at the newest good checkpoint of the folder, or before its first step; and where its log was then."""
    checkpoint = newest(store, world)
    while store.notices:
        progress.warn(store.notices.pop(0))
    configure(recipe, device, threads=checkpoint.state.get("threads") if checkpoint else None)
    if world.main:
        describe(recipe, folder, device)
    session = build_session(recipe, device, resumed=checkpoint is not None, world=world)
    for note in session.notes:
        progress.warn(note)
    if checkpoint is None:
        if (lost := logged_steps(folder.path / METRICS)) > 0:
            progress.warn(
                f"{METRICS} tells of {lost:,} steps, and there is no checkpoint of them: training begins anew"
            )
        return session, 0
    state = restore(session, checkpoint)
    progress.note(f"continuing after step {session.step} of {session.total_steps}")
    return session, int(state["log_cursor"])


def newest(store: Store, world: World) -> Checkpoint | None:
    """The checkpoint to continue from: the main rank finds it, each other one reads the same."""
    found: list[Checkpoint | None] = []

    def find() -> int | None:
        store.clean()
        found.append(store.latest())
        return found[0].step if found[0] else None

    step = world.from_main(find)
    if world.main:
        return found[0]
    return None if step is None else store.open(step)


def describe(recipe: Recipe, folder: RunFolder, device: torch.device) -> None:
    """Leave in the folder all that says what is run, and with what."""
    folder.write_sealed_json(RECIPE, recipe.to_json())
    for name, file in recipe.plugin_files.items():  # beside the recipe, so that the folder says all that it needs
        folder.write_bytes(Path(name).name, file.read_bytes())
    folder.write_json(ENVIRONMENT, describe_environment(recipe, device))
