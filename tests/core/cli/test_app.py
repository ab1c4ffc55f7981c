"""Test the command line itself: dispatch, help, and how failures are reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import sddit.runs.pipeline
from sddit.cli.app import COMMANDS, cli, limit_spinning
from sddit.errors import error


@pytest.mark.parametrize("words", [[], *[[command.name] for command in COMMANDS]])
def test_help_fits_eighty_columns_and_has_examples(sddit_run, words):
    result = sddit_run(*words, "--help")
    assert result.status == 0
    assert "Examples:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert len(result.stdout.splitlines()) <= 50


def test_help_of_a_recipe_is_the_help_of_sddit_run(sddit_run):
    assert sddit_run("any.toml", "--help").stdout == sddit_run("--help").stdout


def test_help_lists_all_commands(sddit_run):
    listed = sddit_run("--help").stdout.partition("Commands:")[2]
    assert set(cli.commands) == {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}


def test_no_arguments_print_the_usage(sddit_run):
    result = sddit_run()
    assert result.status == 2
    assert "sddit-run RECIPE" in result.stdout + result.stderr


def test_command_takes_precedence_over_a_recipe_of_its_name(sddit_run, toy_recipe, tmp_path):
    (tmp_path / "plugins").write_text(toy_recipe.read_text(encoding="utf-8"), encoding="utf-8")
    assert "registers" in sddit_run("plugins").stdout
    result = sddit_run("-n", "./plugins")
    assert "registers" not in result.stdout


@pytest.mark.parametrize(("word", "nearest"), [("plugin", "plugins"), ("exlpain", "explain"), ("toy.tml", "toy.toml")])
def test_unknown_first_word_suggests_the_nearest_command_or_recipe(sddit_run, toys, tmp_path, word, nearest):
    (tmp_path / "toy.toml").touch()
    result = sddit_run(word)
    assert result.status == 2
    assert "SD-R170" in result.stderr
    assert f"did you mean {nearest!r}?" in result.stderr
    assert result.stdout == ""


def test_missing_path_is_reported_as_a_missing_recipe(sddit_run, toys):
    result = sddit_run("recipes/none_of_that_name.toml")
    assert (result.status, "SD-R121" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.toml", "--frsh"], "No such option '--frsh'. Did you mean '--fresh'?"),
        (["x.toml", "--steps", "30"], "No such option '--steps'. Settings of a recipe are written as KEY=VALUE"),
        (["sample", "x", "--count", "3"], "No such option '--count'. Did you mean '--per-class'?"),
        (["sample", "x", "--per_class", "3"], "No such option '--per_class'. Did you mean '--per-class'?"),
        (["export", "x", "--to", "y"], "No such option '--to'. Did you mean '--out'?"),
        (["verify", "--count", "3"], "No such option '--count'.\n"),  # it has no --per-class
        (["x.toml", "--fresh", "--resume", "runs/x"], "--fresh and --resume are mutually exclusive"),
        (["x.toml", "--allow-change", "seed"], "--allow-change needs --resume"),
        (["plugins", "much"], "unexpected extra argument"),
        (["-n", "x.toml", "--fresh"], "-n runs nothing: remove --fresh"),
        (["-n", "x.toml", "--resume", "runs/x"], "-n runs nothing: remove --resume"),
        (["x.toml", "--all"], "--all needs -n"),
        (["table", "--csv", "--markdown"], "--markdown and --csv are mutually exclusive"),
        (["show", "train", "foo"], "[train] is a table of the recipe"),
        (["show", "--schema"], "--schema prints the settings of one component"),
        (["show", "losses", "--schema"], "--schema prints the settings of one component"),
    ],
)
def test_wrong_flag_prints_the_usage(sddit_run, words, message):
    result = sddit_run(*words)
    assert result.status == 2
    assert message in result.stderr
    assert "Try 'sddit-run" in result.stderr


def test_spinning_is_limited_unless_the_environment_sets_it(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.fixture
def failing(monkeypatch, toy_recipe, tmp_path):
    """`failing(exception)` makes the run raise it after its folder is known; returns the recipe's path."""

    def make(failure: BaseException) -> str:
        def run(recipe, *, progress, **_):
            progress.folder = tmp_path
            raise failure

        monkeypatch.setattr(sddit.runs.pipeline, "run", run)
        return str(toy_recipe)

    return make


