"""Archives of arrays: what they hold is read within limits, and nothing else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sddit.data import archives
from sddit.data.archives import StoredArray, load_arrays, write_arrays


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


def test_an_array_is_read_by_rows(tmp_path: Path) -> None:
    whole = np.arange(7 * 6, dtype=np.int16).reshape(7, 2, 3)
    np.savez_compressed(tmp_path / "x.npz", a=whole, b=np.zeros(2))
    found = StoredArray.find(tmp_path / "x.npz", "a")
    assert found is not None
    assert (len(found), found.shape, found.dtype) == (7, (7, 2, 3), np.dtype(np.int16))
    for size in (1, 3, 7, 100):
        parts = list(found.batches(size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(found.rows([6, 0, 6, 2], size=4), whole[[6, 0, 6, 2]])
    assert StoredArray.find(tmp_path / "x.npz", "c") is None


def test_arrays_written_in_parts_are_what_numpy_writes(tmp_path: Path) -> None:
    whole, labels = np.arange(70, dtype=np.uint8).reshape(7, 10), np.arange(7)
    np.savez_compressed(tmp_path / "numpy.npz", arr_0=whole, arr_1=labels, seed=np.asarray(5))
    for name, parts in {"same": [whole[:2], whole[2:]], "other": [whole[:2], whole[2:] + 1]}.items():
        with (tmp_path / f"{name}.npz").open("wb") as file:
            arrays = {"arr_0": (np.uint8, (7, 10), parts), "arr_1": (labels.dtype, (7,), [labels])}
            write_arrays(file, {**arrays, "seed": (np.int64, (), [np.asarray(5)])})
    assert (tmp_path / "same.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    assert (tmp_path / "other.npz").read_bytes() != (tmp_path / "numpy.npz").read_bytes()


def test_a_damaged_array_is_not_read_by_rows(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", a=np.random.default_rng(0).integers(0, 9, 500))
    data = (tmp_path / "whole.npz").read_bytes()
    refused = 0
    for at in range(0, len(data), 9):
        (tmp_path / "x.npz").write_bytes(bytes([*data[:at], data[at] ^ 16, *data[at + 1 :]]))
        try:
            found = StoredArray.find(tmp_path / "x.npz", "a")
            assert found is None or len(list(found.batches(100)))
        except (OSError, ValueError):
            refused += 1
    assert refused > len(range(0, len(data), 9)) // 2
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        StoredArray.find(tmp_path / "objects.npz", "a")
