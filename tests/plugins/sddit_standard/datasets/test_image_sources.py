"""Archives and saved data sets give the same images, labels and splits as a folder, and refuse what they must."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sddit.errors import SdditError
from sddit_standard.datasets import image_sources, parallel_scan, tar_shards, zip_source
from sddit_standard.datasets.image_datasets import image_files
from sddit_standard.datasets.image_index import IndexBuilder, split_of
from sddit_standard.datasets.params import FolderParams, HfParams, ImageFilesParams, WebdatasetParams, ZipParams

ROOT = Path(__file__).parents[4]
Files = dict[str, bytes]
CLASSES = ("cat", "dog", "fox")


def png(seed: int, size: int = 8) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def images(count: int = 10) -> Files:
    """{CLASS/N.png: bytes}."""
    return {f"{name}/{i}.png": png(100 * c + i) for c, name in enumerate(CLASSES) for i in range(count)}


def label_of(name: str) -> int:
    return CLASSES.index(name.partition("/")[0])


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_edm(path: Path, files: Files, labels: Any = "own") -> Path:
    """Write EDM2's form: numbered images, and dataset.json."""
    named = {f"00000/img{i:08}.png": (data, label_of(name)) for i, (name, data) in enumerate(files.items())}
    own = [[name, label] for name, (_, label) in named.items()]
    index = json.dumps({"labels": own if labels == "own" else labels}).encode()
    return write_zip(path, {**{name: data for name, (data, _) in named.items()}, "dataset.json": index})


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in fields.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(data))


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    return path


def write_shards(root: Path, files: Files, per_shard: int = 12) -> Path:
    items = list(files.items())
    for shard in range(0, len(items), per_shard):
        samples: Files = {}
        for number, (name, data) in enumerate(items[shard : shard + per_shard]):
            samples[f"{number:06}.png"] = data
            label = label_of(name)
            samples[f"{number:06}." + ("cls" if number % 2 else "json")] = (
                str(label).encode() if number % 2 else json.dumps({"label": label, "text": "x"}).encode()
            )
        write_tar(root / f"shard-{shard // per_shard:04}.tar", samples)
    return root


