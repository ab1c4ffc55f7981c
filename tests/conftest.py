"""Fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from sddit.cli.app import call
from sddit.plugins.host import Host, using_host
from sddit.testing import toy_host

TESTS = Path(__file__).parent

settings.register_profile("shared", deadline=None)  # a busy machine is not a mistake of the code
settings.load_profile("shared")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background


@dataclass(frozen=True, slots=True)
class Published:
    """Numbers of a published implementation, by their names without the prefix; see `<name>.json` for meanings."""

    state: dict[str, Tensor]  # parameters under their original names
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    meta: dict[str, Any]


def fixture_folders() -> list[Path]:
    """List where published numbers may be: the user's folder, one next to the checkout, the ones stored here."""
    own = [Path(folder)] if (folder := os.environ.get("SDDIT_FIXTURES")) else []
    return [*own, TESTS.parents[1] / "shared" / "fixtures", TESTS / "fixtures" / "published"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` say why they do not run where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device is usable here"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and tests run next to each other."""
    torch.set_num_threads(1)


@pytest.fixture
def toys() -> Iterator[Host]:
    """Use a host of toys for this test."""
    with using_host(toy_host()) as host:
        yield host


@pytest.fixture
def attached() -> Iterator[None]:
    """SIGHUP as a terminal leaves it: nohup ignores it in all that it starts, and so would what a test starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def published_folder() -> Callable[[str], Path]:
    """`published_folder("dit_a")` is where that file of stored numbers lies; without one the test is skipped."""

    def find(name: str) -> Path:
        folder = next((f for f in fixture_folders() if (f / f"{name}.safetensors").is_file()), None)
        if folder is None:
            pytest.skip(f"the stored numbers {name}.safetensors are not here: set SDDIT_FIXTURES to their folder")
        return folder

    return find


@pytest.fixture
def codec_files() -> Path:
    """Return the folder with the published weights of TAEF2: the user's, or one next to the checkout."""
    own = [Path(folder)] if (folder := os.environ.get("SDDIT_CODECS")) else []
    found = next(
        (f for f in (*own, TESTS.parents[1] / "shared" / "codecs") if (f / "taef2_encoder.pth").is_file()), None
    )
    if found is None:
        pytest.skip("taef2_encoder.pth is not here: set SDDIT_CODECS to the folder with the files of TAEF2")
    return found


@pytest.fixture
def published(published_folder: Callable[[str], Path]) -> Callable[[str], Published]:
    """`published("dit_a")` reads that file of stored numbers, floats widened to float64, or skips the test."""

    def read(name: str) -> Published:
        folder = published_folder(name)
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
        for key, tensor in load_file(folder / f"{name}.safetensors").items():
            part, _, rest = key.partition("/")
            parts[part][rest] = tensor.double() if tensor.is_floating_point() else tensor
        meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return Published(parts["state"], parts["in"], parts["out"], meta)

    return read


Trained = tuple[dict[str, Tensor], list[dict[str, float]]]
"""What came out of a case: the tensors on which the future depends, and the rows that were logged."""


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Trained]]:
    """`on_ranks(2, cases)` trains each case on two processes of one group, see `ranks.py`; `on_ranks(1, cases)` alone.

    Returns what came out, by the name of the case. All calls of a module share a folder, so that a case may begin at
    the checkpoint of an earlier one.
    """
    folder = tmp_path_factory.mktemp("ranks")

    def run(world: int, cases: list[dict[str, Any]]) -> dict[str, Trained]:
        listed = folder / "cases.json"
        listed.write_text(json.dumps(cases))
        command = [sys.executable, str(TESTS / "ranks.py"), str(listed), str(folder)]
        port = a_free_port()
        ranks = [subprocess.Popen(command, env=rank_environment(rank, world, port)) for rank in range(world)]
        try:
            assert [process.wait(timeout=240) for process in ranks] == [0] * world
        finally:
            for process in ranks:
                process.kill()
        coupled = load_file(folder / f"coupled-{world}.safetensors"), []
        return {case["name"]: trained_in(folder / case["name"]) for case in cases} | {f"coupled on {world}": coupled}

    return run


def trained_in(folder: Path) -> Trained:
    return load_file(folder / "tensors.safetensors"), json.loads((folder / "rows.json").read_text())


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Return the environment that torchrun sets for a process."""
    reported = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **{name: str(value) for name, value in reported.items()}, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def free_port() -> int:
    """Return a free port."""
    return a_free_port()


def a_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def drift() -> Callable[[Trained, Trained], float]:
    """Return the largest difference between tensors of two cases, relative to each tensor's maximum."""

    def between(a: Trained, b: Trained) -> float:
        assert a[0].keys() == b[0].keys()
        pairs = [(a[0][name].double(), b[0][name].double()) for name in a[0]]
        return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-12)) for x, y in pairs)

    return between


@pytest.fixture(scope="session")
def row_drift() -> Callable[[Trained, Trained], float]:
    """Return the largest relative difference between logged numbers of two cases, except durations.

    Ratios of gradients are omitted too, since a process that holds a part of the weights has none.
    """

    def between(a: Trained, b: Trained) -> float:
        rows = [
            [{k: v for k, v in row.items() if not re.search("second|grad_ratio", k)} for row in c[1]] for c in (a, b)
        ]
        assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
        pairs = [(x[k], y[k]) for x, y in zip(*rows, strict=True) for k in x]
        return max(abs(x - y) / max(abs(x), 1e-9) for x, y in pairs)

    return between


@pytest.fixture(scope="session")
def soak() -> ModuleType:
    """`tools/soak.py`, which kills and stops on purpose."""
    spec = importlib.util.spec_from_file_location("soak", TESTS.parent / "tools" / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Output and exit status of a command."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def sddit_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """`sddit_run("plugins", "--json")` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        status = call([str(argument) for argument in arguments])
        return CommandResult(status, *capsys.readouterr())

    return run


@pytest.fixture
def sddit_process(tmp_path: Path) -> Callable[..., CommandResult]:
    """Run the command in its own process; `before` and `after` are Python code that runs first and last."""

    def run(*arguments: object, before: str = "", after: str = "") -> CommandResult:
        words = [str(argument) for argument in arguments]
        code = f"{before}\nfrom sddit.cli.app import call\nstatus = call({words!r})\n{after}\nraise SystemExit(status)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return run
