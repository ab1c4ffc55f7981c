"""Archives of arrays: what they hold is read within limits, and nothing else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sddit.data import archives
from sddit.data.archives import load_arrays


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def test_the_arrays_that_are_asked_for_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(3), b=np.ones(2))
    found = load_arrays(tmp_path / "x.npz", ["a", "c"])
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0, 1, 2]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros(2**20, np.uint8))
    load_arrays(tmp_path / "zeros.npz", ["a"])  # the control: a harmless size
    monkeypatch.setattr(archives, "UNLIMITED_BYTES", 2**18)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="more than is read"):
        load_arrays(tmp_path / "zeros.npz", ["a"])


def test_too_many_members_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(archives.MAX_MEMBERS + 1):
            archive.writestr(f"{number}.npy", b"")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        for value in (1, 2):
            archive.writestr("a.npy", npy([value]))
    for name in ("many", "twice"):
        with pytest.raises(ValueError, match="two of one name"):
            load_arrays(tmp_path / f"{name}.npz", ["a"])


def test_members_that_lead_elsewhere_write_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "x.npz", "w") as archive:
        for name in ("../escaped.npy", str(tmp_path / "absolute.npy"), "a.npy"):
            archive.writestr(name, npy([7]))
    assert load_arrays(inside / "x.npz", ["a"])["a"].tolist() == [7]
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", "x.npz"}


def test_objects_and_damaged_archives_raise_what_is_stated(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", a=np.arange(500))
    data = (tmp_path / "whole.npz").read_bytes()
    hostile = [b"", b"text", *(data[:cut] for cut in range(0, len(data), 40))]
    hostile += [bytes([*data[:at], data[at] ^ 16, *data[at + 1 :]]) for at in range(0, len(data), 7)]
    refused = 0
    for content in hostile:
        (tmp_path / "x.npz").write_bytes(content)
        try:
            load_arrays(tmp_path / "x.npz", ["a"])
        except (OSError, ValueError):
            refused += 1
    assert refused > len(hostile) // 2
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_arrays(tmp_path / "objects.npz", ["a"])