def write_hf(root: Path, files: Files, **columns: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    rows = {
        "image": [{"bytes": data, "path": None} for data in files.values()],
        "label": [label_of(name) for name in files],
    }
    datasets.Dataset.from_dict({**rows, **columns}, features=datasets.Features(features)).save_to_disk(os.fspath(root))
    return root


def folder(root: Path, files: Files) -> FolderParams:
    return FolderParams(path=str(write_folder(root / "folder", files)), size=8, holdout=0.25)


def zipped(root: Path, files: Files) -> ZipParams:
    return ZipParams(path=str(write_zip(root / "x.zip", files, zipfile.ZIP_DEFLATED)), size=8, holdout=0.25)


def edm(root: Path, files: Files) -> ZipParams:
    return ZipParams(path=str(write_edm(root / "edm.zip", files)), size=8, holdout=0.25)


def shards(root: Path, files: Files) -> WebdatasetParams:
    return WebdatasetParams(path=str(write_shards(root / "shards", files)), size=8, holdout=0.25)


def saved(root: Path, files: Files) -> HfParams:
    return HfParams(path=str(write_hf(root / "hf", files)), size=8, holdout=0.25)


SOURCES: dict[str, Callable[[Path, Files], ImageFilesParams]] = {
    "folder": folder,
    "zip": zipped,
    "edm": edm,
    "webdataset": shards,
    "hf": saved,
}
each_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


def pixels_of(chosen: ImageFilesParams) -> set[tuple[bytes, int]]:
    """The images of both splits with their labels."""
    found = set()
    for split in ("train", "test"):
        data = image_files(chosen, split=split)
        x, labels = data.fetch(range(len(data)))
        found |= {(image.numpy().tobytes(), int(label)) for image, label in zip(x, labels, strict=True)}
    return found


@each_source
def test_each_source_gives_the_images_and_labels_of_the_folder(
    tmp_path: Path, make: Callable[[Path, Files], ImageFilesParams]
) -> None:
    files = images()
    chosen = make(tmp_path / "a", files) if (tmp_path / "a").mkdir() is None else None
    assert chosen is not None
    (tmp_path / "b").mkdir()
    reference = folder(tmp_path / "b", files)
    assert pixels_of(chosen) == pixels_of(reference)
    facts = chosen.facts()
    assert facts.image == (3, 8, 8)
    assert facts.train_size + facts.test_size == 30
    assert facts.test_size > 0
    x, _ = (train := image_files(chosen, split="train")).fetch(range(len(train)))
    assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx(facts.mean, abs=1e-6)
    changed = {**files, "cat/3.png": png(777)}
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    assert pixels_of(make(tmp_path / "a", changed)) != pixels_of(reference), "the control"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_class_folders_has_the_facts_of_the_folder(tmp_path: Path, method: int) -> None:
    files = images()
    reference = folder(tmp_path, files).facts()
    chosen = ZipParams(path=str(write_zip(tmp_path / "x.zip", files, method)), size=8, holdout=0.25)
    facts = chosen.facts()
    assert facts.class_names == CLASSES
    compared = ("fingerprint", "mean", "std", "train_size", "test_size", "class_names", "image")
    assert [getattr(facts, key) for key in compared] == [getattr(reference, key) for key in compared]
    backwards = dict(reversed(files.items()))
    again = ZipParams(path=str(write_zip(tmp_path / "y.zip", backwards)), size=8, holdout=0.25).facts()
    assert again.fingerprint == reference.fingerprint, "the order of entries does not count"
    other = write_zip(tmp_path / "z.zip", {**files, "cat/0.png": png(5000)})
    assert ZipParams(path=str(other), size=8, holdout=0.25).facts().fingerprint != reference.fingerprint


@each_source
def test_the_fingerprint_sees_a_rewritten_image_and_a_label(
    tmp_path: Path, make: Callable[[Path, Files], ImageFilesParams]
) -> None:
    files, prints = images(), []
    moved = {
        ("fox/3.png" if name == "cat/3.png" else name): data for name, data in files.items() if name != "fox/3.png"
    }
    for number, content in enumerate((files, files, {**files, "dog/1.png": png(999)}, moved)):
        (tmp_path / str(number)).mkdir()
        prints.append(make(tmp_path / str(number), content).facts().fingerprint)
    assert prints[0] == prints[1], "the same content elsewhere"
    assert len(set(prints)) == 3


@pytest.mark.parametrize("make", [zipped, edm, shards], ids=["zip", "edm", "webdataset"])
def test_an_archive_that_is_written_while_it_is_read_is_refused(
    tmp_path: Path, make: Callable[[Path, Files], ImageFilesParams]
) -> None:
    chosen = make(tmp_path, images())
    data = image_files(chosen, split="train")
    before = data.fetch([0])[0]
    for file in (*tmp_path.glob("*.zip"), *tmp_path.glob("shards/*.tar")):
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(SdditError, match="SD-D324"):
        data.fetch([1])
    assert torch.equal(image_files(chosen, split="train").fetch([0])[0], before), "listed again, it is the same"


@pytest.mark.parametrize("make", [zipped, shards], ids=["zip", "webdataset"])
def test_threads_and_processes_read_at_once(tmp_path: Path, make: Callable[[Path, Files], ImageFilesParams]) -> None:
    source = make(tmp_path, images()).source()
    alone = [source.read(position) for position in range(30)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [*range(30)] * 20)) == alone * 20
    readers = []
    for _ in range(3):
        if (reader := os.fork()) == 0:
            os._exit(0 if [source.read(position) for position in [*range(30)] * 20] == alone * 20 else 1)
        readers.append(reader)
    assert [os.waitpid(reader, 0)[1] for reader in readers] == [0, 0, 0]
    assert len(set(alone)) == 30, "the control"
    there = pickle.loads(pickle.dumps(source))
    assert [there.read(position) for position in range(30)] == alone


@pytest.mark.parametrize(
    ("make", "lister"),
    [(zipped, "zip_source.ZipSource._list"), (shards, "tar_shards.WebdatasetSource._list")],
    ids=["zip", "webdataset"],
)
def test_a_list_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Files], ImageFilesParams], lister: str
) -> None:
    chosen = make(tmp_path, images())
    first = chosen.source().contents
    ordinary = (zip_source.ZipSource if "zip" in lister else tar_shards.WebdatasetSource)._list
    monkeypatch.setattr(f"sddit_standard.datasets.{lister}", lambda *_: pytest.fail("listed again"))
    again = chosen.source().contents
    assert again.index.digest() == first.index.digest()
    assert (again.class_names, again.others) == (first.class_names, first.others)
    monkeypatch.setattr(f"sddit_standard.datasets.{lister}", ordinary)
    for entry in (tmp_path / "cache" / "sddit" / "facts").glob("*.arrays"):
        data = bytearray(entry.read_bytes())
        data[-1] ^= 1
        entry.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum differs"):
        assert chosen.source().contents.index.digest() == first.index.digest()


