"""A folder of results that is killed, or meets a full disk, at each operation: no file of the user is lost, readers
see the previous output, the new one, or an error, and the same command completes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sddit.errors import SdditError
from sddit.storage.atomic import write_synced
from sddit.storage.output_folder import MANIFEST, verify_file, verify_output, write_output

Files = Mapping[str, bytes]
Writer = Callable[[Path, Files], object]
InChild = Callable[..., str]

FIRST = {
    "README.md": b"one",
    "results.jsonl": b"1" * 99,
    "figures/old.svg": b"old",
    "samples/a.png": b"a1",
    "x/y/z": b"z",
}
SECOND = {"README.md": b"two", "results.jsonl": b"2" * 88, "figures/new.svg": b"new", "samples/a.png": b"a2"}
FOREIGN = {"recipes/mine.txt": b"mine", "figures/own/a.svg": b"own", "figures/note.svg": b"note", "thesis.tex": b"t"}


def publish(folder: Path, files: Files) -> object:
    return write_output(folder, files, kind="publication")


def naive(folder: Path, files: Files) -> object:
    """A writer that replaces file by file."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name, without what a killed process has left."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".tmp-")}


def read(folder: Path) -> str:
    """What a reader makes of a folder: `old`, `new`, `none`, or `refused`."""
    try:
        manifest = verify_output(folder)
    except SdditError as failure:
        assert failure.problems[0].code == "SD-F713"
        assert "rerun the command that wrote it (sddit-run publish" in failure.problems[0].fix
        return "refused"
    held = contents(folder)
    if manifest is None and not held.keys() & {**FIRST, **SECOND}.keys():
        return "none"
    if all(held.get(name) == data for name, data in SECOND.items()):
        return "new"
    return "old" if all(held.get(name) == data for name, data in FIRST.items()) else "torn"


def prepared(tmp_path: Path, turn: int, *, over: bool) -> tuple[Path, Path]:
    """A folder with or without an earlier output, files of the user, and links; and a folder elsewhere."""
    folder, elsewhere = tmp_path / f"{turn}" / "out", tmp_path / f"{turn}" / "elsewhere"
    naive(elsewhere, {"a.png": b"precious", "b.png": b"precious"})
    if over:
        publish(folder, FIRST)
        naive(folder, FOREIGN)
        (folder / "linked").symlink_to(elsewhere)
        (folder / "figures" / "linked.svg").symlink_to(elsewhere / "a.png")
    return folder, elsewhere


def outcomes(
    in_child: InChild, tmp_path: Path, write: Writer, *, kill: bool, over: bool
) -> tuple[list[str], list[str]]:
    """Fail at each operation in turn.

    Returns how each command ended and what readers see then, and what is wrong after the same command again.
    """
    seen, wrong = [], []
    for turn in range(1, 1000):
        folder, elsewhere = prepared(tmp_path, turn, over=over)
        end = in_child(lambda folder=folder: write(folder, SECOND), turn, kill=kill)
        if end == "done":
            return seen, wrong
        seen.append(f"{end}: {read(folder)}")
        foreign = FOREIGN if over else {}
        for again in range(2):
            held = contents(folder)
            if not all(held.get(name) == data for name, data in foreign.items()):
                wrong.append(f"{turn}: lost a file, {again}")
            if contents(elsewhere) != {"a.png": b"precious", "b.png": b"precious"}:
                wrong.append(f"{turn}: lost a file elsewhere, {again}")
            write(folder, SECOND)
        held = {name: data for name, data in contents(folder).items() if not name.startswith("linked/")}
        links = {"figures/linked.svg": b"precious"} if over else {}
        if read(folder) != "new" or held.keys() != {*SECOND, *foreign, *links, MANIFEST}:
            wrong.append(f"{turn}: not completed, {sorted(held)}")
        if list(folder.rglob(".tmp-*")):
            wrong.append(f"{turn}: left temporary files")
    raise AssertionError("the faults do not end")


@pytest.mark.parametrize("over", [False, True], ids=["new", "over"])
@pytest.mark.parametrize("kill", [False, True], ids=["full", "kill"])
def test_a_fault_at_each_operation_loses_and_tears_nothing(
    in_child: InChild, tmp_path: Path, kill: bool, over: bool
) -> None:
    seen, wrong = outcomes(in_child, tmp_path, publish, kill=kill, over=over)
    assert wrong == []
    end = "killed" if kill else "refused"
    order = [f"{end}: {state}" for state in ("old" if over else "none", "refused", "new")]
    assert set(seen) <= {*order, "continued: new"}, "a fault that is not fatal ends in the new output"
    ended = [one for one in seen if one != "continued: new"]
    assert ended == sorted(ended, key=order.index), "each is seen once, in this order"
    assert ended.count(order[0]) > 8 and ended.count(order[1]) > 3


@pytest.mark.parametrize("kill", [False, True], ids=["full", "kill"])
def test_the_same_faults_tear_the_output_of_a_naive_writer(in_child: InChild, tmp_path: Path, kill: bool) -> None:
    """The control."""
    seen, wrong = outcomes(in_child, tmp_path, naive, kill=kill, over=True)
    assert wrong
    assert [one for one in seen if one.endswith(": torn")]


