"""Test that the help of `import` and `export` lists the layouts of the built-in plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_help_shows_examples_and_needs_no_torch(sddit_process: Callable[..., Any]) -> None:
    for verb in ("import", "export"):
        said = sddit_process(verb, "--help", after="import sys; assert 'torch' not in sys.modules")
        assert said.status == 0, said.stderr
        assert "Examples" in said.stdout
        assert "Published: diffusers, dit, maskdit, mdtv1, mdtv2." in " ".join(said.stdout.split())
