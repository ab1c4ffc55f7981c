"""Test the promises of SECURITY.md: data runs no code, plugins run only when named, nothing is sent."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sddit
from sddit.cli.app import COMMANDS, call
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run

ROOT = Path(__file__).parents[1]
TINY = ["train.steps=2", "train.batch=4", "train.save_every=1", "train.log_every=1", "train.threads=1"]
TINY += ["optimizer.warmup=0", "evaluate.samples=20", "evaluate.features=['pixels']", "evaluate.previews=1"]
TINY += ["evaluate.per_class=1", "sampler.steps=2"]
TINY += ["backbone.depth=1", "backbone.width=8", "backbone.heads=1", "backbone.decoder.depth=1"]
TINY += ["backbone.decoder.width=8", "backbone.decoder.heads=1", "loss.discrimination.prototypes=8"]

RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy", "code"}
REACHES_OUT = {"socket", "ssl", "urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "webbrowser"}
STARTS = {"subprocess", "multiprocessing", "pty"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "os.system",
    "os.popen",
}
METHODS = {"extractall", "extract", "exec_module", "snapshot_download"}
ARGUMENTS = {("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False)}

ALLOWED = {
    (
        "core/sddit/exchange/pickles.py",
        "torch.load",
    ): "published weights, with --trust-pickle, after the program was read",
    (
        "plugins/sddit_standard/features/inception.py",
        "torch.load",
    ): "the user's own Inception weights, weights_only=True",
    ("plugins/sddit_standard/features/inception.py", "pickle"): "the class of an error",
    ("plugins/sddit_standard/codecs/params.py", "snapshot_download"): "an autoencoder whose hub id a recipe names",
    ("core/sddit/plugins/loading.py", "compile"): "a one-file plugin that the recipe names",
    ("core/sddit/plugins/loading.py", "exec"): "the same plugin",
    (
        "core/sddit/distributed/rendezvous.py",
        "socket",
    ): "rank 0, at the address that is given to several processes",
    ("core/sddit/storage/lock.py", "socket"): "the name of this host, in run.lock",
    ("core/sddit/ablations/runner.py", "subprocess"): "the runs of an ablation",
    (
        "core/sddit/distributed/subprocesses.py",
        "subprocess",
    ): "modules of this program, which encode or list a part of the images",
}
"""Where what is forbidden elsewhere stands, and why it may."""


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def forbidden(source: str) -> Iterator[str]:
    """Yield names and arguments in a source that could run code from data, use the network or start processes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from {module.partition(".")[0] for module in modules} & (RUNS_CODE | REACHES_OUT | STARTS)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS:
                yield name
            elif name.rpartition(".")[2] in METHODS:
                yield name.rpartition(".")[2]
            for given in node.keywords:
                if isinstance(given.value, ast.Constant) and (given.arg, given.value.value) in ARGUMENTS:
                    yield f"{given.arg}={given.value.value}"


def test_the_source_runs_no_data_and_reaches_nowhere_but_where_it_is_said() -> None:
    files = [file for root in ("core", "plugins") for file in sorted((ROOT / root).rglob("*.py"))]
    found = {(str(file.relative_to(ROOT)), name) for file in files for name in forbidden(file.read_text("utf-8"))}
    assert found == ALLOWED.keys()


def test_the_gate_sees_each_of_them() -> None:
    """The control."""
    for line, name in {
        "import pickle": "pickle",
        "from yaml import load": "yaml",
        "import urllib.request": "urllib",
        "eval('1')": "eval",
        "exec(text)": "exec",
        "torch.load(path)": "torch.load",
        "archive.extractall(folder)": "extractall",
        "hub.snapshot_download(name)": "snapshot_download",
        "call(line, shell=True)": "shell=True",
        "np.load(path, allow_pickle=True)": "allow_pickle=True",
        "torch.save(a, weights_only=False)": "weights_only=False",
        "build(name, trust_remote_code=True)": "trust_remote_code=True",
    }.items():
        assert list(forbidden(line)) == [name]
    assert list(forbidden("model.eval()\nnp.load(path, allow_pickle=False)\nre.compile('x')")) == []


WATCH = """
import os, sys
SEEN = []
ROOTS = [os.path.realpath(root) for root in sys.argv[1:3]]   # where may be written, where our source lies
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

def outside(path):
    if isinstance(path, int) or path is None or path == os.devnull:
        return False
    real = os.path.realpath(os.fsdecode(path))
    return os.path.commonpath([real, ROOTS[0]]) != ROOTS[0]

def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) and event != "socket.gethostname":
        SEEN.append(event)
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"):
        SEEN.append(event)
    elif event == "exec" and sys._getframe(1).f_code.co_filename.startswith(ROOTS[1]):
        SEEN.append(f"exec in {sys._getframe(1).f_code.co_filename}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES and outside(arguments[0]):
        SEEN.append(f"open {arguments[0]}")
    elif event in CHANGES and any(outside(path) for path in arguments if isinstance(path, (str, bytes))):
        SEEN.append(f"{event} {arguments[:2]}")

sys.addaudithook(watch)
"""

