"""Test that a NaN or an infinity changes no lasting state, and that enough is stored to repeat the step."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.data.order import batch_ids
from sddit.errors import SdditError
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Content
from sddit.storage.metrics_log import read_metrics
from sddit.testing.sessions import state_of
from sddit.testing.toys.components import ToyAgreement, ToyDataset
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training import loop, nonfinite_report
from sddit.training.build import build_session
from sddit.training.first_step import MAX_SAMPLES
from sddit.training.loop import train
from sddit.training.nonfinite import NonFinite
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

STEPS, BAD = 6, 2  # the step that becomes non-finite, counted from 0
MORE = """
log_every = 1
save_every = 1
[ema.main]
decay = 0.9
[evaluate]
samples = 6
previews = 0
"""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return the toys, also for code that resolves recipes without a host."""
    toys = toy_host()
    monkeypatch.setattr("sddit.recipes.resolve.the_host", lambda: toys)
    return toys


@pytest.fixture
def recipe_of(tmp_path: Path, host: Host) -> Callable[..., Recipe]:
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("steps = 4\nbatch = 8\n", f"steps = {STEPS}\nbatch = 8" + MORE))
    return lambda *overrides: resolve(path, overrides, host=host)


def session_of(recipe: Recipe) -> Session:
    return build_session(recipe, torch.device("cpu"))


class Until:
    """Callbacks that stop after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[Any] = []

    def logged(self, session: Session, row: Any) -> None:
        self.rows.append(row)

    def stepped(self, session: Session) -> None:
        if session.step == self.step:
            raise StopIteration


def advance(session: Session, step: int) -> list[Any]:
    """Train until `step` steps are taken. Returns the rows of the log."""
    callbacks = Until(step)
    with suppress(StopIteration):
        train(session, callbacks)
    return callbacks.rows


def lasting(session: Session) -> dict[str, Tensor]:
    """Return copies of all that a step may change: weights, moments, EMAs, teacher, centres."""
    return {name: tensor.clone() for name, tensor in state_of(session).items()}


def differing(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    return sorted(one.keys() ^ two.keys()) + [name for name in one if not one[name].equal(two[name])]


Plant = Callable[[pytest.MonkeyPatch, float], None]


def in_the_loss(patch: pytest.MonkeyPatch, value: float) -> None:
    forward = ToyAgreement.forward

    def corrupt(term: ToyAgreement, ctx: Any, *rest: Any) -> Tensor:
        return forward(term, ctx, *rest) * (value if ctx.step == BAD else 1.0)

    patch.setattr(ToyAgreement, "forward", corrupt)


def in_the_gradient(patch: pytest.MonkeyPatch, value: float) -> None:
    """Keep the loss finite: a root at 0 has an infinite slope."""
    forward = ToyAgreement.forward

    def corrupt(term: ToyAgreement, ctx: Any, *rest: Any) -> Tensor:
        loss = forward(term, ctx, *rest)
        return loss + (loss - loss.detach()).clamp(min=0).sqrt() if ctx.step == BAD else loss

    patch.setattr(ToyAgreement, "forward", corrupt)


def in_an_image(patch: pytest.MonkeyPatch, value: float) -> None:
    def corrupt(session: Session, ids: Any, draws: Any, make: Any = loop.make_batch) -> Any:
        batch = make(session, ids, draws)
        if draws.step == BAD:
            batch.x0[1, 0, 2, 3] = value
        return batch

    patch.setattr(loop, "make_batch", corrupt)


def in_the_teacher(patch: pytest.MonkeyPatch, value: float) -> None:
    def corrupt(session: Session, views: Any, labels: Any, honest: Any = loop.teacher_outputs) -> Any:
        outputs = honest(session, views, labels)
        if session.step == BAD:
            outputs["teacher"].taps["encoder"].patch[0] = value
        return outputs

    patch.setattr(loop, "teacher_outputs", corrupt)


def in_what_is_staged(patch: pytest.MonkeyPatch, value: float) -> None:
    """Keep loss and gradient finite: only tokens that the student does not see move a centre."""
    forward = ToyAgreement.forward

    def corrupt(term: ToyAgreement, ctx: Any, *rest: Any) -> Tensor:
        loss = forward(term, ctx, *rest)
        if ctx.step == BAD:
            term.waiting.append(torch.full_like(term.centre, value))
        return loss

    patch.setattr(ToyAgreement, "forward", corrupt)


PLANTS: dict[str, Plant] = {
    "loss": in_the_loss,
    "gradient": in_the_gradient,
    "input": in_an_image,
    "teacher": in_the_teacher,
    "staged": in_what_is_staged,
}
planted = pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
valued = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])


@planted
@valued
def test_nothing_that_lasts_is_changed(
    plant: Plant, value: float, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, untouched = session_of(recipe_of()), session_of(recipe_of())
    advance(session, BAD)
    before = lasting(session)
    with monkeypatch.context() as patch:
        plant(patch, value)
        with pytest.raises(NonFinite, match="SD-N501") as stopped:
            advance(session, STEPS)
    assert stopped.value.exit_status == 6
    assert session.step == BAD
    assert differing(lasting(session), before) == []
    advance(session, STEPS)  # and nothing of the step is remembered
    advance(untouched, STEPS)
    assert differing(lasting(session), lasting(untouched)) == []


@planted
def test_without_the_guard_it_would_last(
    plant: Plant, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the check, each of these reaches the state."""
    session = session_of(recipe_of())
    plant(monkeypatch, float("nan"))
    monkeypatch.setattr(loop, "synchronize_step_status", lambda session, metrics, grad_norm, used: ([], used))
    advance(session, BAD + 1)
    assert any(not bool(tensor.isfinite().all()) for tensor in state_of(session).values())


