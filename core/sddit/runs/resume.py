"""Decide what a run may change when it resumes, and where it resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sddit.distributed.world import World
from sddit.errors import Problem, one_of, raise_all
from sddit.evaluation.probe import PROBE
from sddit.recipes.differences import differences
from sddit.recipes.recipe import Recipe
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Checkpoint
from sddit.storage.run_folder import (
    CHANGES,
    RECIPE,
    REPORT,
    SCORES,
    RunFolder,
    read_changes,
    read_json,
    refuse_changed,
)


def accept_changes(folder: RunFolder, recipe: Recipe, allow: Sequence[str], *, resumed: bool) -> bool:
    """Return whether the recipe changes the results of the run in the folder, and record the changes there.

    Raises SdditError unless `allow` covers each key that differs. A report and scores of before the change are removed.
    """
    if not (folder.path / RECIPE).is_file():
        return False
    refuse_changed(folder.path / RECIPE)
    found = [change for change in differences(read_json(folder.path / RECIPE), recipe.to_json()) if change[3] != "free"]
    raise_all(change_problems(folder.path, found, allow, resumed=resumed))
    if not found:
        return False
    folder.write_json(
        CHANGES, read_changes(folder.path) + [{"key": key, "from": old, "to": new} for key, old, new, _ in found]
    )
    for stale in (REPORT, SCORES, PROBE):
        (folder.path / stale).unlink(missing_ok=True)
    return True


def change_problems(
    folder: Path, changes: Sequence[tuple[str, Any, Any, str]], allow: Sequence[str], *, resumed: bool
) -> Iterator[Problem]:
    """Yield a problem for each change that is not permitted or not possible, and each permission without a change."""
    elsewhere = "run without --resume to use a new folder" if resumed else "start over with --fresh"
    known = [key for key, *_ in changes]
    for key in allow:
        if not any(key_covers(key, changed) for changed in known):
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
        elif not any(key_covers(given, key) for given in allow):
            fix = f"--allow-change {key}, or {elsewhere}" if resumed else elsewhere
            yield Problem("SD-C420", f"the recipe differs from the run's: {key}", where=str(folder), got=got, fix=fix)


def key_covers(given: str, key: str) -> bool:
    """Return whether permission for `given` includes `key`: the same key, or a table around it."""
    return key == given or key.startswith(f"{given}.")


def newest_checkpoint(store: Store, world: World) -> Checkpoint | None:
    """Return the checkpoint to resume from. The main rank finds it, and every other rank opens the same one."""
    found: list[Checkpoint | None] = []

    def find() -> int | None:
        store.clean()
        found.append(store.latest())
        return found[0].step if found[0] else None

    step = world.from_main(find)
    if world.main:
        return found[0]
    return None if step is None else store.open(step)
