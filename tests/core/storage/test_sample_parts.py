"""Samples are kept in parts while they are generated, and those of a killed process are continued."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    damaged = tmp_path / "parts/part-000000003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:20])
    (tmp_path / "parts/.tmp-part").write_bytes(b"half")
    parts = SampleParts(tmp_path / "parts", IDENTITY)
    assert (parts.count, values(parts)) == (3, [0, 1, 2])
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["about.json", "part-000000000.safetensors"]


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
