"""Exported folders load without the data, from any location, and give the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sddit
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.exchange.layouts import known_layouts
from sddit.plugins.host import Host, using_host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.testing.toys.plugin import TOY_RECIPE, toy_host


def test_exported_folder_gives_the_same_samples(finished: Path, tmp_path: Path) -> None:
    exported = export_run(finished, out=tmp_path / "elsewhere")
    assert {path.name for path in exported.files} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "sddit-files.json",
    }
    assert (exported.weights.label, exported.weights.step) == ("main", 4)
    ours, theirs = sddit.load(finished), sddit.load(tmp_path / "elsewhere")
    images = sddit.sample(ours, per_class=2)
    assert torch.equal(images, sddit.sample(theirs, per_class=2))
    assert not torch.equal(images, sddit.sample(sddit.load(finished, weights="student"), per_class=2))
    text = (tmp_path / "elsewhere/config.json").read_text()
    assert json.loads(text)["recipe"]["dataset"]["name"] == "sddit/declared"
    assert str(tmp_path) not in text


def test_model_card_describes_the_model_without_paths_of_this_machine(finished: Path, tmp_path: Path) -> None:
    (finished / "scores.json").write_text(
        '{"toy": {"title": "moments", "n": 9, "fd": 1.5, "fd_floor": 0.5, "recall": null}}'
    )
    card = (export_run(finished, out=tmp_path / "elsewhere", weights="student").folder / "README.md").read_text()
    assert 'sddit.load("this/folder")' in card
    assert "`student`) after 4 steps" in card
    assert "| moments | fd | 1.5 | 0.5 | 9 |" in card
    assert "Not stated yet" in card
    assert "\nlicense:" not in card
    assert str(tmp_path) not in card


def test_modified_export_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = export_run(finished).folder
    assert folder == (finished / "export").resolve()
    assert export_run(finished).folder == folder, "an earlier export is replaced"
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(SdditError, match=r"SD-C401(.|\n)*checksum"):
        sddit.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 2}))
    with pytest.raises(SdditError, match="SD-C430"):
        sddit.load(folder)


def test_edited_config_or_recipe_is_refused_until_its_checksum_is_removed(finished: Path, tmp_path: Path) -> None:
    exported = export_run(finished, out=tmp_path / "exported").folder / "config.json"
    recipe = finished / "recipe.resolved.json"
    for file in (exported, recipe):
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
        with pytest.raises(SdditError, match=r"SD-F704(.|\n)*if you changed it yourself"):
            sddit.load(file.parent)
    tables = json.loads(exported.read_text())
    exported.write_text(json.dumps({key: value for key, value in tables.items() if key != "sha256"}))
    recipe.with_name(f"{recipe.name}.sha256").unlink()
    assert [sddit.load(file.parent).require_recipe().seed for file in (exported, recipe)] == [1, 1]


def test_earlier_checkpoint_is_not_used_silently(finished: Path, tmp_path: Path) -> None:
    newest = max((finished / "checkpoints").glob("step-*"))
    (newest / "state.json").write_bytes(b"{}")
    with pytest.warns(UserWarning, match=f"{newest.name} .*is broken; using"):
        sddit.load(finished)
    (newest / "manifest.json").write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"{newest.name} is broken .*SD-C401"):
        export_run(finished, out=tmp_path / "exported")


def test_missing_runs_weights_and_steps_are_refused(finished: Path, tmp_path: Path) -> None:
    assert known_layouts() == ["ours", "toy"]
    for more, code in (
        ({"layout": "toi"}, "SD-C441"),
        ({"weights": "best"}, "SD-C446"),
        ({"step": 3}, "SD-C403"),
    ):
        with pytest.raises(SdditError, match=code):
            export_run(finished, out=tmp_path / "elsewhere", **more)  # type: ignore[arg-type]
    with pytest.raises(SdditError, match="SD-C445"):
        export_run(tmp_path)
    with pytest.raises(SdditError, match="SD-C445"):
        sddit.load(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_network_that_a_layout_cannot_hold_is_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    wide = recipe_of()
    folder = run(wide, out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    resolved = json.loads((folder / "recipe.resolved.json").read_text())
    resolved["data"]["image"] = [1, 8, 16]
    resolved["dataset"] = {"name": "declared", "image": [1, 8, 16], "classes": 3}
    (folder / "recipe.resolved.json").write_text(json.dumps(resolved))
    (folder / "recipe.resolved.json.sha256").unlink()
    with pytest.raises(SdditError, match=r"SD-C453(.|\n)*no place for an image that is not square"):
        export_run(folder, layout="toy")


def test_a_folder_that_brings_code_runs_it_only_where_it_is_trusted(
    tmp_path: Path, loss_source: str, host: Host
) -> None:
    recipe = TOY_RECIPE.replace('[loss.denoise]\nname = "toy"', '[loss.denoise]\nname = "mine"')
    (tmp_path / "toy.toml").write_text(f'plugins = ["./mine.py"]\n{recipe}')
    (tmp_path / "mine.py").write_text(loss_source)
    overrides = ["evaluate.samples=2", "evaluate.previews=0"]
    folder = run(
        resolve(tmp_path / "toy.toml", overrides), out=tmp_path / "runs", device="cpu", progress=Progress()
    ).folder
    exported = export_run(folder, out=tmp_path / "elsewhere").folder
    assert "trust_code=True" in (exported / "README.md").read_text()
    canary = exported / "canary"
    (exported / "mine.py").write_text(f"open({str(canary)!r}, 'w').close()\n{loss_source}")
    with pytest.raises(SdditError, match=r"SD-F713(.|\n)*mine\.py(.|\n)*delete sddit-files\.json"):
        sddit.load(exported, trust_code=True)
    (exported / "sddit-files.json").unlink()
    with using_host(toy_host()):
        with pytest.raises(SdditError, match=r"SD-C457(.|\n)*mine\.py"):
            sddit.load(exported)
        assert not canary.exists()
        sddit.load(exported, trust_code=True)
        assert canary.exists()
