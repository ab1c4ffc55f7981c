"""Read images from a folder of the user's own files. No torch.

The layout is PATH/CLASS/image.png, deeper folders inside a class included; without labels, images anywhere below PATH.
Names that begin with a dot are ignored. Files that are not images are ignored and counted. Links are refused, never
followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sddit.errors import Problem, error, raise_all
from sddit_standard.datasets.image_index import MAX_PROBLEMS, IndexBuilder
from sddit_standard.datasets.image_sources import (
    Contents,
    SourceSettings,
    class_problems,
    existing,
    is_hidden,
    is_image,
    is_utf8,
    loose_problem,
    too_large,
    unreadable,
)
from sddit_standard.datasets.parallel_scan import scan_parts

COLUMNS = 1  # of `ImageIndex.places`: the time of the last change


class FolderSource:
    """The images of a folder, listed when it is made. Raises SD-D300, -D304, -D310, -D314, -D331 or -D332."""

    def __init__(self, settings: SourceSettings) -> None:
        self.location = existing(settings.path, "folder of images", folder=True)
        folders = sorted(_folders(self.location), key=os.fsencode)
        parts = [[str(self.location), "", 0]]
        parts += [[str(self.location), name, label * settings.labels] for label, name in enumerate(folders)]
        builder = scan_parts(f"{__name__}:scan", parts, COLUMNS)
        names = tuple(folders) if settings.labels else ()
        problems = list(builder.problems)
        problems += [_bad_name(name, "the name of a class") for name in names if not is_utf8(name)]
        self.contents = Contents(builder.build(), names, builder.others)
        if settings.labels:
            problems += _loose_problems(self.contents)
        problems += class_problems(self.contents, settings, str(self.location), f"{self.location}/")
        raise_all(problems[:MAX_PROBLEMS])
        self.state = self.contents.index.digest()

    def read(self, position: int) -> bytes:
        name = self.contents.index.name(position)
        try:
            return (self.location / name).read_bytes()
        except OSError as failure:
            raise unreadable(name, self.location / name, failure) from None

    def where(self, position: int) -> str:
        return str(self.location / self.contents.index.name(position))


def scan(part: tuple[str, str, int]) -> IndexBuilder:
    """List the files of a folder right below the root, at any depth; of the root, the files that are in no folder."""
    root, folder, label = part
    found = IndexBuilder(COLUMNS)
    for name, status in _files(Path(root), f"{folder}/" if folder else "", deep=bool(folder)):
        if stat.S_ISLNK(status.st_mode):
            fix = "copy what it points to; cp -rlL SOURCE TARGET makes hard links, which take no space"
            found.refuse("SD-D331", "the data set contains a link", where=name, fix=fix)
        elif not is_utf8(name):
            found.problems.append(_bad_name(name, "a file name"))
        elif not is_image(name):
            found.others += 1
        elif problem := too_large(name, name, status.st_size):
            found.problems.append(problem)
        else:
            found.add(name.encode(), status.st_size, status.st_mtime_ns, label=label)
    return found


def _files(root: Path, inside: str, *, deep: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all files of a folder and their status, and the links, which are not followed."""
    with _readable(), os.scandir(root / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    yield from _files(root, f"{name}/", deep=True)
            elif entry.is_symlink() or entry.is_file():
                yield name, entry.stat(follow_symlinks=False)


def _folders(root: Path) -> list[str]:
    with _readable(), os.scandir(root) as entries:
        return [e.name for e in entries if e.is_dir(follow_symlinks=False) and not is_hidden(e.name)]


@contextmanager
def _readable() -> Iterator[None]:
    """Turn an OSError of a walk into SD-D300."""
    try:
        yield
    except OSError as failure:
        got = failure.strerror or str(failure)
        what = "a folder of images cannot be read"
        raise error("SD-D300", what, where=str(failure.filename), got=got, fix="fix its permissions") from None


def _loose_problems(contents: Contents) -> Iterator[Problem]:
    """Yield the problem of images that are in no class folder."""
    loose = [name.decode() for name in contents.index.names() if b"/" not in name]
    if loose:
        yield loose_problem(loose, bool(contents.class_names))


def _bad_name(name: str, what: str) -> Problem:
    return Problem("SD-D332", f"{what} is not UTF-8", where=name, fix="rename it")
