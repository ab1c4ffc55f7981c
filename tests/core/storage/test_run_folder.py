"""The run folder: one writer, whole files, and a log without a lost or doubled row."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.errors import SdditError
from sddit.storage import atomic as durable
from sddit.storage.lock import LOCK
from sddit.storage.metrics_log import MetricsLog, last_metrics, read_metrics
from sddit.storage.run_folder import SEAL, RunFolder, read_json, refuse_changed

HOLD = """
import os, sys, time
from pathlib import Path
from sddit.storage.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])):
    {while_held}
    print("held", flush=True)
    time.sleep(60)
"""


def code(call: Callable[[], object]) -> str:
    with pytest.raises(SdditError) as caught:
        call()
    return caught.value.problems[0].code


def enter(path: Path) -> None:
    with RunFolder(path):
        pass


def holder(path: Path, while_held: str = "pass") -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD.format(while_held=while_held), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "tiny-4f2c91"
    other = holder(path)
    try:
        with pytest.raises(SdditError, match=rf"in use by pid {other.pid} on host .* since \d{{4}}-") as caught:
            enter(path)
        assert caught.value.problems[0].code == "SD-F701"
    finally:
        other.kill()
        other.communicate()
    with RunFolder(path) as run:  # the lock of a dead process is taken over, and its end is known
        assert f"pid {other.pid}" in run.killed
        assert json.loads((path / LOCK).read_text())["pid"] == os.getpid()
    with RunFolder(path) as run:
        assert run.killed == "", "the last holder released it on its own"


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        assert code(lambda: enter(tmp_path)) == "SD-F701"
    enter(tmp_path)


def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    fork = "if os.fork() == 0: print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", HOLD.format(while_held=fork), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stderr is not None
    worker = int(parent.stderr.readline())  # it runs, so it has let go of the lock
    try:
        assert parent.stdout.readline() == "held\n"
        parent.kill()
        parent.wait()
        os.kill(worker, 0)  # it lives
        enter(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        parent.communicate()


def test_modes_and_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "run"
    before = os.umask(0o022)
    try:
        enter(path)
        (path / "samples").mkdir()
        (path / "samples" / ".tmp-grid.png-aa").write_bytes(b"half")
        (path / "checkpoints" / ".tmp-5-bb").mkdir(parents=True)
        (path / "checkpoints" / ".del-cc" / "deep").mkdir(parents=True)
        with RunFolder(path) as run:
            run.write_text("kept.txt", "kept")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / "kept.txt").stat().st_mode & 0o777 == 0o644
    found = {str(file.relative_to(path)) for file in path.rglob("*")}
    assert found == {LOCK, "kept.txt", "samples", "checkpoints"}, "no probe and no leftover"


@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file", "below a dangling link"])
def test_a_place_that_is_not_a_folder(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "run"
    place.symlink_to(tmp_path / "nowhere") if "link" in kind else place.write_bytes(b"")
    path = place / "run" if "below" in kind else place
    assert code(lambda: enter(path)) == "SD-F705"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match=r"too long(.|\n)*choose a shorter name") as caught:
        enter(tmp_path / ("a" * 300))
    assert caught.value.problems[0].code == "SD-F705"


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with RunFolder(tmp_path / "link") as run:
        (tmp_path / "link").unlink()
        run.write_text("a.txt", "a")
    assert (tmp_path / "real" / "a.txt").read_text() == "a"


@pytest.mark.parametrize(("name", "expected"), [("EROFS", "SD-F703"), ("EACCES", "SD-F703"), ("ENOSPC", "SD-M610")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_probe_fails_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str, expected: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync", refuse) if call == "fsync" else (Path, "replace", refuse)))
        assert code(lambda: enter(tmp_path)) == expected
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}
    enter(tmp_path)  # the lock was let go


def test_a_refused_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path) as run:
        run.write_json("scores.json", {"fd": 1.5})

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(durable.os, "fsync", full)
            assert code(lambda: run.write_json("scores.json", {"fd": 2.5})) == "SD-M610"
    assert json.loads((tmp_path / "scores.json").read_text()) == {"fd": 1.5}
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "scores.json"}


def test_a_link_inside_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    with RunFolder(tmp_path / "run") as run:
        (run.path / "report.html").symlink_to(outside)
        run.write_text("report.html", "<p>")
    assert outside.read_text() == "precious" and (tmp_path / "run" / "report.html").read_text() == "<p>"


def test_names_stay_inside(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        assert run.write_bytes("samples/a/b.png", b"png").read_bytes() == b"png"
        for name in ("../escape", "samples/../../escape", str(tmp_path / "escape")):
            with pytest.raises(ValueError, match="leads out"):
                run.write_bytes(name, b"")


def test_a_folder_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.path.rename(tmp_path / "elsewhere")
        assert code(lambda: run.write_text("a.txt", "a")) == "SD-F706"
        assert code(lambda: run.write_text("samples/a.txt", "a")) == "SD-F706"
    assert not (tmp_path / "run").exists()


def test_json_is_valid_json(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        path = run.write_json("scores.json", {"fd": math.nan, "all": [math.inf, (-math.inf, 1)], "name": "é"})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "fd": "NaN",
        "all": ["Infinity", ["-Infinity", 1]],
        "name": "é",
    }


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_a_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl", cursor=0)
    log.append({"step": 1, "loss": 0.5})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]
    assert log.cursor == log.sync() == path.stat().st_size
    log.close()


def test_resuming_neither_loses_nor_doubles_a_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, cursor=0)
    for step in range(10):
        if step == 6:
            cursor = log.sync()  # the checkpoint after step 5
        log.append({"step": step})
    log.close()
    for _ in range(2):  # two resumes of the same checkpoint, the first killed at step 8
        log = MetricsLog(path, cursor, step=5)
        assert not log.changed
        for step in range(6, 8):
            log.append({"step": step})
        log.close()
        assert steps(path) == list(range(8))
    log = MetricsLog(path)  # the control: without its cursor a resume doubles rows
    log.append({"step": 6})
    log.close()
    assert steps(path) == [*range(8), 6]


@pytest.mark.parametrize("torn", [b'{"st', b'{"step": 2}', b"\x00\x00\x00"])
def test_a_torn_last_line_is_repaired(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n' + torn)
    assert steps(path) == [0, 1]
    log = MetricsLog(path)
    log.append({"step": 2})
    log.close()
    assert steps(path) == [0, 1, 2]


def test_a_log_that_lost_rows_says_so(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n')
    whole, short = MetricsLog(path, cursor=12), MetricsLog(path, cursor=13)
    assert (whole.changed, short.changed, short.cursor) == (False, True, 12)
    whole.close()
    short.close()


@pytest.mark.parametrize("edit", ["longer", "shorter", "a line more", "a line less", "the last ones less"])
def test_an_edited_log_says_so_and_loses_no_other_row(tmp_path: Path, edit: str) -> None:
    lines = [f'{{"step": {step}, "loss": 1.4}}\n' for step in range(1, 9)]
    cursor = len("".join(lines[:6]))  # of the checkpoint of step 6
    left = list(range(1, 7))
    if edit in ("longer", "shorter"):
        lines[0] = lines[0].replace("1.4", "11.4" if edit == "longer" else "1")
    elif edit == "a line more":
        lines.insert(3, lines[3])
        left.insert(3, 4)
    elif edit == "a line less":
        del lines[3]
        left.remove(4)
    else:
        del lines[5:]
        left.remove(6)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines))
    log = MetricsLog(path, cursor, step=6)
    assert log.changed
    assert steps(path) == left
    assert log.cursor == path.stat().st_size
    log.append({"step": 7})
    log.close()
    assert steps(path) == [*left, 7]


def test_scores_at_the_step_of_a_checkpoint_are_kept(tmp_path: Path) -> None:
    """They are logged after it, at the end of a run or where a stop had cut them short; and are logged again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 6}\n{"step": 6, "score/toy.fd": 1}\n')
    log = MetricsLog(path, 24, step=6)
    log.close()
    assert (log.changed, steps(path)) == (False, [5, 6])
    path.write_text('{"step": 5}\n{"step": 6}\n{"step": 7, "score/toy.fd": 1}\n')  # step 7 was saved, and not logged
    log = MetricsLog(path, 24, step=7)
    log.close()
    assert (log.changed, steps(path)) == (False, [5, 6])