@pytest.mark.parametrize("make", [folder, shards], ids=["folder", "webdataset"])
def test_processes_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Files], ImageFilesParams]
) -> None:
    chosen = make(tmp_path, images())
    before = chosen.source().contents.index.digest()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    starts: list[int] = []
    ordinary = parallel_scan._scan_in_processes
    monkeypatch.setattr(parallel_scan, "SERIAL_SECONDS", -1)
    monkeypatch.setattr(parallel_scan, "_scan_in_processes", lambda *given: (starts.append(1), ordinary(*given)))
    assert chosen.source().contents.index.digest() == before
    assert starts == [1]


def test_what_a_process_refuses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_scan, "SERIAL_SECONDS", -1)
    chosen = shards(tmp_path, images())
    last = tmp_path / "shards" / "shard-0002.tar"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(SdditError, match=r"SD-D313(.|\n)*shard-0002.tar"):
        chosen.facts()
    write_tar(last, {"a.png": png(1), "a.pkl": b"x", "a.cls": b"0"})
    with pytest.raises(SdditError, match=r"SD-D322(.|\n)*a\.pkl"):
        chosen.facts()


RECIPE = """
extends = "digits/dit"
[dataset]
name = "{name}"
path = "{path}"
size = 8
holdout = 0.3
[backbone]
depth = 2
width = 16
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


@pytest.mark.parametrize("kind", ["zip", "webdataset", "hf"])
def test_a_run_is_not_continued_with_a_rewritten_archive(sddit_run: Any, tmp_path: Path, kind: str) -> None:
    def write(files: Files) -> Path:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / "data").mkdir()
        if kind == "zip":
            return write_edm(tmp_path / "data" / "x.zip", files)
        return write_shards(tmp_path / "data", files) if kind == "webdataset" else write_hf(tmp_path / "data", files)

    path = write(images())
    (tmp_path / "mine.toml").write_text(RECIPE.format(name=kind, path=path))
    first = sddit_run("mine.toml")
    assert first.status == 0, first.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (run / "report.html").unlink()
    write(images())
    copied = sddit_run("mine.toml", "--resume", run)
    assert (copied.status, "continuing after step 4" in copied.stdout) == (0, True), "the control: the same content"
    (run / "report.html").unlink()
    write({**images(), "cat/0.png": png(4321)})
    resumed = sddit_run("mine.toml", "--resume", run)
    assert (resumed.status, "SD-C420" in resumed.stderr) == (5, True)


# -- what is refused ---------------------------------------------------------------------------------------------------


class Trap:
    """A pickle that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def special(name: str, **fields: Any) -> Callable[[Path], Path]:
    """A shard with one entry that is not a plain file, or has a bad name."""

    def write(path: Path) -> Path:
        write_tar(path, {})
        with tarfile.open(path, "w") as archive:
            for i in range(4):
                add(archive, f"{i}.png", png(i))
                add(archive, f"{i}.cls", b"0")
            add(archive, name, **fields)
        return path

    return write


def plain(files: Mapping[str, bytes], without: str = "") -> Callable[[Path], Path]:
    """A shard of 4 good samples and these entries."""
    good = {f"{i}.{kind}": data for i in range(4) for kind, data in (("png", png(i)), ("cls", b"0"))}
    return lambda path: write_tar(path, {**{k: v for k, v in good.items() if k != without}, **files})


def twice(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "a.cls", "b.png", "b.cls", "a.jpg", "a.cls"):
            add(archive, name, b"0" if name.endswith("cls") else png(1))
    return path


def cut(count: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        data = plain({})(path).read_bytes()
        path.write_bytes(data[:count] if count > 0 else data.rstrip(b"\0")[: count or None])
        return path

    return write


def joined(path: Path) -> Path:
    data = plain({})(path).read_bytes()
    path.write_bytes(data + data)
    return path


def broken_header(path: Path) -> Path:
    data = bytearray(plain({})(path).read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmembers()[3].offset + 5] ^= 0xFF
    path.write_bytes(data)
    return path


def with_size(field: bytes, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], Path]:
    """A shard with an entry whose header states a false size."""

    def write(path: Path) -> Path:
        header = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.USTAR_FORMAT))
        header[124:136], header[156:157] = (
            (field.rjust(12, b"\xff") if field[0] & 0x80 else field.ljust(12, b"\0")),
            kind,
        )
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(plain({})(path).read_bytes().rstrip(b"\0").ljust(8 * 1024, b"\0") + header + bytes(10240))
        return path

    return write


