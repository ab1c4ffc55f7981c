"""Test `[snapshot]`, a teacher with the weights of another run that stays as it is, and guided targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.interfaces import Outputs, Tokens
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.recipes.start_weights import named_weights
from sddit.runs.pipeline import run
from sddit.storage.tensors import unpack
from sddit.testing import fixtures
from sddit.testing.sessions import advance
from sddit.training.build import build_session
from sddit.training.session import Session
from sddit_alignment.loss import Align
from sddit_alignment.pair_params import OffsetPairParams
from sddit_alignment.pairs import OffsetPair
from sddit_alignment.params import AlignParams

CPU = torch.device("cpu")
SMALL = [
    "backbone.depth=4",
    "backbone.width=16",
    "backbone.heads=2",
    "train.batch=8",
    "train.steps=2",
    "optimizer.warmup=0",
]
UNSCORED = ["evaluate.features=[]", "evaluate.samples=4", "evaluate.previews=0", "sampler.steps=2"]
GUIDED = "digits/self-transcendence-guided"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the first stage for two steps, and return its folder."""
    recipe = resolve("digits/self-transcendence", [*SMALL, *UNSCORED])
    return run(recipe, out=tmp_path_factory.mktemp("runs"), device="cpu", progress=Progress()).folder


def session_of(first: Path, *overrides: str) -> Session:
    recipe = resolve(GUIDED, [*SMALL, f"snapshot.run={first}", *overrides])
    assert recipe.snapshot is not None
    return build_session(recipe, CPU, snapshot=named_weights(recipe.snapshot, "snapshot"))


def weights_in(first: Path, label: str = "main") -> dict[str, Tensor]:
    tensors = unpack((first / "checkpoints/step-000002/ema.safetensors").read_bytes())
    return {name.removeprefix(f"{label}."): value for name, value in tensors.items() if name.startswith(f"{label}.")}


def teacher_of(session: Session) -> dict[str, Tensor]:
    assert session.teacher is not None
    return {name: value.clone() for name, value in session.teacher.backbone.state_dict().items()}


def test_the_teacher_has_the_weights_of_the_snapshot_and_keeps_them(first: Path) -> None:
    session, given = session_of(first), weights_in(first)
    before = teacher_of(session)
    assert len(before) > 10
    assert all(torch.equal(value, given[name]) for name, value in before.items())
    own = session.student.backbone.state_dict()
    assert any(not torch.equal(value, own[name]) for name, value in before.items()), "the student has its own"
    advance(session, 1)
    after = teacher_of(session)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    averaged = build_session(resolve(GUIDED, [*SMALL, "snapshot=false"]), CPU)
    before = teacher_of(averaged)
    advance(averaged, 1)
    assert any(not torch.equal(value, before[name]) for name, value in teacher_of(averaged).items()), "an EMA moves"


def test_the_id_has_the_weights_and_not_their_path(first: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(first)
    ids = {resolve(GUIDED, [*SMALL, f"snapshot.run={path}"]).run_id for path in (first, moved)}
    assert len(ids) == 1
    other = resolve(GUIDED, [*SMALL, f"snapshot.run={first}", "snapshot.weights=student"]).run_id
    assert other not in ids


def test_a_snapshot_that_does_not_fit_is_refused(first: Path) -> None:
    with pytest.raises(SdditError, match="the weights of the snapshot do not fit") as refused:
        session_of(first, "backbone.mlp_ratio=2.0")
    assert {problem.code for problem in refused.value.problems} == {"SD-C452"}
    with pytest.raises(SdditError, match=r"SD-C451(.|\n)*snapshot\.sha256"):
        resolve(GUIDED, [*SMALL, f"snapshot.run={first}", f"snapshot.sha256={'0' * 64}"])
    with pytest.raises(SdditError, match=r"SD-C445(.|\n)*snapshot\.run"):
        resolve(GUIDED, [*SMALL, f"snapshot.run={first.parent}"])


def test_a_loss_with_modules_that_are_averaged_is_refused(first: Path) -> None:
    overrides = [f"snapshot.run={first}", "backbone.width=64", "train.batch=8"]
    with pytest.raises(SdditError, match="an EMA of its own modules, which a snapshot does not have"):
        build_session(resolve("quickstart", overrides), CPU)


def test_the_momentum_is_idle_with_a_snapshot_and_the_snapshot_without_a_teacher(first: Path) -> None:
    snapshot = [*SMALL, f"snapshot.run={first}"]
    assert "teacher.momentum" in resolve(GUIDED, [*snapshot, "teacher.momentum=0.5"]).idle
    assert resolve(GUIDED, snapshot).idle == ()
    assert "snapshot.run" in resolve("digits/layersync", snapshot).idle


def test_guided_targets_by_hand() -> None:
    params = AlignParams(guidance=30.0, head="none", metric="mse", tap=2, target_tap=4)
    term = Align(params, widths={2: 6, 4: 6}, grid=fixtures.GRID, image=fixtures.IMAGE)
    views = pair(null_view=True)
    student, f, null = (fixtures.numbers(6, 16, 6, key=key, dtype=torch.float64) for key in (1, 2, 3))
    outputs = {"student": Outputs(taps={2: Tokens(student)})}
    outputs |= {name: Outputs(taps={4: Tokens(value)}) for name, value in (("teacher", f), ("teacher_null", null))}
    expected = (student - (null + 30 * (f - null))).square().mean((1, 2))
    torch.testing.assert_close(term(fixtures.context(), views, outputs), expected, rtol=1e-12, atol=0)
    swapped = {**outputs, "teacher": outputs["teacher_null"], "teacher_null": outputs["teacher"]}
    assert not torch.allclose(term(fixtures.context(), views, swapped), expected, rtol=1e-2)


def pair(**keys: Any) -> Any:
    ctx = fixtures.context()
    batch = fixtures.batch(torch.float64)
    return OffsetPair(OffsetPairParams(**keys), grid=fixtures.GRID)(batch, ctx.draws, ctx.schedule, ctx)


def test_the_null_view_differs_in_its_labels_only() -> None:
    views = pair(null_view=True)
    teacher, null = views["teacher"], views["teacher_null"]
    assert [view.name for view in OffsetPairParams(null_view=True).views()] == list(views)
    assert (null.labels == fixtures.CLASSES).all() and not torch.equal(teacher.labels, null.labels)
    assert torch.equal(null.x, teacher.x) and torch.equal(null.t, teacher.t) and null.network == "teacher"


def test_guidance_needs_its_view_and_a_trained_null_label() -> None:
    with pytest.raises(SdditError, match="one with the null label"):
        resolve("digits/sra", ["loss.align.guidance=2.0"])
    resolve("digits/sra", ["loss.align.guidance=2.0", "pair_sampler.null_view=true"])
    with pytest.raises(SdditError, match="the null label, which is never trained"):
        resolve("digits/sra", ["pair_sampler.null_view=true", "dataset.label_drop=0.0"])
