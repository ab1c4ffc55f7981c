"""A checkpoint and a result are used only by the run that they are of."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from sddit.errors import SdditError
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import MANIFEST, read_manifest
from sddit.storage.run_folder import RECIPE, RunFolder, recorded_ids
from sddit.storage.run_result import RESULT, refuse_other_result, result_damage, write_result

FILES = {"model.safetensors": b"weights", "state.json": b"{}"}


def store_of(folder: Path, *ids: str, keep: int = 2) -> Store:
    folder.mkdir(exist_ok=True)
    return Store(folder / "checkpoints", keep=keep, run_ids=ids)


def test_a_checkpoint_records_its_run_and_is_refused_elsewhere(tmp_path: Path) -> None:
    own, other = store_of(tmp_path / "a", "aaa"), store_of(tmp_path / "b", "bbb")
    path = own.save(5, FILES)
    assert read_manifest(path).run_id == "aaa"
    other.save(3, FILES)
    shutil.copytree(path, other.path_of(5))
    for read in (other.latest, lambda: other.open(5)):
        with pytest.raises(SdditError, match="SD-C405"):
            read()
    with pytest.raises(SdditError, match="SD-C405"):
        other.save(5, FILES)  # it would be taken for the one to save
    assert other.open(3).step == 3
    assert Store(other.folder, keep=2).open(5).run_id == "aaa"  # the control: without ids, it is accepted
    found = own.latest()
    assert found is not None and (found.run_id, own.notices) == ("aaa", [])


def test_earlier_ids_of_a_run_are_its_own(tmp_path: Path) -> None:
    path = store_of(tmp_path / "a", "old").save(5, FILES)
    continued = store_of(tmp_path / "a", "new", "old")
    assert continued.open(5).folder == path
    assert read_manifest(continued.save(6, FILES)).run_id == "new"
    (tmp_path / "a").rename(tmp_path / "moved")
    assert store_of(tmp_path / "moved", "new", "old").open(6).step == 6
    with pytest.raises(SdditError, match="SD-C405"):
        store_of(tmp_path / "moved", "old").open(6)


def test_a_checkpoint_without_an_id_is_used_with_a_notice(tmp_path: Path) -> None:
    path = Store(tmp_path / "checkpoints", keep=2).save(5, FILES)
    assert "run_id" not in json.loads((path / MANIFEST).read_bytes())
    for ids in (("aaa",), ()):
        store = store_of(tmp_path, *ids)
        assert store.open(5).run_id == ""
        assert ["[SD-C406]" in notice for notice in store.notices] == [True]


def test_a_folder_without_ids_refuses_a_checkpoint_with_one(tmp_path: Path) -> None:
    store_of(tmp_path / "a", "aaa").save(5, FILES)
    with pytest.raises(SdditError, match="without a recorded id"):
        store_of(tmp_path / "a").latest()


def test_removing_old_checkpoints_keeps_those_of_other_runs(tmp_path: Path) -> None:
    foreign = store_of(tmp_path / "b", "bbb").save(1, FILES)
    own = store_of(tmp_path / "a", "aaa", keep=1)
    own.save(2, FILES)
    shutil.copytree(foreign, own.path_of(1))
    own.save(3, FILES)
    assert own.steps() == [1, 3]


def test_recorded_ids(tmp_path: Path) -> None:
    assert recorded_ids(tmp_path) == ()
    (tmp_path / RECIPE).write_text('{"seed": 1}')
    assert recorded_ids(tmp_path) == ()
    (tmp_path / RECIPE).write_text('{"run_ids": ["b", "a"]}')
    assert recorded_ids(tmp_path) == ("b", "a")
    (tmp_path / RECIPE).write_text('{"run_ids": "b"}')
    with pytest.raises(SdditError, match="SD-F704"):
        recorded_ids(tmp_path)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The folder of a run with a sealed result."""
    with RunFolder(tmp_path) as folder:
        folder.write_json("scores.json", {"toy": {"fd": 1.0, "kid": math.nan, "own": {"fid": 2.0}}})
        folder.write_json("cost.json", {})
        folder.write_text("report.html", "")
        folder.write_text("samples/samples.npz", "some")
        folder.write_text("samples/step-000004.png", "one")
        write_result(folder, "aaa", 4, "samples/step-000004.png")
    return tmp_path


