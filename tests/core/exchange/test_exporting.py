"""Exported folders load without the data, from any location, and give the same samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sddit
from sddit.errors import SdditError
from sddit.exchange.conversion import backbone_with_layout
from sddit.exchange.exporting import export_run
from sddit.exchange.layouts import known_layouts
from sddit.exchange.model_card import model_card
from sddit.plugins.host import Host, using_host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve, resolve_without_data
from sddit.recipes.start_weights import find_weights
from sddit.runs.pipeline import run
from sddit.storage.output_folder import MANIFEST
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
    (finished / "result.json").unlink()  # the seal of the scores
    card = (export_run(finished, out=tmp_path / "elsewhere", weights="student").folder / "README.md").read_text()
    assert 'sddit.load("this/folder")' in card
    assert "`student`) after 4 steps" in card
    assert "| moments | fd | 1.5 | 0.5 | 9 |" in card
    assert "Not stated yet" in card
    assert "\nlicense:" not in card
    assert str(tmp_path) not in card


def test_model_card_repeats_the_licence_of_encoded_images(finished: Path, tmp_path: Path) -> None:
    resolved = finished / "recipe.resolved.json"
    recipe = resolve(resolved)
    located = find_weights(finished, "student")
    stated = replace(recipe, facts=replace(recipe.facts, licence="CC BY 4.0"))
    card, other = (model_card(one, located, "ours", 1) for one in (stated, recipe))
    assert "| licence of the data | CC BY 4.0, as stated when they were encoded |" in card
    assert "licence of the data" not in other


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
    with pytest.warns(UserWarning, match=rf"{newest.name} .*is broken; using .*SD-C401"):
        export_run(finished, out=tmp_path / "exported")
    for checkpoint in (finished / "checkpoints").glob("step-*"):
        (checkpoint / "manifest.json").write_bytes(b"")
    for read in (sddit.load, export_run):
        with pytest.raises(SdditError, match=r"SD-C402(.|\n)*2 tried"):
            read(finished)


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


@pytest.mark.parametrize(
    ("kill", "earlier"), [(True, "none"), (True, "listed"), (False, "listed"), (False, "unlisted")], ids=str
)
def test_a_fault_at_each_operation_tears_no_export(
    finished: Path,
    tmp_path: Path,
    in_child: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    kill: bool,
    earlier: str,
) -> None:
    """The export over an earlier one of other weights: the old is there, the new, or an error."""
    before = export_run(finished, out=tmp_path / "before", weights="student").folder
    after = export_run(finished, out=tmp_path / "after").folder
    new = {path.name: path.read_bytes() for path in after.iterdir() if path.name != MANIFEST}
    exporting = "sddit.exchange.exporting"
    monkeypatch.setattr(f"{exporting}.own_files", lambda *_: {name: new[name] for name in new if name != "README.md"})
    monkeypatch.setattr(f"{exporting}.model_card", lambda *_: new["README.md"].decode())
    recipe, source, state = resolve_without_data(finished / "recipe.resolved.json"), find_weights(finished), {}
    monkeypatch.setattr(f"{exporting}.resolve_without_data", lambda _: recipe)
    monkeypatch.setattr(f"{exporting}.find_weights", lambda *_: source)
    monkeypatch.setattr(f"{exporting}.read_weights", lambda _: state)
    seen = []
    for turn in range(1, 1000):
        out = tmp_path / "out" / str(turn)
        if earlier != "none":
            shutil.copytree(before, out)
            (out / "samples").mkdir()
            (out / "samples" / "mine").write_text("mine")
            (out / "link").symlink_to(tmp_path)
        if earlier == "unlisted":
            (out / MANIFEST).unlink()
        if in_child(lambda out=out: export_run(finished, out=out), turn, kill=kill) == "done":
            break
        seen.append(label_in(out))
        export_run(finished, out=out)
        assert label_in(out) == "main"
        more = {"samples", "link"} if earlier != "none" else set()
        assert {path.name for path in out.iterdir()} == {*new, MANIFEST, *more}
        assert not more or (out / "samples" / "mine").read_text() == "mine"
    first = "SD-C445" if earlier == "none" else "student"
    assert {*seen} == {first, "SD-F713", "main"}


def label_in(folder: Path) -> str:
    """Return the label of exported weights as `sddit.load` reads them, or the code of its error."""
    try:
        return find_weights(folder).label if sddit.load(folder) else ""
    except SdditError as failure:
        return failure.problems[0].code.replace("SD-C444", "SD-C445")


def test_other_files_are_not_replaced(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "their-model"
    folder.mkdir()
    for name in ("config.json", "README.md"):
        (folder / name).write_text("{}")
    for layout in ("ours", "toy"):
        with pytest.raises(SdditError, match=r"SD-F708(.|\n)*README\.md"):
            export_run(finished, out=folder, layout=layout)
    with pytest.raises(SdditError, match="SD-F708"):
        export_run(finished, out=finished)
    assert {path.name for path in folder.iterdir()} == {"config.json", "README.md"}


def test_an_incomplete_export_is_not_imported(finished: Path, tmp_path: Path) -> None:
    folder = export_run(finished, out=tmp_path / "out", layout="toy").folder
    config, weights = backbone_with_layout("toy").format("toy").files
    (folder / config).write_text("{}")
    with pytest.raises(SdditError, match=rf"SD-F713(.|\n)*{config}|{config}(.|\n)*SD-F713"):
        sddit.load(folder / weights, layout="toy")
