"""Provoke each row of the failure catalogue, `rows.toml`, and check that it ends as the row says.

A row is a fault in words, how it is provoked, what the user gets, and how it continues:

    [[C2]]
    fault = "one bit of a checkpoint's file flips"
    provoke = { stopped = 4, damage = [["step-000004/optimizer.safetensors", "flip"]] }
    command = "toy.toml"                       # this is what is typed if nothing else is said
    code = "SD-C401"                           # none: the command is to end well
    exit = 5                                   # none: the code's own
    says = ["optimizer.safetensors"]           # in what the user reads
    repair = { damage = [["gone", "move runs"]] }   # what the user does first, besides taking the fault away
    then = "toy.toml"                          # the command that ends well once the fault is gone

A row that stands elsewhere or not at all says so: `proven_by` names a test, `not_here` a reason, `waits` what is
missing.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sddit.training.loop
from sddit.cli.commands.explain import EXITS
from sddit.data.latent_writing import write_cache
from sddit.errors import catalogue
from sddit.plugins.host import Host
from sddit.storage.manifest import seal_manifest
from sddit.testing.toys import components as toy_models

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS: dict[str, list[dict[str, Any]]] = tomllib.loads((HERE / "rows.toml").read_text(encoding="utf-8"))
CASES = [
    pytest.param(row, id=f"{name}-{number}" if len(rows) > 1 else name)
    for name, rows in ROWS.items()
    for number, row in enumerate(rows, 1)
    if "fault" in row and not {"not_here", "waits", "proven_by"} & row.keys()
]
KEYS = {"fault", "provoke", "repair", "command", "code", "exit", "says", "then", "other_numbers"}
REFERENCE = {"R": 24, "E": 11, "D": 21, "C": 20, "N": 10, "F": 7, "S": 6, "X": 7, "T": 9}
"""How many rows of each letter the reference catalogue has; those with higher numbers are of our own."""

PROVOKERS: dict[str, Callable[..., None]] = {}


def provoker(function: Callable[..., None]) -> Callable[..., None]:
    """Rows name it in `provoke`; it gets the world and the arguments of the row."""
    PROVOKERS[function.__name__] = function
    return function


@pytest.mark.parametrize("row", CASES)
def test_a_fault_ends_as_documented(
    row: dict[str, Any], world: Any, undisturbed: Any, record_property: Callable[[str, object], None]
) -> None:
    assert row.keys() <= KEYS, row.keys() - KEYS
    for name, argument in row.get("provoke", {}).items():
        PROVOKERS[name](world, argument)
    said = world.call(row.get("command", "toy.toml"))
    record_property("tracebacks", (said.stdout + said.stderr).count("Traceback"))
    world.lift()
    for name, argument in row.get("repair", {}).items():
        PROVOKERS[name](world, argument)
    code = row.get("code", "")
    assert said.status == row.get("exit", catalogue()[code]["exit"] if code else 0), said.stderr or said.stdout
    refuse_a_wrong_form(said.stdout + said.stderr)
    for text in row.get("says", ()):
        assert text in said.stdout + said.stderr, said.stdout + said.stderr
    if code:
        refuse_a_wrong_message(said.stderr, code, row)
        assert catalogue()[code]["title"] in world.call(f"explain {code}").stdout
    assert not world.runs() or "then" in row, "a row with a run folder says how that continues"
    if row.get("then"):
        refuse_a_corrupted_folder(row, world, undisturbed)


def refuse_a_wrong_form(text: str) -> None:
    assert "Traceback" not in text
    assert "bug in the toolkit" not in text
    assert "Warning:" not in text, "a warning of Python"


def refuse_a_wrong_message(text: str, code: str, row: dict[str, Any]) -> None:
    """Check that each problem has at most 12 lines, plain letters, a location and a fix."""
    problems = re.findall(r"^error (SD-\w+): .*\n((?:  .*\n)*)", text, re.MULTILINE)
    assert code in [found for found, _ in problems], text
    foreign = set(re.findall(r"[^\x00-\x7f]", text)) - set(json.dumps(row, ensure_ascii=False))
    assert not foreign, f"letters of our own beyond ASCII: {foreign}"
    for _, body in problems:
        assert body.count("\n") < 12
        assert "  where: " in body, text
        assert "  fix: " in body or "  expect: " in body, text


def refuse_a_corrupted_folder(row: dict[str, Any], world: Any, undisturbed: Any) -> None:
    """Check that the command without the fault resumes, and ends in the weights of an undisturbed run."""
    said = world.call(row["then"])
    assert said.status == 0, said.stderr or said.stdout
    run = Path(said.stdout.rpartition("report: ")[2].strip()).parent
    assert (run / "report.html").is_file()
    assert not [path for path in run.rglob(".*-*") if path.name.startswith((".tmp-", ".del-"))]
    if not row.get("other_numbers"):
        assert world.weights(run) == undisturbed(world, run.name, row["then"]), "it continues to other numbers"


@pytest.fixture(scope="session")
def kept() -> dict[str, bytes]:
    """Weights of undisturbed runs by run id."""
    return {}


@pytest.fixture
def undisturbed(kept: dict[str, bytes]) -> Callable[[Any, str, str], bytes]:
    """Return the weights of the same run, uninterrupted and in another folder."""

    def weights(world: Any, name: str, line: str) -> bytes:
        if name not in kept:
            plain = [word for word in shlex.split(line) if word != "--fresh"]
            assert world.call(shlex.join([*plain, "--out", "elsewhere"])).status == 0
            kept[name] = world.weights(Path("elsewhere") / name)
        return kept[name]

    return weights


def test_every_row_of_the_reference_stands_here_once(record_property: Callable[[str, object], None]) -> None:
    for letter, count in REFERENCE.items():
        assert [f"{letter}{n}" for n in range(1, count + 1) if f"{letter}{n}" not in ROWS] == []
    assert sum(REFERENCE.values()) == 115
    for name, rows in ROWS.items():
        for row in rows:
            assert row["fault"], name
            kinds = {"not_here", "waits", "proven_by"} & row.keys()
            assert len(kinds) <= 1, name
            assert not kinds or all(row[kind] for kind in kinds), name
            for kind in kinds:
                record_property(kind, 1)


@pytest.mark.parametrize(
    "place", [row["proven_by"] for rows in ROWS.values() for row in rows if "proven_by" in row], ids=str
)
def test_a_row_proven_elsewhere_names_a_test_that_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_page_of_the_docs_is_what_the_catalogue_says() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "errors_page.py"))
    written = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == tool["page"](ROWS), "run python tools/errors_page.py"
    assert set(tool["KINDS"]) == {code[3] for code in catalogue()}


def test_every_status_of_a_row_is_documented() -> None:
    assert {row["exit"] for rows in ROWS.values() for row in rows if "exit" in row} <= EXITS.keys()


def test_a_wrong_message_is_seen() -> None:
    right = "error SD-R102: unknown key\n  where:  toy.toml:3\n  fix:    rename it\n"
    refuse_a_wrong_message(right, "SD-R102", {})
    wrong = [
        (right, "SD-R103"),
        (right.replace("  where:  toy.toml:3\n", ""), "SD-R102"),
        (right.replace("  fix:    rename it\n", ""), "SD-R102"),
        (right.replace("unknown", "ünknown"), "SD-R102"),
        (right + "  got:    x\n" * 10, "SD-R102"),
    ]
    for text, code in wrong:
        with pytest.raises(AssertionError):
            refuse_a_wrong_message(text, code, {})
    for text in ("Traceback (most recent call last)", "error: a bug in the toolkit: x", "x.py:1: UserWarning: y"):
        with pytest.raises(AssertionError):
            refuse_a_wrong_form(text)


# recipe


@provoker
def shipped(world: Any, recipe: str) -> None:
    """`toy.toml` extends a recipe that comes with sddit, and all built-in plugins are there."""
    world.host = Host
    (world.folder / "toy.toml").write_text(f'extends = "{recipe}"\n', encoding="utf-8")


@provoker
def edit(world: Any, pairs: list[list[str]]) -> None:
    """Replace text of the recipe."""
    for old, new in pairs:
        world.edit(old, new)


@provoker
def append(world: Any, text: str) -> None:
    """Add lines to the recipe."""
    with (world.folder / "toy.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


@provoker
def recipe(world: Any, text: str) -> None:
    """Write this text as the recipe, in Latin-1."""
    (world.folder / "toy.toml").write_bytes(text.encode("latin-1"))


@provoker
def files(world: Any, texts: dict[str, str]) -> None:
    """Write files."""
    for name, text in texts.items():
        path = world.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@provoker
def copies(world: Any, pairs: dict[str, str]) -> None:
    """Copy files or folders, from right to left."""
    for name, source in pairs.items():
        (found,) = world.folder.glob(source)
        (world.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if found.is_dir() else shutil.copy)(found, world.folder / name)


@provoker
def odd_name(world: Any, name: str) -> None:
    """A file whose name is these bytes."""
    Path(os.fsdecode(os.fsencode(world.folder) + b"/" + name.encode("latin-1"))).touch()


@provoker
def raw(world: Any, contents: dict[str, str]) -> None:
    """Files of bytes, given in hexadecimal."""
    for name, content in contents.items():
        (world.folder / name).write_bytes(bytes.fromhex(content))


@provoker
def folders(world: Any, names: list[str]) -> None:
    """Make empty folders."""
    for name in names:
        (world.folder / name).mkdir(parents=True)


@provoker
def links(world: Any, targets: dict[str, str]) -> None:
    """Make links."""
    for name, target in targets.items():
        (world.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (world.folder / name).symlink_to(target)


@provoker
def environment(world: Any, values: dict[str, str]) -> None:
    """Set environment variables."""
    for name, value in values.items():
        world.patch.setenv(name, value)


# plugins

LOSS = """
from sddit import hookimpl
from sddit.interfaces import LossParams, Needs, Want
from sddit.losses import LossTerm

