"""Published weights are imported as runs: to sample, to start from, and to export again with equal tensors."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sddit
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.exchange.importing import Imported, import_weights
from sddit.exchange.layouts import flatten, merge_tables
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import evaluate_run, run
from sddit.storage.run_folder import recorded_ids
from sddit.testing.toys.network import ToyFormat

SIZES = {"hidden": 8, "depth": 1, "cls": True}


def brought_in(path: Path, out: Path, **more: Any) -> Imported:
    return import_weights(path, layout="toy", out=out / "runs", **more)


def written(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path)
    return path


def test_imported_run_samples_and_records_its_origin(toy_file: Path, tmp_path: Path, host: Host) -> None:
    imported = brought_in(toy_file, tmp_path)
    assert imported.converted.inferred == {**SIZES, "classes": 7}
    assert imported.converted.guessed == {"patch": 4, "channels": 1, "side": 8}
    model = sddit.load(imported.folder)
    assert model.num_classes == 7
    state = model.backbone.state_dict()
    assert torch.equal(state["embed.weight"], load_file(toy_file)["net.embed.weight"])
    images = sddit.sample(model, classes=[0, 6], per_class=2)
    assert (images.shape, images.dtype) == ((4, 3, 8, 8), torch.uint8)
    provenance = json.loads((imported.folder / "provenance.json").read_text())
    assert (provenance["file"], provenance["layout"]) == ("published.safetensors", "toy")
    assert (provenance["sha256"], provenance["guessed"]) == (imported.file.sha256, ["channels", "patch", "side"])
    assert imported.folder.name.startswith("published-")


def test_repeated_import_gives_the_same_run_folder(toy_file: Path, tmp_path: Path, host: Host) -> None:
    first, second = brought_in(toy_file, tmp_path), brought_in(toy_file, tmp_path)
    assert (first.existed, second.existed, second.folder) == (False, True, first.folder)
    other = {name: 2 * tensor for name, tensor in load_file(toy_file).items()}
    third = brought_in(written(toy_file, other), tmp_path)
    assert third.folder != first.folder

    assert recorded_ids(first.folder) != recorded_ids(third.folder)  # of one recipe, and of other weights
    (checkpoint,) = first.folder.glob("checkpoints/step-*")
    shutil.rmtree(checkpoint)
    shutil.copytree(third.folder / "checkpoints" / checkpoint.name, checkpoint)
    with pytest.raises(SdditError, match="SD-C405"):
        sddit.load(first.folder)
    sddit.load(third.folder)


@pytest.mark.parametrize("classes", [0, 1, 7])
def test_number_of_classes_follows_from_the_label_table(
    classes: int, tmp_path: Path, host: Host, toy_state: Any
) -> None:
    path = written(tmp_path / "x.safetensors", toy_state(classes=classes))
    model = sddit.load(brought_in(path, tmp_path).folder)
    assert model.num_classes == classes
    assert len(sddit.sample(model, per_class=2)) == 2 * max(classes, 1)
    with pytest.raises(SdditError, match=f"classes = 1000(.|\n)*{classes}, as in the tensors"):
        brought_in(path, tmp_path, config={"classes": 1000})


def test_import_then_export_keeps_tensors_and_config(toy_file: Path, tmp_path: Path, host: Host) -> None:
    imported = brought_in(toy_file, tmp_path)
    exported = export_run(imported.folder, layout="toy")
    there, back = load_file(toy_file), load_file(exported.folder / "model.safetensors")
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    config = json.loads((exported.folder / "config.json").read_text())
    assert config == {**SIZES, "classes": 7, "patch": 4, "channels": 1, "side": 8}
    card = (exported.folder / "README.md").read_text()
    assert f"Imported from `published.safetensors` (layout `toy`, sha256 `{imported.file.sha256}`)" in card
    assert "| planned |" not in card
    again = brought_in(exported.folder / "model.safetensors", tmp_path, config=config)
    assert again.converted.guessed == {}


def test_nested_file_keeps_its_step(tmp_path: Path, host: Host, toy_state: Any) -> None:
    held = {"model": toy_state(), "ema": toy_state(fill=0.2), "args": argparse.Namespace(lr=1), "step": 12}
    torch.save(held, tmp_path / "nested.pt")
    imported = brought_in(tmp_path / "nested.pt", tmp_path, trust_pickle=True)
    assert (imported.folder / "checkpoints/step-000012").is_dir()
    average = sddit.load(imported.folder).backbone.state_dict()
    assert torch.equal(average["cls"], held["ema"]["net.cls"])
    student = brought_in(tmp_path / "nested.pt", tmp_path, trust_pickle=True, weights="model")
    assert student.folder != imported.folder
    assert torch.equal(sddit.load(student.folder).backbone.state_dict()["cls"], held["model"]["net.cls"])


def test_tensors_of_another_layout_are_refused(toy_file: Path, tmp_path: Path, host: Host) -> None:
    with pytest.raises(SdditError, match=r"SD-C441(.|\n)*one of toy"):
        import_weights(toy_file, layout="toi", out=tmp_path)
    state = load_file(toy_file)
    for corrupted, word in (
        ({name.removeprefix("net."): tensor for name, tensor in state.items()}, r"net\.embed\.weight is missing"),
        ({**state, "other.weight": torch.zeros(2)}, r"no such parameter in this format: other\.weight"),
        ({**state, "net.head.bias": torch.zeros(3)}, r"of another shape: head\.bias \[3\], not \[16\]"),
        ({name: t for name, t in state.items() if name != "net.level.bias"}, r"missing: level\.bias"),
        ({**state, "net.rope": torch.zeros(2)}, r"without a counterpart here: rope"),
    ):
        with pytest.raises(SdditError, match=f"SD-C455(.|\n)*{word}"):
            brought_in(written(tmp_path / "x.safetensors", corrupted), tmp_path)
    with pytest.raises(SdditError, match=r"SD-C450(.|\n)*embed\.bias"):
        brought_in(
            written(tmp_path / "x.safetensors", {**state, "net.embed.bias": state["net.embed.bias"] / 0}), tmp_path
        )
    assert not (tmp_path / "runs").exists()


def test_config_is_used_or_refused(toy_file: Path, tmp_path: Path, host: Host) -> None:
    for config, word in (
        ({"hidden": 16}, r"hidden = 16(.|\n)*8, as in the tensors"),
        ({"patc": 4}, r"unknown config key 'patc'(.|\n)*did you mean 'patch'"),
        ({"patch": "two"}, r"does not describe a network(.|\n)*'config\.patch'"),
    ):
        with pytest.raises(SdditError, match=f"SD-C454(.|\n)*{word}"):
            brought_in(toy_file, tmp_path, config=config)
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*embed\.weight \[8, 16\], not \[8, 4\]"):
        brought_in(toy_file, tmp_path, config={"patch": 2})
    brought_in(toy_file, tmp_path, config={"patch": 4, "dropout": 0.1, "_made_by": "another program"})


def test_recipe_of_another_network_is_refused(toy_file: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]) -> None:
    fitting = ["backbone.hidden=8", "backbone.depth=1", "dataset.classes=7"]
    for overrides, word in (
        (["backbone.depth=1", "dataset.classes=7"], "backbone.hidden = 16, not 8"),
        (["backbone.hidden=8", "backbone.depth=1"], "num classes = 3, not 7"),
        ([*fitting, "dataset.size=16"], r"image = \(1, 16, 16\), not \(1, 8, 8\)"),
    ):
        with pytest.raises(SdditError, match=f"SD-C456(.|\n)*{word}"):
            brought_in(toy_file, tmp_path, recipe=recipe_of(*overrides))
    imported = brought_in(toy_file, tmp_path, recipe=recipe_of(*fitting))
    assert imported.folder.name.startswith("toy-")
    for label in ("student", "main"):
        state = sddit.load(imported.folder, weights=label).backbone.state_dict()
        assert torch.equal(state["cls"], load_file(toy_file)["net.cls"])


def test_imported_run_cannot_train_or_score(toy_file: Path, tmp_path: Path, recipe_of: Callable[..., Recipe]) -> None:
    folder = brought_in(toy_file, tmp_path).folder
    with pytest.raises(SdditError, match="SD-D340"):
        run(resolve(folder / "recipe.resolved.json"), out=tmp_path, device="cpu", progress=Progress())
    with pytest.raises(SdditError, match="SD-D340"):
        evaluate_run(folder, device="cpu", progress=Progress())
    fitting = recipe_of("backbone.hidden=8", "backbone.depth=1", "dataset.classes=7")
    folder = brought_in(toy_file, tmp_path, recipe=fitting).folder
    with pytest.raises(SdditError, match=r"SD-C448(.|\n)*\[start\] run = "):
        run(fitting, out=tmp_path, device="cpu", progress=Progress(), resume=folder)


def test_weight_file_loads_without_a_recipe(toy_file: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.api.KERNEL", "toy")
    with pytest.warns(UserWarning, match="from the tensors: hidden = 8.*guessed: patch = 4"):
        model = sddit.load(toy_file, layout="toy", dtype=torch.float64)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    t, labels = torch.tensor([1.0, 2.0]), torch.tensor([0, 7])
    assert model.raw(x, t, labels).dtype == torch.float64
    assert model.denoise(x, 1.0, labels).shape == x.shape
    with pytest.raises(SdditError, match="SD-C443"):
        sddit.sample(model)


def test_argument_tables_merge_and_flatten() -> None:
    table = {"a": 1, "model": {"depth": 2, "heads": 4}}
    assert merge_tables(table, {"model": {"heads": 8}, "b": 2}) == {"a": 1, "b": 2, "model": {"depth": 2, "heads": 8}}
    assert flatten({**table, "_note": 1}) == {"a": 1, "model.depth": 2, "model.heads": 4}


def test_folder_is_read_with_the_config_next_to_the_weights(
    toy_file: Path, tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyFormat, "note", "The null label is {num_classes}.")
    exported = export_run(brought_in(toy_file, tmp_path).folder, layout="toy", out=tmp_path / "their")
    assert exported.note == "The null label is 7."
    assert "The null label is 7." in (tmp_path / "their/README.md").read_text()
    stated = f"config: {tmp_path / 'their/config.json'}"
    for path in (tmp_path / "their", tmp_path / "their/model.safetensors"):
        imported = brought_in(path, tmp_path)
        assert (imported.converted.guessed, imported.notes) == ({}, (stated,))
    assert brought_in(tmp_path / "their", tmp_path).recipe.name == "their"
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*\[8, 16\], not \[8, 4\]"):  # what is given overrides the file
        brought_in(tmp_path / "their", tmp_path, config={"patch": 2})
    (tmp_path / "their/config.json").write_text("[")
    with pytest.raises(SdditError, match="SD-F713"):  # the manifest of the export says what it was
        brought_in(tmp_path / "their", tmp_path)
    (tmp_path / "their/sddit-files.json").unlink()
    with pytest.raises(SdditError, match=r"SD-C454(.|\n)*cannot read the config(.|\n)*their/config\.json"):
        brought_in(tmp_path / "their", tmp_path)
    (tmp_path / "their/config.json").unlink()
    assert brought_in(tmp_path / "their", tmp_path).converted.guessed != {}
    with pytest.raises(SdditError, match=r"SD-C444(.|\n)*no weights of this layout(.|\n)*model\.safetensors"):
        brought_in(tmp_path, tmp_path)


def test_folder_of_our_own_export_needs_no_import(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SdditError, match=r"SD-C444(.|\n)*sddit-run sample"):
        brought_in(export_run(finished).folder, tmp_path)