TARS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "outside": (special("../x.png"), "SD-D312", "../x.png"),
    "absolute": (special("/etc/x.png"), "SD-D312", "/etc/x.png"),
    "inner dots": (special("a/../../x.png"), "SD-D312", "a/../../x.png"),
    "symbolic link": (special("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "SD-D312", "x.png"),
    "hard link": (special("x.png", type=tarfile.LNKTYPE, linkname="0.png"), "SD-D312", "x.png"),
    "device": (special("x.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "SD-D312", "x.png"),
    "fifo": (special("x.png", type=tarfile.FIFOTYPE), "SD-D312", "x.png"),
    "not UTF-8": (special("0.\udcff.png"), "SD-D332", "udcff"),
    "pickle": (plain({"0.pkl": b"x"}), "SD-D322", "0.pkl"),
    "pyd": (plain({"0.pyd": b"x"}), "SD-D322", "0.pyd"),
    "pth": (plain({"0.latent.PTH": b"x"}), "SD-D322", "0.latent.PTH"),
    "objects": (plain({"0.npy": npy(np.array([{}], dtype=object))}), "SD-D322", "0.npy"),
    "raw pickle as npy": (plain({"0.npy": pickle.dumps([1])}), "SD-D322", "0.npy"),
    "cut in an image": (cut(3000), "SD-D313", "shard.tar"),
    "cut in a header": (cut(4 * 1024 + 100), "SD-D313", "shard.tar"),
    "cut between entries": (cut(4 * 1024), "SD-D313", "shard.tar"),
    "empty": (cut(1), "SD-D313", "shard.tar"),
    "joined": (joined, "SD-D313", "shard.tar"),
    "broken header": (broken_header, "SD-D313", "shard.tar"),
    "negative size": (with_size(b"\xff\xfe\0"), "SD-D313", "shard.tar"),
    "negative header": (with_size(b"\xff\xfe\0", tarfile.XHDTYPE), "SD-D313", "shard.tar"),
    "huge header": (with_size(b"77777777777", tarfile.XHDTYPE), "SD-D313", "a header of"),
    "huge name": (with_size(b"77777777777", tarfile.GNUTYPE_LONGNAME), "SD-D313", "a header of"),
    "huge image": (with_size(b"00077777777"), "SD-D313", "the file ends before"),
    "beyond any file": (with_size(b"77777777777"), "SD-D313", "the file ends before"),
    "no label": (plain({}, without="2.cls"), "SD-D321", "2.png"),
    "text as label": (plain({"1.cls": b"n01440764"}), "SD-D321", "n01440764"),
    "negative label": (plain({"1.cls": b"-1"}), "SD-D321", "1.cls"),
    "fraction as label": (plain({"9.png": png(9), "9.json": b'{"label": 1.5}'}), "SD-D321", "1.5"),
    "broken json": (plain({"9.png": png(9), "9.json": b'{"label": '}), "SD-D321", "9.json"),
    "two labels": (plain({"3.json": b'{"label": 7}'}), "SD-D321", "0 and 7"),
    "two images": (plain({"3.jpg": png(5)}), "SD-D312", "3.png, 3.jpg"),
    "two samples": (twice, "SD-D312", "one key"),
    "a second image apart": (plain({"0.jpg": png(5)}), "SD-D312", "0.jpg, and another"),
    "a second label apart": (plain({"0.json": b'{"label": 1}'}), "SD-D321", "0 and 1"),
    "a class without images": (plain({"9.png": png(9), "9.cls": b"2"}), "SD-D304", "class '1' has no image"),
    "huge label": (plain({"9.png": png(9), "9.cls": b"99999999999"}), "SD-D307", "99999999999"),
}


@pytest.mark.parametrize(("write", "code", "says"), TARS.values(), ids=TARS)
def test_a_bad_shard_is_refused(tmp_path: Path, write: Callable[[Path], Path], code: str, says: str) -> None:
    write(tmp_path / "shard.tar")
    with pytest.raises(SdditError) as refused:
        WebdatasetParams(path=str(tmp_path), size=8, holdout=0.0).facts()
    assert {problem.code for problem in refused.value.problems} == {code}
    assert says in str(refused.value)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "canary"))
    for name in ("0.cls", "0.json", "0.png", "0.npy", "0.pkl", "0.txt"):
        plain({"0.png": png(0), name: trap})(tmp_path / "x.tar")
        with suppress(SdditError):
            WebdatasetParams(path=str(tmp_path / "x.tar"), size=8, holdout=0.0).facts()
        write_zip(tmp_path / "x.zip", {**images(2), "dataset.json" if name == "0.json" else f"cat/{name}": trap})
        with suppress(SdditError):
            ZipParams(path=str(tmp_path / "x.zip"), size=8, holdout=0.0).facts()
    assert not (tmp_path / "canary").exists()
    pickle.loads(trap)
    assert (tmp_path / "canary").exists(), "the control"


def test_the_good_shard_of_these_cases_is_read(tmp_path: Path) -> None:
    """The control; and entries of other kinds are counted, hidden ones passed over, and `./` is nothing."""
    others = {"0.txt": b"a caption", "0.npy": npy(np.zeros(3)), "._0.png": b"\0\5", "README.md": b"x"}
    plain(others)(tmp_path / "shard.tar")
    chosen = WebdatasetParams(path=str(tmp_path / "shard.tar"), size=8, holdout=0.0)
    assert chosen.facts().class_names == ("0",)
    assert chosen.facts().source.endswith("4 + 0 images, 3 other files ignored")
    write_tar(
        tmp_path / "dot.tar",
        {f"./a/{name}": data for i in range(3) for name, data in ((f"{i}.JPG", png(i)), (f"{i}.cls", b" 0\n"))},
    )
    assert WebdatasetParams(path=str(tmp_path / "dot.tar"), size=8, holdout=0.0).facts().train_size == 3


def test_the_files_of_a_sample_may_be_apart(tmp_path: Path) -> None:
    """Also a second statement of its label, if it is the same."""
    pngs, labels = {f"{i}.png": png(i) for i in range(4)}, {f"{i}.cls": b"0" for i in range(4)}
    write_tar(tmp_path / "x.tar", {**pngs, **labels, **{f"{i}.json": b'{"label": 0}' for i in range(4)}})
    assert WebdatasetParams(path=str(tmp_path / "x.tar"), size=8, holdout=0.0).facts().train_size == 4


def test_shards_are_chosen_by_folder_file_or_pattern(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        plain({})(tmp_path / name)
    sizes = {
        path: WebdatasetParams(path=str(tmp_path / path), size=8, holdout=0.0).facts().train_size
        for path in ("", "train-1.tar", "train-*.tar")
    }
    assert sizes == {"": 12, "train-1.tar": 4, "train-*.tar": 8}
    for path, code in (("test-*.tar", "SD-D304"), ("x.tar", "SD-D300"), ("nowhere/*.tar", "SD-D300")):
        with pytest.raises(SdditError, match=code):
            WebdatasetParams(path=str(tmp_path / path)).facts()
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SdditError, match=r"SD-D313(.|\n)*plain \.tar"):
        WebdatasetParams(path=str(tmp_path / "x.tar.gz")).facts()


def entry(name: str, data: bytes = b"", **fields: Any) -> Callable[[Path], Path]:
    """A good archive of class folders and one further entry."""

    def write(path: Path) -> Path:
        write_zip(path, images(4))
        info = zipfile.ZipInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(info, data)
        return path

    return write


def patched(name: str, field: str, value: int) -> Callable[[Path], Path]:
    """A good archive whose directory is false about one entry. Fields: their offsets in the central header."""
    offset, form = {
        "flags": (8, "<H"),
        "method": (10, "<H"),
        "crc": (16, "<L"),
        "packed": (20, "<L"),
        "size": (24, "<L"),
        "at": (42, "<L"),
    }[field]

    def write(path: Path) -> Path:
        data = bytearray(write_zip(path, images(4), zipfile.ZIP_DEFLATED).read_bytes())
        at = data.rfind(name.encode()) - 46
        assert data[at : at + 4] == b"PK\1\2"
        struct.pack_into(form, data, at + offset, value)
        path.write_bytes(data)
        return path

    return write


def renamed(old: bytes, new: bytes) -> Callable[[Path], Path]:
    """A good archive whose directory has another name for an entry, said to be UTF-8."""

    def write(path: Path) -> Path:
        data = bytearray(write_zip(path, images(4)).read_bytes())
        at = data.rfind(old)
        data[at : at + len(old)] = new
        data[at - 46 + 9] |= 0x8
        path.write_bytes(data)
        return path

    return write


def fewer(path: Path) -> Path:
    """A good archive that states one entry less than it has."""
    data = bytearray(write_zip(path, images(4)).read_bytes())
    struct.pack_into("<2H", data, data.rfind(b"PK\5\6") + 8, 11, 11)
    path.write_bytes(data)
    return path


def edm_with(labels: Any, **more: bytes) -> Callable[[Path], Path]:
    return lambda path: write_edm(path, images(4), labels)


def listed(change: Callable[[list[Any]], Any]) -> Callable[[Path], Path]:
    pairs = [[f"00000/img{i:08}.png", label_of(name)] for i, name in enumerate(images(4))]
    return edm_with(change(pairs))


def dataset_json(text: bytes) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, {**images(4), "dataset.json": text})