def test_scores_that_are_logged_again_go_from_an_edited_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5, "mine": 1}\n{"step": 5, "score/toy.fd": 2}\n{"step": 6}\n{"step": 6, "score/toy.fd": 1}\n'
    )
    log = MetricsLog(path, 24, step=6)
    log.close()
    assert (log.changed, steps(path)) == (True, [5, 5, 6])


def test_what_is_not_a_row_stays_in_an_edited_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\nmine\n{"step": 6}\n{"step": 7}\n')
    MetricsLog(path, 24, step=6).close()
    assert path.read_text() == '{"step": 5}\nmine\n{"step": 6}\n'


@pytest.mark.parametrize("read", [read_metrics, read_json, refuse_changed, MetricsLog], ids=lambda read: read.__name__)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path, read: Callable[[Path], object], kind: str) -> None:
    """A FIFO would be waited for, and /dev/zero read, for ever."""
    path = tmp_path / "metrics.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert code(lambda: read(path)) == ("SD-F705" if read is MetricsLog else "SD-F704")


def test_non_finite_numbers_survive_as_valid_json(tmp_path: Path) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl", cursor=0)
    log.append({"step": 1, "loss": math.nan, "up": math.inf, "down": -math.inf})
    log.close()
    json.loads(path.read_text(), parse_constant=pytest.fail)
    (row,) = read_metrics(path)
    assert math.isnan(row["loss"]) and (row["up"], row["down"]) == (math.inf, -math.inf)


