"""Write one checkpoint with a manifest of hashes, and verify it against that manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, error
from sddit.storage.atomic import open_file, storage_errors, sync_folder, write_synced
from sddit.storage.fault_injection import fault_point

MANIFEST = "manifest.json"
FORMAT = 2  # of the checkpoints that this version writes; `upgrade_state` reads the earlier ones
# Errors that are the fault of the file.
UNUSABLE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENXIO}


@dataclass(frozen=True, slots=True)
class LazyBytes:
    """The bytes of a file, made when it is written, so that only one file at a time is in memory."""

    size: int  # approximate, in bytes: free space is checked before `make` is called
    make: Callable[[], bytes]


Content = bytes | LazyBytes
"""Contents of a file of a checkpoint."""


class BrokenCheckpoint(Exception):
    """A checkpoint that differs from what was saved. The text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was verified against its manifest."""

    step: int
    folder: Path
    files: Mapping[str, tuple[int, str]]  # name -> size in bytes, sha256
    format: int = FORMAT  # in which it was written
    run_id: str = ""  # of the run that it is of; empty: written before ids were recorded

    def read(self, name: str) -> bytes:
        """Return the bytes of a file, verified again.

        Raises KeyError if the checkpoint has no such file, SD-C401 if its bytes differ from the manifest.
        """
        if name not in self.files:
            raise KeyError(f"{name} is not in {self.folder.name}")
        try:
            with open_checkpoint_file(self.folder / name) as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != self.files[name][1]:
                raise BrokenCheckpoint(f"{name}: checksum differs")
        except BrokenCheckpoint as fault:
            raise broken_error(self.folder, str(fault)) from fault
        return data

    @property
    def state(self) -> dict[str, Any]:
        """The contents of state.json, upgraded to the current format."""
        return upgrade_state(json.loads(self.read("state.json")), self.format)


def upgrade_state(state: dict[str, Any], written: int) -> dict[str, Any]:
    """Upgrade a `state.json` of format `written` to the current format. Files are never rewritten.

    Each change of `state.json` gets a format number and an upgrade here. `tests/fixtures/checkpoints` has a checkpoint
    of every earlier format.
    """
    if written < 2 and "imported" not in state:
        # Format 2 has the item names of each parameter's optimizer state, and the skipped steps.
        state = {**state, "optimized": {str(index): [] for index in state["optimized"]}, "skipped": []}
    return state


def stage(folder: Path, step: int, files: Mapping[str, Content], run_id: str = "") -> None:
    """Write a checkpoint of a run to `folder` and sync its files and their names."""
    folder.mkdir()
    seals = {}
    for name, content in files.items():
        fault_point("ckpt.before_file")
        data = content if isinstance(content, bytes) else content.make()
        write_synced(folder / name, data)
        seals[name] = len(data), hashlib.sha256(data).hexdigest()
        del data  # before the next file is made
        fault_point("ckpt.after_file")
    fault_point("ckpt.before_manifest")
    owner = {"run_id": run_id} if run_id else {}
    write_synced(folder / MANIFEST, seal_manifest({"format": FORMAT, "step": step, "files": seals, **owner}))
    sync_folder(folder)


def seal_manifest(body: Mapping[str, Any]) -> bytes:
    """Return a manifest with its own sha256. Equal contents give equal bytes, so that any change is detected."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1).encode()


def verify(folder: Path) -> Checkpoint:
    """Verify every byte of a checkpoint. Raises BrokenCheckpoint, or SD-C430 for an unknown format."""
    with storage_errors(folder):
        if not folder.is_dir():
            raise BrokenCheckpoint("it is a link to nothing" if folder.is_symlink() else "it is not a folder")
        checkpoint = read_manifest(folder)
        if folder.name != f"step-{checkpoint.step:06d}":
            raise BrokenCheckpoint(f"{MANIFEST}: it is of step {checkpoint.step}")
        present = {entry.name for entry in os.scandir(folder)} - {MANIFEST}
        for name in sorted(present ^ checkpoint.files.keys()):
            raise BrokenCheckpoint(f"{name}: {'missing' if name in checkpoint.files else 'not in the manifest'}")
        for name, (size, digest) in checkpoint.files.items():
            with open_checkpoint_file(folder / name) as file:
                found_digest, found_size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            if found_size != size:
                raise BrokenCheckpoint(f"{name}: {found_size} bytes, not {size}")
            if found_digest != digest:
                raise BrokenCheckpoint(f"{name}: checksum differs")
    return checkpoint


def read_manifest(folder: Path) -> Checkpoint:
    """Read the manifest of a checkpoint and verify its own sha256. The files are not read."""
    try:
        with open_checkpoint_file(folder / MANIFEST) as file:
            data = file.read()
        body: dict[str, Any] = json.loads(data)
        del body["sha256"]
        if seal_manifest(body) != data:
            raise BrokenCheckpoint(f"{MANIFEST}: checksum differs")
        if body["format"] not in range(1, FORMAT + 1):
            raise error(
                "SD-C430",
                "the checkpoint is of another format",
                where=str(folder),
                got=f"format {body['format']}, this version reads 1 to {FORMAT}",
            )
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in body["files"].items()}
        return Checkpoint(int(body["step"]), folder, files, int(body["format"]), str(body.get("run_id", "")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BrokenCheckpoint(f"{MANIFEST}: cannot be read") from None


@contextmanager
def open_checkpoint_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file of a checkpoint. Raises BrokenCheckpoint if it is missing, unreadable or not a file, e.g. a link."""
    try:
        with os.fdopen(open_file(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            yield file
    except OSError as cause:
        if cause.errno in UNUSABLE:
            raise BrokenCheckpoint(f"{path.name}: {cause.strerror}") from cause
        raise


def broken_error(folder: Path, fault: str) -> SdditError:
    return error(
        "SD-C401",
        f"the checkpoint is broken: {fault}",
        where=str(folder),
        fix="use another step, or restore it from a backup",
    )
