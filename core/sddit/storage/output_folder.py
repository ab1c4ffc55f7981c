"""Write a folder of results, such as a publication or an export, so that it is never half written.

New files are first written to a staging folder inside it. Renaming the manifest into place is the moment at which the
new output replaces the previous one; the files follow. Wherever a process is killed, either the previous output is
whole, or readers refuse the folder and the same command completes it.

The manifest lists what belongs to the output. Nothing else is replaced or removed, and links are never followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sddit.errors import Problem, SdditError, error, raise_all
from sddit.storage.atomic import (
    STAGED_PREFIX,
    open_file,
    read_file,
    remove_folder,
    staged_name,
    storage_errors,
    sync_folder,
    write_synced,
)
from sddit.storage.lock import lock_folder
from sddit.storage.run_folder import ensure_directory

MANIFEST = "sddit-files.json"
STAGING = f"{STAGED_PREFIX}output-"
PAGE = "README.md"  # users may edit it in a complete output
MAX_NAMED = 5  # files that a message names

Kind = Literal["publication", "export"]
Unlisted = Callable[[Path], Collection[str] | None]
COMMANDS: Mapping[Kind, str] = {"publication": "sddit-run publish", "export": "sddit-run export"}
FOREIGN: Mapping[Kind, str] = {"publication": "SD-F711", "export": "SD-F708"}


def _inner_path(name: str) -> str:
    """Return a path inside a folder. Raises ValueError for one that could lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name in ("", ".") or "\0" in name:
        raise ValueError("not a path inside the folder")
    return name


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
InnerPath = Annotated[str, AfterValidator(_inner_path)]


