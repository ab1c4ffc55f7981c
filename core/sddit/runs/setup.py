"""Prepare a run folder and a session before the first step: what may change when a run resumes, and where it does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sddit.distributed import processes
from sddit.distributed.world import World
from sddit.errors import Problem, SdditError, one_of, raise_all
from sddit.evaluation.probe import PROBE, lacks_probe
from sddit.evaluation.sample_images import preview_name
from sddit.evaluation.scoring import read_scores
from sddit.progress import Progress
from sddit.recipes.differences import Difference, differences, joined_revision
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import named_weights
from sddit.storage import run_folder
from sddit.storage.averages import remove_later
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Checkpoint
from sddit.storage.metrics_log import logged_steps
from sddit.storage.run_folder import CHANGES, ENVIRONMENT, METRICS, RECIPE, REPORT, SCORES, RunFolder, read_json
from sddit.storage.run_result import RESULT, result_damage
from sddit.training.build import build_session
from sddit.training.environment import configure, describe_environment, device_name
from sddit.training.session import Session
from sddit.training.state import restore


def prepare_folder(
    recipe: Recipe,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    *,
    fresh: bool,
    allow: Sequence[str],
    resumed: bool,
) -> bool:
    """Announce a run and prepare its folder. Returns whether the run is already finished."""
    announce(recipe, folder, device, progress)
    processes.remove_failures(folder.path)
    if fresh:
        folder.set_aside()
    elif not (folder.path / RECIPE).is_file():
        warn_of_changed_data(folder.path, recipe, progress)
    changed = accept_changes(folder, recipe, allow, resumed=resumed)
    if changed or not (folder.path / REPORT).is_file() or lacks_probe(folder.path, recipe):
        return False
    if damage := damage_of_result(folder.path, recipe):
        progress.warn(f"the result is not complete: {damage}; it is made again from the last checkpoint")
        (folder.path / RESULT).unlink(missing_ok=True)  # it seals other files than those that follow
        (folder.path / preview_name(recipe.train.steps)).unlink(missing_ok=True)  # made again if it is missing
        return False
    record_places(folder, recipe)
    return True


def record_places(folder: RunFolder, recipe: Recipe) -> None:
    """Record where the data and the codec of a finished run are now, for commands that read them later."""
    stated, now = read_json(folder.path / RECIPE), recipe.to_json()
    places = {key: now[key] for key in ("dataset", "codec") if key in now}
    if stated != {**stated, **places}:
        folder.write_sealed_json(RECIPE, {**stated, **places, "data": now["data"]})


def damage_of_result(folder: Path, recipe: Recipe) -> str:
    """Return why the result of a run has to be made again; empty if it is complete and can be read."""
    if damage := result_damage(folder, recipe.run_id, recipe.features):
        return damage
    try:
        read_scores(folder)
    except SdditError as fault:
        return f"{SCORES} cannot be used: {fault.problems[0].got}"
    return ""


def announce(recipe: Recipe, folder: RunFolder, device: torch.device, progress: Progress) -> None:
    """Show data, folder, device and kernel of a run, its warnings, and how it differs from the newest similar run."""
    facts = recipe.facts
    classes = f"{facts.num_classes} classes" if facts.num_classes else "no classes"
    kernel = f"attention {recipe.attention.component.name}, {recipe.train.precision}"
    progress.note(f"{recipe.name}: {facts.source}, {classes}")
    progress.note(f"run folder {folder.path}, {device_name(device)}, {kernel}")
    if folder.killed:
        end = "exited without cleanup; it was killed, ran out of memory, or a plugin ended it"
        progress.note(f"the previous process ({folder.killed}) {end}")
    for warning in recipe.warnings:
        progress.warn(warning)
    if (sibling := newest_sibling(folder.path, recipe.name)) and not (folder.path / RECIPE).is_file():
        with suppress(SdditError):  # damage in another run folder does not concern this run
            for key, old, new, _ in joined_revision(differences(read_json(sibling / RECIPE), recipe.to_json())):
                progress.note(f"differs from {sibling.name}: {key} {_short(old)} -> {_short(new)}")


def _short(value: Any) -> Any:
    """Return the first digits of a hash, and any other value as it is."""
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def newest_sibling(folder: Path, name: str) -> Path | None:
    """Return the newest other run of a recipe of this name."""
    others = [path for path in folder.parent.glob(f"{name}-*") if path != folder and (path / RECIPE).is_file()]
    return max(others, key=lambda path: (path / RECIPE).stat().st_mtime, default=None)


def warn_of_changed_data(folder: Path, recipe: Recipe, progress: Progress) -> None:
    """Warn before a new run if an unfinished one next to it differs in nothing but its data.

    The data of a run are part of its id, so that the command to resume it would start over without a word.
    """
    for path in sorted(folder.parent.glob(f"{recipe.name}-*/{RECIPE}")):
        unfinished = (path.parent / "checkpoints").is_dir() and not (path.parent / REPORT).is_file()
        if unfinished and (changes := changed_data(path, recipe)):
            allowed = " ".join(f"--allow-change {key}" for key in changes)
            progress.warn(
                f"the data changed after the unfinished run {path.parent.name} began, so this is a new run; to "
                f"continue that one, restore the data, or add --resume {path.parent} {allowed} [SD-C407]"
            )


def changed_data(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Return {key: old value} of what differs from the resolved recipe at `path` if that is only the data."""
    try:
        found = {key: old for key, old, _, kind in differences(read_json(path), recipe.to_json()) if kind != "free"}
    except SdditError:  # damage in another run folder does not concern this run
        return {}
    measured = {key for key, origin in recipe.origins.items() if origin.endswith(", measured")}
    others = [key for key in found if not key.startswith("data.") and key not in measured]
    return {} if others or "data.fingerprint" not in found else found