def duplicate(path: Path) -> Path:
    write_zip(path, images(4))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("cat/0.png", png(9))
    return path


def shortened(count: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        data = write_zip(path, images(4)).read_bytes()
        path.write_bytes(data[:count])
        return path

    return write


ZIPS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "outside": (entry("../x.png"), "SD-D312", "../x.png"),
    "absolute": (entry("/x.png"), "SD-D312", "/x.png"),
    "backslash": (entry("cat/a\\b.png"), "SD-D312", "cat/a"),
    "link": (entry("cat/x.png", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16), "SD-D312", "cat/x.png"),
    "fifo": (entry("cat/x.png", b"", external_attr=(stat.S_IFIFO | 0o777) << 16), "SD-D312", "cat/x.png"),
    "duplicate": (duplicate, "SD-D312", "cat/0.png"),
    "pickle": (entry("cat/x.pkl", b"x"), "SD-D322", "cat/x.pkl"),
    "pyd": (entry("cat/x.pyd", b"x"), "SD-D322", "cat/x.pyd"),
    "objects": (entry("x.npy", npy(np.array([{}], dtype=object))), "SD-D322", "x.npy"),
    "bomb": (entry("cat/x.png", bytes(2**25), compress_type=zipfile.ZIP_DEFLATED), "SD-D311", "33,554,432"),
    "false size": (patched("cat/0.png", "size", 5), "SD-D313", "cat/0.png"),
    "false crc": (patched("cat/0.png", "crc", 5), "SD-D313", "cat/0.png"),
    "false place": (patched("cat/0.png", "at", 7), "SD-D313", "cat/0.png"),
    "false packed size": (patched("cat/0.png", "packed", 2**31), "SD-D313", "cat/0.png"),
    "fewer entries": (fewer, "SD-D313", "11 entries"),
    "not UTF-8": (renamed(b"cat/0.png", b"cat/\xff.png"), "SD-D332", "udcff"),
    "another entry": (renamed(b"cat/0.png", b"cat/9.png"), "SD-D313", "cat/9.png"),
    "encrypted": (patched("cat/0.png", "flags", 1), "SD-D313", "encrypted"),
    "method": (patched("cat/0.png", "method", 12), "SD-D313", "method 12"),
    "cut": (shortened(2000), "SD-D313", "x.zip"),
    "empty": (shortened(0), "SD-D313", "x.zip"),
    "loose": (entry("x.png", png(1)), "SD-D314", "x.png"),
    "an empty class": (entry("owl/", b""), "SD-D304", "owl"),
    "no labels": (edm_with(None), "SD-D321", "dataset.labels=false"),
    "no list": (edm_with("x y"), "SD-D321", "dataset.json"),
    "one label missing": (listed(lambda pairs: pairs[1:]), "SD-D321", "img00000000.png"),
    "two labels": (listed(lambda pairs: [*pairs, [pairs[0][0], 1 - pairs[0][1]]]), "SD-D321", "one label"),
    "a label of no image": (listed(lambda pairs: [*pairs, ["x.png", 0]]), "SD-D321", "x.png"),
    "a text as label": (listed(lambda pairs: [[pairs[0][0], "cat"], *pairs[1:]]), "SD-D321", "'cat'"),
    "a fraction as label": (listed(lambda pairs: [[pairs[0][0], 0.0], *pairs[1:]]), "SD-D321", "0.0"),
    "other items": (listed(lambda pairs: [pairs[0][0]]), "SD-D321", "not [FILE, CLASS]"),
    "not JSON": (dataset_json(b'{"labels": [["cat/0.png", 0], '), "SD-D321", "dataset.json cannot be read"),
    "no key": (dataset_json(b'{"label": []}'), "SD-D321", "no 'labels'"),
    "deep": (dataset_json(b'{"labels": ' + b"[" * 100_000), "SD-D321", "dataset.json cannot be read"),
}


