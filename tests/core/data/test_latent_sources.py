"""Sources of latents are read, and one of another form ends in a message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sddit.data.latent_parts import layout_of, read_sources
from sddit.data.latent_sources import PartsRequest
from sddit.errors import SdditError

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
    [(moments, found)] = read_sources([make(tmp_path)], PartsRequest(labelled=labelled))
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
        list(read_sources([make(tmp_path)], PartsRequest(labelled=True)))


def tensors(path: Path, **named: Any) -> Path:
    save_file({name: np.ascontiguousarray(one) for name, one in named.items()}, path)
    return path


def lmdb(folder: Path, entries: dict[str, bytes]) -> Path:
    package = pytest.importorskip("lmdb", reason='needs the extra: pip install "sddit[lmdb]"')
    with package.open(str(folder), map_size=2**20) as environment, environment.begin(write=True) as stored:
        for key, value in entries.items():
            stored.put(key.encode(), value)
    return folder


def entries(moments: Any, labels: list[int], **others: bytes) -> dict[str, bytes]:
    found = {f"z-{number}": one.astype("<f4").tobytes() for number, one in enumerate(moments)}
    found |= {f"y-{number}": str(label).encode() for number, label in enumerate(labels)}
    return {**found, "length": str(len(moments)).encode(), **others}


def test_the_folder_of_repa_is_found_next_to_its_images(tmp_path: Path) -> None:
    edm2(tmp_path / "vae-sd", {"labels": LISTED})
    [(moments, labels)] = read_sources([tmp_path], PartsRequest(labelled=True))
    assert np.array_equal(moments, MOMENTS)
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_folder", [True, False])
def test_latents_of_lightningdit_have_no_spread_and_may_be_mirrored(tmp_path: Path, is_folder: bool) -> None:
    latents = MOMENTS[:, :4]
    file = tensors(tmp_path / "a.safetensors", latents=latents, latents_flip=-latents, labels=np.array([2, 0, 1]))
    source = tmp_path if is_folder else file
    assert layout_of([source], None) == "mean+std"
    [(moments, labels)] = read_sources([source], PartsRequest(labelled=True))
    assert np.array_equal(moments[:, :4], latents)
    assert not moments[:, 4:].any()
    assert labels.tolist() == [2, 0, 1]
    [(pairs, doubled)] = read_sources([source], PartsRequest(labelled=True, flip="both"))
    assert np.array_equal(pairs[0::2, :4], latents)
    assert np.array_equal(pairs[1::2, :4], -latents)
    assert doubled.tolist() == [2, 2, 0, 0, 1, 1]


def test_an_lmdb_is_read_with_each_mirror_image_after_its_image(tmp_path: Path) -> None:
    both = np.concatenate([MOMENTS, MOMENTS[..., ::-1]])
    source = lmdb(tmp_path, entries(both, [0, 1, 2, 0, 1, 2]))
    assert layout_of([source], None) == "mean+logvar"
    [(moments, labels)] = read_sources([source], PartsRequest(labelled=True))
    assert np.array_equal(moments, both)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    [(pairs, doubled)] = read_sources([source], PartsRequest(labelled=True, flip="both"))
    assert np.array_equal(pairs[0::2], MOMENTS)
    assert np.array_equal(pairs[1::2], MOMENTS[..., ::-1])
    assert doubled.tolist() == [0, 0, 1, 1, 2, 2]


BOTH, LABELS = PartsRequest(labelled=True, flip="both"), PartsRequest(labelled=True)
WRONG_STORES: dict[str, tuple[Callable[[Path], Path], PartsRequest, str]] = {
    "no labels": (lambda f: tensors(f / "a.safetensors", latents=MOMENTS), LABELS, r"no tensor labels(.|\n)*--classes"),
    "no mirror images": (
        lambda f: tensors(f / "a.safetensors", latents=MOMENTS, labels=np.zeros(3, int)),
        BOTH,
        "no tensor latents_flip",
    ),
    "fewer labels": (
        lambda f: tensors(f / "a.safetensors", latents=MOMENTS, labels=np.zeros(2, int)),
        LABELS,
        "another number",
    ),
    "fewer mirror images": (
        lambda f: tensors(f / "a.safetensors", latents=MOMENTS, latents_flip=MOMENTS[:2], labels=np.zeros(3, int)),
        BOTH,
        "another shape",
    ),
    "truncated": (lambda f: put(f / "a.safetensors", lambda p: p.write_bytes(b"x" * 9)), LABELS, "not a safetensors"),
    "pickles": (lambda f: put(f / "a.tar", lambda p: p.write_bytes(b"")), LABELS, r"pickles(.|\n)*LMDB"),
    "a pickle in an LMDB": (
        lambda f: lmdb(f, entries(MOMENTS, [0, 1, 2], **{"z-1": b"\x80\x04cos\nsystem\n."})),
        LABELS,
        "z-1 does not hold",
    ),
    "a missing entry": (lambda f: lmdb(f, entries(MOMENTS, [0, 1, 2], length=b"4")), LABELS, "no entry z-3"),
    "other channels": (lambda f: lmdb(f, entries(MOMENTS[:, :6], [0, 1, 2])), LABELS, r"z-0 does(.|\n)*--channels"),
    "an odd length": (lambda f: lmdb(f, entries(MOMENTS, [0, 1, 2])), BOTH, "length = 3"),
    "interleaved pairs": (lambda f: lmdb(f, entries(MOMENTS[[0, 0, 1, 1]], [0, 0, 1, 1])), BOTH, "another label"),
    "a label that is text": (lambda f: lmdb(f, entries(MOMENTS, [0, 1, 2], **{"y-1": b"cat"})), LABELS, "y-1 is not"),
    "a damaged LMDB": (
        lambda f: put(f / "data.mdb", lambda p: p.write_bytes(b"x" * 9000)).parent,
        LABELS,
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("make", "request_", "words"), WRONG_STORES.values(), ids=WRONG_STORES)
def test_a_store_of_another_form_is_named(
    tmp_path: Path, make: Callable[[Path], Path], request_: PartsRequest, words: str
) -> None:
    source = make(tmp_path)
    if source.is_dir():
        pytest.importorskip("lmdb", reason='needs the extra: pip install "sddit[lmdb]"')
    with pytest.raises(SdditError, match=f"SD-D317(.|\n)*{words}"):
        list(read_sources([source], request_))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.data.latent_stores.find_spec", lambda name: None)
    (tmp_path / "data.mdb").touch()
    with pytest.raises(SdditError, match=r"SD-P210(.|\n)*sddit\[lmdb\]"):
        list(read_sources([tmp_path], LABELS))


def test_a_layout_that_is_not_that_of_the_source_is_refused(tmp_path: Path) -> None:
    source, other = edm2(tmp_path / "x", {"labels": LISTED}), archive(tmp_path / "x.npz", moments=MOMENTS)
    assert layout_of([other, source], "mean+std") == "mean+std"
    with pytest.raises(SdditError, match=r"SD-D317(.|\n)*another layout"):
        layout_of([source], "mean+logvar")
    with pytest.raises(SdditError, match=r"SD-D317(.|\n)*not known(.|\n)*--layout"):
        layout_of([other], None)


def test_the_command_packs_sources_and_ends_with_messages(tmp_path: Path, sddit_run: Any) -> None:
    archive(tmp_path / "x.npz", moments=MOMENTS, labels=[0, 0, 1])
    (tmp_path / "names.txt").write_text("\ufeffcat\r\ndog\r\ncat\r\n\r\n", encoding="utf-8")
    common = ("x.npz", "out", "--scale", "1", "--encoder", "none", "--classes", "names.txt", "--layout")
    with pytest.warns(UserWarning, match="classes with the same name|no latent has the classes"):
        refused = sddit_run("pack", *common, "mean+logvar")
    assert refused.status == 4
    assert "error SD-D344: no log-variance" in refused.stderr
    with pytest.warns(UserWarning, match="classes with the same name|no latent has the classes #2 'cat'"):
        good = sddit_run("pack", *common, "mean+std")
    assert good.status == 0
    assert "out: 3 latents of 4x4x4, scale 1" in good.stdout
    assert json.loads((tmp_path / "out/latents.json").read_text())["class_names"] == ["cat", "dog", "cat"]
    with pytest.warns(UserWarning, match="classes with the same name"):
        assert sddit_run("pack", *common, "mean+std").status == 4  # there is a cache
    wrong = ("pack", "x.npz", "out2", "--layout", "mean+std", "--encoder", "x", "--scale")
    assert [sddit_run(*wrong, scale).status for scale in ("-1", "0", "inf", "nan", "x")] == [2] * 5