class OutputManifest(BaseModel):
    """`sddit-files.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal[1]
    kind: Kind
    complete: bool  # whether all files are in place
    files: dict[InnerPath, Digest]
    earlier: dict[InnerPath, list[Digest]] = {}  # what earlier outputs have written, until this one is complete

    @property
    def known(self) -> dict[str, list[str]]:
        """{path: sha256 of what this output and earlier ones have written there}."""
        return {name: [*self.earlier.get(name, ()), *self._own(name)] for name in {**self.earlier, **self.files}}

    def _own(self, name: str) -> list[str]:
        return [self.files[name]] if name in self.files else []


def write_output(
    folder: Path, files: Mapping[str, bytes], *, kind: Kind, unlisted: Unlisted = lambda folder: None
) -> list[Path]:
    """Write `files` {path with slashes: content} as the output `folder`, in place of the previous output there.

    Args:
        folder: a new or empty folder, or one with an earlier output. It may hold other files.
        files: what to write.
        kind: an output of another kind is not replaced.
        unlisted: returns the files of an output in a folder without a manifest, which an earlier version wrote; None
            if it has no such output.

    Returns:
        The paths of the files, and of the manifest.

    Raises:
        SdditError: SD-F708 or SD-F711 if other files are in the way, SD-F714 if a link is, SD-F715 if another process
            is writing there, or an error of the storage.
    """
    folder = ensure_directory(folder)
    with storage_errors(folder), _only_writer(folder):
        previous = _previous(folder, files, kind, unlisted)
        _remove_staging(folder)
        staging = staged_name(folder, "output")
        try:
            manifest = _stage(staging, files, kind, previous)
            for parent in _folders(folder, files):
                parent.mkdir(exist_ok=True)
        except BaseException:
            remove_folder(staging)
            raise
        (staging / MANIFEST).replace(folder / MANIFEST)  # the commit point
        sync_folder(folder)
        _move_into_place(folder, staging, manifest)
    return [folder / name for name in (*files, MANIFEST)]


def read_manifest(folder: Path) -> OutputManifest | None:
    """Return the manifest of an output, or None if the folder has none. Raises SD-F713 for an invalid one."""
    path = folder / MANIFEST
    try:
        return OutputManifest.model_validate_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as fault:
        first = fault.errors()[0]
        got = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except OSError as fault:
        got = fault.strerror or str(fault)
    fix = f"restore {MANIFEST} from a backup, or move it away: the other files are then used unchecked"
    raise error("SD-F713", "the list of files of this folder cannot be read", where=str(path), got=got, fix=fix)


def verify_output(folder: Path, unchecked: Collection[str] = ()) -> OutputManifest | None:
    """Return the manifest of a folder, if it has one, after comparing the files with it.

    Args:
        folder: may have no manifest, as those of earlier versions.
        unchecked: files of a complete output that need not be as they were written.

    Raises:
        SdditError: SD-F713 for each file that differs.
    """
    manifest = read_manifest(folder)
    if manifest:
        passed = {PAGE, *unchecked} if manifest.complete else set[str]()
        raise_all(list(islice(_differences(folder, manifest, passed), MAX_NAMED)))
    return manifest


def verify_file(path: Path) -> None:
    """Verify the output that a file belongs to, if it belongs to one. Raises SD-F713."""
    for folder in list(path.absolute().parents)[:2]:
        with suppress(SdditError):  # the list of another folder does not concern the file
            manifest = read_manifest(folder)
            if manifest and path.absolute().relative_to(folder).as_posix() in manifest.files:
                break
    else:
        return
    verify_output(folder)


@contextmanager
def unchanged_output(folder: Path) -> Iterator[None]:
    """Verify an output, and that no other command replaces it while the body reads it. Raises SD-F713."""
    before = verify_output(folder)
    yield
    if read_manifest(folder) != before:
        what, fix = "the folder was replaced while it was read", "rerun this command"
        raise error("SD-F713", what, where=str(folder), fix=fix)


def _differences(folder: Path, manifest: OutputManifest, passed: Collection[str]) -> Iterator[Problem]:
    command = f"rerun the command that wrote it ({COMMANDS[manifest.kind]} ... --out {folder})"
    for name, expected in manifest.files.items():
        found = _digest_of(folder / name)
        if found == expected or (found and name in passed):
            continue
        if not manifest.complete:
            got = f"{name} is {'of an earlier one' if found else 'missing'}"
            yield Problem("SD-F713", f"the {manifest.kind} is not complete", str(folder), got, fix=command)
            return
        fix = f"{command}; if you changed the file yourself, delete {MANIFEST}"
        got, expect = (f"sha256 {text[:12]}..." if text else "" for text in (found, expected))
        what = f"{name} is not what was written" if found else f"{name} is missing or cannot be read"
        yield Problem("SD-F713", what, str(folder), got, expect, fix)


def _digest_of(path: Path) -> str:
    """Return the sha256 of a file, or an empty string if it cannot be read."""
    try:
        with os.fdopen(open_file(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Lock the folder. Raises SD-F715 if another process holds the lock."""
    with lock_folder(folder) as free:
        if not free:
            raise error("SD-F715", "another process is writing to this folder", where=str(folder))
        yield


def _previous(folder: Path, files: Mapping[str, bytes], kind: Kind, unlisted: Unlisted) -> Mapping[str, list[str]]:
    """Return what may be replaced, as `OutputManifest.known`. Raises an error if anything else is in the way."""
    _refuse_links(folder, (*files, MANIFEST))
    manifest = read_manifest(folder)
    if manifest and manifest.kind != kind:
        _refuse_foreign(folder, kind, [f"a {manifest.kind}"])
    found = None if manifest else unlisted(folder)
    known = manifest.known if manifest else {name: list[str]() for name in found or ()}
    _refuse_foreign(folder, kind, list(islice(_obstacles(folder, files, known), MAX_NAMED)))
    if not manifest and found is None:
        _refuse_foreign(folder, kind, list(islice(_others(folder, files), MAX_NAMED)))
    return known


def _refuse_foreign(folder: Path, kind: Kind, found: list[str]) -> None:
    if found:
        raise error(
            FOREIGN[kind],
            f"the folder holds files that do not belong to an earlier {kind}",
            where=str(folder),
            got=", ".join(found),
            expect=f"a new or empty folder, or an earlier {kind}",
            fix="move them away, or give another folder",
        )