def test_a_step_is_refused_also_in_its_last_micro_batch(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(recipe_of("train.micro_batch=2"))
    before = lasting(session)

    def corrupt(session: Session, ids: Any, draws: Any, make: Any = loop.make_batch) -> Any:
        batch = make(session, ids, draws)
        if batch_ids(0, 0, 8, 24)[0][-1] in ids:
            batch.x0[0] = float("nan")
        return batch

    monkeypatch.setattr(loop, "make_batch", corrupt)
    with pytest.raises(NonFinite, match=r"loss\.denoise"):
        advance(session, 1)
    assert differing(lasting(session), before) == []


@planted
def test_a_step_may_be_skipped_and_is_counted(
    plant: Plant, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(recipe_of("train.skip_non_finite=1"))
    advance(session, BAD)
    before = lasting(session)
    plant(monkeypatch, float("nan"))
    rows = advance(session, BAD + 1)
    assert (session.step, session.skipped) == (BAD + 1, [BAD])
    assert differing(lasting(session), before) == []
    assert rows[-1]["skipped"] == 1 and not any("loss" in name for name in rows[-1]), "a skipped step measured nothing"
    rows = advance(session, STEPS)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows), "its diagnostics are discarded too"
    assert differing(lasting(session), before) != []


def test_no_more_are_skipped_than_the_recipe_allows_also_across_a_resume(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_of("train.skip_non_finite=2")
    forward = ToyAgreement.forward
    monkeypatch.setattr(ToyAgreement, "forward", lambda *given: forward(*given) * float("nan"))
    session = session_of(recipe)
    advance(session, 1)
    store = Store(tmp_path / "checkpoints", keep=1)
    store.save(1, checkpoint_files(session, {}))
    resumed = session_of(recipe)
    found = store.latest()
    assert found is not None
    restore(resumed, found)
    with pytest.raises(NonFinite, match="at step 2, after 2 skipped steps"):
        advance(resumed, STEPS)
    assert (resumed.step, resumed.skipped) == (2, [0, 1])


def test_skipping_does_not_change_the_run_id(recipe_of: Callable[..., Recipe]) -> None:
    assert recipe_of("train.skip_non_finite=2").run_id == recipe_of().run_id
    assert recipe_of("seed=2").run_id != recipe_of().run_id


def go(recipe: Recipe, tmp_path: Path, **more: Any) -> Path:
    return run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress(), **more).folder


class Torn(ToyDataset):
    """One of its images holds a NaN."""

    def fetch(self, ids: Any) -> tuple[Tensor, Tensor]:
        images, labels = super().fetch(ids)
        images[[i == TORN for i in ids], 0, 0, 0] = float("nan")
        return images, labels


TORN = batch_ids(0, BAD, 8, 24)[0][3]  # an image of the non-finite step


def test_a_run_stops_with_a_report_that_repeats_the_step(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe_of().dataset
    torn = replace(recipe_of(), dataset=replace(chosen, component=replace(chosen.component, factory=Torn)))
    with pytest.raises(SdditError) as stopped:
        go(torn, tmp_path)
    (problem,) = stopped.value.problems
    assert (problem.code, stopped.value.exit_status) == ("SD-N501", 6)
    assert f"it began in samples {TORN} of the data" in problem.got
    (folder,) = (tmp_path / "runs").iterdir()
    facts = json.loads((folder / f"non-finite-{BAD:06d}.json").read_text())
    assert facts["samples_not_finite"] == [TORN] and facts["samples"] == batch_ids(0, BAD, 8, 24)[0]
    assert (facts["step"], facts["seed"], facts["state_before"]) == (BAD, 0, f"checkpoints/step-{BAD:06d}")
    assert facts["repeat"] in problem.fix and f"--resume {folder}" in facts["repeat"]
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]

    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    with pytest.raises(SdditError) as repeated:  # what the command does
        go(torn, tmp_path, resume=folder)
    assert repeated.value.problems == stopped.value.problems
    assert {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()} == before

    fixed = go(recipe_of(), tmp_path)  # without the cause, the run continues to the same bits
    whole = run(recipe_of(), out=tmp_path / "whole", device="cpu", progress=Progress()).folder
    for name in ("model", "ema", "teacher", "optimizer"):
        file = f"checkpoints/step-{STEPS:06d}/{name}.safetensors"
        assert (fixed / file).read_bytes() == (whole / file).read_bytes()


def test_a_run_that_fails_at_its_first_step_keeps_its_state_too(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ToyAgreement.forward
    with monkeypatch.context() as patch:

        def whole_batch_only(*given: Any) -> Tensor:  # the check before the first step takes fewer samples
            value = forward(*given)
            return value * float("nan") if len(value) > MAX_SAMPLES else value

        patch.setattr(ToyAgreement, "forward", whole_batch_only)
        for _ in range(2):
            with pytest.raises(SdditError, match=r"began in loss\.agree"):
                go(recipe_of(), tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints/step-000000").is_dir()
    assert (go(recipe_of(), tmp_path) / "report.html").is_file()


@pytest.mark.parametrize(
    ("plant", "output", "gradient"),
    [(in_the_loss, "loss.agree", "loss.agree.head"), (in_the_gradient, "", "loss.agree.head")],
)
def test_the_first_bad_module_is_named(
    plant: Plant, output: str, gradient: str, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(recipe_of())
    advance(session, BAD)
    before = lasting(session)
    clean = nonfinite_report.retrace(session)
    assert (clean.inputs, clean.output, clean.gradient) == ([], "", ""), "the control: a finite step names no module"
    plant(monkeypatch, float("nan"))
    trace = nonfinite_report.retrace(session)
    assert trace.output == output and trace.gradient.startswith(gradient)
    assert differing(lasting(session), before) == []
    assert all(not module._forward_hooks for _, module in nonfinite_report.modules_of(session))


@pytest.mark.parametrize("where", ["student", "ema", "teacher"])
def test_weights_that_are_not_finite_are_never_saved(where: str, recipe_of: Callable[..., Recipe]) -> None:
    """A step cannot make them so; this is the last check."""
    session = session_of(recipe_of())
    assert session.teacher is not None
    module = {"student": session.student, "ema": session.emas["main"].module, "teacher": session.teacher.backbone}
    files = checkpoint_files(session, {})
    assert [made(content) for content in files.values()], "the control"
    next(module[where].parameters()).data.flatten()[0] = float("inf")
    with pytest.raises(SdditError, match="SD-N502"):
        [made(content) for content in files.values()]


def made(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.make()


def test_a_run_reports_the_step_it_skipped(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(Progress, "warn", lambda self, text: warnings.append(text))
    in_the_loss(monkeypatch, float("nan"))
    folder = go(recipe_of("train.skip_non_finite=1"), tmp_path)
    assert [text for text in warnings if "skipped" in text] == [f"step {BAD} skipped: non-finite; 1 skipped in total"]
    assert [row["skipped"] for row in read_metrics(folder / "metrics.jsonl")] == [0, 0, 1, 1, 1, 1]
    assert (folder / "report.html").is_file()
