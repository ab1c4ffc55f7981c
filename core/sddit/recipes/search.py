"""Find a recipe by path or by name."""

from __future__ import annotations

from pathlib import Path, PurePath

from sddit.errors import error, one_of
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
    raise error(
        "SD-R121",
        f"no recipe {str(source)!r}",
        where=str(source),
        got="a folder" if path.is_dir() else "no such file",
        expect=one_of(str(source), names()),
        fix="pass a path, or one of these names",
    )


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
    within = path.resolve().is_relative_to(shipped().resolve())
    return f"{FOLDER}/{path.resolve().relative_to(shipped().resolve()).as_posix()}" if within else shown(path)


def files_near(path: Path) -> str:
    """Return the recipes in the folder of a missing file, for the `expect` of a problem."""
    siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    return one_of(path.name, siblings) if siblings else f"a file in {shown(path.parent)}"
