"""`[start]`: runs that start from the weights of another run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.exchange.importing import import_weights
from sddit.progress import Progress
from sddit.recipes.differences import differences
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.recipes.start_weights import named_weights
from sddit.runs.pipeline import RunResult, run
from sddit.storage.tensors import unpack
from sddit.training.build import build_session
from sddit.training.session import Session

CPU = torch.device("cpu")


class Notes(Progress):
    """A progress that records warnings and stops the run by a signal at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.stop_at = stop_at

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def show(self) -> None:
        if self.name == "training" and self.done == self.stop_at:
            self.stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)


def go(recipe: Recipe, out: Path, progress: Progress | None = None) -> RunResult:
    return run(recipe, out=out, device="cpu", progress=progress or Notes())


def start_session(recipe: Recipe) -> Session:
    """Return the session of a run at its first step, with the weights that `[start]` names."""
    assert recipe.start is not None
    return build_session(recipe, CPU, start=named_weights(recipe.start, "start"))


def weights_in(folder: Path, label: str = "main", step: int = 4) -> dict[str, Tensor]:
    tensors = unpack((folder / f"checkpoints/step-{step:06d}/ema.safetensors").read_bytes())
    return {name.removeprefix(f"{label}."): tensor for name, tensor in tensors.items() if name.startswith(f"{label}.")}


@pytest.mark.parametrize("table", ["start", "snapshot"])
def test_a_first_run_that_is_not_there_is_named_with_the_key_to_set(
    table: str, tmp_path: Path, recipe_of: Callable[..., Recipe]
) -> None:
    with pytest.raises(SdditError) as refused:
        recipe_of(f"{table}.run={tmp_path / 'none'}")
    problem = refused.value.problems[0]
    assert problem.code == "SD-C445"
    assert f"{table}.run" in problem.where
    assert problem.got == str(tmp_path / "none")
    assert f"{table}.run=runs/" in problem.fix


def test_student_ema_and_teacher_start_from_the_weights(finished: Path, recipe_of: Callable[..., Recipe]) -> None:
    session = start_session(recipe_of(f"start.run={finished}"))
    given = weights_in(finished)
    for network in (session.student.backbone, session.emas["main"].module):
        state = network.state_dict()
        assert state.keys() == given.keys()
        assert all(torch.equal(state[name], given[name]) for name in given)
    assert session.teacher is not None
    teacher = session.teacher.backbone.state_dict()
    assert all(torch.equal(teacher[name], given[name]) for name in teacher)
    assert session.optimizer.state_dict()["state"] == {}
    fresh = build_session(recipe_of(), CPU)
    assert not torch.equal(fresh.student.backbone.state_dict()["embed.weight"], given["embed.weight"])
    heads = [session.student.terms.state_dict(), fresh.student.terms.state_dict()]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[1])


def test_interrupted_run_that_started_from_weights_is_bit_identical(
    finished: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(f"start.run={finished}", "seed=1")
    whole = go(recipe, tmp_path / "whole")
    with pytest.raises(SystemExit):
        go(recipe, tmp_path / "stopped", Notes(stop_at=1))
    shutil.rmtree(finished)  # what has begun needs its beginning no more
    folder = next((tmp_path / "stopped").iterdir())
    ended = go(resolve(folder / "recipe.resolved.json"), tmp_path / "stopped")
    assert ended.folder == folder
    for name in ("model", "ema", "teacher", "optimizer"):
        file = f"checkpoints/step-000004/{name}.safetensors"
        assert (ended.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_run_id_depends_on_the_weights_not_on_their_path(
    finished: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    plain, started = recipe_of(), recipe_of(f"start.run={finished}")
    assert "start" not in plain.to_json()
    assert "start" not in plain.to_json(free=False)
    assert started.run_id != plain.run_id
    assert started.start is not None
    assert (started.start.weights, started.start.step, len(started.start.sha256)) == ("main", 4, 64)
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    elsewhere = recipe_of(f"start.run={moved}")
    assert elsewhere.run_id == started.run_id
    assert [kind for *_, kind in differences(started.to_json(), elsewhere.to_json())] == ["free"]
    ids = {
        recipe_of(f"start.run={finished}", more).run_id
        for more in ("start.weights=student", "start.step=2", "start.partial=true")
    }
    assert len(ids | {started.run_id}) == 4
    assert recipe_of(f"start.run={finished}", f"start.sha256={started.start.sha256}").run_id == started.run_id


def test_invalid_start_weights_are_refused_before_anything_runs(
    finished: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    for overrides, code in (
        ([f"start.run={tmp_path}"], "SD-C445"),
        ([f"start.run={finished}", "start.weights=best"], "SD-C446"),
        ([f"start.run={finished}", "start.step=3"], "SD-C403"),
        ([f"start.run={finished}", f"start.sha256={'0' * 64}"], "SD-C451"),
        ([f"start.run={finished}", "start.sha256=abc"], "SD-R1"),
        (["start.weights=main"], "SD-R109"),
    ):
        with pytest.raises(SdditError, match=rf"{code}(.|\n)*start\.(run|sha256)"):
            recipe_of(*overrides)
    shutil.rmtree(finished / "checkpoints")
    with pytest.raises(SdditError, match="SD-C447"):
        recipe_of(f"start.run={finished}")


def test_weights_that_do_not_fit_are_refused_or_skipped_if_partial(
    finished: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    other = [f"start.run={finished}", "backbone.depth=1", "dataset.classes=5"]
    with pytest.raises(SdditError) as refused:
        start_session(recipe_of(*other))
    assert {problem.code for problem in refused.value.problems} == {"SD-C452"}
    assert "label.weight [4, 16], not [6, 16]" in str(refused.value)
    assert "blocks.1.down.weight" in str(refused.value)
    notes = Notes()
    recipe = recipe_of(*other, "start.partial=true", "evaluate.samples=10")
    result = go(recipe, tmp_path / "runs", notes)
    assert sum("blocks.1.down.weight" in line for line in notes.warnings) == 1, notes.warnings
    assert sum("so initialized: label.weight" in line for line in notes.warnings) == 1
    assert result.report.is_file()
    session = start_session(recipe)
    state, given = session.student.backbone.state_dict(), weights_in(finished)
    fresh = build_session(recipe_of(*other[1:]), CPU).student.backbone.state_dict()
    assert torch.equal(state["embed.weight"], given["embed.weight"])
    assert torch.equal(state["label.weight"], fresh["label.weight"])


def test_weights_changed_since_planning_are_refused(finished: Path, recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(f"start.run={finished}")
    file = finished / "checkpoints/step-000004/ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SdditError, match=r"SD-C401(.|\n)*checksum"):
        start_session(recipe)


def test_training_starts_from_imported_and_exported_weights(
    toy_file: Path, finished: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    imported = import_weights(toy_file, layout="toy", out=tmp_path / "imported").folder
    sizes = ["backbone.hidden=8", "backbone.depth=1", "dataset.classes=7"]
    session = start_session(recipe_of(f"start.run={imported}", *sizes))
    assert torch.equal(session.student.backbone.state_dict()["cls"], unpack(toy_file.read_bytes())["net.cls"])
    exported = export_run(finished, out=tmp_path / "exported").folder
    recipe = recipe_of(f"start.run={exported}")
    session = start_session(recipe)
    assert torch.equal(session.student.backbone.state_dict()["cls"], weights_in(finished)["cls"])
    config = json.loads((exported / "config.json").read_text())
    assert config["weights"]["sha256"] == recipe.start.sha256  # type: ignore[union-attr]
