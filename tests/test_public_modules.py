"""Check that the public modules listed in the tutorial are exactly those that built-in plugins import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial-loss.md"
LISTED = re.compile(r"^\| `(sddit[\w.]*)` \|", re.MULTILINE)


def is_module(name: str) -> bool:
    path = ROOT / "core" / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_empty(name: str) -> bool:
    """Return whether a package has only a docstring, so that it offers nothing itself."""
    file = ROOT / "core" / Path(*name.split(".")) / "__init__.py"
    return file.is_file() and len(ast.parse(file.read_text(encoding="utf-8")).body) <= 1


def core_modules(source: str) -> set[str]:
    """Return the modules of the core that a source imports, at its top or in functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(name for a in node.names if is_module(name := f"{node.module}.{a.name}"))}
    return {name for name in found if name.partition(".")[0] == "sddit" and not is_empty(name)}


def test_the_tutorial_lists_the_modules_that_built_in_plugins_import() -> None:
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "plugins").rglob("*.py")]
    listed = LISTED.findall(PAGE.read_text(encoding="utf-8"))
    assert listed == sorted(set().union(*map(core_modules, sources)))


def test_every_way_of_importing_a_module_counts() -> None:
    source = (
        "import sddit.errors\nfrom sddit import interfaces as face, hookimpl\n"
        "def f():\n    from sddit.diffusion import masking\n"
    )
    expected = {"sddit", "sddit.diffusion.masking", "sddit.errors", "sddit.interfaces"}
    assert core_modules(source) == expected
