"""Check that the tests of the core need no built-in plugin."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_PLUGINS = ROOT / "tests" / "core" / "no_plugins"


def test_tests_of_the_core_import_no_plugin() -> None:
    plugins = {folder.name for folder in (ROOT / "plugins").iterdir()}
    found = {
        (file.name, module)
        for file in (ROOT / "tests" / "core").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if module.partition(".")[0] in plugins
    }
    assert found == set()


def loaded(path: str) -> list[str]:
    """Return the built-in plugins that a new process finds, with `path` first on PYTHONPATH."""
    code = "from sddit.plugins.host import Host; print(*[n for n, row in Host().rows.items() if row.state == 'loaded'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_tests_of_the_core_see_no_plugin() -> None:
    """`tests/core/conftest.py` hides the plugins in this process in the same way. The second line is the control."""
    assert loaded(str(NO_PLUGINS)) == []
    assert len(loaded("")) == len([path for path in (ROOT / "plugins").glob("sddit_*") if path.is_dir()])