EVERY_VERB = """
import itertools, json, pathlib
import numpy
import sddit
import sddit.verify
from sddit.cli.app import call

whole = sddit.verify.verify
sddit.verify.verify = lambda *given: itertools.islice(whole(*given), 12)   # the others are as these
here = pathlib.Path.cwd()
TINY = json.loads(sys.argv[3])
def do(verb, *words):
    status = call([verb, *words])
    DONE.append([verb, status])
DONE = []
call([str(here / "tiny.toml"), *TINY, "--out", str(here / "runs")])
(run,) = map(str, (here / "runs").glob("*"))
call([run + "/recipe.resolved.json", "-n"])
do("plugins"); do("plugins", "--json")
do("show", "losses"); do("explain", "SD-R102")
do("sample", run, "--per-class", "1", "--classes", "0")
do("evaluate", run); do("evaluate", run, "--copies")
noise = numpy.random.default_rng(0).normal(0, [[[[1]], [[0]]]], (9, 2, 4, 4))
numpy.savez(here / "part.npz", moments=noise.astype("f4"))
do("encode", "digits", str(here / "encoded"), "--codec", "tiny_kl", "--nproc", "1", "--allow-implausible")
common = ["--layout", "mean+std", "--scale", "1", "--encoder", "none"]
do("pack", str(here / "part.npz"), str(here / "packed"), *common)
do("reference", run, str(here / "real.npz"), "--inception", str(here / "tiny.toml"))
for form in ([], ["--markdown"], ["--latex"], ["--csv"]):
    do("table", run, *form)
do("ema", run, "--sigma-rel", "0.05")
do("export", run); do("sample", run + "/export", "--per-class", "1", "--classes", "0")
do("import", run + "/export/model.safetensors", "--layout", "dit")
do("bench", str(here / "tiny.toml"), "--rounds", "1", "--seconds", "0.01")
do("verify"); do("new-plugin", "mine"); do("check", "edm"); do("publish", run)
print(json.dumps({"seen": SEEN, "done": DONE}))
"""

