"""`--nproc` where the system does not let torch's launcher start processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_launcher_errors_are_reported(tmp_path: Path) -> None:
    limited = 'ulimit -n 20; exec "$@"'
    command = [sys.executable, "-m", "sddit", str(ROOT / "recipes/quickstart.toml"), "--nproc", "2"]
    ended = subprocess.run(
        ["sh", "-c", limited, "sh", *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 9, ended.stderr
    assert "error SD-X807: 2 processes could not be started" in ended.stderr
    assert "too many open files" in ended.stderr
    assert "Traceback" not in ended.stderr and "bug in the toolkit" not in ended.stderr
    assert not (tmp_path / "runs").exists()
