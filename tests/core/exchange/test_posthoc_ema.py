"""Test EMAs that are made of the snapshots of a run: their numbers, where they are accepted, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sddit
from sddit.cli.commands.ema import widths
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.exchange.posthoc_ema import write_averages
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import find_weights
from sddit.runs.average_scores import score_average
from sddit.runs.callbacks import RunCallbacks
from sddit.runs.pipeline import run
from sddit.runs.report_data import read_average_scores
from sddit.storage.averages import average_labels, snapshot_store, width_of
from sddit.testing import sessions
from sddit.training.state import snapshot_files
from sddit.training.warm_start import read_weights

STORED = [
    "train.steps=12",
    "ema.narrow.profile=power",
    "ema.narrow.sigma_rel=0.05",
    "ema.narrow.snapshot_every=1",
    "ema.wide.profile=power",
    "ema.wide.sigma_rel=0.1",
    "ema.wide.snapshot_every=1",
]
DIRECT = [*STORED, "ema.direct.profile=power", "ema.direct.sigma_rel=0.07"]


def stored_with(*overrides: str) -> list[str]:
    """Return the overrides of a run with two EMAs of profile power, with others in place of some of them."""
    return list({text.partition("=")[0]: text for text in (*STORED, *overrides)}.values())


def trained(recipe: Recipe, out: Path) -> Path:
    return run(recipe, out=out, device="cpu", progress=Progress()).folder


@pytest.fixture
def folder(recipe_of: Callable[..., Recipe], tmp_path: Path) -> Path:
    """Return a finished toy run with snapshots of two EMAs at every step, and a third EMA of another width."""
    return trained(recipe_of(*DIRECT), tmp_path / "runs")


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Return the norm of the difference of two sets of weights, relative to the second."""
    assert one.keys() == two.keys()
    flat = [torch.cat([tensors[name].double().flatten() for name in sorted(two)]) for tensors in (one, two)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def test_an_average_made_of_snapshots_is_the_direct_one(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    longer = {text.partition("=")[0]: text for text in (*DIRECT, "train.steps=150", "optimizer.lr=1e-2")}
    folder = trained(recipe_of(*longer.values(), "train.log_every=50"), tmp_path / "runs")
    (average,) = write_averages(folder, [0.07])
    assert (average.label, average.step, average.snapshots) == ("power-0.07", 150, 300)
    made = read_weights(find_weights(folder, "power-0.07"))
    direct = read_weights(find_weights(folder, "direct"))
    nearest = min(difference(read_weights(find_weights(folder, label)), direct) for label in ("narrow", "wide"))
    assert difference(made, direct) < 1e-3 * 0.05
    assert nearest > 10 * difference(made, direct)


def test_the_width_of_a_snapshot_gives_that_snapshot(folder: Path) -> None:
    list(write_averages(folder, [0.05], step=7))
    kept = snapshot_store(folder).open(7)
    assert read_weights(find_weights(folder, "power-0.05")).keys() == sddit.load(folder).backbone.state_dict().keys()
    held = sddit.load(folder, weights="power-0.05", step=7).backbone.state_dict()
    stored = _tensors(kept.read("narrow.safetensors"))
    assert difference({name: held[name] for name in stored}, stored) < 1e-6
    assert difference(stored, _tensors(kept.read("wide.safetensors"))) > 1e-5


def _tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(data)


def test_every_command_takes_the_weights(folder: Path, tmp_path: Path) -> None:
    list(write_averages(folder, [0.07, 0.1]))
    assert average_labels(folder) == ["power-0.07", "power-0.1"]
    network = sddit.load(folder, weights="power-0.07")
    assert sddit.sample(network, classes=[1], per_class=1).shape[0] == 1
    exported = export_run(folder, out=tmp_path / "exported", weights="power-0.07")
    assert (exported.weights.label, exported.weights.step) == ("power-0.07", 12)
    loaded = sddit.load(tmp_path / "exported").backbone.state_dict()
    assert difference(loaded, network.backbone.state_dict()) == 0
    assert difference(loaded, sddit.load(folder, weights="power-0.1").backbone.state_dict()) > 0
    with pytest.raises(SdditError, match=r"power-0\.08") as caught:
        sddit.load(folder, weights="power-0.08")
    assert caught.value.problems[0].code == "SD-C446"


def test_scores_are_kept_and_charted(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    folder = trained(recipe_of(*STORED, 'evaluate.features=["toy"]', "evaluate.neighbours=2"), tmp_path / "runs")
    assert "Scores by width of the EMA" not in (folder / "report.html").read_text()
    list(write_averages(folder, [0.05, 0.1]))
    for label in ("power-0.1", "power-0.05", "power-0.05"):
        scores = score_average(folder, label, device="cpu", progress=Progress())
    kept = read_average_scores(folder)
    assert [(one.label, one.sigma_rel, one.step) for one in kept] == [("power-0.05", 0.05, 12), ("power-0.1", 0.1, 12)]
    assert kept[0].scores == scores
    page = (folder / "report.html").read_text()
    assert "Scores by width of the EMA" in page
    assert "sigma_rel" in page
    (folder / "averages" / "scores.json").write_text('[{"label": "power-0.05"}]')
    with pytest.raises(SdditError) as caught:
        read_average_scores(folder)
    assert caught.value.problems[0].code == "SD-F704"


def hashes(folder: Path) -> dict[str, str]:
    files = sorted((folder / "snapshots").glob("step-*/*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_stopped_run_ends_with_the_same_snapshots(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(*STORED)
    straight = trained(recipe, tmp_path / "straight")
    stepped = RunCallbacks.stepped

    def die(self: RunCallbacks, session: object) -> None:
        stepped(self, session)  # type: ignore[arg-type]
        if session.step == 7:  # type: ignore[attr-defined]  # checkpoints are at even steps
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunCallbacks, "stepped", die)
        trained(recipe, tmp_path / "stopped")
    (stopped,) = (tmp_path / "stopped").iterdir()
    assert snapshot_store(stopped).steps() == list(range(1, 8))
    (stopped / "snapshots" / "step-000007" / "wide.safetensors").write_bytes(b"of a step that is taken again")
    trained(recipe, tmp_path / "stopped")
    assert hashes(stopped) == hashes(straight)
    assert len(hashes(straight)) == 24


def test_a_skipped_step_does_not_count(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    from sddit.training.build import build_session

    session = build_session(recipe_of(*STORED, "train.skip_non_finite=3"), torch.device("cpu"))
    sessions.advance(session, 2)
    session.skipped.append(session.step)
    session.step += 1
    seen: list[tuple[int, int]] = []
    ema = session.emas["wide"]
    decay = ema.decay
    monkeypatch.setattr(ema, "decay", lambda step, taken: seen.append((step, taken)) or decay(step, taken))
    sessions.advance(session, 1)
    assert seen == [(3, 3)]
    assert json.loads(bytes(snapshot_files(session, ["wide"])["state.json"]))["taken"] == 3  # type: ignore[arg-type]


def test_half_precision_that_overflows_is_refused(recipe_of: Callable[..., Recipe]) -> None:
    from sddit.training.build import build_session

    session = build_session(recipe_of(*STORED, "ema.wide.snapshot_dtype=fp16"), torch.device("cpu"))
    assert snapshot_files(session, ["wide"])["wide.safetensors"].size * 2 == (  # type: ignore[union-attr]
        snapshot_files(session, ["narrow"])["narrow.safetensors"].size  # type: ignore[union-attr]
    )
    next(session.emas["wide"].module.parameters()).data.flatten()[0] = 1e6
    with pytest.raises(SdditError, match="exceeds the range") as caught:
        snapshot_files(session, ["wide"])
    assert caught.value.problems[0].code == "SD-N503"


def test_what_cannot_be_averaged_is_refused(folder: Path, finished: Path) -> None:
    for run_folder, width, step, code in (
        (finished, 0.05, None, "SD-C461"),
        (folder, 0.05, 99, "SD-C403"),
        (folder, 0.28, None, "SD-C462"),
    ):
        with pytest.raises(SdditError) as caught:
            list(write_averages(run_folder, [width], step))
        assert caught.value.problems[0].code == code
    assert average_labels(folder) == []
    file = folder / "snapshots" / "step-000003" / "wide.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(SdditError) as caught:
        list(write_averages(folder, [0.07]))
    assert caught.value.problems[0].code == "SD-C401"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["ema.wide.profile=power"], "sigma_rel"),
        (["ema.wide.sigma_rel=0.1"], "no effect"),
        (["ema.wide.snapshot_every=5"], "snapshot_every"),
        (["ema.wide.profile=power", "ema.wide.sigma_rel=0.3"], "sigma_rel"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    recipe_of: Callable[..., Recipe], overrides: list[str], text: str
) -> None:
    with pytest.raises(SdditError, match=text):
        recipe_of(*overrides)


def test_decay_has_no_effect_with_the_power_profile(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("ema.main.profile=power", "ema.main.sigma_rel=0.1", "ema.main.snapshot_dtype=fp16")
    assert {"ema.main.decay", "ema.main.snapshot_dtype"} <= set(recipe.idle)


def test_the_plan_counts_snapshots(recipe_of: Callable[..., Recipe]) -> None:
    made = plan(recipe_of(*stored_with("ema.wide.snapshot_every=5", "ema.wide.snapshot_dtype=fp16")))
    assert made.snapshots == 12 + 3
    assert made.backbone_parameters is not None
    assert made.snapshot_bytes == made.backbone_parameters * (12 * 4 + 3 * 2)
    assert plan(recipe_of()).snapshot_bytes == 0


def test_a_later_key_leaves_the_run_id(recipe_of: Callable[..., Recipe]) -> None:
    """Snapshots change no number of the run; the profile does."""
    assert recipe_of(*STORED).run_id == recipe_of(*stored_with("ema.wide.snapshot_every=3")).run_id
    assert recipe_of(*STORED).run_id != recipe_of(*stored_with("ema.wide.sigma_rel=0.11")).run_id
    assert "profile" not in recipe_of().to_json(free=False)["ema"]["main"]


def test_widths_of_the_command_line() -> None:
    assert widths("0.05", 8) == [0.05]
    assert widths("0.05, 0.1", 8) == [0.05, 0.1]
    assert widths("0.02..0.08", 3) == [0.02, 0.04, 0.08]
    for text, code in (
        ("a", "SD-T921"),
        ("0.3", "SD-T911"),
        ("0", "SD-T911"),
        ("0.1..0.05", "SD-T911"),
        ("", "SD-T921"),
    ):
        with pytest.raises(SdditError) as caught:
            widths(text, 3)
        assert caught.value.problems[0].code == code
    assert [width_of(label) for label in ("power-0.05", "main", "power-wide")] == [0.05, None, None]