def test_user_error_is_printed_without_a_traceback(sddit_run, failing, tmp_path):
    result = sddit_run(failing(error("SD-P230", "no CUDA device", where="--device", fix="--device cpu")))
    assert result.status == 3
    assert "error SD-P230: no CUDA device" in result.stderr
    assert "Traceback" not in result.stderr
    assert f"log:    {tmp_path / 'crash.log'}" in result.stderr
    assert "Traceback" in (tmp_path / "crash.log").read_text(encoding="utf-8")


def test_bug_of_the_toolkit_is_short_and_writes_a_log(sddit_run, failing, tmp_path):
    result = sddit_run(failing(ZeroDivisionError("division by zero")))
    assert result.status == 1
    assert "error: a bug in the toolkit: ZeroDivisionError: division by zero" in result.stderr
    assert str(tmp_path / "crash.log") in result.stderr
    assert len(result.stderr.splitlines()) <= 12
    assert "ZeroDivisionError" in (tmp_path / "crash.log").read_text(encoding="utf-8")


def test_crash_log_of_exhausted_memory_has_the_traceback(sddit_run, failing, tmp_path):
    result = sddit_run(failing(MemoryError("too large")))
    assert (result.status, "error SD-M601" in result.stderr) == (7, True)
    assert "raise failure\nMemoryError: too large" in (tmp_path / "crash.log").read_text(encoding="utf-8")


def test_debug_prints_the_traceback(sddit_run, failing):
    for words in (["--debug", failing(ValueError("x"))], [failing(ValueError("x")), "--debug"]):
        assert "Traceback (most recent call last)" in sddit_run(*words).stderr


def test_control_characters_of_a_message_are_escaped(sddit_run, failing):
    assert "\x1b" not in sddit_run(failing(ValueError("a\x1b[31mb"))).stderr


@pytest.mark.parametrize(
    ("failure", "status"),
    [(KeyboardInterrupt(), 130), (click.Abort(), 130), (SystemExit(143), 143)],
)
def test_interrupt_prints_no_traceback(sddit_run, failing, failure, status, monkeypatch):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    if isinstance(failure, SystemExit):
        with pytest.raises(SystemExit, match="143"):
            sddit_run(failing(failure))
    else:
        result = sddit_run(failing(failure))
        assert result.status == status
        assert "Traceback" not in result.stderr


def test_broken_pipe_other_than_stdout_is_an_error(sddit_run, failing, tmp_path):
    result = sddit_run(failing(BrokenPipeError(32, "Broken pipe")))
    assert result.status == 1
    assert "BrokenPipeError" in result.stderr
    assert "BrokenPipeError" in (tmp_path / "crash.log").read_text(encoding="utf-8")


def test_bug_that_raises_a_base_exception_is_reported(sddit_run, failing):
    result = sddit_run(failing(GeneratorExit()))
    assert result.status == 1
    assert "a bug in the toolkit: GeneratorExit" in result.stderr


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_crash_log_replaces_links_and_fifos(sddit_run, failing, tmp_path, kind):
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    log = tmp_path / "crash.log"
    log.symlink_to(tmp_path / "precious") if kind == "link" else os.mkfifo(log)
    sddit_run(failing(ValueError("x")))
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"
    assert log.is_file() and not log.is_symlink()
    assert "ValueError: x" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        ["toy.toml", "--out", ""],
        ["toy.toml", "--resume", ""],
        ["sample", "runs/x", "--out", ""],
        ["sample", ""],
        ["export", "runs/x", "--weights", ""],
        ["export", "runs/x", "--out", ""],
        ["import", "x.safetensors", "--layout", "dit", "--weights", ""],
        ["evaluate", ""],
    ],
)
def test_empty_path_or_name_is_refused(sddit_run, tmp_path, words):
    """It usually comes from an unset shell variable."""
    result = sddit_run(*words)
    assert result.status == 2
    assert "must not be empty" in result.stderr
    assert not [*tmp_path.iterdir()]


