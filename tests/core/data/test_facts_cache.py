"""Cached facts are what was measured, or they are measured again."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sddit.data.facts_cache import cache_folder, cached, cached_arrays

FACTS = {"mean": [0.5, float("nan")], "fingerprint": "ab"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sddit" / "facts"


def measured(key: Any = "key") -> tuple[dict[str, Any], int]:
    """Return the cached facts, and how often they were measured."""
    calls: list[int] = []
    found = cached(key, lambda: (calls.append(1), FACTS)[1])  # type: ignore[func-returns-value]
    return found, len(calls)


def test_facts_are_measured_once_for_each_key(folder: Path) -> None:
    assert measured()[1] == 1
    found, times = measured()
    assert (found["fingerprint"], found["mean"][0], times) == ("ab", 0.5, 0)
    assert measured("other")[1] == 1
    assert len(list(folder.iterdir())) == 2


def edited(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "list": lambda path: path.write_text("[]"),
    "table": lambda path: path.write_text("{}"),
    "null": lambda path: path.write_text("null"),
    "garbage": lambda path: path.write_bytes(b"\xff\0x"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "empty": lambda path: path.write_text(""),
    "bare facts": lambda path: path.write_text(json.dumps({"mean": [0.1, 0.2], "fingerprint": "cd"})),
    "other facts": edited(lambda entry: entry | {"value": entry["value"] | {"fingerprint": "cd"}}),
    "other kinds": edited(lambda entry: entry | {"value": [1]}),
    "no checksum": edited(lambda entry: {"value": entry["value"]}),
    "huge": lambda path: os.truncate(path, 2**40),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_measured_again_with_a_warning(folder: Path, damage: Callable[[Path], object]) -> None:
    measured()
    [path] = folder.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=f"computed again(.|\n)*{path.name}"):
        found, times = measured()
    assert (found["fingerprint"], times) == ("ab", 1)
    if not path.is_dir():
        assert measured()[1] == 0, "the entry was replaced"


def test_an_entry_of_another_key_is_measured_again(folder: Path) -> None:
    measured()
    [one] = folder.iterdir()
    measured("other")
    [other] = {*folder.iterdir()} - {one}
    other.write_bytes(one.read_bytes())
    with pytest.warns(UserWarning, match="checksum"):
        assert measured("other")[1] == 1


def test_without_a_usable_folder_facts_are_measured_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert [measured()[1], measured()[1]] == [1, 1]
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache/sddit/facts"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
        assert cache_folder() is None
        assert [measured()[1], measured()[1]] == [1, 1]


ARRAYS = {"sizes": np.arange(5), "empty": np.empty((0, 2)), "text": np.frombuffer(b"abc", np.uint8)}


def made(key: Any = "key") -> tuple[dict[str, np.ndarray[Any, Any]], int]:
    """Return the cached arrays, and how often they were computed."""
    calls: list[int] = []
    found = cached_arrays(key, lambda: (calls.append(1), ARRAYS)[1])  # type: ignore[func-returns-value]
    return found, len(calls)


def test_arrays_are_computed_once_for_each_key(folder: Path) -> None:
    assert made()[1] == 1
    found, times = made()
    assert times == 0
    assert list(found) == list(ARRAYS)
    assert all(
        np.array_equal(found[name], values) and found[name].dtype == values.dtype for name, values in ARRAYS.items()
    )
    assert made("other")[1] == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".arrays", ".arrays"]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def with_objects(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"names": ["sizes"], "checksum": ""}\n')
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)


ARRAY_DAMAGE = {
    **{name: DAMAGE[name] for name in ("list", "null", "garbage", "empty", "fifo", "folder", "device", "loop")},
    "flipped": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "objects": with_objects,
    "names": lambda path: path.write_bytes(path.read_bytes().replace(b"sizes", b"sizer")),
}


@pytest.mark.parametrize("damage", ARRAY_DAMAGE.values(), ids=ARRAY_DAMAGE)
def test_damaged_arrays_are_computed_again_with_a_warning(folder: Path, damage: Callable[[Path], object]) -> None:
    made()
    [path] = folder.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=f"computed again(.|\\n)*{path.name}"):
        found, times = made()
    assert times == 1
    assert np.array_equal(found["sizes"], ARRAYS["sizes"])
    if not path.is_dir():
        assert made()[1] == 0, "the entry was replaced"
