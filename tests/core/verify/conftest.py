"""The command line in this process, as the tests of its verbs call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sddit.cli.app import call


@pytest.fixture
def sddit_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """`sddit_run("verify", "--json")` in an empty folder; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        capsys.readouterr()
        status = call(arguments)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, stdout=out, stderr=err)

    return run