def test_a_second_fault_is_survived(in_child: InChild, tmp_path: Path) -> None:
    """A kill in the command that completes the output of another one, which was killed."""
    third = {"README.md": b"three", "figures/third.svg": b"third"}
    for turn in range(16, 40, 5):
        for second in range(2, 50, 8):
            folder, _ = prepared(tmp_path, 100 * turn + second, over=True)
            in_child(lambda folder=folder: publish(folder, SECOND), turn, kill=True)
            in_child(lambda folder=folder: publish(folder, third), second, kill=True)
            publish(folder, third)
            held = {name for name in contents(folder) if not name.startswith("linked/")}
            assert held == {*third, *FOREIGN, "figures/linked.svg", MANIFEST}
            verify_output(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish(tmp_path / "out", FIRST)
    return tmp_path / "out"


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(SdditError) as refused:
        act()
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "target"), [("samples", "."), ("samples/a.png", "a.png"), ("README.md", "gone"), (MANIFEST, "m")]
)
def test_a_link_in_the_way_is_neither_followed_nor_replaced(folder: Path, name: str, target: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    naive(elsewhere, {"a.png": b"precious", "m": (folder / MANIFEST).read_bytes()})
    moved = folder / name
    moved.rename(folder.parent / "moved")
    moved.symlink_to(elsewhere / target)
    before = contents(folder.parent)
    assert "SD-F714: a link is in the way" in refusal(lambda: publish(folder, SECOND))
    assert contents(folder.parent) == before and moved.is_symlink()


def test_a_link_that_is_no_longer_in_the_way_is_kept(folder: Path) -> None:
    """The files of the earlier output at that place are now those behind the link."""
    (folder / "figures").rename(folder.parent / "figures")
    (folder / "figures").symlink_to(folder.parent / "figures")
    publish(folder, {"README.md": b"three"})
    assert contents(folder.parent)["figures/old.svg"] == b"old"
    assert not (folder / "samples").exists() and not (folder / "x").exists()


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ({"figures/new.svg": b"mine"}, "figures/new.svg"),
        ({"figures/new.svg/mine": b"mine"}, "figures/new.svg"),
    ],
)
def test_a_foreign_file_in_the_way_is_refused(folder: Path, foreign: Files, named: str) -> None:
    naive(folder, foreign)
    before = contents(folder)
    said = refusal(lambda: publish(folder, SECOND))
    assert "SD-F711" in said and named in said
    assert contents(folder) == before


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, {"README.md": b"one"})
    (tmp_path / "figures").write_bytes(b"mine")
    assert "figures/new.svg" in refusal(lambda: publish(tmp_path, SECOND))
    assert (tmp_path / "figures").read_bytes() == b"mine"


def test_a_fifo_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    assert "README.md" in refusal(lambda: publish(folder, SECOND))
    assert "SD-F713" in refusal(lambda: verify_output(folder))


def test_what_a_user_changed_is_not_removed(folder: Path) -> None:
    (folder / "figures/old.svg").write_bytes(b"changed by the user")
    publish(folder, SECOND)
    assert (folder / "figures/old.svg").read_bytes() == b"changed by the user"


def test_other_folders_and_other_kinds_are_refused(tmp_path: Path, folder: Path) -> None:
    naive(tmp_path / "other", {"a/b/thesis.tex": b"t", ".tmp-x": b""})
    assert "a/b/thesis.tex" in refusal(lambda: publish(tmp_path / "other", SECOND))
    assert "a publication" in (said := refusal(lambda: write_output(folder, SECOND, kind="export")))
    assert "SD-F708" in said
    naive(tmp_path / "same", {"README.md": SECOND["README.md"], ".tmp-README.md-1": b""})
    publish(tmp_path / "same", SECOND)


def test_two_writers_do_not_meet(folder: Path) -> None:
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "SD-F715" in refusal(lambda: publish(folder, SECOND))
    os.close(descriptor)
    publish(folder, SECOND)


def test_a_complete_output_may_have_another_page(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"with a licence")
    verify_output(folder)
    (folder / "samples/a.png").write_bytes(b"changed")
    said = refusal(lambda: verify_output(folder))
    assert "samples/a.png is not what was written" in said and f"delete {MANIFEST}" in said
    assert "SD-F713" in refusal(lambda: verify_file(folder / "results.jsonl"))
    assert "SD-F713" in refusal(lambda: verify_file(folder / "samples/a.png"))
    verify_file(folder / "unlisted")
    verify_output(folder, unchecked=["samples/a.png"])
    (folder / "samples/a.png").unlink()
    assert "is missing" in refusal(lambda: verify_output(folder, unchecked=["samples/a.png"]))
    (folder / MANIFEST).unlink()
    assert verify_output(folder) is None


@pytest.mark.parametrize("name", ["../thesis.tex", "/etc/x", "a/../../x", "./a", "a//b", "", ".", "a\0b"])
def test_a_list_of_files_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "thesis.tex").write_bytes(b"1" * 99)
    manifest = json.loads((folder / MANIFEST).read_text())
    digest = manifest["files"]["results.jsonl"]
    for change in ({"files": {name: digest}}, {"earlier": {name: [digest]}}):
        (folder / MANIFEST).write_text(json.dumps(manifest | change))
        for act in (lambda: publish(folder, SECOND), lambda: verify_output(folder)):
            assert "SD-F713: the list of files of this folder cannot be read" in refusal(act)
    assert (folder.parent / "thesis.tex").exists()


@pytest.mark.parametrize("text", ["", "null", "[1]", "{}", '{"format": 2}', "xx", "[" * 9999])
def test_a_damaged_list_of_files_is_named(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert f"where:  {folder / MANIFEST}" in refusal(lambda: verify_output(folder))


def test_the_helper_sees_every_write(in_child: InChild, tmp_path: Path) -> None:
    """`write_synced` is an open and a sync."""
    for turn, end, left in ((1, "killed", None), (2, "killed", b"ab"), (3, "done", b"abcd")):
        path = tmp_path / f"{turn}"
        assert in_child(lambda path=path: write_synced(path, b"abcd"), turn, kill=True) == end
        assert (path.read_bytes() if path.exists() else None) == left
