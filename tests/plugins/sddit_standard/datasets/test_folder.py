"""A folder of images: its order, classes and split, what is measured of it, and every way it can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from sddit.errors import SdditError
from sddit.interfaces import Split
from sddit.recipes.resolve import resolve
from sddit_standard.datasets import image_datasets, image_facts
from sddit_standard.datasets.image_datasets import image_files
from sddit_standard.datasets.image_index import split_of
from sddit_standard.datasets.params import FolderParams, ImageFilesParams


def paint(path: Path, seed: int, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)


def make(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12) -> Path:
    for c, name in enumerate(classes):
        for i in range(count):
            paint(root / name / f"{i}.png", 100 * c + i)
    return root


def params(root: Path, **keys: Any) -> FolderParams:
    return FolderParams(path=str(root), **{"size": 8, "holdout": 0.25, **keys})


def names_of(chosen: ImageFilesParams, split: Split | None = None) -> list[str]:
    index = chosen.source().contents.index
    return [index.name(i) for i in (index.positions(split, chosen.holdout) if split else range(len(index)))]


def splits_of(chosen: ImageFilesParams) -> dict[str, Split]:
    return {name: split for split in get_args(Split) for name in names_of(chosen, split)}


def codes(root: Path, **keys: Any) -> list[str]:
    with pytest.raises(SdditError) as refused:
        params(root, **keys).facts()
    return [problem.code for problem in refused.value.problems]


def test_facts_and_images_agree(tmp_path: Path) -> None:
    chosen = params(make(tmp_path / "d"))
    facts = chosen.facts()
    train, test = image_files(chosen, split="train"), image_files(chosen, split="test")
    assert facts.class_names == ("cat", "dog")
    assert facts.image == (3, 8, 8)
    assert (len(train), len(test)) == (facts.train_size, facts.test_size)
    assert facts.train_size + facts.test_size == 24
    assert facts.test_size > 0
    x, labels = train.fetch(range(len(train)))
    assert x.dtype == torch.float32
    assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx(facts.mean, abs=1e-6)
    assert x.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx(facts.std, rel=1e-6)
    names = names_of(chosen, "train")
    assert labels.tolist() == [("cat", "dog").index(name.split("/")[0]) for name in names]
    for image, name in zip(train.to_images(x), names, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "d" / name)))


def test_the_order_is_that_of_the_bytes_of_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "d"
    for i, name in enumerate(["b/x.png", "a/é.png", "a/z.png", "a/deep/a.png", "B/0.png", "a/10.png", "a/9.png"]):
        paint(root / name, i)
    chosen = params(root, holdout=0.0)
    names = names_of(chosen)
    assert names == ["B/0.png", "a/10.png", "a/9.png", "a/deep/a.png", "a/z.png", "a/é.png", "b/x.png"]
    assert chosen.facts().class_names == ("B", "a", "b")
    before, ordinary = chosen.facts(), os.scandir

    class Shuffled:
        def __init__(self, path: Path) -> None:
            with ordinary(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self) -> Any:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr("sddit_standard.datasets.folder.os.scandir", Shuffled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert chosen.facts() == before


def test_classes_with_names_that_look_alike_are_kept_with_a_warning(tmp_path: Path) -> None:
    for number, name in enumerate(["cafe\u0301", "caf\u00e9", "cat", "cat ", "Cat"]):
        for image in range(2):
            paint(tmp_path / "d" / name / f"{image}.png", 10 * number + image)
    with pytest.warns(UserWarning, match="differ only in outer spaces"):
        assert len(params(tmp_path / "d", holdout=0.0).facts().class_names) == 5


def test_the_split_of_an_image_depends_on_its_name_alone(tmp_path: Path) -> None:
    root = make(tmp_path / "d", count=40)
    before = splits_of(params(root))
    paint(root / "cat" / "another.png", 999)
    (root / "cat" / "3.png").unlink()
    after = splits_of(params(root))
    assert all(after[name] == split for name, split in before.items() if name in after)
    assert set(before.values()) == {"train", "test"}
    share = np.mean([split_of(f"c/{i}.png", 0.25) == "test" for i in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)
    assert {split_of(f"c/{i}.png", 0.0) for i in range(100)} == {"train"}


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    prints = [params(root).facts().fingerprint]
    assert params(root).facts().fingerprint == prints[0]

    def note(**keys: Any) -> None:
        prints.append(params(root, **keys).facts().fingerprint)

    note(size=4)
    note(channels=1)
    note(labels=False)
    note(holdout=0.6)
    paint(root / "cat" / "0.png", 12345)
    note()
    (root / "cat" / "1.png").rename(root / "dog" / "moved.png")
    note()
    (root / "dog").rename(root / "wolf")
    note()
    assert len(set(prints)) == len(prints)


def repaint(file: Path, seed: int) -> None:
    """Give a bitmap other pixels, but its size and times."""
    before = file.stat()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def bitmaps(root: Path) -> Path:
    for image in make(root).rglob("*.png"):
        Image.open(image).save(image.with_suffix(".bmp"))
        image.unlink()
    return root


def test_the_fingerprint_sees_other_pixels_of_equal_size_and_time(tmp_path: Path) -> None:
    root = bitmaps(tmp_path / "d")
    before = params(root).facts()
    assert params(root).facts() == before
    repaint(root / "cat" / "3.bmp", seed=999)
    assert params(root).facts().fingerprint != before.fingerprint


def test_of_a_large_folder_a_sample_is_compared_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_facts, "MAX_HASHED_BYTES", 100)
    monkeypatch.setattr(image_facts, "MAX_SAMPLED", 6)
    root = bitmaps(tmp_path / "d")
    before = params(root).facts()
    assert "sample of 6 files (sampled; --full-hash" in before.source
    sampled = set(names_of(params(root))[::4])
    repaint(root / "dog" / "1.bmp", seed=999)
    assert "dog/1.bmp" not in sampled
    assert params(root).facts().fingerprint == before.fingerprint  # what the sample cannot see
    full = params(root, full_hash=True).facts()
    assert full.fingerprint != before.fingerprint
    assert "sampled" not in full.source
    repaint(root / min(sampled), seed=998)
    assert params(root).facts().fingerprint not in (before.fingerprint, full.fingerprint)


def test_a_moved_folder_has_the_same_fingerprint(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    before = params(root).facts().fingerprint
    assert params(root.rename(tmp_path / "e")).facts().fingerprint == before


def test_what_was_measured_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = params(make(tmp_path / "d"))
    facts = chosen.facts()
    monkeypatch.setattr("sddit_standard.datasets.image_facts._measure", lambda *_: pytest.fail("measured again"))
    assert chosen.facts() == facts


def test_without_labels_images_may_lie_anywhere(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    paint(root / "loose.png", 5)
    assert codes(root) == ["SD-D314"]
    chosen = params(root, labels=False, holdout=0.0)
    assert chosen.facts().class_names == ()
    data = image_files(chosen, split="train")
    assert len(data) == 25
    assert not data.fetch(range(25))[1].any()


def test_loose_images_are_one_problem(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    for number in range(9):
        paint(root / f"loose{number}.png", 5)
    with pytest.raises(SdditError) as caught:
        params(root).facts()
    (problem,) = caught.value.problems
    assert problem.what == "9 images are next to the class folders"
    assert problem.got == "loose0.png, loose1.png, loose2.png, loose3.png, loose4.png, ..."
    flat = tmp_path / "flat"
    flat.mkdir()
    paint(flat / "a.png", 5)
    with pytest.raises(SdditError, match="an image is in no class folder"):
        params(flat).facts()


def test_an_empty_test_split_has_no_images(tmp_path: Path) -> None:
    data = image_files(params(make(tmp_path / "d"), holdout=0.0), split="test")
    assert len(data) == 0
    assert data.fetch([])[0].shape == (0, 3, 8, 8)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    data = image_files(params(make(tmp_path / "d"), channels=1, normalize="standard"), split="train")
    x, _ = data.fetch(range(len(data)))
    assert x.shape[1:] == (1, 8, 8)
    assert x.std(correction=0).item() == pytest.approx(0.5, rel=1e-5)
    assert data.to_images(x).shape[1:] == (3, 8, 8)


def test_images_are_decoded_again_only_past_the_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = params(make(tmp_path / "d"))
    reads: list[str] = []
    ordinary = image_datasets.read_image

    def counted(source: Any, position: int, given: Any) -> Any:
        reads.append(source.where(position))
        return ordinary(source, position, given)

    monkeypatch.setattr(image_datasets, "read_image", counted)
    for budget, extra in ((2**30, 0), (5 * 8 * 8 * 3, None)):
        monkeypatch.setattr(image_datasets, "MEMORY_BUDGET", budget)
        data = image_files(chosen, split="train")
        reads.clear()
        first = data.fetch(range(len(data)))[0]
        again = data.fetch(range(len(data)))[0]
        assert torch.equal(first, again)
        assert len(reads) - len(data) == (len(data) - 5 if extra is None else extra)


def test_other_files_are_counted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    (root / "README.txt").write_text("hello")
    (root / "cat" / "notes.json").write_text("{}")
    (root / ".git").mkdir()
    (root / "cat" / ".hidden.png").write_text("no image")
    assert params(root).facts().source.endswith("images, 2 other files ignored")


@pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "cat/@eaDir"])
def test_folders_of_the_system_are_neither_classes_nor_images(tmp_path: Path, folder: str) -> None:
    root = make(tmp_path / "d")
    before = params(root).facts()
    (root / folder).mkdir()
    shutil.copy(next((root / "cat").glob("*.png")), root / folder)
    assert params(root).facts() == before
    (root / folder).rename(root / "other")  # the control
    assert params(root).facts().num_classes == before.num_classes + 1


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path / "nowhere") == ["SD-D300"]


def test_a_folder_or_class_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert codes(tmp_path / "empty") == ["SD-D304"]
    root = make(tmp_path / "d")
    (root / "fox").mkdir()
    (root / "owl").mkdir()
    assert codes(root) == ["SD-D304", "SD-D304"]


def test_a_class_that_is_held_out_whole_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    name = next(f"{i}.png" for i in range(1000) if split_of(f"fox/{i}.png", 0.25) == "test")
    paint(root / "fox" / name, 1)
    assert codes(root) == ["SD-D304"]
    assert params(root, holdout=0.0).facts().num_classes == 3


def test_corrupt_images_are_named_together(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    for name in ("cat/3.png", "dog/4.png"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SdditError) as refused:
        params(root).facts()
    assert [problem.code for problem in refused.value.problems] == ["SD-D301", "SD-D301"]
    assert "cat/3.png" in refused.value.problems[0].what + refused.value.problems[0].where
    assert "dog/4.png" in refused.value.problems[1].what + refused.value.problems[1].where


def test_an_image_that_breaks_after_the_start_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    data = image_files(params(root), split="train")
    name = names_of(params(root), "train")[2]
    (root / name).unlink()
    with pytest.raises(SdditError, match="SD-D301"):
        data.fetch([2])
    assert data.fetch([0])[0].shape == (1, 3, 8, 8)


def test_links_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    (root / "cat" / "link.png").symlink_to(root / "cat" / "0.png")
    (root / "loop").symlink_to(root)
    assert codes(root) == ["SD-D331", "SD-D331"]
    (tmp_path / "way").symlink_to(make(tmp_path / "good"))
    assert params(tmp_path / "way").facts().num_classes == 2


def test_names_that_are_not_utf8_are_refused_and_shown_escaped(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    with open(os.fsencode(root / "cat") + b"/\xff.png", "wb") as file:  # noqa: PTH123  (a path of bytes)
        file.write((root / "cat" / "0.png").read_bytes())
    with pytest.raises(SdditError) as refused:
        params(root).facts()
    assert [problem.code for problem in refused.value.problems] == ["SD-D332"]
    assert r"cat/\udcff.png" in str(refused.value)
    str(refused.value).encode()


def test_flat_images_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "a").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "a" / f"{i}.png")
    assert codes(root, holdout=0.0) == ["SD-D309"]


def grey(root: Path, highest: int, dtype: type) -> Path:
    for i in range(12):
        file = root / "a" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(i).integers(0, highest + 1, (8, 8)).astype(dtype)
        levels[0, 0] = highest
        Image.fromarray(levels).save(file)
    return root


def test_twelve_bits_in_sixteen_are_refused_and_read_where_stated(tmp_path: Path) -> None:
    root = grey(tmp_path / "d", 4095, np.uint16)
    with pytest.raises(SdditError) as refused:
        params(root, channels=1).facts()
    assert {problem.code for problem in refused.value.problems} == {"SD-D315"}
    assert "dataset.bits = 12" in refused.value.problems[0].fix
    stated = params(root, channels=1, bits=12).facts()
    assert abs(stated.mean[0]) < 0.1
    assert params(root, channels=1, bits=16).facts().fingerprint != stated.fingerprint


def test_nearly_black_images_are_refused_unless_stated(tmp_path: Path) -> None:
    root = grey(tmp_path / "d", 15, np.uint8)
    assert codes(root, channels=1) == ["SD-D315"]
    assert params(root, channels=1, bits=8).facts().mean[0] < -0.9
    assert abs(params(root, channels=1, bits=4).facts().mean[0]) < 0.1


RECIPE = """
extends = "quickstart"
[dataset]
name = "folder"
path = "images"
size = 8
[train]
steps = 4
batch = 8
save_every = 2
[optimizer]
warmup = 1
[evaluate]
features = []
samples = 4
previews = 0
"""


def test_full_hash_is_a_shorthand_that_changes_no_id(sddit_run: Any, tmp_path: Path) -> None:
    make(tmp_path / "images")
    (tmp_path / "mine.toml").write_text(RECIPE)
    planned = [json.loads(sddit_run("mine.toml", "-n", "--json", *flag).stdout) for flag in ([], ["--full-hash"])]
    assert [one["recipe"]["dataset"]["full_hash"] for one in planned] == [False, True]
    ids = {resolve(tmp_path / "mine.toml", [f"dataset.full_hash={value}"]).run_id for value in ("true", "false")}
    assert len(ids) == 1
    assert resolve(tmp_path / "mine.toml", ["dataset.bits=8"]).run_id not in ids
    refused = sddit_run("quickstart", "-n", "--full-hash")
    assert refused.status == 2
    assert "(folder, hf, webdataset, zip), and this recipe has dataset.name = 'digits'" in refused.stderr


def test_a_folder_may_move(sddit_run: Any, tmp_path: Path) -> None:
    """Its place is not part of the run id, and a finished run records it for commands that read the images later."""
    make(tmp_path / "images")
    (tmp_path / "mine.toml").write_text(RECIPE)
    before = resolve(tmp_path / "mine.toml").run_id
    assert sddit_run("mine.toml").status == 0
    (run,) = (tmp_path / "runs").iterdir()
    (tmp_path / "images").rename(tmp_path / "moved")
    lost = sddit_run("evaluate", run, "--probe")
    assert (lost.status, "SD-D300" in lost.stderr) == (4, True), lost.stderr
    [command] = re.findall(r"sddit-run (.*--resume.*NEW_PATH)", lost.stderr)
    assert resolve(tmp_path / "mine.toml", ["dataset.path=moved"]).run_id == before
    found = sddit_run(*command.replace("NEW_PATH", "moved").split())
    assert (found.status, "already finished" in found.stdout) == (0, True), found.stderr
    assert resolve(run / "recipe.resolved.json").facts.source.startswith(str(tmp_path / "moved"))
    paint(tmp_path / "moved" / "cat" / "0.png", 7777)
    assert resolve(tmp_path / "mine.toml", ["dataset.path=moved"]).run_id != before, "the control"


def test_images_that_change_between_two_sittings_are_reported(sddit_run: Any, tmp_path: Path) -> None:
    """Other pixels of equal size and time: neither continued with, nor scored against, without a word."""
    make(tmp_path / "images")
    (tmp_path / "mine.toml").write_text(RECIPE)
    assert sddit_run("mine.toml").status == 0
    (run,) = (tmp_path / "runs").iterdir()
    (run / "report.html").unlink()
    unchanged = sddit_run("mine.toml", "--resume", run, "--full-hash")
    assert (unchanged.status, "continuing after step 4" in unchanged.stdout) == (0, True), "the control"
    (run / "report.html").unlink()

    path = tmp_path / "images" / "cat" / "0.png"
    before = path.stat()
    paint(path, 7777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    resumed = sddit_run("mine.toml", "--resume", run)
    assert (resumed.status, "SD-C420" in resumed.stderr) == (5, True)
    assert "restore the data, or --allow-change data.fingerprint" in resumed.stderr
    probed = sddit_run("evaluate", run, "--probe")
    assert (probed.status, "SD-C407" in probed.stderr) == (5, True)
    new = sddit_run("mine.toml")
    assert new.status == 0
    assert f"unfinished run {run.name} began, so this is a new run" in new.stdout
