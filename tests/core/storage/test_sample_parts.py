"""Samples are kept in parts while they are generated, and those of a killed process are continued."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sddit.cli.commands.sample import claimed_parts
from sddit.storage.sample_parts import SampleParts, find_parts
from sddit.storage.tensors import write_tensors

IDENTITY = {"run_id": "a", "step": 3}


def filled(folder: Path, *sizes: int) -> SampleParts:
    parts, start = SampleParts(folder, IDENTITY), 0
    for size in sizes:
        parts.append({"images": torch.arange(start, start + size)[:, None].expand(size, 2)})
        start += size
    return parts


def values(parts: SampleParts) -> list[int]:
    return [int(row[0]) for part in parts.read("images") for row in part]


def test_parts_are_read_in_order_and_continued(tmp_path: Path) -> None:
    parts = filled(tmp_path / "parts", 3, 4, 2)
    assert (parts.count, values(parts), parts.shape("images"), parts.names) == (9, list(range(9)), (9, 2), ("images",))
    assert parts.rows("images", [8, 0, 3, 8])[:, 1].tolist() == [8, 0, 3, 8]
    again = SampleParts(tmp_path / "parts", dict(IDENTITY))
    assert (again.count, values(again)) == (9, list(range(9)))
    again.remove()
    assert SampleParts(tmp_path / "parts", IDENTITY).count == 0


def test_parts_of_something_else_are_removed(tmp_path: Path) -> None:
    filled(tmp_path / "parts", 3)
    assert find_parts([tmp_path / "none", tmp_path / "parts"], IDENTITY) == tmp_path / "parts"
    assert find_parts([tmp_path / "parts"], {**IDENTITY, "step": 4}) is None
    assert SampleParts(tmp_path / "parts", {**IDENTITY, "step": 4}).count == 0


def test_a_damaged_part_and_those_after_it_are_generated_again(tmp_path: Path) -> None:
    filled(tmp_path / "parts", 3, 4, 2)
    [damaged] = (tmp_path / "parts").glob("part-000000003-*")
    damaged.write_bytes(damaged.read_bytes()[:20])
    (tmp_path / "parts/.tmp-part").write_bytes(b"half")
    parts = SampleParts(tmp_path / "parts", IDENTITY)
    assert (parts.count, values(parts)) == (3, [0, 1, 2])
    [about, part] = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert about == "about.json" and part.startswith("part-000000000-")


@pytest.mark.parametrize("cuts", [[5], [1, 4], [2, 2, 1]])
def test_tensors_written_in_parts_are_read_by_safetensors(cuts: list[int], tmp_path: Path) -> None:
    whole = torch.randn(5, 3).half()
    labels = torch.arange(5)
    with (tmp_path / "x.safetensors").open("wb") as file:
        entries = {
            "labels": (torch.int64, (5,), [labels]),
            "latents": (torch.float16, (5, 3), whole.split(cuts)),
        }
        write_tensors(file, entries, {"about": "these"})
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["latents"], whole)
    assert torch.equal(found["labels"], labels)
    assert not torch.equal(found["latents"], whole.flip(0))


def test_a_part_with_other_bytes_is_generated_again(tmp_path: Path) -> None:
    filled(tmp_path / "parts", 3, 4)
    [_, changed] = sorted((tmp_path / "parts").glob("part-*"))
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert values(SampleParts(tmp_path / "parts", IDENTITY)) == [0, 1, 2]


@pytest.mark.parametrize("replace", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_a_regular_file_is_read_as_a_part(replace: Callable[[Path], None], tmp_path: Path) -> None:
    filled(tmp_path / "parts", 3, 4)
    [_, path] = sorted((tmp_path / "parts").glob("part-*"))
    path.unlink()
    replace(path)
    assert values(SampleParts(tmp_path / "parts", IDENTITY)) == [0, 1, 2]


def test_other_files_in_the_folder_are_kept(tmp_path: Path) -> None:
    note = tmp_path / "parts/note.txt"
    filled(tmp_path / "parts", 3)
    note.write_text("mine")
    SampleParts(tmp_path / "parts", {**IDENTITY, "step": 4}).remove()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["note.txt"]
    note.unlink()
    SampleParts(tmp_path / "parts", IDENTITY).remove()
    assert not (tmp_path / "parts").exists()


def test_samples_that_another_process_works_on_are_not_continued(tmp_path: Path) -> None:
    request = SimpleNamespace(digest=lambda: "b")
    sampling: Any = SimpleNamespace(identity=lambda: {"recipe": "a"}, request=request)
    with claimed_parts(tmp_path, [sampling]) as first, claimed_parts(tmp_path, [sampling]) as second:
        assert [first.folder.name, second.folder.name] == ["drawn-1.parts", "drawn-2.parts"]
    with claimed_parts(tmp_path, [sampling]) as again:
        assert again.folder == first.folder
        again.remove()
    with claimed_parts(tmp_path, [sampling]) as again:
        assert again.folder == second.folder