@pytest.mark.parametrize(("write", "code", "says"), ZIPS.values(), ids=ZIPS)
def test_a_bad_archive_is_refused(tmp_path: Path, write: Callable[[Path], Path], code: str, says: str) -> None:
    path = write(tmp_path / "x.zip")
    with pytest.raises(SdditError) as refused:
        ZipParams(path=str(path), size=8, holdout=0.0).facts()
    assert {problem.code for problem in refused.value.problems} == {code}, refused.value
    assert says in str(refused.value)


def test_good_archives_like_these_are_read(tmp_path: Path) -> None:
    """The control."""
    path = entry("cat/notes.txt", b"hello")(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/", b"")
        archive.writestr("__MACOSX/cat/._0.png", b"\0\5")
        archive.writestr("x.npy", npy(np.zeros(3)))
        archive.writestr("cat/zeros.txt", bytes(2**25), zipfile.ZIP_DEFLATED)
    facts = ZipParams(path=str(path), size=8, holdout=0.0, labels=False).facts()
    assert facts.source.endswith("12 + 0 images, 3 other files ignored")
    assert ZipParams(path=str(write_edm(tmp_path / "e.zip", images(4), None)), size=8, labels=False).facts().train_size
    spaced = b'\xef\xbb\xbf{ "a" : [1, {"labels": 2}] ,\n "labels" : [ ["cat/0.png", 0] ,\t["dog/0.png",1] ] , "b": 1}'
    files = {"cat/0.png": png(1), "dog/0.png": png(2), "dataset.json": spaced}
    written = write_zip(tmp_path / "s.zip", files)
    assert ZipParams(path=str(written), size=8, holdout=0.0).facts().class_names == ("0", "1")


def test_a_large_archive_and_one_behind_other_bytes_are_read(tmp_path: Path) -> None:
    """Zip64 fields, and a directory whose offsets do not count the bytes before the archive."""
    files = images(4)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    (tmp_path / "y.zip").write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    prints = {ZipParams(path=str(p), size=8, holdout=0.0).facts().fingerprint for p in (path, tmp_path / "y.zip")}
    write_folder(tmp_path / "d", files)
    assert prints == {FolderParams(path=str(tmp_path / "d"), size=8, holdout=0.0).facts().fingerprint}


def test_the_end_of_a_zip64_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = write_zip(tmp_path / "x.zip", images(4))
    assert b"PK\6\6" in path.read_bytes()
    assert ZipParams(path=str(path), size=8, holdout=0.0).facts().train_size == 12


def test_class_names_are_those_of_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    for make in (edm, shards):
        chosen = make(tmp_path, images())
        assert chosen.facts().class_names == ("0", "1", "2")
        named = type(chosen)(**{**chosen.model_dump(), "class_names": str(names)})
        assert named.facts().class_names == CLASSES
        assert named.facts().fingerprint != chosen.facts().fingerprint
    names.write_text("cat\ndog")
    with pytest.raises(SdditError, match="SD-D307"):
        named.facts()
    names.write_text("cat\ndog\nfox\nowl")
    with pytest.raises(SdditError, match=r"SD-D304(.|\n)*'owl' has no image"):
        named.facts()
    folders = zipped(tmp_path, images())
    with pytest.raises(SdditError, match="SD-D316"):
        ZipParams(**{**folders.model_dump(), "class_names": str(names)}).facts()


@pytest.mark.parametrize("make", [folder, zipped], ids=["folder", "zip"])
def test_a_folder_around_the_class_folders_is_reported(
    tmp_path: Path, make: Callable[[Path, Files], ImageFilesParams]
) -> None:
    wrapped = make(tmp_path, {f"photos/{name}": data for name, data in images().items()})
    with pytest.warns(UserWarning, match="one class, 'photos', which holds the folders cat, dog, fox"):
        assert wrapped.facts().class_names == ("photos",)
    for number, fine in enumerate(
        ({"photos/0.png": png(0), "photos/a/1.png": png(1), "photos/b/2.png": png(2)}, images())
    ):
        (tmp_path / str(number)).mkdir()
        make(tmp_path / str(number), fine).model_copy(
            update={"holdout": 0.0}
        ).facts()  # the control: warnings are errors


def test_a_path_of_another_kind_of_source_is_recognized(tmp_path: Path) -> None:
    files = images(3)
    paths = {
        "folder": write_folder(tmp_path / "folder", files),
        "zip": write_edm(tmp_path / "x.zip", files),
        "webdataset": write_shards(tmp_path / "shards", files),
        "hf": write_hf(tmp_path / "hf", files),
    }
    kinds = {"folder": FolderParams, "zip": ZipParams, "webdataset": WebdatasetParams, "hf": HfParams}
    for chosen, kind in kinds.items():
        for right, path in paths.items():
            if chosen == right:
                kind(path=str(path), size=8, holdout=0.0).facts()
                continue
            with pytest.raises(SdditError, match=f'dataset.name = "{right}" reads this'):
                kind(path=str(path)).facts()


# -- saved data sets ---------------------------------------------------------------------------------------------------


def hf_codes(path: Path, **keys: Any) -> list[str]:
    with pytest.raises(SdditError) as refused:
        HfParams(path=str(path), size=8, holdout=0.0, **keys).facts()
    return [problem.code for problem in refused.value.problems]


def test_a_saved_data_set_states_its_classes(tmp_path: Path) -> None:
    assert saved(tmp_path, images()).facts().class_names == CLASSES
    assert HfParams(path=str(tmp_path / "hf"), size=8, labels=False).facts().class_names == ()


def test_a_saved_data_set_reads_no_file_elsewhere(tmp_path: Path) -> None:
    write_hf(tmp_path / "other", images(2))
    root = write_hf(tmp_path / "d", images(2))
    state = root / "state.json"
    state.write_text(state.read_text().replace('"data-', '"../other/data-'))
    assert hf_codes(root) == ["SD-D323"]
    state.write_text(state.read_text().replace('"../other/data-', '"data-'))
    assert HfParams(path=str(root), size=8).facts().train_size > 0, "the control"


def test_a_bad_saved_data_set_is_refused(tmp_path: Path) -> None:
    root = write_hf(tmp_path / "hf", images())
    assert hf_codes(tmp_path / "nowhere") == ["SD-D300"]
    (tmp_path / "other").mkdir()
    assert hf_codes(tmp_path / "other") == ["SD-D323"]
    assert hf_codes(root, image_column="img") == ["SD-D323"]
    assert hf_codes(root, label_column="image") == ["SD-D323"]
    (tmp_path / "dict").mkdir()
    shutil.copytree(root, tmp_path / "dict" / "train")
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(SdditError, match=r"SD-D323(.|\n)*dict/train"):
        HfParams(path=str(tmp_path / "dict")).facts()
    write_hf(tmp_path / "empty", images(), image=[None] * 30)
    assert hf_codes(tmp_path / "empty") == ["SD-D323"]
    write_hf(tmp_path / "unlabelled", images(), label=[-1] * 30)
    assert set(hf_codes(tmp_path / "unlabelled")) == {"SD-D321"}
    (file,) = root.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:5000])
    assert hf_codes(root) == ["SD-D323"]


