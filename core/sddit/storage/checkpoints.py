"""Checkpoints that are whole or absent, and known to be what was written. No torch here, and nothing is unpickled.

    <run>/checkpoints/
        step-000400/        model.safetensors, state.json, ... and manifest.json with the size and sha256 of each
        index.json          which checkpoints were read back and found right, for people
        .tmp-... .del-...   unfinished work of a killed process
        broken-step-...     moved aside because a byte differed

`checkpoints`, or a checkpoint in it, may be a link to a folder on another disk: it is used as if it lay here, and only the
link goes when the checkpoint's time is over.

A checkpoint is staged beside its place, synced, and appears by one rename: that is the moment it exists. Numbers in
`state.json` on which the bits of a run depend are written with `float.hex()` and read with `float.fromhex()`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from sddit.errors import error
from sddit.storage.atomic import (
    STAGED_PREFIX,
    mark_for_deletion,
    read_file,
    remove_folder,
    remove_leftovers,
    replace_file,
    staged_name,
    storage_error,
    storage_errors,
    sync_folder,
    to_json,
)
from sddit.storage.fault_injection import fault_point
from sddit.storage.manifest import BrokenCheckpoint, Checkpoint, Content, broken_error, stage, verify

__all__ = ["Checkpoint", "Store"]

INDEX = "index.json"
NAME = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,})")

SPARE = 1.2  # free space wanted, in sizes of the checkpoint
PASSING = {errno.EIO, errno.ESTALE, errno.EDQUOT}  # what a network file system may get over
PAUSES = (0.2, 1.0, 5.0)  # seconds before each further try


class Store:
    """The checkpoints of one run.

    `save`, `latest` and `clean` change the folder: they are for the process that holds the run folder's lock.
    `notices` gathers what a person should be told.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep  # verified checkpoints that stay
        self.notices: list[str] = []

    def steps(self) -> list[int]:
        """The steps of all visible checkpoints, rising, unverified.

        Raises SD-F705 where their folder is there and cannot be looked into, as a link to a disk that is not mounted.
        """
        if not os.path.lexists(self.folder):
            return []
        if not self.folder.is_dir():
            raise error(
                "SD-F705",
                "the checkpoints cannot be reached",
                where=str(self.folder),
                got="a link to nothing" if self.folder.is_symlink() else "a file",
                expect="a folder, or a link to one",
                fix="put back what it leads to, or move it away",
            )
        matches = (NAME.fullmatch(entry.name) for entry in os.scandir(self.folder))
        return sorted(int(match[1]) for match in matches if match)

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, files: Mapping[str, Content]) -> Path:
        """Save a checkpoint, verify it, then remove the oldest ones beyond `keep`. Returns its folder.

        An intact checkpoint of that step is left as it is: a run comes past one again after a resume. Raises SdditError
        where the storage refuses; the older checkpoints are then intact.
        """
        place = self.path_of(step)
        with storage_errors(self.folder):
            if os.path.lexists(place) and not self._moved_aside(place):
                return place
            if not self.folder.is_dir():
                self.folder.mkdir()  # a run folder that has gone is not made anew
                sync_folder(self.folder.parent)
            self._refuse_when_full(files)
            self._publish(step, files)
            self._confirm(place)
            self._prune(step)
        return place

    def latest(self, *, move_broken: bool = True) -> Checkpoint | None:
        """The newest intact checkpoint; None where none was ever saved.

        Broken ones on the way are moved aside and noted. A reader without the lock passes `move_broken=False`. Raises
        SD-C402 if there are checkpoints and none is intact: a run does not start afresh by itself.
        """
        aside = sorted(path.name for path in self.folder.glob("broken-step-*"))
        tried = []
        for step in reversed(self.steps()):
            try:
                found = verify(self.path_of(step))
            except BrokenCheckpoint as fault:
                tried.append(f"step-{step:06d} ({fault})")
                if move_broken:
                    self._move_aside(self.path_of(step))
            else:
                self.notices += [f"{broken} is broken; using {found.folder.name} [SD-C401]" for broken in tried]
                return found
        if not (tried := tried + aside):
            return None
        raise error(
            "SD-C402",
            "no usable checkpoint",
            where=str(self.folder),
            got=f"{len(tried)} tried: {', '.join(tried)}",
            fix="put a copy of one back, or start afresh with --fresh",
        )

    def open(self, step: int) -> Checkpoint:
        """The checkpoint of one step. SD-C403 if there is none, SD-C401 if it is broken; it is then left in place."""
        if step not in (steps := self.steps()):
            have = ", ".join(str(known) for known in steps) or "none"
            raise error("SD-C403", f"step {step} not found", where=str(self.folder), expect=f"one of {have}")
        try:
            return verify(self.path_of(step))
        except BrokenCheckpoint as fault:
            raise broken_error(self.path_of(step), str(fault)) from fault

    def clean(self) -> None:
        """Remove what a killed process left unfinished."""
        remove_leftovers(self.folder)

    def withdraw(self) -> None:
        """Take away what a save under way in another thread has written. It fails then, unless it is complete by now."""
        for staged in self.folder.glob(f"{STAGED_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # it was complete
                if staged.is_dir():
                    mark_for_deletion(staged)  # one move: what is published is never half taken away
                else:
                    staged.unlink()
        self.clean()

    def _refuse_when_full(self, files: Mapping[str, Content]) -> None:
        """SD-M610 unless the checkpoint fits."""
        size = sum(len(content) if isinstance(content, bytes) else content.size for content in files.values())
        free = shutil.disk_usage(self.folder).free
        if free < SPARE * size:
            need = f"need {_readable(SPARE * size)}, have {_readable(free)}"
            raise error("SD-M610", f"no space for a checkpoint: {need}", where=str(self.folder), fix="free some space")

    def _publish(self, step: int, files: Mapping[str, Content]) -> None:
        """Stage, sync, rename. Tries again where the storage may only be slow to recover."""
        for pause in (*PAUSES, None):
            staged = staged_name(self.folder, str(step))
            try:
                stage(staged, step, files)
                fault_point("ckpt.before_rename")
                staged.rename(self.path_of(step))  # the commit point
                break
            except BaseException as cause:
                shutil.rmtree(staged, ignore_errors=True)
                if pause is None or not isinstance(cause, OSError) or cause.errno not in PASSING:
                    raise
            time.sleep(pause)
        fault_point("ckpt.after_rename")
        sync_folder(self.folder)

    def _confirm(self, place: Path) -> None:
        """Read a new checkpoint back, and note in the index that it was found right."""
        try:
            verify(place)
        except BrokenCheckpoint as fault:
            self._move_aside(place)
            raise storage_error(OSError(errno.EIO, f"{fault}, read back after writing"), place) from fault
        known = {name: text for name, text in _read_index(self.folder).items() if (self.folder / name).is_dir()}
        known[place.name] = "verified"
        replace_file(self.folder / INDEX, to_json(known, indent=1).encode())

    def _prune(self, saved: int) -> None:
        """Remove checkpoints beyond the newest `keep` that are intact. Broken ones do not count, they are moved aside."""
        fault_point("ckpt.before_prune")
        intact = 1  # the one just saved, which also stays if later steps of another resume lie here
        for step in reversed(self.steps()):
            if step == saved:
                continue
            if intact == self.keep:
                doomed = mark_for_deletion(self.path_of(step))
                fault_point("ckpt.mid_prune")
                if doomed.is_symlink():
                    self.notices.append(
                        f"step-{step:06d} is not kept any longer: it was a link, and its files still lie in {doomed.resolve()}"
                    )
                remove_folder(doomed)
            elif not self._moved_aside(self.path_of(step)):
                intact += 1

    def _moved_aside(self, place: Path) -> bool:
        """Whether a checkpoint is broken; it is then moved aside and noted."""
        try:
            verify(place)
        except BrokenCheckpoint as fault:
            self.notices.append(
                f"{place.name} is broken ({fault}); moved aside as {self._move_aside(place).name} [SD-C401]"
            )
            return True
        return False

    def _move_aside(self, place: Path) -> Path:
        """Rename a broken checkpoint so that nothing takes it for a good one, and a person can look at it."""
        aside = place.with_name(f"broken-{place.name}")
        while os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}-again")
        with storage_errors(self.folder):
            place.rename(aside)
            sync_folder(self.folder)
        return aside


def _read_index(folder: Path) -> dict[str, str]:
    """The index, which is for people: one that cannot be read is begun again."""
    try:
        index: dict[str, str] = json.loads(read_file(folder / INDEX))
        return dict(index)
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _readable(size: float) -> str:
    """A size in bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
