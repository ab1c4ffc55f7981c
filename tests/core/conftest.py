"""A world of plugins: distributions made in a moment, and recipes of toys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from sddit.plugins import Host, using_host
from sddit.testing import TOY_RECIPE, toy_host

LOSS = """
from pydantic import Field
from sddit import hookimpl
from sddit.interfaces import LossParams, Needs, Want
from sddit.terms import LossTerm

class MineParams(LossParams):
    scale: float = Field(1.0, gt=0, description="A factor.")

    def needs(self):
        return Needs(student=Want(output=True))

class Mine(LossTerm):
    def __init__(self, params, **_):
        super().__init__()
        self.scale = params.scale

    def forward(self, ctx, views, outputs):
        return self.scale * (outputs["student"].x0 - views["student"].x0).square().mean(dim=(1, 2, 3))

@hookimpl
def register_losses(registry):
    registry.add("mine", Mine, params=MineParams, summary="Squared error.")
"""

Distribution = Callable[..., None]


@pytest.fixture
def loss_source() -> str:
    """A one-file plugin with one working loss named `mine`."""
    return LOSS


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """`distribution("acme-dist", "acme", source)` is a package with one module and one entry point, on the path."""

    def make(dist: str, entry: str, source: str, version: str = "1.0") -> None:
        site = tmp_path / f"site_{dist}"
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        module = f"module_of_{dist.replace('-', '_')}"
        (site / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[sddit]\n{entry} = {module}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


@pytest.fixture
def core_host() -> Callable[[], Host]:
    """Makes a host that finds every entry point and loads only the core's own."""
    return lambda: Host(builtins=("sddit",))


@pytest.fixture
def toys() -> Iterator[Host]:
    """The process's host is one of toys for this test."""
    with using_host(toy_host()) as host:
        yield host


@pytest.fixture
def toy_recipe(tmp_path: Path, toys: Host) -> Path:
    """A recipe of toys in a folder of its own."""
    path = tmp_path / "recipes_of_test" / "toy.toml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE, encoding="utf-8")
    return path
