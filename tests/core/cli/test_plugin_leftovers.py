"""What a plugin prints, starts and forks: JSON stays JSON, a finished command ends, and a copy writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from select import select

import pytest

SERVER = """
import json, os, sys

import sddit.runs.pipeline, sddit.evaluation.probing, torch._inductor
from sddit.cli import main
from sddit.plugins import leftovers
from sddit.plugins.host import _current
from sddit.testing import toy_host

leftovers.GRACE, leftovers.GRACE_OF_ATEXIT = 0.2, 1.5
_current.append(toy_host())
for line in sys.stdin:
    folder, words = json.loads(line)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.chdir(folder)
        for number, name in enumerate(("/dev/null", "stdout", "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        main(words)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    os.read(reader, 1)  # until the copies of the command have ended, too
    os.close(reader)
    print(status, flush=True)
"""
"""Runs each command in a process of its own: a copy of one that has imported everything, which takes seconds."""

Server = subprocess.Popen[str]


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    no_plugins = str(Path(__file__).parents[1] / "no_plugins")
    path = os.pathsep.join([no_plugins, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def train(server: Server, toy_recipe: Path, loss_source: str, tmp_path: Path) -> Callable[..., Ended]:
    """Train the toy in its own process, with a plugin that does something at its third step."""

    def run(doing: str, *words: str, on_import: str = "") -> Ended:
        begin = "    def forward(self, ctx, views, outputs):\n"
        assert begin in loss_source
        source = f"import os, sys, threading, time\n{on_import}\n{loss_source}"
        source = source.replace(begin, f"{begin}        if ctx.step == 2:\n            {doing}\n")
        (tmp_path / "mine.py").write_text(source, encoding="utf-8")
        recipe = toy_recipe.read_text(encoding="utf-8")
        recipe = f'plugins = ["./mine.py"]\n{recipe}\n[loss.own]\nname = "mine"\n'
        (tmp_path / "own.toml").write_text(recipe, encoding="utf-8")
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([str(tmp_path), ["own.toml", *words]]) + "\n")
        server.stdin.flush()
        assert select([server.stdout], [], [], 120)[0], "the command does not end"
        status = int(server.stdout.readline())
        return Ended(status, *((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")))

    return run


def logged(folder: Path) -> list[int]:
    (log,) = folder.glob("runs/*/metrics.jsonl")
    return [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()]


def test_what_a_plugin_prints_never_reaches_the_json(train):
    noise = 'print("printed"); os.write(1, b"native\\n"); os.system("echo from a child")'
    ended = train(noise, "--json", on_import=noise.replace("printed", "imported"))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout).keys() >= {"folder", "scores"}
    for text in ("imported", "printed", "native", "from a child"):
        assert text in ended.stderr


def test_what_a_plugin_leaves_running_does_not_keep_the_command(train, tmp_path):
    ended = train(
        "threading.Thread(target=lambda: time.sleep(300)).start(); threading.Timer(300, print).start(); "
        'import multiprocessing as m; m.get_context("fork").Process(target=time.sleep, args=(300,)).start()'
    )
    assert ended.returncode == 0, ended.stderr
    warnings = [line for line in ended.stderr.splitlines() if "[SD-P229]" in line]
    assert len(warnings) == 3, ended.stderr
    assert all("plugin 'mine'" in line for line in warnings)
    assert f"at {tmp_path / 'mine.py'}:" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "report: " in ended.stdout
    assert logged(tmp_path) == sorted(set(logged(tmp_path)))


@pytest.mark.slow
def test_a_function_of_atexit_does_not_keep_the_command(train):
    ended = train("import atexit; atexit.register(time.sleep, 300)")
    assert ended.returncode == 0, ended.stderr
    assert "a function of atexit running by plugin 'mine'" in ended.stderr


def test_threads_that_end_are_not_mentioned(train):
    """The control: an executor that was not shut down, a daemon, and a copy that ends itself. All may print."""
    ended = train(
        'os.fork() or os._exit(0); os.write(1, b"native\\n"); '
        "from concurrent.futures import ThreadPoolExecutor as Pool; self.pool = Pool(2); self.pool.submit(int); "
        "threading.Thread(target=time.sleep, args=(300,), daemon=True).start()"
    )
    assert (ended.returncode, "P229" in ended.stderr) == (0, False), ended.stderr
    assert "native" in ended.stdout


@pytest.mark.parametrize("doing", ["os.fork()", "if os.fork() == 0: raise ValueError"])
def test_a_forked_copy_ends_with_a_message(train, tmp_path, doing):
    ended = train(doing)
    assert ended.returncode == 0, ended.stderr
    assert "error SD-P229: this process was copied by plugin 'mine' at" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert logged(tmp_path) == sorted(set(logged(tmp_path)))
    assert not [*tmp_path.glob("runs/*/crash*.log")]


def test_closed_descriptors_end_in_a_message_that_names_the_plugin(train):
    ended = train("os.closerange(3, 100)")
    assert ended.returncode == 3, ended.stderr
    assert "error SD-P228: an open file of the run was closed by plugin 'mine'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("doing", ["os.closerange(0, 3)", "sys.stderr = None"])
def test_the_error_is_printed_though_a_plugin_closed_stderr(train, doing):
    ended = train(doing)
    assert ended.returncode == 3, ended.stderr
    assert "error SD-P228: plugin 'mine' changed" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_plugin_that_ends_the_process_at_once_is_reported(train, tmp_path):
    ended = train("os._exit(0)")
    assert ended.returncode == 3, ended.stderr
    assert "error SD-P221: plugin 'mine' raised an error" in ended.stderr
    assert "SystemExit: os._exit(0)" in ended.stderr
    assert not [*tmp_path.glob("runs/*/report.html")]


def test_the_views_of_other_losses_are_not_changed_at_a_later_step(train):
    for doing, changed in {
        "views['student'].x0 = views['student'].x0 * 0.5": True,
        "(views['student'].x0 + 0).mul_(0.5)": False,  # the control: a copy
    }.items():
        ended = train(doing)
        assert ended.returncode == (3 if changed else 0), ended.stderr
        assert ("SD-P220: forward changed what it was given: student.x0" in ended.stderr) is changed


def test_a_library_that_ends_the_process_for_a_plugin_is_reported(train):
    ended = train("import argparse; argparse.ArgumentParser().parse_args(['--unknown'])")
    assert ended.returncode == 3
    assert "SD-P221" in ended.stderr