def prepare_session(
    recipe: Recipe, folder: RunFolder, store: Store, device: torch.device, progress: Progress, world: World
) -> tuple[Session, int]:
    """Return a session at the newest intact checkpoint or before the first step, and the log's length in bytes."""
    checkpoint = newest_checkpoint(store, world)
    while store.notices:
        progress.warn(store.notices.pop(0))
    configure(recipe, device, threads=checkpoint.state.get("threads") if checkpoint else None)
    if world.main:  # so that the folder describes the run completely
        earlier = [id for id in run_folder.recorded_ids(folder.path) if id != recipe.run_id]
        folder.write_sealed_json(RECIPE, {**recipe.to_json(), run_folder.RUN_IDS: [recipe.run_id, *earlier]})
        for name, file in recipe.plugin_files.items():
            folder.write_bytes(Path(name).name, file.read_bytes())
        folder.write_json(ENVIRONMENT, describe_environment(recipe, device))
        remove_later(folder.path, checkpoint.step if checkpoint else 0)
    start = named_weights(recipe.start, "start") if recipe.start and not checkpoint else None
    snapshot = named_weights(recipe.snapshot, "snapshot") if recipe.snapshot and not checkpoint else None
    session = build_session(recipe, device, start=start, snapshot=snapshot, world=world)
    for note in session.notes:
        progress.warn(note)
    if checkpoint is None:
        if (lost := logged_steps(folder.path / METRICS)) > 0:
            progress.warn(f"{METRICS} has {lost:,} steps but no checkpoint was found; restarting from step 0")
        return session, 0
    state = restore(session, checkpoint)
    progress.note(f"continuing after step {session.step} of {session.total_steps}")
    return session, int(state["log_cursor"])


def accept_changes(folder: RunFolder, recipe: Recipe, allow: Sequence[str], *, resumed: bool) -> bool:
    """Return whether the recipe changes the results of the run in the folder, and record the changes there.

    Raises SdditError unless `allow` covers each key that differs. A report and scores of before the change are removed.
    """
    if not (path := folder.path / RECIPE).is_file():
        return False
    run_folder.refuse_changed(path)
    found = [change for change in differences(read_json(path), recipe.to_json()) if change[3] != "free"]
    raise_all(change_problems(folder.path, found, allow, resumed=resumed))
    if not found:
        return False
    changes = [{"key": key, "from": old, "to": new} for key, old, new, _ in found]
    folder.write_json(CHANGES, run_folder.read_changes(folder.path) + changes)
    for stale in (REPORT, SCORES, PROBE, RESULT):
        (folder.path / stale).unlink(missing_ok=True)
    return True


def change_problems(
    folder: Path, changes: Sequence[Difference], allow: Sequence[str], *, resumed: bool
) -> Iterator[Problem]:
    """Yield a problem for each change that is not permitted or not possible, and each permission without a change."""
    elsewhere = "run without --resume to use a new folder" if resumed else "start over with --fresh"
    where, known = str(folder), [key for key, *_ in changes]
    for given in allow:
        if not any(covers(given, key) for key in known):
            what = f"nothing to allow: {given!r} does not differ"
            expect = one_of(given, known) if known else "no key: nothing differs"
            yield Problem("SD-R161", what, "--allow-change", given, expect)
    is_allowed = {key: any(covers(given, key) for given in allow) for key in known}
    of_code = [change for change in changes if change[0].startswith("code.") and is_allowed[change[0]]]
    for key, old, new, kind in joined_revision([change for change in changes if change not in of_code]):
        got = f"{old} -> {new}"
        if kind == "structural":
            yield Problem("SD-C410", f"the checkpoint is of another model: {key}", where, got, fix=elsewhere)
        elif key == "train.steps" and old is not None and new < old:
            yield Problem("SD-C422", "a run cannot be made shorter", where, got, f"at least {old}", elsewhere)
        elif not is_allowed.get(key):
            restore = "restore the data, or " if key == "data.fingerprint" else ""
            fix = f"{restore}--allow-change {key}, or {elsewhere}" if resumed else f"{restore}{elsewhere}"
            yield Problem("SD-C420", f"the recipe differs from the run's: {key}", where, got, fix=fix)


def covers(given: str, key: str) -> bool:
    """Return whether permission for `given` includes `key`: the same key, or a table around it."""
    return key == given or key.startswith(f"{given}.")


def newest_checkpoint(store: Store, world: World) -> Checkpoint | None:
    """Return the checkpoint to resume from. The main rank finds it, and every other rank opens the same one."""
    found = None
    if world.main:
        store.clean()
        found = store.latest()
    step = world.from_main(lambda: found.step if found else None)
    return found if world.main or step is None else store.open(step)