def test_removed_current_folder_is_reported(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os; from sddit.cli import main; os.rmdir(os.getcwd()); main(['quickstart', '-n'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, check=False)
    assert result.returncode == 8
    assert "the current folder no longer exists" in result.stderr


def test_closed_reader_is_not_a_failure(sddit_process):
    """As `sddit-run explain | head -1`."""
    code = "from sddit.cli import main; main(['explain'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_closed_stdout_is_detected(tmp_path):
    """With a pipe whose reader is open, and one whose reader is closed."""
    code = (
        "from sddit.cli.failures import stdout_is_closed\nimport sys\n"
        "raise SystemExit(3 if stdout_is_closed(BrokenPipeError()) else 4)\n"
    )
    for read, status in ((True, 4), (False, 3)):
        reader, stdout = os.pipe()
        if not read:
            os.close(reader)
        done = subprocess.run([sys.executable, "-c", code], stdout=stdout, check=False)
        os.close(stdout)
        if read:
            os.close(reader)
        assert done.returncode == status


@pytest.mark.parametrize("output", ["gone", "/dev/full"])
def test_training_continues_without_stdout(output, toy_recipe, tmp_path):
    """As `sddit-run RECIPE | head -1`, or a log on a full disk: status 0 means that the run is done."""
    code = (
        "import sys; from sddit.cli import main; from sddit.plugins.host import using_host\n"
        "from sddit.testing import toy_host\n"
        "with using_host(toy_host()): main(sys.argv[1:])\n"
    )
    if output == "gone":
        reader, stdout = os.pipe()
        os.close(reader)
    else:
        stdout = os.open(output, os.O_WRONLY)
    command = [sys.executable, "-c", code, str(toy_recipe), "--out", str(tmp_path / "runs")]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [*tmp_path.glob("runs/*/report.html")]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/null"])
def test_closed_output_is_not_a_failure(closed):
    code = "from sddit.cli import main; main(['explain', 'SD-P201'])"
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C", "TERM": "dumb", "HOME": ""},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": "/nonexistent"},
    ],
)
def test_minimal_environment_is_not_a_failure(settings, tmp_path):
    code = (
        "import sys; from sddit.cli.app import call; from sddit.cli.streams import open_outputs\n"
        "open_outputs(); print(chr(963)); sys.exit(call(['explain']))"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **settings}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith("σ".encode())  # not a question mark: a path can be copied


@pytest.mark.parametrize("words", [["plugins"], ["explain", "--json"]])
def test_full_disk_for_stdout_is_reported_briefly(words):
    code = f"from sddit.cli import main; main({words!r})"
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 7
    assert "error SD-M610: no space left to write to" in done.stderr
    assert "bug" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_unusable_path_outside_of_a_run_is_a_user_error(sddit_run, monkeypatch, toy_recipe):
    def run(*_, **__):
        raise PermissionError(13, "Permission denied", "/locked/file")

    monkeypatch.setattr(sddit.runs.pipeline, "run", run)
    result = sddit_run(toy_recipe)
    assert result.status == 8
    assert "error SD-F707" in result.stderr
    assert "/locked/file" in result.stderr


def test_error_in_a_plugin_names_its_file_and_line(sddit_run, toy_recipe, loss_source):
    folder = toy_recipe.parent
    (folder / "mine.py").write_text(loss_source.replace("self.scale *", "self.scales *"), encoding="utf-8")
    text = 'plugins = ["./mine.py"]\n' + toy_recipe.read_text(encoding="utf-8") + '[loss.mine]\nname = "mine"\n'
    toy_recipe.write_text(text, encoding="utf-8")
    result = sddit_run(toy_recipe)
    assert result.status == 3
    assert "error SD-P221: plugin 'mine' raised an error" in result.stderr
    line = 1 + loss_source.splitlines().index(next(x for x in loss_source.splitlines() if "self.scale *" in x))
    assert f"{folder / 'mine.py'}:{line}" in result.stderr
    assert "has no attribute 'scales'" in result.stderr
    assert "sha256" in result.stderr, "path and hash of the file are printed"