def _refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links on the way to a file of the output: they may lead to files of others."""
    found = sorted({str(part) for name in names for part in _way(folder, name) if part.is_symlink()})
    if found:
        raise error("SD-F714", "a link is in the way", where=found[0], got=f"{len(found)} of them")


def _way(folder: Path, name: str) -> list[Path]:
    """Return the folders from `folder`, exclusive, to a file, and the file."""
    path = PurePosixPath(name)
    return [folder / part for part in (*list(path.parents)[-2::-1], path)]


def _obstacles(folder: Path, files: Mapping[str, bytes], known: Collection[str]) -> Iterator[str]:
    """Yield what would be replaced, but does not belong to an earlier output."""
    for name, data in files.items():
        *parents, path = _way(folder, name)
        blocked = any(os.path.lexists(parent) and not parent.is_dir() for parent in parents)
        if blocked or (os.path.lexists(path) and not _is_ours(path, data, written=name in known)):
            yield name


def _is_ours(path: Path, data: bytes, *, written: bool) -> bool:
    """Return whether a path is a file that was `written` by an earlier output, or has the same content."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False
    return written or (status.st_size == len(data) and read_file(path) == data)


def _others(folder: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what else is in a folder, apart from the files that a killed process has left."""
    for parent, folders, names in os.walk(folder):
        for name in names + [name for name in folders if Path(parent, name).is_symlink()]:
            path = Path(parent, name).relative_to(folder).as_posix()
            if path not in files and not name.startswith(STAGED_PREFIX):
                yield path
        folders[:] = [name for name in folders if not name.startswith(STAGED_PREFIX)]


def _remove_staging(folder: Path) -> None:
    """Remove what a killed process has left."""
    for leftover in folder.glob(f"{STAGING}{'[0-9a-f]' * 32}"):
        if not leftover.is_symlink():
            remove_folder(leftover)


def _stage(staging: Path, files: Mapping[str, bytes], kind: Kind, previous: Mapping[str, list[str]]) -> OutputManifest:
    """Write all files and their manifest, durably."""
    staging.mkdir()
    for parent in _folders(staging, files):
        parent.mkdir()
    for name, data in files.items():
        write_synced(staging / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = OutputManifest(format=1, kind=kind, complete=False, files=digests, earlier=dict(previous))
    _write_manifest(staging, manifest)
    for parent in (staging, *_folders(staging, files)):
        sync_folder(parent)
    return manifest


def _folders(folder: Path, files: Iterable[str]) -> list[Path]:
    """Return the folders in `folder` that hold files of the output, outer ones first."""
    return sorted({parent for name in files for parent in _way(folder, name)[:-1]})


def _write_manifest(folder: Path, manifest: OutputManifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json", exclude_defaults=True), indent=1, sort_keys=True)
    write_synced(folder / MANIFEST, f"{text}\n".encode())


def _move_into_place(folder: Path, staging: Path, manifest: OutputManifest) -> None:
    """Move the staged files, remove those of earlier outputs, then mark the output as complete."""
    for name in manifest.files:
        (staging / name).replace(folder / name)
    for name, digests in manifest.earlier.items():
        if name not in manifest.files and not any(part.is_symlink() for part in _way(folder, name)):
            _remove_written(folder, name, digests)
    for parent in _folders(folder, manifest.files):
        sync_folder(parent)
    _write_manifest(staging, manifest.model_copy(update={"complete": True, "earlier": {}}))
    (staging / MANIFEST).replace(folder / MANIFEST)
    remove_folder(staging)
    sync_folder(folder)


def _remove_written(folder: Path, name: str, digests: Collection[str]) -> None:
    """Remove a file if it is as an earlier output wrote it, and the folders that become empty."""
    *parents, path = _way(folder, name)
    if _digest_of(path) in digests:
        path.unlink()
        with suppress(OSError):  # it holds other files
            for parent in reversed(parents):
                parent.rmdir()