def test_without_the_library_it_is_named(sddit_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.interfaces.component._installed", lambda name: name != "datasets")
    said = sddit_run("quickstart", "-n", "dataset.name=hf", f"dataset.path={tmp_path}")
    assert said.status != 0
    assert "datasets" in said.stderr
    assert "pip install" in said.stderr


# -- the index ---------------------------------------------------------------------------------------------------------


def test_an_index_is_in_the_order_of_the_bytes_of_its_names() -> None:
    names = ["b/x.png", "a/é.png", "a-b/x.png", "a/deep/a.png", "B/0.png", "a/10.png", "a/9.png", "é.png"]
    builder = IndexBuilder(columns=2)
    for number, name in enumerate(names):
        builder.add(name.encode(), 10 * number, number, -number, label=100 + number)
    index = builder.build()
    ordered = sorted(names, key=str.encode)
    assert [index.name(i) for i in range(len(index))] == ordered
    assert index.labels.tolist() == [100 + names.index(name) for name in ordered]
    assert index.places.tolist() == [[names.index(name), -names.index(name)] for name in ordered]
    assert index.sizes.tolist() == [10 * names.index(name) for name in ordered]
    order = np.argsort(index.hashes)
    assert [index.find(name.encode(), order) for name in ordered] == list(range(len(names)))
    assert index.find(b"a/8.png", order) is None
    assert [ordered[i] for i in index.positions("test", 0.5)] == [n for n in ordered if split_of(n, 0.5) == "test"]
    assert index.repeated_name() is None
    assert len(IndexBuilder(columns=1).build()) == 0


def test_names_with_one_hash_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit_standard.datasets.image_index.hash_of", lambda name: 7)
    builder = IndexBuilder(columns=0)
    for name in (b"a", b"b", b"c"):
        builder.add(name, 1)
    index = builder.build()
    order = np.argsort(index.hashes)
    assert [index.find(name, order) for name in (b"a", b"b", b"c", b"d")] == [0, 1, 2, None]


@pytest.mark.parametrize("kind", ["folder", "zip", "webdataset", "hf"])
def test_a_list_takes_few_bytes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """At 230 bytes an image, 1.3 million take 300 MB. `tools/measure_index.py` measures those."""
    if kind == "hf":
        pytest.importorskip("datasets")
    measure_index = runpy.run_path(str(ROOT / "tools" / "measure_index.py"))
    monkeypatch.setitem(measure_index["write_folder"].__globals__, "CLASSES", 10)
    count = 6000
    table = measure_index["WRITERS"][kind](tmp_path / "data", count)
    chosen = {"folder": FolderParams, "zip": ZipParams, "webdataset": WebdatasetParams, "hf": HfParams}[
        table.pop("name")
    ]
    params = chosen(**table)
    params.source()  # imports
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    before = (tracemalloc.start(), tracemalloc.get_traced_memory()[0])[1]
    try:
        source = params.source()
        held, peak = (value - before for value in tracemalloc.get_traced_memory())
        control = [(source.where(i), {"size": 1}) for i in range(count)]
        objects = tracemalloc.get_traced_memory()[0] - before - held
    finally:
        tracemalloc.stop()
    assert len(source.contents.index) == len(control) == count
    assert peak / count < 230
    assert held / count < 150
    assert objects / count > 230, "the control: objects of Python"


def test_limits_are_those_of_the_documentation() -> None:
    assert (image_sources.MAX_RATIO, image_sources.UNLIMITED_BYTES) == (200, 2**24)
