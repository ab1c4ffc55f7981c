"""One checkpoint on disk: staging it with a manifest of hashes, and comparing it with that manifest."""

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
from sddit.storage.atomic import create, open_file, storage_errors, sync_folder
from sddit.storage.fault_injection import fault_point
from sddit.storage.migrations import FORMAT, upgrade_state

MANIFEST = "manifest.json"
UNUSABLE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENXIO}  # others blame no file


@dataclass(frozen=True, slots=True)
class LazyBytes:
    """The bytes of a file, made when its turn comes: then only one file at a time need be in memory."""

    size: int  # of the bytes, about: whether they fit is asked before they are made
    make: Callable[[], bytes]


Content = bytes | LazyBytes
"""What a file of a checkpoint is to hold."""


class BrokenCheckpoint(Exception):
    """A checkpoint is not what was saved; the text says which file and why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was compared with its manifest."""

    step: int
    folder: Path
    files: Mapping[str, tuple[int, str]]  # name -> size in bytes, sha256
    format: int = FORMAT  # the one it was written in

    def path(self, name: str) -> Path:
        """Where a file lies. KeyError if the checkpoint has none of that name."""
        if name not in self.files:
            raise KeyError(f"{name} is not in {self.folder.name}")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The bytes of a file, compared with the manifest again, so that they are the bytes that were saved."""
        try:
            with reading(self.path(name)) as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != self.files[name][1]:
                raise BrokenCheckpoint(f"{name}: checksum differs")
        except BrokenCheckpoint as fault:
            raise broken_error(self.folder, str(fault)) from fault
        return data

    @property
    def state(self) -> dict[str, Any]:
        """The contents of state.json, in the form of this version whichever wrote it."""
        return upgrade_state(json.loads(self.read("state.json")), self.format)


def stage(folder: Path, step: int, files: Mapping[str, Content]) -> None:
    """Write a whole checkpoint at `folder`, durable down to its names."""
    folder.mkdir()
    seals = {}
    for name, content in files.items():
        fault_point("ckpt.before_file")
        seals[name] = write_file(folder / name, content)
        fault_point("ckpt.after_file")
    fault_point("ckpt.before_manifest")
    write_file(folder / MANIFEST, seal_manifest({"format": FORMAT, "step": step, "files": seals}))
    sync_folder(folder)


def write_file(path: Path, content: Content) -> tuple[int, str]:
    """Write and sync a new file. Returns its size and sha256."""
    data = content if isinstance(content, bytes) else content.make()
    with os.fdopen(create(path), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data), hashlib.sha256(data).hexdigest()


def seal_manifest(body: Mapping[str, Any]) -> bytes:
    """A manifest with its own sha256 in it: one form for one content, so that any changed byte shows."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1).encode()


def verify(folder: Path) -> Checkpoint:
    """Compare every byte of a checkpoint with its manifest. Raises BrokenCheckpoint, or SD-C430 for one of another format."""
    with storage_errors(folder):
        if not folder.is_dir():
            raise BrokenCheckpoint("it is a link to nothing" if folder.is_symlink() else "it is no folder")
        checkpoint = read_manifest(folder)
        if folder.name != f"step-{checkpoint.step:06d}":
            raise BrokenCheckpoint(f"{MANIFEST}: it is of step {checkpoint.step}")
        present = {entry.name for entry in os.scandir(folder)} - {MANIFEST}
        for name in sorted(present ^ checkpoint.files.keys()):
            raise BrokenCheckpoint(f"{name}: {'missing' if name in checkpoint.files else 'not in the manifest'}")
        for name, (size, digest) in checkpoint.files.items():
            data_size, data_digest = measure(folder / name)
            if data_size != size:
                raise BrokenCheckpoint(f"{name}: {data_size} bytes, not {size}")
            if data_digest != digest:
                raise BrokenCheckpoint(f"{name}: checksum differs")
    return checkpoint


def read_manifest(folder: Path) -> Checkpoint:
    """What the manifest of a checkpoint promises, once the manifest's own sha256 was found right."""
    try:
        with reading(folder / MANIFEST) as file:
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
                fix="use the version that wrote it: environment.json of the run names it",
            )
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in body["files"].items()}
        return Checkpoint(int(body["step"]), folder, files, int(body["format"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BrokenCheckpoint(f"{MANIFEST}: cannot be read") from None


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with reading(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A file of a checkpoint, open to read. BrokenCheckpoint if it is missing, unreadable, or no file (a link is none)."""
    try:
        with os.fdopen(open_file(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            yield file
    except OSError as cause:
        if cause.errno in UNUSABLE:
            raise BrokenCheckpoint(f"{path.name}: {cause.strerror}") from cause
        raise


def broken_error(folder: Path, fault: str) -> SdditError:
    return error(
        "SD-C401", f"the checkpoint is broken: {fault}", where=str(folder), fix="use another step, or put a copy back"
    )
