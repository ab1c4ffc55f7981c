"""`sddit-run import` and `export` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sddit.cli import app
from sddit.cli.commands.import_weights import read_config
from sddit.errors import SdditError
from sddit.plugins.host import Host, using_host
from sddit.testing.toys.params import ToyBackboneParams
from sddit.testing.toys.plugin import toy_host


@pytest.fixture
def toys() -> Iterator[Host]:
    with using_host(toy_host()) as host:
        yield host


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A published file of the layout `toy`, with two classes."""
    from sddit.exchange.conversion import no_attention
    from sddit.interfaces import Shapes
    from sddit.testing.toys.network import ToyBackbone, ToyFormat

    params, shapes = ToyBackboneParams(hidden=8), Shapes((1, 8, 8), 2)
    network = ToyBackbone(params, image=shapes.image, num_classes=2, outputs=1, attention=no_attention)
    path = tmp_path / "their weights.safetensors"
    save_file(ToyFormat.to_theirs(network.state_dict(), params, shapes), path)
    return path


def test_export_and_import_come_after_publish() -> None:
    names = [command.name for command in app.COMMANDS]
    assert names[names.index("publish") + 1 : names.index("bench")] == ["export", "import"]


def test_import_then_export_gives_the_same_tensors(
    sddit_run: Callable[..., Any], toys: Host, weights: Path, tmp_path: Path
) -> None:
    result = sddit_run("import", weights, "--layout", "toy")
    assert result.status == 0, result.stderr
    assert "from the tensors: hidden = 8, depth = 2, cls = True, classes = 2" in result.stdout
    assert "guessed: patch = 4" in result.stdout
    run = next((tmp_path / "runs").iterdir())
    assert f"run: {run}" in result.stdout
    assert "already imported" in sddit_run("import", weights, "--layout", "toy").stdout
    assert sddit_run("sample", run, "--per-class", 1).status == 0
    assert sddit_run("export", run, "--layout", "toy", "--out", "out").status == 0
    there, back = load_file(weights), load_file(tmp_path / "out/model.safetensors")
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    result = sddit_run("export", run)
    assert result.stdout.splitlines()[-1].endswith("export/sddit-files.json")
    assert sddit_run("sample", run / "export", "--per-class", 1, "--classes", "1").status == 0
    assert sddit_run("table").status == 0


def test_refusals_state_what_to_do(sddit_run: Callable[..., Any], toys: Host, weights: Path) -> None:
    for words, status, part in (
        (["import", weights], 2, "--layout"),
        (["import", weights, "--layout", "toi"], 5, "did you mean 'toy'"),
        (["import", "none.safetensors", "--layout", "toy"], 5, "SD-C444"),
        (["import", weights, "--layout", "toy", "--config", "hidden=4"], 5, "8, as in the tensors"),
        (["import", weights, "--layout", "toy", "--config", "none.json"], 5, "cannot read the config"),
        (["export", "nowhere"], 5, "SD-C445"),
    ):
        result = sddit_run(*words)
        assert part in result.stderr
        assert result.status == status, result.stderr


def test_pickle_needs_trust_pickle(sddit_run: Callable[..., Any], toys: Host, weights: Path, tmp_path: Path) -> None:
    torch.save({"ema": load_file(weights), "model": {"a": torch.zeros(1)}}, tmp_path / "theirs.pt")
    result = sddit_run("import", "theirs.pt", "--layout", "toy")
    assert result.status == 5
    assert "--trust-pickle" in result.stderr
    result = sddit_run("import", "theirs.pt", "--layout", "toy", "--trust-pickle")
    assert result.status == 0, result.stderr
    assert "weights: ema, step 0" in result.stdout


def test_config_is_read_from_files_and_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"depth": 2, "model": {"heads": 4, "width": 8}}')
    words = [str(tmp_path / "config.json"), "model.heads=8", "name=x"]
    assert read_config(words) == {"depth": 2, "model": {"heads": 8, "width": 8}, "name": "x"}
    assert read_config([]) == {}
    for text in ("[]", "{", json.dumps([1])):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SdditError, match="SD-C454"):
            read_config(words)


def test_help_lists_the_layouts_of_installed_plugins(sddit_run: Callable[..., Any], toys: Host) -> None:
    for command in ("import", "export"):
        result = " ".join(sddit_run(command, "--help").stdout.split())
        assert "Published: toy." in result
        assert "mdtv1, mdtv2" not in result
