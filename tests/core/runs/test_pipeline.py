"""A run from recipe to report: continued, repeated, changed, stopped, begun again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sddit
from sddit import generation
from sddit.api import load_run
from sddit.errors import SdditError
from sddit.evaluation.sample_images import kept_samples
from sddit.evaluation.scoring import read_scores
from sddit.exchange.exporting import export_run
from sddit.generation import LABELS
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.recipes.start_weights import find_weights
from sddit.runs.pipeline import RunResult, evaluate_run, run
from sddit.runs.setup import change_problems
from sddit.storage.manifest import read_manifest, seal_manifest
from sddit.storage.metrics_log import read_metrics
from sddit.storage.run_folder import RunFolder
from sddit.storage.sample_parts import SampleParts
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host

EXTRA = """
save_every = 2
log_every = 1
[ema.main]
decay = 0.9
ramp = true
[evaluate]
samples = 12
features = ["toy"]
previews = 2
per_class = 2
kid_subsets = 2
kid_subset_size = 4
neighbours = 1
"""


class Notes(Progress):
    """Keeps the lines that stay; optionally sends a signal at a step of the training."""

    def __init__(self, signal_at: int | None = None, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.signal_at, self.number = signal_at, number

    def note(self, text: str, style: str = "") -> None:
        self.lines.append(text)

    def show(self) -> None:
        if self.name == "training" and self.done == self.signal_at:
            self.signal_at = None
            os.kill(os.getpid(), self.number)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """The toys, also for what resolves a recipe on its own, such as loading a run."""
    toys = toy_host()
    monkeypatch.setattr("sddit.recipes.resolve.the_host", lambda: toys)
    return toys


@pytest.fixture
def recipe_of(tmp_path: Path, host: Host) -> Callable[..., Recipe]:
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("batch = 8\n", "batch = 8" + EXTRA))
    return lambda *overrides: resolve(path, overrides, host=host)


def go(recipe: Recipe, out: Path, progress: Progress | None = None, **more: object) -> RunResult:
    return run(recipe, out=out, device="cpu", progress=progress or Progress(), **more)  # type: ignore[arg-type]


def test_a_run_leaves_all_that_it_promises_and_the_same_command_says_it_is_finished(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    result = go(recipe_of(), tmp_path / "runs")
    assert not result.already_finished
    assert result.folder.name == f"toy-{recipe_of().run_id}"
    held = {str(path.relative_to(result.folder)) for path in result.folder.rglob("*") if path.is_file()}
    assert {"recipe.resolved.json", "environment.json", "metrics.jsonl", "scores.json", "report.html"} <= held
    assert {"samples/samples.npz", "samples/step-000002.png", "samples/step-000004.png"} <= held
    page = result.report.read_text()
    assert "data:image/png;base64," in page
    assert "loss.agree" in page
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    again = go(recipe_of(), tmp_path / "runs")
    assert again.already_finished
    assert again.scores == result.scores
    assert {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["samples/samples.npz", "samples/step-000004.png", "report.html"])
def test_a_damaged_file_of_a_finished_run_is_made_again(
    recipe_of: Callable[..., Recipe], tmp_path: Path, name: str
) -> None:
    class Heard(Progress):
        def warn(self, text: str) -> None:
            heard.append(text)

    heard: list[str] = []
    file = go(recipe_of(), tmp_path / "runs").folder / name
    written = file.read_bytes()
    for damaged in (written[:-7], written[:-7] + b"changed"):
        file.write_bytes(damaged)
        assert not go(recipe_of(), tmp_path / "runs", Heard()).already_finished
        assert f"{name} is not what was written" in heard.pop()
        again = file.read_bytes()
        assert again != damaged and (again == written or name == "report.html")  # which states times
    assert go(recipe_of(), tmp_path / "runs", Heard()).already_finished and not heard


def test_samples_and_scores_of_another_run_are_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    own, other = (go(recipe_of(f"seed={seed}"), tmp_path / "runs").folder for seed in (1, 2))
    assert len(kept_samples(own))
    (own / "samples/samples.npz").write_bytes((other / "samples/samples.npz").read_bytes())
    with pytest.raises(SdditError, match=r"SD-F704: a file of the run folder is not what was written"):
        kept_samples(own)
    (own / "samples/samples.npz").unlink()  # to save space, which changes nothing else
    assert go(recipe_of("seed=1"), tmp_path / "runs").already_finished
    held = (own / "scores.json").read_bytes()
    (own / "scores.json").write_text("{ }", encoding="utf-8")
    with pytest.raises(SdditError, match=r"SD-F704: a file of the run folder is not what was written"):
        read_scores(own)
    assert not go(recipe_of("seed=1"), tmp_path / "runs").already_finished
    assert (own / "scores.json").read_bytes() == held
    assert len(kept_samples(own))
    (own / "result.json").unlink()  # the control: a run of an earlier version has no seal
    (own / "samples/samples.npz").write_bytes((other / "samples/samples.npz").read_bytes())
    assert len(kept_samples(own))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_stopped_run_continues_to_the_same_bits_and_log(
    number: int, status: int, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    whole = go(recipe_of(), tmp_path / "whole")
    notes = Notes(signal_at=1, number=number)
    with pytest.raises(SystemExit) as stopped:
        go(recipe_of(), tmp_path / "stopped", notes)
    assert stopped.value.code == status
    assert any("rerun the same command to resume" in line for line in notes.lines)
    continued = Notes()
    ended = go(recipe_of(), tmp_path / "stopped", continued)
    assert any("continuing after step 1 of 4" in line for line in continued.lines)
    for name in ("model", "ema", "teacher", "optimizer"):
        file = f"checkpoints/step-000004/{name}.safetensors"
        assert (ended.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert (ended.folder / "samples/samples.npz").read_bytes() == (whole.folder / "samples/samples.npz").read_bytes()
    steps = [row["step"] for row in read_metrics(ended.folder / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 4]  # the scores of the end are a row of their own


def test_the_classes_of_the_samples_are_those_that_the_recipe_asks_for(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    for labels, ask in LABELS.items():
        recipe = recipe_of(f"evaluate.labels={labels}", "evaluate.features=[]")
        with np.load(go(recipe, tmp_path / "runs").folder / "samples/samples.npz") as held:
            assert tuple(held["arr_1"]) == ask(recipe.shapes.num_classes, 12, recipe.seed).labels


def test_a_run_killed_before_its_scores_only_scores(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    for name in ("report.html", "scores.json", "samples/samples.npz"):
        (first.folder / name).unlink()
    checkpoint = (first.folder / "checkpoints/step-000004/model.safetensors").read_bytes()
    rows = (first.folder / "metrics.jsonl").read_bytes()
    second = go(recipe_of(), tmp_path / "runs")
    assert second.scores == first.scores
    assert (first.folder / "checkpoints/step-000004/model.safetensors").read_bytes() == checkpoint
    assert (first.folder / "metrics.jsonl").read_bytes() == rows


def test_scores_while_training_are_those_of_a_run_that_ends_there(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """With a constant learning rate, the first half of a run of 4 steps is a run of 2."""
    recipe = recipe_of("evaluate.during=1", "optimizer.lr=1e-2")
    whole = go(recipe, tmp_path / "whole")
    rows = [row for row in read_metrics(whole.folder / "metrics.jsonl") if "score/toy.fd" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[1]["score/toy.fd"] == whole.scores["toy"].fd
    half = go(recipe_of("optimizer.lr=1e-2", "train.steps=2"), tmp_path / "half")
    assert rows[0]["score/toy.fd"] == pytest.approx(half.scores["toy"].fd, rel=1e-9)
    assert rows[0]["score/toy.fd"] != rows[1]["score/toy.fd"]
    assert "Scores during training" in whole.report.read_text()
    assert "Scores during training" not in half.report.read_text()
    plain = go(recipe_of("optimizer.lr=1e-2"), tmp_path / "plain")  # looking on the way changes nothing
    assert plain.scores == whole.scores


def test_a_run_stopped_after_it_was_scored_repeats_no_row(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    def rows(folder: Path) -> list[dict[str, float]]:
        clock = ("seconds", "images_per_second")
        return [
            {k: v for k, v in row.items() if k not in clock and not k.startswith("loss/")}
            for row in read_metrics(folder / "metrics.jsonl")
        ]

    recipe = recipe_of("evaluate.during=3")
    whole = go(recipe, tmp_path / "whole")
    for at in (1, 2, 3):
        with pytest.raises(SystemExit):
            go(recipe, tmp_path / "stopped", Notes(signal_at=at))
    ended = go(recipe, tmp_path / "stopped")
    assert rows(ended.folder) == rows(whole.folder)
    (ended.folder / "report.html").unlink()  # killed before the report: scored again, and logged once
    assert rows(go(recipe, tmp_path / "stopped").folder) == rows(whole.folder)
    assert sum("score/toy.fd" in row for row in rows(ended.folder)) == 4


def test_fresh_sets_the_old_contents_aside_and_deletes_nothing(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    metrics = (first.folder / "metrics.jsonl").read_bytes()
    second = go(recipe_of(), tmp_path / "runs", fresh=True)
    assert not second.already_finished
    assert (second.folder / "aside-1/metrics.jsonl").read_bytes() == metrics
    assert (second.folder / "report.html").is_file()


def test_another_recipe_gets_another_folder_and_the_difference_is_named(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    notes = Notes()
    second = go(recipe_of("loss.agree.weight=0.25"), tmp_path / "runs", notes)
    assert second.folder != first.folder
    assert any("loss.agree.weight 0.5 -> 0.25" in line for line in notes.lines)


@pytest.mark.parametrize(
    ("allow", "named"),
    [
        ([], ["code.mine", "train.steps", "code"]),
        (["code.mine", "train.steps"], ["code"]),
        (["code.mine", "train.steps", "code.dit", "code.edm"], []),
        (["code"], ["train.steps"]),
    ],
)
def test_another_numerics_revision_is_one_difference(tmp_path: Path, allow: list[str], named: list[str]) -> None:
    revision = [(f"code.{name}", "sddit 0.1.0", "sddit 0.2.0", "numeric") for name in ("dit", "edm")]
    found: Any = [*revision, ("code.mine", "sha 1", "sha 2", "numeric"), ("train.steps", 4, 5, "numeric")]
    problems = list(change_problems(tmp_path, found, allow, resumed=True))
    assert [problem.what.rpartition(" ")[2] for problem in problems] == named
    assert all(f"--allow-change {name}, or" in problem.fix for problem, name in zip(problems, named, strict=True))


def test_resuming_with_another_recipe_is_refused_until_each_key_is_allowed(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    longer = recipe_of("train.steps=6", "loss.agree.weight=0.25")
    with pytest.raises(SdditError) as refused:
        go(longer, tmp_path / "runs", resume=first.folder, allow=["train.steps"])
    assert [problem.code for problem in refused.value.problems] == ["SD-C420"]
    assert "loss.agree.weight" in str(refused.value)
    assert (first.folder / "report.html").is_file()
    second = go(longer, tmp_path / "runs", resume=first.folder, allow=["train.steps", "loss.agree.weight"])
    assert second.folder == first.folder
    changes = json.loads((first.folder / "changes.json").read_text())
    assert {change["key"] for change in changes} == {"train.steps", "loss.agree.weight"}
    assert "changed during the run" in second.report.read_text()
    assert [row["step"] for row in read_metrics(first.folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 6]


def test_another_model_is_refused_in_every_case(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    with pytest.raises(SdditError, match="SD-C410"):
        go(recipe_of("backbone.hidden=8"), tmp_path / "runs", resume=first.folder, allow=["backbone.hidden"])


def test_a_folder_in_use_is_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of()
    with RunFolder(tmp_path / "runs" / f"toy-{recipe.run_id}"), pytest.raises(SdditError, match="SD-F701"):
        go(recipe, tmp_path / "runs")


def test_a_device_that_is_not_there_is_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(SdditError, match="SD-P230"):
        run(recipe_of(), out=tmp_path, device="cuda", progress=Progress())
    assert not list(tmp_path.glob("toy-*"))


def test_unconditional_data_runs_to_the_end(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    result = go(recipe_of("dataset.classes=0"), tmp_path / "runs")
    assert result.scores["toy"].class_accuracy is None
    with np.load(result.folder / "samples/samples.npz") as saved:
        assert set(saved["arr_1"]) == {0}


def test_a_loaded_run_samples_its_own_images_at_any_batch(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    result = go(recipe_of(), tmp_path / "runs")
    model = sddit.load(result.folder)
    with np.load(result.folder / "samples/samples.npz") as saved:
        first_of_each_class = torch.from_numpy(saved["arr_0"][:3]).permute(0, 3, 1, 2)
    drawn = sddit.sample(model, per_class=1)
    difference = (drawn.int() - first_of_each_class.int()).abs()
    assert int(difference.max()) <= 1
    other = sddit.sample(model, per_class=1, seed=5)
    assert int((drawn.int() - other.int()).abs().max()) > 1
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert model.denoise(x, 0.5, torch.tensor([0, 3])).shape == x.shape


@pytest.mark.parametrize("done", [0, 1, 3])
def test_sampling_continues_after_a_kill(
    done: int, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 samples in batches of 3; each batch is a part."""
    recipe = recipe_of("evaluate.batch=3", "evaluate.previews=0")
    whole = go(recipe, tmp_path / "whole")
    monkeypatch.setattr("sddit.generation.PART_BYTES", 1)
    append, generate, generated = SampleParts.append, generation.generate, []

    def killed(parts: SampleParts, tensors: dict[str, torch.Tensor]) -> None:
        if parts.count == 3 * done:
            raise KeyboardInterrupt
        append(parts, tensors)

    def counted(*given: Any) -> torch.Tensor:
        generated.extend(given[3].ids)
        return generate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(SampleParts, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            go(recipe, tmp_path / "killed")
    monkeypatch.setattr("sddit.generation.generate", counted)
    ended = go(recipe, tmp_path / "killed")
    assert generated == list(range(3 * done, 12))
    for name in ("samples/samples.npz", "scores.json"):
        assert (ended.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (ended.folder / "samples/parts").exists()


def test_evaluating_a_run_gives_its_scores_and_changes_nothing(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    result = go(recipe_of(), tmp_path / "runs")
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    assert evaluate_run(result.folder, device="cpu", progress=Progress()) == result.scores
    assert {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda folder: load_run(folder, weights="no one"), "SD-C446"),
        (lambda folder: load_run(folder, step=3), "SD-C403"),
        (lambda folder: load_run(folder.parent), "SD-C445"),
        (lambda folder: sddit.load(folder / "nothing"), "SD-C444"),
    ],
)
def test_loading_what_is_not_there_says_so(
    ask: Callable[[Path], object], code: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    folder = go(recipe_of(), tmp_path / "runs").folder
    with pytest.raises(SdditError, match=code):
        ask(folder)


def test_a_run_in_double_precision_is_loaded_in_it(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    folder = go(recipe_of("train.precision=fp64"), tmp_path / "runs").folder
    assert {p.dtype for p in load_run(folder).backbone.parameters()} == {torch.float64}
    assert {p.dtype for p in load_run(folder, dtype=torch.float32).backbone.parameters()} == {torch.float32}


def test_which_average_is_sampled_is_part_of_what_a_run_is(tmp_path: Path, host: Host) -> None:
    averages = ["[ema.a]\ndecay = 0.9\n", "[ema.b]\ndecay = 0.8\n"]
    ids = set()
    for order in (averages, averages[::-1]):
        path = tmp_path / "toy.toml"
        path.write_text(TOY_PAIR_RECIPE + "".join(order))
        recipe = resolve(path, host=host)
        assert recipe.evaluate.weights == order[0][5]
        ids.add(recipe.run_id)
    assert len(ids) == 2


def test_resuming_what_is_not_a_run_folder_touches_nothing(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("mine")
    for folder in (other, tmp_path / "nowhere"):
        with pytest.raises(SdditError, match="SD-C445"):
            go(recipe_of(), tmp_path / "runs", resume=folder)
    assert [path.name for path in other.iterdir()] == ["metrics.jsonl"]
    assert (other / "metrics.jsonl").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_table_allows_its_keys_and_a_useless_permission_is_named(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = go(recipe_of(), tmp_path / "runs")
    ramp = recipe_of("optimizer.lr={start=1e-3, end=1e-4}", "train.steps=6")
    with pytest.raises(SdditError, match=r"'optimizer.rl' does not differ"):
        go(ramp, tmp_path / "runs", resume=first.folder, allow=["optimizer.rl"])
    go(ramp, tmp_path / "runs", resume=first.folder, allow=["optimizer.lr", "train.steps"])
    with pytest.raises(SdditError, match="SD-C422"):
        go(recipe_of("train.steps=3"), tmp_path / "runs", resume=first.folder, allow=["train.steps", "optimizer"])
    with pytest.raises(SdditError, match="--fresh"):
        go(recipe_of(), tmp_path / "runs")


def test_a_second_fresh_start_finds_a_free_name(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    folder = go(recipe_of(), tmp_path / "runs").folder
    for _ in range(2):
        go(recipe_of(), tmp_path / "runs", fresh=True)
    (folder / "aside-1").rename(tmp_path / "moved away")
    go(recipe_of(), tmp_path / "runs", fresh=True)
    assert sorted(path.name for path in folder.glob("aside-*")) == ["aside-2", "aside-3"]


@pytest.fixture
def two(recipe_of: Callable[..., Recipe], tmp_path: Path) -> tuple[Path, Path]:
    """The folders of two runs that differ in their seed."""
    return go(recipe_of(), tmp_path / "runs").folder, go(recipe_of("seed=9"), tmp_path / "runs").folder


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_of_another_run_is_refused_by_every_reader(
    step: int, two: tuple[Path, Path], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first, second = two
    first.rename(tmp_path / "renamed")  # the control: a run is still itself under another name
    first = tmp_path / "renamed"
    load_run(first, step=step)
    shutil.rmtree(first / f"checkpoints/step-{step:06d}")
    shutil.copytree(second / f"checkpoints/step-{step:06d}", first / f"checkpoints/step-{step:06d}")
    if step == 2:
        shutil.rmtree(first / "checkpoints/step-000004")
    (first / "report.html").unlink()
    readers: list[Callable[[], object]] = [
        lambda: load_run(first),
        lambda: load_run(first, step=step),
        lambda: evaluate_run(first, device="cpu", progress=Progress()),
        lambda: export_run(first, out=tmp_path / "export"),
        lambda: find_weights(first),
        lambda: go(recipe_of(), tmp_path / "runs", resume=first),
    ]
    for read in readers:
        with pytest.raises(SdditError, match="SD-C405"):
            read()


def test_a_continuation_with_changes_keeps_its_checkpoints(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    first = go(recipe_of("train.keep=9"), tmp_path / "runs").folder
    longer = recipe_of("train.steps=6", "train.keep=9")
    go(longer, tmp_path / "runs", resume=first, allow=["train.steps"])
    ids = json.loads((first / "recipe.resolved.json").read_text())["run_ids"]
    assert ids == [longer.run_id, recipe_of("train.keep=9").run_id]
    recorded = [read_manifest(path).run_id for path in sorted(first.glob("checkpoints/step-*"))]
    assert recorded == [ids[1], ids[1], ids[0]]
    for step in (2, 4, 6):
        load_run(first, step=step)
    assert go(longer, tmp_path / "runs", resume=first).already_finished


def test_a_folder_of_an_earlier_version_is_used_with_a_warning(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = go(recipe_of(), tmp_path / "runs").folder
    tables = json.loads((first / "recipe.resolved.json").read_text())
    del tables["run_ids"]
    (first / "recipe.resolved.json").write_text(json.dumps(tables))
    (first / "recipe.resolved.json.sha256").unlink()
    (first / "result.json").unlink()
    for manifest in first.glob("checkpoints/*/manifest.json"):
        body = json.loads(manifest.read_bytes())
        del body["sha256"], body["run_id"]
        manifest.write_bytes(seal_manifest(body))
    with pytest.warns(UserWarning, match="has no run id"):
        load_run(first)
    assert go(recipe_of(), tmp_path / "runs").already_finished
    notes = Notes()
    assert not go(recipe_of("train.steps=6"), tmp_path / "runs", notes, resume=first, allow=["train"]).already_finished
    assert any("SD-C406" in line for line in notes.lines)


@pytest.mark.parametrize("change", ["remove", "NaN", "copy"])
def test_scores_that_are_not_those_of_the_run_are_made_again(
    change: str, two: tuple[Path, Path], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    first, second = two
    scores = first / "scores.json"
    before = scores.read_bytes()
    if change == "remove":
        scores.unlink()
    elif change == "copy":
        for name in ("scores.json", "cost.json", "result.json"):
            shutil.copyfile(second / name, first / name)
    else:
        scores.write_text(re.sub(r'"fd": [^,]*', '"fd": NaN', before.decode()))
    assert not go(recipe_of(), tmp_path / "runs").already_finished
    assert scores.read_bytes() == before
    assert go(recipe_of(), tmp_path / "runs").already_finished
