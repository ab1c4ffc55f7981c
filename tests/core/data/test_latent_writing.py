"""Test that a cache of moments made elsewhere has the same bytes after any interruption, and replaces nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sddit.data.latent_writing import write_cache
from sddit.data.latents import INDEX, read_index, verify_shards
from sddit.errors import SdditError
from sddit.storage.lock import only_writer

InChild = Callable[..., str]


def write(folder: Path, shards: int = 3) -> Path:
    draw = np.random.default_rng(0)
    mean = [draw.normal(size=(4, 2, 4, 4)) for _ in range(shards)]
    parts = [(np.concatenate([one, np.abs(one) / 4], axis=1).astype(np.float16), np.arange(4) % 2) for one in mean]
    return write_cache(folder, parts, layout="mean+std", scale=1.0, encoder="made", class_names=("a", "b"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "full disk"])
def test_an_interrupted_cache_is_written_again_to_the_same_bytes(tmp_path: Path, in_child: InChild, kill: bool) -> None:
    write(tmp_path / "whole")
    expected, ends, finished = contents(tmp_path / "whole"), [], 0
    for turn in range(1, 200):
        out = tmp_path / str(turn)
        ends.append(in_child(lambda out=out, shards=3 + turn % 2: write(out, shards), turn, kill=kill))
        if ends[-1] == "done":
            break
        if (out / INDEX).exists():  # nothing was left to do
            finished += 1
            continue
        write(out)
        assert contents(out) == expected
    assert len(ends) > 10 and finished <= 3
    assert set(ends) == {"killed" if kill else "refused", "done"}


@pytest.mark.parametrize(
    "name", ["latents.npz", "encoding.json", "shard-00000.json", "latents_rank00_shard000.safetensors"]
)
def test_nothing_else_is_overwritten_or_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "shard-00007.safetensors").write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(SdditError, match=f"SD-D346(.|\n)*{name}"):
        write(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / name).unlink()
    write(tmp_path)
    assert len(contents(tmp_path)) == 4, "the shard of an interrupted call is gone"
    verify_shards(read_index(str(tmp_path)))


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(SdditError, match="SD-F715"):
        write(tmp_path)
    assert contents(tmp_path) == {}
