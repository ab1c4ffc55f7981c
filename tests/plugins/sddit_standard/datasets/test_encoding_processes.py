"""Test that several processes encode to the same bytes as one, and that their errors are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

COMMON = ("encode", "emoji", "--size", "32", "--codec", "tiny_kl")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_same_bytes_as_one(sddit_run: Any, tmp_path: Path) -> None:
    words = (*COMMON, "--shard", "500", "--nproc")
    for out, count in (("one", 1), ("two", 2)):
        assert sddit_run(*words, count, out).status == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 5
    first, second = (load_file(tmp_path / "one" / f"shard-0000{n}.safetensors")["moments"] for n in (0, 1))
    assert (first != second).any()


def test_an_error_of_a_process_is_that_of_the_command(
    sddit_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "shard-00001.safetensors").mkdir(parents=True)
    done = sddit_run(*COMMON, "--shard", "500", "--nproc", "2", "out")
    assert "SD-D346" in done.stderr  # a folder that is not a shard is a file of something else
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import sys\nif 'json' not in sys.modules: raise SystemExit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    monkeypatch.syspath_prepend(broken)
    ended = sddit_run(*COMMON, "--shard", "500", "--nproc", "2", "other")
    assert ended.status == 9
    assert "SD-X801" in ended.stderr