class MineParams(LossParams):
    "Settings."
    def needs(self):
        return Needs(student=Want(output=True))

class Mine(LossTerm):
    def __init__(self, params, **_):
        super().__init__()

    def forward(self, ctx, views, outputs):
        value = (outputs["student"].x0 - views["student"].x0).square().mean(dim=(1, 2, 3))
        return value

@hookimpl
def register_losses(registry):
    registry.add("mine", Mine, params=MineParams, summary="Squared error.")
"""
"""A one-file plugin with a working loss named `mine`."""


@provoker
def plugin(world: Any, pairs: list[list[str]]) -> None:
    """`mine.py` next to the recipe, which uses its loss; pairs replace text of the file."""
    text = LOSS
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    (world.folder / "mine.py").write_text(text, encoding="utf-8")
    world.edit("seed = 3", 'seed = 3\nplugins = ["./mine.py"]')
    append(world, '[loss.own]\nname = "mine"')


@provoker
def package(world: Any, parts: dict[str, str]) -> None:
    """An installed distribution `dist` with the entry point `entry`; its module is `source`."""
    site = world.folder / f"site_{parts['dist']}"
    info = site / f"{parts['dist']}-1.0.dist-info"
    info.mkdir(parents=True)
    module = f"module_of_{parts['dist'].replace('-', '_')}"
    (site / f"{module}.py").write_text(parts.get("source", LOSS), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {parts['dist']}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[sddit]\n{parts['entry']} = {module}\n", encoding="utf-8")
    world.patch.syspath_prepend(site)
    world.patch.delitem(sys.modules, module, raising=False)


@provoker
def packages(world: Any, several: list[dict[str, str]]) -> None:
    """Several of them."""
    for parts in several:
        package(world, parts)


# data


@provoker
def images(world: Any, count: int) -> None:
    """Make a folder of two classes the data set, with `count` 8x8 images in each."""
    for name in ("red", "blue"):
        for number in range(count):
            levels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            image(world, {f"data/{name}/{number}.png": levels})
    world.edit('[dataset]\nname = "toy"', '[dataset]\nname = "folder"\npath = "data"\nsize = 8\nholdout = 0.3')


@provoker
def image(world: Any, images: dict[str, Any]) -> None:
    """Images by name: levels, or a mode and a size such as `RGBA 8x8`."""
    for name, given in images.items():
        path = world.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(given, str):
            mode, size = given.split()
            made = Image.new(mode, tuple(map(int, size.split("x"))))
        else:
            made = Image.fromarray(given)
        made.save(path)


@provoker
def packed(world: Any, kind: str) -> None:
    """Pack the folder of images into an archive, `zip` or `webdataset`, and make that the data set."""
    files = sorted((world.folder / "data").rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(world.folder / "data.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(world.folder / "data"))
    else:
        with tarfile.open(world.folder / "data.tar", "w") as archive:
            for number, file in enumerate(files):
                add_to_tar(archive, f"{number:03}.png", file.read_bytes())
                add_to_tar(archive, f"{number:03}.cls", b"0" if file.parent.name == "blue" else b"1")
    suffix = "zip" if kind == "zip" else "tar"
    world.edit('name = "folder"\npath = "data"', f'name = "{kind}"\npath = "data.{suffix}"')


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes, link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.linkname, entry.type = len(data), link, tarfile.SYMTYPE if link else tarfile.REGTYPE
    archive.addfile(entry, io.BytesIO(data))


@provoker
def entries(world: Any, contents: dict[str, str]) -> None:
    """Add entries to the archive: texts, `zeros N` or `link PATH`."""
    for name, text in contents.items():
        kind, _, rest = text.partition(" ")
        data = bytes(int(rest)) if kind == "zeros" else text.encode()
        if (world.folder / "data.zip").exists():
            with zipfile.ZipFile(world.folder / "data.zip", "a", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(name, data)
        else:
            with tarfile.open(world.folder / "data.tar", "a") as shard:
                add_to_tar(shard, name, b"" if kind == "link" else data, rest if kind == "link" else "")


@provoker
def latents(world: Any, changes: dict[str, Any]) -> None:
    """Make a cache of 40 latents the data set, with `changes` to its index."""
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((40, 2, 8, 8)).astype(np.float32)
    moments[:, 1] = -4
    write_cache(
        world.folder / "latents", [(moments, np.arange(40) % 2)],
        layout="mean+logvar", scale=1.0, encoder="none", class_names=("a", "b"),
    )  # fmt: skip
    index = world.folder / "latents" / "latents.json"
    index.write_text(json.dumps(json.loads(index.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    world.edit('[dataset]\nname = "toy"', '[dataset]\nname = "latents"\npath = "latents"')


# storage


@provoker
def trained(world: Any, line: str) -> None:
    """A command that ends well was run before."""
    said = world.call(line)
    assert said.status == 0, said.stderr


@provoker
def exported(world: Any, folder: str) -> None:
    """The only run was exported to a folder."""
    trained(world, f"export {world.run()} --out {folder}")


@provoker
def locked(world: Any, folder: str) -> None:
    """Another process writes to a folder."""
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.path.samestat(os.fstat(descriptor), (world.folder / folder).stat()):
            raise BlockingIOError
        real(descriptor, how)

    world.patch.setattr(fcntl, "flock", flock)


@provoker
def in_the_place_of(world: Any, line: str) -> None:
    """Rename the only run folder to the one that a command will use."""
    plan = json.loads(world.call(f"-n {line} --json").stdout)
    world.run().rename(f"runs/{plan['name']}-{plan['run_id']}")


@provoker
def checkpoint_of(world: Any, line: str) -> None:
    """Replace the checkpoint of step 4 by that of another command."""
    said = world.call(f"{line} --out others")
    assert said.status == 0, said.stderr
    (theirs,) = Path("others").glob("*/checkpoints/step-000004")
    place = world.run() / "checkpoints" / "step-000004"
    shutil.rmtree(place)
    shutil.copytree(theirs, place)


@provoker
def at_step(world: Any, parts: list[Any]) -> None:
    """Before step number [0] something happens: a signal by its name, or what `HAPPENINGS` has."""
    when, what = parts
    take = sddit.training.loop.take_step

    def step(session: Any) -> Any:
        if session.step == when:
            HAPPENINGS[what](world, session) if what in HAPPENINGS else send(what)
        return take(session)

    world.patch.setattr(sddit.training.loop, "take_step", step)


@provoker
def sent_in(world: Any, calls: dict[str, list[str]]) -> None:
    """Interrupt the first call of a function with these signals."""
    for name, signals in calls.items():
        module, _, attribute = name.rpartition(".")
        real, left = getattr(importlib.import_module(module), attribute), list(signals)

        def interrupted(*arguments: Any, real: Any = real, left: list[str] = left, **settings: Any) -> Any:
            while left:
                send(left.pop())
            return real(*arguments, **settings)

        world.patch.setattr(name, interrupted)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@provoker
def nan_in(world: Any, name: str) -> None:
    """Make a method of the toys return NaN."""
    kind, _, method = name.partition(".")
    real = getattr(getattr(toy_models, kind), method)
    world.patch.setattr(getattr(toy_models, kind), method, lambda *a, **k: real(*a, **k) * float("nan"))


def out_of_memory(world: Any, session: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_host_memory(world: Any, session: Any) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ...")


def remove_the_folder(world: Any, session: Any) -> None:
    shutil.move(world.run(), world.folder / "gone" / world.run().name)


def delete_the_folder(world: Any, session: Any) -> None:
    shutil.rmtree(world.run())


def corrupt_the_batch(world: Any, session: Any) -> None:
    fetch = session.dataset.fetch
    session.dataset.fetch = lambda ids: (fetch(ids)[0] * float("nan"), fetch(ids)[1])


def lengthen_the_gradient(world: Any, session: Any) -> None:
    session.student.backbone.embed.weight.register_hook(lambda gradient: gradient * 1e4)


def corrupt_the_gradient(world: Any, session: Any) -> None:
    session.student.backbone.embed.weight.register_hook(lambda gradient: gradient * float("inf"))


def delete_the_log(world: Any, session: Any) -> None:
    (world.run() / "metrics.jsonl").unlink()


def empty_the_log(world: Any, session: Any) -> None:
    os.truncate(world.run() / "metrics.jsonl", 0)


HAPPENINGS = {
    "the log is deleted": delete_the_log,
    "the log is emptied": empty_the_log,
    "out of memory": out_of_memory,
    "out of host memory": out_of_host_memory,
    "the folder goes": remove_the_folder,
    "the folder is deleted": delete_the_folder,
    "a batch holds NaN": corrupt_the_batch,
    "the gradient is infinite": corrupt_the_gradient,
    "the gradient is long": lengthen_the_gradient,
}


@provoker
def stopped(world: Any, step: int) -> None:
    """A run was stopped by SIGTERM while it took this step."""
    with pytest.MonkeyPatch.context() as patch:
        before, world.patch = world.patch, patch
        at_step(world, [step - 1, "SIGTERM"])
        said = world.call("toy.toml")
        world.patch = before
    assert said.status == 143, said.stderr


@provoker
def damage(world: Any, wounds: list[list[str]]) -> None:
    """[pattern below the folder, what happens to each such file or folder]: see `WOUNDS`."""
    for pattern, wound in wounds:
        found = sorted(world.folder.glob(pattern))
        assert found, f"nothing is called {pattern}"
        kind, _, argument = wound.partition(" ")
        for path in found:
            WOUNDS[kind](path, argument)


def flip(path: Path, where: str) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * float(where or 0.5))] ^= 4
    path.write_bytes(data)


def cut(path: Path, share: str) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * float(share or 0.5))])


def replace(path: Path, argument: str) -> None:
    old, _, new = argument.partition(" -> ")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def state(path: Path, change: str) -> None:
    """A manifest that says something else, sealed again."""
    body = json.loads(path.read_text(encoding="utf-8")) | json.loads(change)
    del body["sha256"]
    path.write_bytes(seal_manifest(body))


def remove(path: Path, _: str) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def fifo(path: Path, _: str) -> None:
    """Whoever opens it waits for a writer."""
    remove(path, "")
    os.mkfifo(path)


def linked(path: Path, elsewhere: str) -> None:
    """It was moved, as to a bigger disk, and a link leads there."""
    target = Path(elsewhere).absolute()
    target.mkdir(exist_ok=True)
    path.rename(target / path.name)
    path.symlink_to(target / path.name)


def longer(path: Path, line: str) -> None:
    """A user repairs a number of a log in an editor, by which the line gets a byte more."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[int(line) - 1] = lines[int(line) - 1].replace('"loss": ', '"loss": 1')
    path.write_text("".join(lines), encoding="utf-8")


