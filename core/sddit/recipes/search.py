"""Find a recipe by path or by name."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from sddit.errors import error, nearest, real_path
from sddit.recipes.parsing import shown

FOLDER = "recipes"


def find(source: str | Path) -> Path:
    """Return the file of a recipe: the path, else its name in `recipes/` here, else among the shipped ones.

    The README's `recipes/quickstart.toml` works in any folder. Raises SdditError (SD-R121) with the nearest names.
    """
    path = Path(source)
    candidates = [path]
    if not path.is_absolute() and ".." not in path.parts and path.name:
        name = PurePath(*path.parts[1:]) if len(path.parts) > 1 and path.parts[0] == FOLDER else path
        places = [path, Path(FOLDER) / name, shipped() / name]
        candidates = [file for place in places for file in (place, place.with_name(f"{place.name}.toml"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    refuse_broken_link(path, str(source))
    raise error(
        "SD-R121",
        f"no recipe {str(source)!r}",
        where=str(source),
        got="a folder" if path.is_dir() else "no such file",
        expect=one_of_recipes(str(source), names()),
        fix=f"pass a path, or one of these names; all are in {shown(shipped())}",
    )


def refuse_broken_link(path: Path, where: str) -> None:
    """Raise SD-R121 if the path or a folder of it is a link that leads to itself through others, or to nothing."""
    link = next((part for part in (path, *path.parents) if part.is_symlink() and not part.exists()), None)
    if link is None:
        return
    try:
        link.stat()
    except OSError as failure:
        is_loop = failure.errno == errno.ELOOP
        what = f"{link.name!r} is a link that leads back to itself" if is_loop else f"{link.name!r} is a broken link"
        got, fix = f"{link.name} -> {link.readlink()}", f"put the {'file' if link == path else 'folder'} itself there"
        raise error("SD-R121", what, where=where, got=got, fix=fix) from None


def names() -> list[str]:
    """Return the recipes that can be given by name: `quickstart`, `base/fashion`."""
    folders = (Path(FOLDER), shipped())
    found = {path.relative_to(f).with_suffix("").as_posix() for f in folders for path in f.rglob("*.toml")}
    return sorted(found)


def shipped() -> Path:
    """Return the folder of the shipped recipes: in the wheel, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "shipped_recipes"
    return packaged if packaged.is_dir() else package.parents[1] / FOLDER


def name_of(path: Path) -> str:
    """Return the path or name that finds a recipe again; a shipped one from any folder: `recipes/quickstart.toml`."""
    within = real_path(path).is_relative_to(real_path(shipped()))
    return f"{FOLDER}/{real_path(path).relative_to(real_path(shipped())).as_posix()}" if within else shown(path)


def one_of_recipes(typed: str, known: Iterable[str], meant: str = "", max_names: int = 24) -> str:
    """Return `one of a, b, ...   (did you mean 'b'?)`, with the names in the fewest folders first."""
    names = sorted(known, key=lambda name: (name.startswith("base/"), name.count("/"), name))
    listed = ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")
    meant = meant or nearest_recipe(typed, names)
    return f"one of {listed}" + (f"   (did you mean {meant!r}?)" if meant else "")


def nearest_recipe(typed: str, known: Sequence[str]) -> str:
    """Return the known name that is closest to what was typed, with or without folders and `.toml`; empty: none."""
    for ending in (_bare, lambda name: _bare(name).rpartition("/")[2]):
        by_ending = {ending(name): name for name in reversed(known)}  # of equals, the first
        if close := nearest(ending(typed), by_ending):
            return by_ending[close]
    return ""


def _bare(name: str) -> str:
    return name.removeprefix(f"{FOLDER}/").removesuffix(".toml").casefold()


def to_extend(parent: str, child: Path) -> tuple[str, str]:
    """Return (expect, fix) for a missing file that `extends` of `child` names: files next to it, and shipped names."""
    prefix = parent.rpartition("/")[0]
    folder = child.parent / prefix
    found = sorted(folder.glob("*.toml")) if folder.is_dir() else []
    siblings = [file.name for file in found if file.is_file() and real_path(file) != real_path(child)]
    is_shipped = real_path(child).is_relative_to(real_path(shipped()))
    files = [] if is_shipped else [f"{prefix}/{name}" if prefix else name for name in siblings]
    known = [*files, *_shipped_names()]
    meant = next((name for name in _shipped_names() if name == _bare(parent)), "") or nearest_recipe(parent, known)
    return one_of_recipes(parent, known, meant), f"extends = {json.dumps(meant)}" if meant else ""


def _shipped_names() -> list[str]:
    return sorted(path.relative_to(shipped()).with_suffix("").as_posix() for path in shipped().rglob("*.toml"))