CANARY = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with a recipe, an installed plugin and one-file plugins that leave a mark when they are
    run.
    """
    place = tmp_path_factory.mktemp("place")
    (place / "tiny.toml").write_text('extends = "quickstart"\n', encoding="utf-8")
    info = place / "site" / "canary-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[sddit]\ncanary = canary_package\n", encoding="utf-8")
    (place / "site" / "canary_package.py").write_text(CANARY.format(mark=str(place / "mark")), encoding="utf-8")
    for name in ("adjacent.py", "conftest.py", "sddit_adjacent.py", "canary.py", "numpy_adjacent.py"):
        (place / name).write_text(CANARY.format(mark=str(place / "mark")), encoding="utf-8")
    return place


def watched(place: Path, program: str) -> dict[str, Any]:
    """What a program was seen to do, in a process of its own that may write below `place`."""
    import os

    environment = {
        **{
            key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR")
        },  # set by torch itself
        "PYTHONPATH": os.pathsep.join([str(place / "site"), *filter(None, sys.path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(place / "cache"),
        "TMPDIR": str(place),
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCH + program, str(place), str(ROOT / "core"), json.dumps(TINY)],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def session(place: Path) -> dict[str, Any]:
    """Every verb, one after the other, watched."""
    return watched(place, EVERY_VERB)


KINDS = {
    "network calls": ("socket.", "urllib.", "http.", "ftplib.", "smtplib."),
    "processes": ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    "files elsewhere": (
        "open ",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
    ),
}


def test_nothing_is_sent_started_or_written_elsewhere(
    session: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    """From the import of everything to the report: no socket, no process, no source made up, no file outside."""
    record_property("commands", len(session["done"]))
    for kind, events in KINDS.items():
        record_property(kind, sum(event.startswith(events) for event in session["seen"]))
    assert session["seen"] == []
    assert {verb for verb, _ in session["done"]} == {verb.name for verb in COMMANDS}
    refused = {verb for verb, status in session["done"] if status}
    assert refused == {"ema", "import", "publish", "reference"}  # no snapshots, another layout, no ablation, no weights


def test_no_plugin_that_no_one_named_was_run(
    session: dict[str, Any], place: Path, record_property: Callable[[str, object], None]
) -> None:
    assert session["done"]
    record_property("foreign imports", int((place / "mark").exists()))
    assert not (place / "mark").exists()


def test_the_canaries_sing_when_they_are_named(place: Path, session: dict[str, Any]) -> None:
    """Negative control: the same plugins leave their mark where a command or a recipe asks for them."""
    for words in (
        ["plugins", "--load"],
        ["tiny.toml", "-n", "plugins=['canary']"],
        ["tiny.toml", "-n", "plugins=['./adjacent.py']"],
    ):
        watched(place, f"from sddit.cli.app import call\ncall({words!r})\nprint('{{}}')")
        assert (place / "mark").exists(), words
        (place / "mark").unlink()


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("import socket; socket.socket().close()", "socket."),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.system('true')", "os.system"),
        ("import os; (os.fork() or os._exit(0))", "os.fork"),
        ("open(os.path.join(ROOTS[0], '..', 'elsewhere'), 'w').close()", "open"),
        ("os.mkdir(os.path.join(ROOTS[0], '..', 'other'))", "os.mkdir"),
        ("exec(compile('pass', '<x>', 'exec'))", ""),
    ],
)
def test_the_watch_sees_what_it_is_for(place: Path, line: str, seen: str) -> None:
    """The control: each kind of deed is reported, and executed source only where it is ours that does so."""
    found = watched(place, f"{line}\nimport json\nprint(json.dumps({{'seen': SEEN}}))")["seen"]
    assert any(event.startswith(seen) for event in found) if seen else found == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    recipe = resolve(ROOT / "recipes" / "quickstart.toml", TINY)
    folder = run(recipe, out=place / "runs", device="cpu", progress=Progress()).folder
    return export_run(folder, out=place / "exported").folder


ODD: list[Any] = [None, True, 7, -1, 1e400, "x", "", [], [1], {}, {"name": "x"}, "../../etc/passwd", ["./x.py"]]


def test_a_hostile_config_is_refused_in_words(exported: Path, tmp_path: Path) -> None:
    """Every key of it replaced by what does not belong there: refused, or of no harm; nothing else is raised."""
    whole = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    del whole["sha256"]
    (tmp_path / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes())
    refused = 0
    for path in list(paths(whole))[::9]:
        for odd in ODD:
            (tmp_path / "config.json").write_text(json.dumps(replaced(whole, path, odd)), encoding="utf-8")
            try:
                sddit.load(tmp_path)
            except SdditError:
                refused += 1
    assert refused > 150


def paths(table: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from paths(value, (*at, key))


def replaced(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    return {**table, key: replaced(table[key], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("text", ["[" * 200_000, "7", "[]", "nul", "{}", '{"recipe": 7}', '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "recipe.resolved.json"])
def test_a_file_that_is_not_a_table_of_ours_never_gives_a_traceback(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    for words in (["sample", "."], ["table", "."], ["export", ".", "--out", "new"], ["evaluate", "."], [name, "-n"]):
        status = call([str(tmp_path / word) if word in (".", "new", name) else word for word in words])
        assert status not in (1, 0) or words[0] == "table", (words, capsys.readouterr().err)


def test_a_pickle_in_the_place_of_weights_runs_nothing(exported: Path, tmp_path: Path) -> None:
    import pickle
    from hashlib import sha256

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "mark",)

    hostile = pickle.dumps(Canary(), protocol=4)
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    config["weights"]["sha256"] = sha256(hostile).hexdigest()
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(hostile)
    with pytest.raises(SdditError, match="SD-C440"):
        sddit.load(tmp_path)
    assert not (tmp_path / "mark").exists()
    pickle.loads(hostile)  # the control: it would have
    assert (tmp_path / "mark").exists()


HOSTILE = """</script><img src=x onerror=1>"'{{7*7}}"""


def test_a_table_that_is_pasted_elsewhere_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of runs and scores in Markdown, LaTeX and CSV add no HTML, column, formula or control character."""
    recipe = json.dumps({"train": {"steps": 3}})
    for name in ("=HYPERLINK(1)", "a|b`<img src=x onerror=1>](javascript:1)", "\x1b[31m\u202eevil", r"\input{x}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.resolved.json").write_text(recipe, encoding="utf-8")
        scores = {"+cmd|' /C calc'!A0": {"title": "t", "n": 4, "fd": 1.0, "fd_floor": 0.1}}
        (tmp_path / name / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    said = {}
    for form in ("--markdown", "--latex", "--csv"):
        assert call(["table", str(tmp_path), form]) == 0
        said[form] = capsys.readouterr().out
        assert not any(mark in said[form] for mark in ("\x1b", "\u202e"))
    assert "<img" not in said["--markdown"].replace(r"\<img", "")
    assert "](" not in said["--markdown"]
    assert len({line.replace(r"\|", "").count("|") for line in said["--markdown"].splitlines()}) == 1
    assert r"\input" not in said["--latex"]
    for line in said["--csv"].splitlines():
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in line.replace('"', "").split(","))
    assert "'=HYPERLINK" in said["--csv"]


def test_what_is_typed_or_found_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "x\x1b]0;title\x07\x9b31m\u202egnp"
    (tmp_path / "evil.toml").write_text(
        'extends = "quickstart"\n[backbone]\nname = "\\u001b[31m\\u202e"\n', encoding="utf-8"
    )
    for words in (
        [evil],
        ["sample", evil],
        ["show", evil],
        ["explain", evil],
        ["table", evil],
        ["evil.toml", "-n"],
        ["-n", "quickstart", f"seed={evil}"],
    ):
        assert call(words) != 0
        printed = capsys.readouterr()
        assert not any(mark in printed.out + printed.err for mark in ("\x1b", "\x07", "\x9b", "\u202e")), words
