"""The checkpoint store: order of system calls, every kind of damage, keep-k, full disks, tensors bit for bit."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.storage import checkpoints
from sddit.storage import fault_injection as faults
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import FORMAT, Content, LazyBytes, seal_manifest
from sddit.storage.tensors import pack, require_finite, unpack

FILES = {"model.safetensors": bytes(range(256)) * 40, "ema.safetensors": b"e" * 999, "state.json": b'{"step": 1}'}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    faults.reached.clear()
    return Store(tmp_path / "checkpoints", keep=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 1 and 2, to be copied: a copy waits for no disk."""
    store = Store(tmp_path_factory.mktemp("saved"), keep=2)
    store.save(1, FILES)
    store.save(2, FILES)
    return store.folder


@pytest.fixture
def two(store: Store, saved: Path) -> Store:
    """A store that holds the checkpoints 1 and 2."""
    shutil.copytree(saved, store.folder)
    return store


def code(call: Callable[[], object]) -> str:
    """The code of the one problem that a call raises."""
    with pytest.raises(SdditError) as caught:
        call()
    (problem,) = caught.value.problems
    return problem.code


def flip(path: Path, position: int) -> None:
    """Flip the lowest bit of one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def names(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_what_is_saved_is_what_is_read(store: Store) -> None:
    place = store.save(7, FILES)
    newest = store.latest()
    assert newest is not None and newest.step == 7 and newest.folder == place == store.folder / "step-000007"
    assert {name: newest.read(name) for name in newest.files} == FILES
    assert newest.state == {"step": 1}
    assert (newest.folder / "ema.safetensors").read_bytes() == FILES["ema.safetensors"]
    with pytest.raises(KeyError, match=r"teacher\.safetensors"):
        newest.read("teacher.safetensors")
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], set(manifest["files"])) == (FORMAT, 7, set(FILES))
    assert json.loads((store.folder / "index.json").read_text()) == {"step-000007": "verified"}


def test_a_file_may_be_made_when_its_turn_comes(store: Store) -> None:
    def made() -> bytes:
        (staged,) = store.folder.iterdir()
        assert {path.name for path in staged.iterdir()} == {"state.json"}
        return b"one two three"

    store.save(1, {"state.json": b"{}", "model.safetensors": LazyBytes(13, made)})
    assert store.open(1).read("model.safetensors") == b"one two three"


def test_each_byte_is_durable_before_the_name_that_shows_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def spy_sync(descriptor: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split('-')[0]}")
        sync(descriptor)

    def spy_rename(path: Path, target: Path) -> Path:
        assert path.parent == target.parent, "a rename within one folder cannot cross devices"
        events.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    store.folder.mkdir()
    store.save(3, {"a": b"a", "b": b"b"})
    until_visible = events[: events.index("rename step-000003") + 2]
    expected = ["fsync a", "fsync b", "fsync manifest.json", "fsync .tmp", "rename step-000003", "fsync checkpoints"]
    assert until_visible == expected


def test_modes_honour_the_umask(store: Store) -> None:
    before = os.umask(0o027)
    try:
        place = store.save(1, FILES)
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o640}


def test_an_intact_checkpoint_is_not_written_again(store: Store) -> None:
    place = store.save(5, FILES)
    before = {path.name: path.stat().st_ino for path in place.iterdir()}
    assert store.save(5, {"state.json": b"{}"}) == place
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == before


def test_a_broken_checkpoint_makes_room_for_a_new_one(store: Store) -> None:
    flip(store.save(5, FILES) / "model.safetensors", 0)
    store.save(5, FILES)
    flip((store.open(5).folder / "model.safetensors"), 0)
    store.save(5, FILES)
    assert store.open(5).read("model.safetensors") == FILES["model.safetensors"]
    assert {"broken-step-000005", "broken-step-000005-again"} <= names(store)
    assert len(store.notices) == 2 and "model.safetensors: checksum differs" in store.notices[0]


@pytest.mark.parametrize("where", ["start", "middle", "end"])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_one_flipped_bit_is_found(two: Store, name: str, where: str) -> None:
    size = (two.path_of(2) / name).stat().st_size
    flip(two.path_of(2) / name, {"start": 0, "middle": size // 2, "end": size - 1}[where])
    assert code(lambda: two.open(2)) == "SD-C401"
    newest = two.latest()
    assert newest is not None and newest.step == 1
    assert len(two.notices) == 1 and name in two.notices[0] and "using step-000001" in two.notices[0]
    assert "broken-step-000002" in names(two)


def test_what_is_undamaged_passes(two: Store) -> None:
    """The control of every test of damage."""
    assert two.open(2).step == 2
    assert (newest := two.latest()) is not None and newest.step == 2 and two.notices == []


def test_every_byte_of_the_manifest_counts(store: Store) -> None:
    manifest = store.save(1, {"state.json": b"{}"}) / "manifest.json"
    data = manifest.read_bytes()
    for position in range(len(data)):
        changed = data[position] ^ 1 << position % 8
        manifest.write_bytes(data[:position] + bytes([changed]) + data[position + 1 :])
        assert code(lambda: store.open(1)) == "SD-C401", position
    manifest.write_bytes(data)
    assert store.open(1).step == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_cut_file_is_found(two: Store, name: str, share: float) -> None:
    os.truncate(two.path_of(2) / name, int((two.path_of(2) / name).stat().st_size * share))
    assert code(lambda: two.open(2)) == "SD-C401"
    assert (newest := two.latest()) is not None and newest.step == 1
    assert name in two.notices[0] and ("bytes, not" in two.notices[0] or name == "manifest.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "ema.safetensors").unlink(),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "extra.bin").write_bytes(b"x"),
        lambda place: (place / "ema.safetensors").write_bytes(FILES["ema.safetensors"] + b"x"),
        lambda place: ((place / "ema.safetensors").unlink(), (place / "ema.safetensors").mkdir()),
        lambda place: (
            (place / "ema.safetensors").rename(place.parent / "e"),
            (place / "ema.safetensors").symlink_to("../e"),
        ),
        lambda place: (place / "manifest.json").write_bytes(b"[" * 5000),
        lambda place: (place / "manifest.json").write_bytes(seal_manifest({"format": 1, "step": 2, "files": ["a"]})),
        lambda place: (place / "manifest.json").write_bytes((place.parent / "step-000001/manifest.json").read_bytes()),
    ],
    ids=["missing", "no manifest", "extra", "longer", "folder", "link", "deep", "other form", "of another step"],
)
def test_other_damage_is_found(two: Store, damage: Callable[[Path], object]) -> None:
    damage(two.path_of(2))
    assert code(lambda: two.open(2)) == "SD-C401"
    assert (newest := two.latest()) is not None and newest.step == 1


def test_bytes_that_change_after_the_check_are_not_handed_out(store: Store) -> None:
    store.save(1, FILES)
    checkpoint = store.open(1)
    flip((checkpoint.folder / "ema.safetensors"), 10)
    assert code(lambda: checkpoint.read("ema.safetensors")) == "SD-C401"
    (checkpoint.folder / "model.safetensors").unlink()
    assert code(lambda: checkpoint.read("model.safetensors")) == "SD-C401"


def test_where_all_are_broken_nothing_starts_afresh(two: Store) -> None:
    for step in (1, 2):
        flip(two.path_of(step) / "state.json", 0)
    assert code(two.latest) == "SD-C402"
    assert code(two.latest) == "SD-C402", "also when asked again, with both moved aside"


def test_where_nothing_was_saved_there_is_nothing(store: Store) -> None:
    assert store.latest() is None and store.steps() == []
    assert code(lambda: store.open(1)) == "SD-C403"


def test_a_reader_moves_nothing(two: Store) -> None:
    flip(two.path_of(2) / "state.json", 0)
    before = names(two)
    assert (newest := two.latest(move_broken=False)) is not None and newest.step == 1
    assert names(two) == before


def test_an_explicit_step_is_that_step_or_an_error(two: Store) -> None:
    with pytest.raises(SdditError, match="one of 1, 2") as caught:
        two.open(5)
    assert caught.value.problems[0].code == "SD-C403"
    flip(two.path_of(2) / "state.json", 0)
    assert code(lambda: two.open(2)) == "SD-C401"
    assert two.path_of(2).is_dir()


@pytest.mark.parametrize("format", [0, FORMAT + 1, "1", None])
def test_another_format_is_refused_and_left_alone(two: Store, format: object) -> None:
    (two.path_of(2) / "manifest.json").write_bytes(seal_manifest({"format": format, "step": 2, "files": {}}))
    assert code(two.latest) == "SD-C430"
    assert two.steps() == [1, 2]


def test_only_whole_names_are_checkpoints(store: Store) -> None:
    place = store.save(1_234_567, FILES)
    for name in ("old-step-000009", "step-000009-old", "step-9", "step-0000009", "Step-000009", "step-00000٩"):
        shutil.copytree(place, store.folder / name)
    assert store.steps() == [1_234_567]


def test_what_only_has_the_name_of_a_checkpoint_is_moved_aside(two: Store) -> None:
    (two.folder / "step-000008").write_bytes(b"a file")
    (two.folder / "step-000009").symlink_to(two.path_of(2))
    (two.folder / "step-000010").symlink_to("nowhere")
    (two.folder / "broken-step-000010").symlink_to("nowhere either")
    os.mkfifo(two.folder / "step-000011")
    found = two.latest()
    assert found is not None and found.step == 2
    assert len(two.notices) == 4
    assert two.steps() == [1, 2]
    assert "broken-step-000010-again" in names(two)


def moved(store: Store, step: int, disk: Path) -> Path:
    """A checkpoint goes to another disk, and a link leads there."""
    disk.mkdir(exist_ok=True)
    store.path_of(step).rename(disk / "it")
    store.path_of(step).symlink_to(disk / "it")
    return disk / "it"


def test_a_link_to_a_checkpoint_is_one(two: Store, tmp_path: Path) -> None:
    there = moved(two, 2, tmp_path / "disk")
    found = two.latest()
    assert found is not None and found.read("state.json") == FILES["state.json"]
    assert two.save(2, FILES).is_symlink(), "it is intact, and left as it is"
    flip(there / "state.json", 0)
    assert not two.save(2, FILES).is_symlink()
    assert "broken-step-000002" in names(two)


def test_of_a_link_only_the_link_is_removed(two: Store, tmp_path: Path) -> None:
    there = moved(two, 1, tmp_path / "disk")
    two.save(3, FILES)
    assert two.steps() == [2, 3]
    assert not [name for name in names(two) if name.startswith(".")]
    assert there.is_dir()
    assert str(there) in two.notices[0]
    (two.folder / ".del-link").symlink_to(there)  # a kill came between
    two.clean()
    assert ".del-link" not in names(two)
    assert there.is_dir()


def test_a_checkpoint_is_saved_where_a_file_has_its_name(two: Store) -> None:
    os.mkfifo(two.path_of(3))
    assert two.save(3, FILES).is_dir()
    assert "step-000003 is broken (it is not a folder)" in two.notices[0]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path: Path, keep: int) -> None:
    store = Store(tmp_path, keep)
    for step in range(1, 6):
        store.save(step, FILES)
    assert store.steps() == [1, 2, 3, 4, 5][-keep:]
    assert set(json.loads((tmp_path / "index.json").read_text())) >= {f"step-{step:06d}" for step in store.steps()}


def test_a_broken_checkpoint_takes_no_place_of_a_good_one(store: Store) -> None:
    for step in (1, 2, 3):
        store.save(step, FILES)
    flip(store.path_of(3) / "model.safetensors", 77)
    store.save(4, FILES)
    assert store.steps() == [2, 4] and "broken-step-000003" in names(store)
    assert "step-000003" in store.notices[0]


def test_the_checkpoint_just_saved_stays_below_later_ones(store: Store) -> None:
    for step in (10, 20):
        store.save(step, FILES)
    store.save(15, FILES)
    assert store.steps() == [15, 20]


def test_nothing_is_removed_before_the_new_one_is_read_back(two: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that returns other bytes than it was given: the save fails and the old checkpoints stay."""
    rename = Path.rename

    def rotten(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if target == two.path_of(3):
            flip(target / "model.safetensors", 5)
        return moved

    monkeypatch.setattr(Path, "rename", rotten)
    assert code(lambda: two.save(3, FILES)) == "SD-M611"
    assert two.steps() == [1, 2]
    assert two.open(1).step == 1 and two.open(2).step == 2


def test_leftovers_go_when_the_lock_is_held(store: Store) -> None:
    store.save(1, FILES)
    for name in (".tmp-2-aa", ".del-bb"):
        shutil.copytree(store.path_of(1), store.folder / name)
    (store.folder / ".tmp-index.json-cc").write_bytes(b"{")
    store.clean()
    assert names(store) == {"step-000001", "index.json"}


def test_an_index_that_is_lost_or_cut_does_no_harm(store: Store) -> None:
    store.save(1, FILES)
    (store.folder / "index.json").write_bytes(b'{"step-0')
    store.save(2, FILES)
    assert json.loads((store.folder / "index.json").read_text()) == {"step-000002": "verified"}
    assert (newest := store.latest()) is not None and newest.step == 2


def test_a_checkpoint_that_would_not_fit_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(1, FILES)
    size = sum(len(data) for data in FILES.values())
    usage = shutil.disk_usage(store.folder)
    model = LazyBytes(len(FILES["model.safetensors"]), lambda: pytest.fail("nothing should be written"))
    later: dict[str, Content] = {**FILES, "model.safetensors": model}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.19 * size)))
    with pytest.raises(SdditError, match=r"no space for a checkpoint: need 13\.") as caught:
        store.save(2, later)
    assert (caught.value.problems[0].code, names(store)) == ("SD-M610", {"step-000001", "index.json"})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.21 * size)))
    store.save(2, FILES)
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("point", ["ckpt.before_file", "ckpt.after_file", "ckpt.before_manifest", "ckpt.before_rename"])
def test_a_disk_that_fills_up_leaves_the_old_ones(store: Store, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    store.save(1, FILES)
    monkeypatch.setenv("SDDIT_FAULT", f"{point}:raise:ENOSPC")
    assert code(lambda: store.save(2, FILES)) == "SD-M610"
    assert names(store) == {"step-000001", "index.json"}
    monkeypatch.delenv("SDDIT_FAULT")
    store.save(2, FILES)
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("name", ["EACCES", "EROFS"])
def test_storage_that_may_not_be_written_to(store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SDDIT_FAULT", f"ckpt.before_file:raise:{name}")
    assert code(lambda: store.save(1, FILES)) == "SD-F703"


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EDQUOT"])
def test_a_passing_failure_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    waited: list[float] = []
    monkeypatch.setattr(checkpoints.time, "sleep", waited.append)
    monkeypatch.setenv("SDDIT_FAULT", f"ckpt.before_manifest:raise:{name}@1")
    store.save(1, FILES)
    assert (store.steps(), waited) == ([1], [0.2])
    monkeypatch.setenv("SDDIT_FAULT", f"ckpt.before_manifest:raise:{name}")
    assert code(lambda: store.save(2, FILES)) == ("SD-M610" if name == "EDQUOT" else "SD-M611")
    assert (names(store), waited) == ({"step-000001", "index.json"}, [0.2, 0.2, 1.0, 5.0])


def test_a_real_limit_on_file_sizes(store: Store) -> None:
    """The operating system refuses in the middle of a file, not a planted fault."""
    store.save(1, FILES)
    program = (
        "import sys; from pathlib import Path; from sddit.storage.checkpoints import Store; from sddit.errors "
        "import SdditError\n"
        "try: Store(Path(sys.argv[1]), 2).save(2, {'state.json': b'{}', 'model.safetensors': b'x' * 100_000})\n"
        "except SdditError as refused: print(refused.problems[0].code, refused.__cause__.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(store.folder)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["SD-M610", str(errno.EFBIG)], done.stderr
    assert names(store) == {"step-000001", "index.json"}
    assert store.open(1).read("state.json") == FILES["state.json"]


def test_a_run_folder_that_has_gone_is_reported(store: Store) -> None:
    store.save(1, FILES)

    def removes_the_folder() -> bytes:
        shutil.rmtree(store.folder)
        return b""

    assert code(lambda: store.save(2, {"a": b"a", "b": LazyBytes(0, removes_the_folder), "c": b"c"})) == "SD-F706"


def test_tensors_come_back_bit_for_bit() -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    payload = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)  # NaN payloads
    tensors: dict[str, Tensor] = {
        "bf16": torch.tensor([1.0, -0.0, float("inf"), 3.14], dtype=torch.bfloat16),
        "fp64": torch.tensor([[5e-324, 1e308]], dtype=torch.float64),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 5),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "bool": torch.tensor([True, False]),
        "nan": payload,
        "transposed": base.T,
        "rows": base[::2],
        "whole": base,
        "same": base,
        "view": base[1:3],
        "parameter": torch.nn.Parameter(base[:, 0]),
    }
    back = unpack(pack(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(back[name]) == bits(tensor), name
    assert bits(back["bf16"]) != bits(torch.tensor([1.0, 0.0, float("inf"), 3.14], dtype=torch.bfloat16)), "the control"


def bits(tensor: Tensor) -> list[int]:
    return tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


def test_tensors_through_a_checkpoint(store: Store) -> None:
    weights = {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    store.save(1, {"model.safetensors": pack(weights), "late.safetensors": LazyBytes(120, lambda: pack(weights))})
    for name in ("model.safetensors", "late.safetensors"):
        assert torch.equal(unpack(store.open(1).read(name))["w"], weights["w"])


def test_non_finite_weights_are_named() -> None:
    fine = {"a": torch.ones(3), "count": torch.tensor(2**60)}
    require_finite(fine, "ema")
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(SdditError, match=r"ema:blocks\.3\.w") as caught:
            require_finite({**fine, "blocks.3.w": torch.tensor([1.0, bad])}, "ema")
        assert caught.value.problems[0].code == "SD-C450"


def test_a_pickle_is_refused_and_rubbish_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    assert code(lambda: unpack((tmp_path / "weights.pt").read_bytes())) == "SD-C440"
    assert code(lambda: unpack(b"\x80\x04K\x01.")) == "SD-C440"
    assert code(lambda: unpack(b"rubbish" * 9)) == "SD-C404"
    assert code(lambda: unpack(pack({"w": torch.ones(2)})[:-1])) == "SD-C404"
