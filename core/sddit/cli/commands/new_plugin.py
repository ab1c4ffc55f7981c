"""`sddit-run new-plugin`: write a working plugin as a starting point."""

from __future__ import annotations

import keyword
import os
import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

from sddit import __version__
from sddit.cli.options import PathOption, SdditCommand
from sddit.cli.output import echo
from sddit.errors import Problem, error, raise_all
from sddit.plugins.host import host
from sddit.storage.atomic import read_file, replace_file
from sddit.storage.run_folder import ensure_directory

EXAMPLES = """
sddit-run new-plugin my_loss               my_loss.py, test_my_loss.py
sddit-run new-plugin my_steps --kind sampler
sddit-run new-plugin my_loss --package     to install and share
"""
KINDS = ("loss", "sampler", "codec")
USAGE = {
    "loss": '\n    [loss.{name}]\n    name = "{name}"\n    weight = 0.1',
    "sampler": '\n    [sampler]\n    name = "{name}"',
    "codec": '\n    [codec]\n    name = "{name}"',
}
FILE = {"$name.py": "$kind/plugin", "test_$name.py": "test"}
PACKAGE = {
    "$name/pyproject.toml": "package/pyproject",
    "$name/README.md": "package/readme",
    "$name/src/$name/__init__.py": "$kind/plugin",
    "$name/tests/test_$name.py": "package/test",
}
"""{path: template} of what is written."""


@click.command("new-plugin", cls=SdditCommand, examples=EXAMPLES)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="loss", help="Kind of component that it registers.")
@click.option("--package", is_flag=True, help="Write an installable package instead of one file.")
@click.option("--out", type=PathOption(), metavar="DIR", default=".", help="Folder to write to.")
def new_plugin(name: str, kind: str, package: bool, out: Path) -> None:
    """Write a working plugin and its test, as a starting point."""
    refuse_bad_name(name, kind)
    texts = fill_templates(name, kind, package)
    raise_all(
        Problem("SD-R173", "the file already exists", where=str(out / path), fix="choose another name, or --out DIR")
        for path in refused(out, texts)
    )
    for path, text in texts.items():
        ensure_directory((out / path).parent)
        replace_file(out / path, text.encode())
    for path in texts:
        echo(f"wrote {out / path}")
    steps = [f"pip install -e {out / name}"] if package else []  # its test finds the plugin by its entry point
    steps += [f"sddit-run check {name if package else out / f'{name}.py'}"]
    for lead, step in zip(("next:", ""), steps, strict=False):
        echo(f"{lead:<7}{step}")


def refused(out: Path, texts: Mapping[str, str]) -> list[str]:
    """Return the paths that exist, also as links. A part of the files as they are written here is completed."""
    held = [path for path in texts if os.path.lexists(out / path)]
    ways = [path for path in texts if any((out / part).is_symlink() for part in Path(path).parents if part.name)]
    complete = len(held) == len(texts)
    return [*(path for path in held if complete or not _holds(out / path, texts[path])), *ways]


def _holds(path: Path, text: str) -> bool:
    try:
        return not path.is_symlink() and read_file(path) == text.encode()
    except OSError:
        return False


def refuse_bad_name(name: str, kind: str) -> None:
    """Raise SD-R172 unless the name can be that of a module, a class and a component."""
    valid = re.fullmatch(r"[a-z][a-z0-9_]*", name)
    holder = holder_of(name, kind) if valid else ""
    if valid and not holder:
        return
    guess = f"{name}_{kind}" if valid else re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_0123456789")
    raise error(
        "SD-R172",
        f"{name!r} is {holder}" if holder else f"{name!r} cannot name a plugin",
        where="command line",
        got=name,
        expect="an unused name" if holder else "a letter a-z, then a-z, 0-9 and _",
        fix=f"sddit-run new-plugin {guess}" if guess else "",
    )


def holder_of(name: str, kind: str) -> str:
    """Return what already has the name, so that the plugin would not be found or would hide it; empty: nothing."""
    if keyword.iskeyword(name):
        return "a reserved word of Python"
    if name == "conftest":
        return "the name of the file that pytest reads its fixtures from"
    if name == "sddit" or ((row := host().rows.get(name)) and row.builtin):
        return "the name of a built-in plugin"
    registry = next(registry for registry in host().registries.all().values() if registry.slot == kind)
    if owners := [one.origin for one in registry if one.name == name]:
        return f"the name of a {kind} of the plugin {owners[0]}, so recipes could not use it by its name"
    if name in sys.stdlib_module_names:
        return "a module of Python's standard library"
    spec = find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent == Path.cwd():
        return ""  # a file in the current folder hides nothing: SD-R173 refuses to overwrite it
    return "an installed module"


def fill_templates(name: str, kind: str, package: bool) -> dict[str, str]:
    """Return {path: text} of the plugin, with the same code in one file or in a package."""
    words = {
        "name": name,
        "kind": kind,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "dashed": f"sddit-{name.replace('_', '-')}",
        "title": name.replace("_", " ").capitalize(),
        "version": ".".join(__version__.split(".")[:2]),
        "form": "of its own package" if package else "in one file",
        "place": "" if package else " next to this file",
        "source": name if package else f"./{name}.py",
        "usage": USAGE[kind].format(name=name),
    }

    def fill(text: str) -> str:
        return Template(text).substitute(words)

    folder = files("sddit.cli") / "templates"
    templates = PACKAGE if package else FILE
    return {
        fill(path): fill((folder / f"{fill(template)}.txt").read_text(encoding="utf-8"))
        for path, template in templates.items()
    }
