"""Save, verify and remove checkpoints. A checkpoint is complete or absent. Torch-free, and nothing is unpickled.

    <run>/checkpoints/
        step-000400/        model.safetensors, state.json, ... and manifest.json with the size and sha256 of each
        index.json          which checkpoints were read back and verified, for users
        .tmp-... .del-...   temporary files of a killed process
        broken-step-...     damaged, so moved aside

`checkpoints`, or a checkpoint in it, may be a link to a folder on another disk. It is used like a folder, and when an
old checkpoint is removed, only the link is.

A checkpoint is written to a temporary folder, synced, and published by one rename. Numbers in `state.json` on which the
bits of a run depend are written with `float.hex()` and read with `float.fromhex()`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sddit.errors import SdditError, error
from sddit.formatting import format_si
from sddit.storage import atomic
from sddit.storage.fault_injection import fault_point
from sddit.storage.manifest import BrokenCheckpoint, Checkpoint, Content, broken_error, read_manifest, stage, verify

INDEX = "index.json"
NAME = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,})")

SPARE = 1.2  # required free space, as a multiple of the checkpoint's size
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EDQUOT}  # a network file system may recover from these
PAUSES = (0.2, 1.0, 5.0)  # seconds before each retry

Read = Callable[[Path], Checkpoint]
"""Reads the folder of a checkpoint. Raises BrokenCheckpoint."""


class Store:
    """The checkpoints of one run.

    `save`, `latest` and `clean` change the folder, so only the process that holds the run folder's lock may call them.
    `notices` collects messages for the user.

    Args:
        run_ids: of the run, the present one first: new checkpoints get it, and those of other runs are refused. Empty:
            no id is recorded for the run, so only checkpoints without one are its own. None: accept every checkpoint.
    """

    def __init__(self, folder: Path, keep: int | None, run_ids: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.keep = keep  # number of verified checkpoints to keep; None: all
        self.run_ids = run_ids
        self.notices: list[str] = []

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, ascending, without verifying them.

        Raises SD-F705 if their folder exists but cannot be read, e.g. a link to a disk that is not mounted.
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
                fix="restore its target, or move it away",
            )
        matches = (NAME.fullmatch(entry.name) for entry in os.scandir(self.folder))
        return sorted(int(match[1]) for match in matches if match)

    def path_of(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, files: Mapping[str, Content]) -> Path:
        """Save a checkpoint, verify it, then remove the oldest ones beyond `keep`. Returns its folder.

        An intact checkpoint of that step is left unchanged: a resumed run may pass it again. Raises SdditError if the
        storage fails; the older checkpoints are then intact.
        """
        path = self.path_of(step)
        with atomic.storage_errors(self.folder):
            if os.path.lexists(path) and (found := self._intact(path)):
                self.refuse_foreign(found)
                return path
            if not self.folder.is_dir():
                self.folder.mkdir()  # without parents: a deleted run folder is not created again
                atomic.sync_folder(self.folder.parent)
            self._refuse_when_full(files)
            self._publish(step, files)
            self._confirm(path)
            self._prune(step)
        return path

    def latest(self, *, move_broken: bool = True, read: Read = verify) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if none was ever saved.

        Newer broken ones are moved aside, with a notice. A reader without the lock passes `move_broken=False`. `read`
        may be `read_manifest`, for a caller that verifies the files when it reads them. Raises SD-C402 if there are
        checkpoints but none is intact: a run never restarts without --fresh. Raises SD-C405 if it is of another run.
        """
        aside = sorted(path.name for path in self.folder.glob("broken-step-*"))
        tried = []
        for step in reversed(self.steps()):
            try:
                found = read(self.path_of(step))
            except BrokenCheckpoint as fault:
                tried.append(f"step-{step:06d} ({fault})")
                if move_broken:
                    self._move_aside(self.path_of(step))
            else:
                self.notices += [f"{broken} is broken; using {found.folder.name} [SD-C401]" for broken in tried]
                return self.own(found)
        if not (tried := tried + aside):
            return None
        got = f"{len(tried)} tried: {', '.join(tried)}"
        raise error("SD-C402", "no usable checkpoint", where=str(self.folder), got=got)

    def open(self, step: int, *, read: Read = verify) -> Checkpoint:
        """Return the checkpoint of one step. `read` as for `latest`.

        Raises SD-C403 if there is none, SD-C401 if it is broken, SD-C405 if it is of another run.
        """
        if step not in (steps := self.steps()):
            have = ", ".join(str(known) for known in steps) or "none"
            raise error("SD-C403", f"step {step} not found", where=str(self.folder), expect=f"one of {have}")
        try:
            return self.own(read(self.path_of(step)))
        except BrokenCheckpoint as fault:
            raise broken_error(self.path_of(step), str(fault)) from fault

    def is_foreign(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint is of another run. One without an id may be of any."""
        return self.run_ids is not None and checkpoint.run_id not in ("", *self.run_ids)

    def refuse_foreign(self, checkpoint: Checkpoint) -> None:
        """Raise SD-C405 for a checkpoint of another run."""
        if self.is_foreign(checkpoint):
            raise error(
                "SD-C405",
                "this checkpoint is of another run",
                where=str(checkpoint.folder),
                got=f"run {checkpoint.run_id}",
                expect=f"run {' or '.join(self.run_ids or ()) or 'without a recorded id'}",
                fix="move it out of this folder; then restore the checkpoint of this run, or an earlier one is used",
            )

    def own(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint of this run. Raises SD-C405 for that of another; one without an id gives a notice."""
        self.refuse_foreign(checkpoint)
        if self.run_ids is not None and not checkpoint.run_id:
            self.notices.append(
                f"{checkpoint.folder.name} has no run id, as those of earlier versions: "
                "whether it is of this run cannot be checked [SD-C406]"
            )
        return checkpoint

    def clean(self) -> None:
        """Remove the temporary files of a killed process."""
        atomic.remove_leftovers(self.folder)

    def withdraw(self) -> None:
        """Remove the files of a save in progress in another thread, which then fails unless it is already complete."""
        for staged in self.folder.glob(f"{atomic.STAGED_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # it was complete
                if staged.is_dir():
                    atomic.mark_for_deletion(staged)  # atomic: a published checkpoint is never removed in part
                else:
                    staged.unlink()
        self.clean()

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of this run of later steps, which it makes again."""
        with atomic.storage_errors(self.folder):
            for later in (later for later in self.steps() if later > step and not self._is_foreign(later)):
                atomic.remove_folder(atomic.mark_for_deletion(self.path_of(later)))

    def _refuse_when_full(self, files: Mapping[str, Content]) -> None:
        """Raise SD-M610 unless the checkpoint fits on the disk."""
        size = sum(len(content) if isinstance(content, bytes) else content.size for content in files.values())
        free = shutil.disk_usage(self.folder).free
        if free < SPARE * size:
            need = f"need {format_si(SPARE * size, 'B')}, have {format_si(free, 'B')}"
            raise error("SD-M610", f"no space for a checkpoint: {need}", where=str(self.folder), fix="free some space")

    def _publish(self, step: int, files: Mapping[str, Content]) -> None:
        """Stage, sync and rename a checkpoint. Retries errors from which the storage may recover."""
        for pause in (*PAUSES, None):
            staged = atomic.staged_name(self.folder, str(step))
            try:
                stage(staged, step, files, next(iter(self.run_ids or ()), ""))
                fault_point("ckpt.before_rename")
                staged.rename(self.path_of(step))  # the commit point
                break
            except BaseException as cause:
                shutil.rmtree(staged, ignore_errors=True)
                if pause is None or not isinstance(cause, OSError) or cause.errno not in TRANSIENT:
                    raise
            time.sleep(pause)
        fault_point("ckpt.after_rename")
        atomic.sync_folder(self.folder)

    def _confirm(self, path: Path) -> None:
        """Read a new checkpoint back, and mark it as verified in the index."""
        try:
            verify(path)
        except BrokenCheckpoint as fault:
            self._move_aside(path)
            raise atomic.storage_error(OSError(errno.EIO, f"{fault}, read back after writing"), path) from fault
        try:
            index = dict(json.loads(atomic.read_file(self.folder / INDEX)))
        except (OSError, ValueError, TypeError, RecursionError):
            index = {}  # it is only for users: an unreadable one is replaced
        index = {name: text for name, text in index.items() if (self.folder / name).is_dir()}
        index[path.name] = "verified"
        atomic.replace_file(self.folder / INDEX, atomic.to_json(index, indent=1).encode())

    def _prune(self, saved: int) -> None:
        """Remove all but the newest `keep` intact checkpoints.

        Broken ones are moved aside and do not count. Those of another run are left as they are.
        """
        fault_point("ckpt.before_prune")
        if self.keep is None:
            return
        intact = 1  # the one just saved, which is kept even if there are later steps of another resume
        for step in reversed(self.steps()):
            if step == saved or self._is_foreign(step):
                continue
            if intact == self.keep:
                marked = atomic.mark_for_deletion(self.path_of(step))
                fault_point("ckpt.mid_prune")
                if marked.is_symlink():
                    files = marked.resolve()
                    self.notices.append(
                        f"step-{step:06d} is no longer kept; it was a link, its files are still in {files}"
                    )
                atomic.remove_folder(marked)
            elif self._intact(self.path_of(step)):
                intact += 1

    def _intact(self, path: Path) -> Checkpoint | None:
        """Return a checkpoint; None if it is broken. It is then moved aside, with a notice."""
        try:
            return verify(path)
        except BrokenCheckpoint as fault:
            self.notices.append(
                f"{path.name} is broken ({fault}); moved aside as {self._move_aside(path).name} [SD-C401]"
            )
        return None

    def _is_foreign(self, step: int) -> bool:
        """Return whether the checkpoint of a step states that it is of another run. Its files are not read."""
        try:
            return self.is_foreign(read_manifest(self.path_of(step)))
        except (BrokenCheckpoint, SdditError):
            return False

    def _move_aside(self, path: Path) -> Path:
        """Rename a broken checkpoint, so that nothing loads it and the user can inspect it. Returns the new path."""
        aside = path.with_name(f"broken-{path.name}")
        while os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}-again")
        with atomic.storage_errors(self.folder):
            path.rename(aside)
            atomic.sync_folder(self.folder)
        return aside
