"""A real third-party package and a broken one, installed by pip as a user would, offline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sddit.cli.app import call
from sddit.errors import SdditError
from sddit.plugins.host import Host, using_host
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_RECIPE, check_plugin, toy_host
from sddit.training.build import build_session
from sddit.training.loop import take_step

FIXTURES = Path(__file__).parents[2] / "fixtures"
PACKAGES = ("sddit-acme", "sddit-broken")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, built and installed into a folder of their own."""
    folder = tmp_path_factory.mktemp("third_party")
    sources = [shutil.copytree(FIXTURES / name, folder / name) for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(folder / "site"), *map(str, sources)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def host(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host of toys that finds them."""
    monkeypatch.syspath_prepend(installed)
    for module in ("acme", "acme.loss", "sddit_broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with using_host(toy_host()) as found:
        yield found


def test_it_is_short():
    lines = [
        line
        for file in (FIXTURES / "sddit-acme" / "src").rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert len(list(filter(str.strip, lines))) < 40


def test_both_are_listed_and_neither_is_imported(host):
    assert (host.rows["acme"].distribution, host.rows["acme"].version) == ("sddit-acme", "1.2.0")
    assert {host.rows[name].state for name in ("acme", "broken")} == {"not loaded"}
    assert "acme" not in sys.modules


def test_loading_all_keeps_the_broken_one_in_its_row(host, capsys):
    assert call(["plugins", "--load", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["acme"]["registers"] == {"losses": ["spectral"]}
    assert (rows["broken"]["state"], rows["broken"]["error"]) == ("failed", "RuntimeError: broken on purpose")
    assert rows["broken"]["where"].endswith("sddit_broken/__init__.py:3")


def test_it_conforms(host):
    check_plugin("acme")
    with pytest.raises(SdditError, match="SD-P201"):
        check_plugin("broken")


@pytest.mark.parametrize(("top", "name"), [('plugins = ["acme"]', "spectral"), ("", "acme/spectral")])
def test_it_trains_two_steps(host, tmp_path, top, name):
    path = tmp_path / "toy.toml"
    path.write_text(f'{top}\n{TOY_RECIPE}\n[loss.spectrum]\nname = "{name}"\nweight = 0.1\n', encoding="utf-8")
    recipe = resolve(path)
    assert recipe.plugin_digests["acme"] == "sddit-acme 1.2.0"
    session = build_session(recipe, torch.device("cpu"))
    before = session.student.backbone.head.weight.detach().clone()
    for _ in range(2):
        terms = take_step(session).metrics.losses
        session.step += 1
    assert terms["spectrum"] > 0
    assert not torch.equal(session.student.backbone.head.weight, before)


def test_without_being_named_it_does_not_exist_for_a_recipe(host, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(f'{TOY_RECIPE}\n[loss.spectrum]\nname = "spectral"\n', encoding="utf-8")
    with pytest.raises(SdditError, match="no loss named 'spectral'"):
        resolve(path)


def test_naming_the_broken_one_says_so_and_stops_nothing_else(host, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(f'plugins = ["broken"]\n{TOY_RECIPE}', encoding="utf-8")
    with pytest.raises(SdditError, match="RuntimeError: broken on purpose"):
        resolve(path)
    path.write_text(TOY_RECIPE, encoding="utf-8")
    assert resolve(path).name == "toy"
