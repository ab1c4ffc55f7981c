"""Sources of latents are read, and one of another form ends in a message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sddit.data.latent_sources import read_sources
from sddit.errors import SdditError

ROOT = Path(__file__).parents[3]
MOMENTS = np.random.default_rng(0).standard_normal((3, 8, 4, 4)).astype(np.float32)
MOMENTS[:, 4:] = 0.01


def edm2(folder: Path, content: Any, files: tuple[str, ...] = ("0/a.npy", "0/b.npy", "1/c.npy")) -> Path:
    for name, one in zip(files, MOMENTS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, one)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


def archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


LISTED = [["0/a.npy", 0], ["0/b.npy", 1], ["1/c.npy", 2]]

GOOD: dict[str, tuple[Callable[[Path], Path], bool, list[int]]] = {
    "archive": (lambda f: archive(f / "x.npz", moments=MOMENTS, labels=[2, 1, 0]), True, [2, 1, 0]),
    "no labels": (lambda f: archive(f / "x.npz", moments=MOMENTS), False, [0, 0, 0]),
    "folder": (lambda f: edm2(f / "x", {"labels": LISTED}), True, [0, 1, 2]),
    "backslashes": (lambda f: edm2(f / "x", {"labels": [["0\\a.npy", 0], *LISTED[1:]]}), True, [0, 1, 2]),
    "labels as text": (lambda f: edm2(f / "x", {"labels": [["0/a.npy", "2"], *LISTED[1:]]}), True, [2, 1, 2]),
    "byte-order mark": (lambda f: edm2(f / "x", "\ufeff" + json.dumps({"labels": LISTED})), True, [0, 1, 2]),
    "null": (lambda f: edm2(f / "x", {"labels": None}), False, [0, 0, 0]),
}


@pytest.mark.parametrize(("make", "labelled", "labels"), GOOD.values(), ids=GOOD)
def test_a_source_is_read(tmp_path: Path, make: Callable[[Path], Path], labelled: bool, labels: list[int]) -> None:
    [(moments, found)] = read_sources([make(tmp_path)], labelled=labelled)
    assert np.array_equal(moments, MOMENTS)
    assert found.tolist() == labels


def put(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


def other_shape(folder: Path) -> Path:
    np.save(edm2(folder, {"labels": LISTED}) / "0/b.npy", MOMENTS[0, :, :2])
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda f: f / "x.npz", "no such file"),
    "text": (lambda f: put(f / "x.npz", lambda p: p.write_text("x")), "not an .npz file"),
    "empty": (lambda f: put(f / "x.npz", lambda p: p.write_text("")), "not an .npz file"),
    "fifo": (lambda f: put(f / "x.npz", os.mkfifo), "not a regular file"),
    "one array": (lambda f: put(f / "x.npy", lambda p: np.save(p, MOMENTS)), "not an .npz file"),
    "no labels": (lambda f: archive(f / "x.npz", moments=MOMENTS), r"no labels(.|\n)*omit --classes"),
    "no moments": (lambda f: archive(f / "x.npz", labels=[0], z=[1]), "no moments"),
    "objects": (lambda f: archive(f / "x.npz", moments=np.array([None]), labels=[0]), "not an .npz file"),
    "no index": (lambda f: f, "no dataset.json"),
    "no json": (lambda f: edm2(f / "x", "{"), "cannot be read"),
    "a list": (lambda f: edm2(f / "x", [1]), "has no labels"),
    "no key": (lambda f: edm2(f / "x", {"label": []}), "has no labels"),
    "null": (lambda f: edm2(f / "x", {"labels": None}), r"states no labels(.|\n)*omit --classes"),
    "no entries": (lambda f: edm2(f / "x", {"labels": []}), "lists no files"),
    "number": (lambda f: edm2(f / "x", {"labels": 3}), "lists no files"),
    "bare names": (lambda f: edm2(f / "x", {"labels": ["0/a.npy"]}), "not a file and its label"),
    "missing file": (lambda f: edm2(f / "x", {"labels": [["no.npy", 0]]}), r"missing(.|\n)*no\.npy"),
    "elsewhere": (lambda f: edm2(f / "x", {"labels": [["..\\a.npy", 0]]}), "elsewhere"),
    "a fraction": (lambda f: edm2(f / "x", {"labels": [["0/a.npy", 0.5]]}), "not a class number"),
    "a name": (lambda f: edm2(f / "x", {"labels": [["0/a.npy", "cat"]]}), "not a class number"),
    "negative": (lambda f: edm2(f / "x", {"labels": [["0/a.npy", -1]]}), "not a class number"),
    "several shapes": (lambda f: other_shape(f / "x"), "several shapes"),
    "no array": (lambda f: put(edm2(f / "x", {"labels": LISTED}), lambda p: (p / "0/a.npy").write_text("x")), "array"),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_a_source_of_another_form_is_named(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(SdditError, match=f"SD-D317(.|\n)*{words}"):
        list(read_sources([make(tmp_path)], labelled=True))


def test_the_script_ends_with_messages_and_exit_statuses(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/make_latents.py"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    archive(tmp_path / "x.npz", moments=MOMENTS, labels=[0, 0, 1])
    (tmp_path / "names.txt").write_text("\ufeffcat\r\ndog\r\ncat\r\n\r\n", encoding="utf-8")
    common = ["x.npz", "--scale", "1", "--encoder", "none", "--classes", "names.txt", "--layout"]
    refused = call("out", *common, "mean+logvar")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "\nerror SD-D344: no log-variance" in refused.stderr
    assert "Traceback" in call("out", *common, "mean+logvar", "--debug").stderr
    good = call("out", *common, "mean+std")
    assert (good.returncode, good.stdout) == (0, "out/latents.json\n")
    assert "warning: classes with the same name" in good.stderr
    assert "warning: no latent has the classes #2 'cat'" in good.stderr
    assert json.loads((tmp_path / "out/latents.json").read_text())["class_names"] == ["cat", "dog", "cat"]
    assert call("out2", "x.npz", "--scale", "-1", "--encoder", "x", "--layout", "mean+std").returncode == 2
