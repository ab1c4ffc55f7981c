"""`sddit-run import` and `export` as a person meets them."""

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


def test_the_verbs_stand_where_the_design_puts_them() -> None:
    names = [verb.name for verb in app.COMMANDS]
    assert names[names.index("publish") + 1 : names.index("bench")] == ["export", "import"]


def test_in_and_out_again(sddit_run: Callable[..., Any], toys: Host, weights: Path, tmp_path: Path) -> None:
    said = sddit_run("import", weights, "--layout", "toy")
    assert said.status == 0, said.err
    assert "from the tensors: hidden = 8, depth = 2, cls = True, classes = 2" in said.out
    assert "guessed: patch = 4" in said.out
    run = next((tmp_path / "runs").iterdir())
    assert f"run: {run}" in said.out
    assert "already imported" in sddit_run("import", weights, "--layout", "toy").out
    assert sddit_run("sample", run, "--per-class", 1).status == 0
    assert sddit_run("export", run, "--layout", "toy", "--out", "out").status == 0
    there, back = load_file(weights), load_file(tmp_path / "out/model.safetensors")
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    said = sddit_run("export", run)
    assert said.out.splitlines()[-1].endswith("export/README.md")
    assert sddit_run("sample", run / "export", "--per-class", 1, "--classes", "1").status == 0
    assert sddit_run("table").status == 0


def test_what_is_refused_says_what_to_do(sddit_run: Callable[..., Any], toys: Host, weights: Path) -> None:
    for words, status, part in (
        (["import", weights], 2, "--layout"),
        (["import", weights, "--layout", "toi"], 5, "did you mean 'toy'"),
        (["import", "none.safetensors", "--layout", "toy"], 5, "SD-C444"),
        (["import", weights, "--layout", "toy", "--config", "hidden=4"], 5, "8, as in the tensors"),
        (["import", weights, "--layout", "toy", "--config", "none.json"], 5, "cannot read the config"),
        (["export", "nowhere"], 5, "SD-C445"),
    ):
        said = sddit_run(*words)
        assert part in said.err
        assert said.status == status, said.err


def test_a_pickle_needs_trust(sddit_run: Callable[..., Any], toys: Host, weights: Path, tmp_path: Path) -> None:
    torch.save({"ema": load_file(weights), "model": {"a": torch.zeros(1)}}, tmp_path / "theirs.pt")
    said = sddit_run("import", "theirs.pt", "--layout", "toy")
    assert said.status == 5
    assert "--trust-pickle" in said.err
    said = sddit_run("import", "theirs.pt", "--layout", "toy", "--trust-pickle")
    assert said.status == 0, said.err
    assert "weights: ema, step 0" in said.out


def test_a_config_is_read_from_files_and_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"depth": 2, "model": {"heads": 4, "width": 8}}')
    words = [str(tmp_path / "config.json"), "model.heads=8", "name=x"]
    assert read_config(words) == {"depth": 2, "model": {"heads": 8, "width": 8}, "name": "x"}
    assert read_config([]) == {}
    for text in ("[]", "{", json.dumps([1])):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SdditError, match="SD-C454"):
            read_config(words)


def test_help_shows_examples_and_needs_no_torch(sddit_process: Callable[..., Any]) -> None:
    for verb in ("import", "export"):
        said = sddit_process(verb, "--help", after="import sys; assert 'torch' not in sys.modules")
        assert said.status == 0, said.err
        assert "Examples" in said.out
        assert "Published: diffusers, dit, maskdit, mdtv1, mdtv2." in " ".join(said.out.split())


def test_help_names_the_layouts_of_the_plugins_that_are_here(sddit_run: Callable[..., Any], toys: Host) -> None:
    for verb in ("import", "export"):
        said = " ".join(sddit_run(verb, "--help").out.split())
        assert "Published: toy." in said
        assert "mdtv1, mdtv2" not in said