WOUNDS: dict[str, Callable[[Path, str], Any]] = {
    "flip": flip,
    "cut": cut,
    "remove": remove,
    "fifo": fifo,
    "linked": linked,
    "longer": longer,
    "nest": lambda path, depth: path.write_text("[" * int(depth), encoding="utf-8"),
    "replace": replace,
    "write": lambda path, text: path.write_text(text, encoding="utf-8"),
    "append": lambda path, text: path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8"),
    "copy": lambda path, name: shutil.copy(path, path.with_name(name)),
    "state": state,
    "put": lambda path, what: (path / what.split(" ")[0]).write_text(what.partition(" ")[2], encoding="utf-8"),
    "folder": lambda path, name: (path / name).mkdir(),
    "move": lambda path, folder: shutil.move(path, folder),
    "rename": lambda path, name: path.rename(path.with_name(name)),
}


@provoker
def fault(world: Any, text: str) -> None:
    """A planted fault: see sddit.storage.fault_injection."""
    world.patch.setenv("SDDIT_FAULT", text)
    world.patch.setattr("sddit.storage.checkpoints.PAUSES", (0.0,) * 3)
    world.patch.setattr("sddit.storage.fault_injection.reached", Counter())


@provoker
def refuse(world: Any, calls: dict[str, str]) -> None:
    """Make a system call, such as `os.fsync`, fail with an errno."""
    for call, name in calls.items():

        def refused(*arguments: Any, number: int = getattr(errno, name), **_: Any) -> Any:
            raise OSError(number, os.strerror(number), *(str(a) for a in arguments[:1] if isinstance(a, str | Path)))

        world.patch.setattr(call, refused)


@provoker
def returns(world: Any, values: dict[str, Any]) -> None:
    """A function of ours or of a library answers this."""
    for name, value in values.items():
        world.patch.setattr(name, lambda *_, value=value, **__: value)


@provoker
def free_space(world: Any, size: int) -> None:
    """Report this many free bytes on the disk."""
    world.patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(size, 0, size))  # type: ignore[attr-defined]


@provoker
def held(world: Any, _: bool) -> None:
    """Another process holds the run folder."""
    file = (world.run() / "run.lock").open("r+")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write('{"pid": 1, "host": "there", "since": "long ago"}')
    file.flush()
    world.lock = file