def test_a_full_disk_tears_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl", cursor=0)
    log.append({"step": 1})
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        assert code(lambda: log.append({"step": 2})) == "SD-M610"
    assert path.read_bytes() == b'{"step": 1}\n'
    log.append({"step": 2})
    log.close()
    assert steps(path) == [1, 2]


def test_a_row_written_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl", cursor=0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    log.append({"step": 1, "loss": 0.25})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.25}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_a_row_that_cannot_be_read_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": "nan"}\n' + line + b"\n")
    with pytest.raises(SdditError, match=r"SD-F704(.|\n)*metrics\.jsonl:2"):
        read_metrics(path)
    path.write_bytes(path.read_bytes()[: -len(line) - 1])
    assert [row["step"] for row in read_metrics(path)] == [1]


def test_the_last_row_is_the_last_that_is_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n7\n' + b"[" * 100_000 + b'\n{"ste')
    assert last_metrics(path) == {"step": 2}
    path.write_bytes(path.read_bytes() + b"\xe5")
    assert code(lambda: last_metrics(path)) == "SD-F704"
    assert last_metrics(tmp_path / "none.jsonl") == {}


def test_a_kill_between_a_sealed_file_and_its_seal_leaves_no_wrong_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_sealed_json("recipe.json", {"seed": 3})
        write = RunFolder.write_text

        def killed(folder: RunFolder, name: str, text: str) -> Path:
            if name.endswith(SEAL):
                raise KeyboardInterrupt
            return write(folder, name, text)

        monkeypatch.setattr(RunFolder, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.write_sealed_json("recipe.json", {"seed": 4})
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"seed": 4}
    refuse_changed(tmp_path / "recipe.json")


def test_a_sealed_file_is_refused_once_a_byte_of_it_differs(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        path = folder.write_sealed_json("recipe.json", {"seed": 3})
    checked = subprocess.run(["sha256sum", "-c", "recipe.json.sha256"], cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0
    refuse_changed(path)
    path.write_text(path.read_text().replace("3", "2"))
    assert code(lambda: refuse_changed(path)) == "SD-F704"
    (tmp_path / f"recipe.json{SEAL}").unlink()
    refuse_changed(path)
    path.unlink()
    assert code(lambda: refuse_changed(path)) == "SD-F704"


OLD = {"report.html": "r", "recipe.resolved.json": "{}", "metrics.jsonl": "m", "checkpoints/step-000001/state": "s"}


def old_run(folder: Path) -> Path:
    for name, text in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def texts(folder: Path) -> dict[str, str]:
    """The files of a run by name, without the lock."""
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {name: text for name, text in found.items() if name != "run.lock"}


def start_over(folder: Path) -> None:
    with RunFolder(folder) as run:
        run.set_aside()


@pytest.mark.parametrize("kill", [False, True], ids=["full", "kill"])
def test_an_interrupted_fresh_start_is_completed_or_not_begun(
    tmp_path: Path, in_child: Callable[..., str], kill: bool
) -> None:
    seen = []
    for turn in range(1, 100):
        folder = old_run(tmp_path / str(turn))
        if (end := in_child(lambda folder=folder: start_over(folder), turn, kill=kill)) == "done":
            break
        if (folder / "report.html").exists():
            assert (folder / "recipe.resolved.json").exists() and (folder / "metrics.jsonl").exists()
        with RunFolder(folder):  # the next command, without --fresh
            left = texts(folder)
        if end != "continued":  # the fault was not fatal
            seen.append("whole" if left == OLD else "aside")
        assert left in (OLD, {f"aside-1/{name}": text for name, text in OLD.items()})
        start_over(folder)
        assert texts(folder) == {f"aside-1/{name}": text for name, text in OLD.items()}
    assert seen == sorted(seen, reverse=True) and {*seen} == {"whole", "aside"}


def test_a_list_of_what_to_set_aside_is_not_trusted(tmp_path: Path) -> None:
    folder = old_run(tmp_path / "run")
    for to, contents in (("../x", []), ("aside-1", ["../mine"]), ("aside-1", None), ("aside-1", ["a/b"]), (1, [])):
        (folder / ".aside.json").write_text(json.dumps({"to": to, "contents": contents}))
        assert code(lambda: RunFolder(folder).__enter__()) == "SD-F704"
    (folder / ".aside.json").unlink()
    assert texts(folder) == OLD


def test_what_was_set_aside_is_not_replaced(tmp_path: Path) -> None:
    """A user has put a file back before the move was completed."""
    folder = old_run(tmp_path / "run")
    (folder / "aside-1").mkdir()
    (folder / "aside-1" / "metrics.jsonl").write_text("first")
    (folder / ".aside.json").write_text(json.dumps({"to": "aside-1", "contents": ["metrics.jsonl"]}))
    with RunFolder(folder):
        pass
    held = texts(folder)
    assert (held["aside-1/metrics.jsonl"], held["aside-1/metrics.jsonl.2"]) == ("first", "m")


def rows_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_removed_log_is_written_again(tmp_path: Path) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    path.unlink()
    log.append({"step": 2})
    assert rows_in(path) == [1, 2]
    assert "removed during training; it was written again, and no row is lost" in log.notices.pop()
    path.unlink()
    path.write_text("of the user")
    assert log.sync() == path.stat().st_size
    assert rows_in(path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.replaced").read_text() == "of the user"
    assert "by what is now in metrics.jsonl.replaced" in log.notices.pop()
    log.append({"step": 3})
    assert rows_in(path) == [1, 2, 3] and log.notices == []
    (tmp_path / "gone").mkdir()
    log.close()


@pytest.mark.parametrize(
    ("left", "rows", "says"),
    [
        (0, [3], "24 of 24 bytes are lost, with all earlier rows"),
        (15, [1, 3], "9 of 24 bytes are lost, and 1 earlier row is left"),
    ],
)
def test_a_log_that_was_cut_off_says_what_is_lost(tmp_path: Path, left: int, rows: list[int], says: str) -> None:
    log = MetricsLog(path := tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.append({"step": step})
    os.truncate(path, left)
    log.append({"step": 3})
    assert rows_in(path) == rows
    assert says in log.notices.pop()
    assert log.cursor == path.stat().st_size
    with path.open("a") as other:
        other.write('{"step": 9}\n')
    log.recover()
    assert "another process wrote 12 bytes" in log.notices.pop()
    log.close()