def test_a_sealed_result_is_complete_as_it_was_written(result: Path) -> None:
    assert result_damage(result, "aaa", ["toy"]) == ""  # a NaN that was measured is a result
    assert "that of run aaa" in result_damage(result, "bbb", ["toy"])
    (result / RESULT).unlink()
    assert result_damage(result, "aaa", ["toy"], ["toy.fd", "toy.fid"]) == ""
    assert "toy.kid is NaN" in result_damage(result, "aaa", ["toy"])


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("scores.json", '{"toy": {"fd": 2.0}}', "scores.json is not what was written"),
        ("scores.json", None, "scores.json is missing"),
        ("report.html", None, "report.html is missing"),
        ("report.html", "x", "report.html is not what was written"),
        ("samples/samples.npz", "som", "samples/samples.npz is not what was written"),
        ("samples/step-000004.png", "", "samples/step-000004.png is not what was written"),
        (RESULT, "{}", "its folder is damaged"),
        (RESULT, "[" * 100_000, "its folder is damaged"),
        (RESULT, '{"sha256": ""}', "result.json is not what was written"),
    ],
)
def test_a_changed_result_is_found(result: Path, name: str, text: str | None, found: str) -> None:
    if text is None:
        (result / name).unlink()
    else:
        (result / name).write_text(text)
    assert found in result_damage(result, "aaa", ["toy"])


def test_samples_may_be_deleted_and_a_table_of_numbers_does_not_read_them(result: Path) -> None:
    (result / "samples/samples.npz").write_text("som")
    assert result_damage(result, "aaa", ["toy"], numbers_only=True) == ""
    assert result_damage(result, "aaa", ["toy"]) != ""
    (result / "samples/samples.npz").unlink()
    assert result_damage(result, "aaa", ["toy"]) == ""


def test_files_that_differ_from_the_seal_are_refused(result: Path) -> None:
    (result / "recipe.resolved.json").write_text('{"run_ids": ["aaa"]}')
    refuse_other_result(result, "scores.json")
    sealed = (result / "scores.json").read_text()
    for text, run, what in [("{}", "aaa", "is not what was written"), (sealed, "bbb", "is that of another run")]:
        (result / "scores.json").write_text(text)
        (result / "recipe.resolved.json").write_text(f'{{"run_ids": ["{run}"]}}')
        with pytest.raises(SdditError, match=rf"SD-F704: .*{what}"):
            refuse_other_result(result, "scores.json")
    (result / "scores.json").unlink()
    refuse_other_result(result, "scores.json")  # it has none
    (result / "scores.json").write_text("{}")
    (result / RESULT).unlink()
    refuse_other_result(result, "scores.json")  # of an earlier version


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ({"toy": {"fd": "NaN"}}, "toy.fd is NaN"),
        ({"toy": {"fd": math.inf}}, "toy.fd is inf"),
        ({"toy": {"kid": 1.0}}, "has no toy.fd"),
        ({"other": {"fd": 1.0}}, "has no scores of toy"),
        ({"toy": []}, "has no scores of toy"),
        ({"toy": {"fd": 1.0, "kid": math.nan}}, ""),
        ({"toy": {"fd": 1.0, "class_accuracy": None}}, ""),
    ],
)
def test_scores_without_a_seal_are_looked_at(result: Path, scores: object, found: str) -> None:
    (result / RESULT).unlink()
    (result / "scores.json").write_text(json.dumps(scores))
    damage = result_damage(result, "aaa", ["toy"], ["toy.fd", "toy.class_accuracy"])
    assert found in damage
    assert bool(damage) == bool(found)
