"""Test the pair of views of SRA: times, shared noise and labels, masks, and rules between its keys and a schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.errors import SdditError
from sddit.interfaces import Batch, Context, NoiseSchedule, View
from sddit.recipes.resolve import resolve
from sddit_alignment.pair_params import OffsetPairParams
from sddit_alignment.pairs import OffsetPair
from sddit_ddpm.params import DDPMParams
from sddit_ddpm.schedule import DDPM
from sddit_discrimination.pairs import PfOde
from sddit_discrimination.params import PfOdeParams
from sddit_edm.cosine_flow import CosineFlow
from sddit_edm.cosine_params import CosineFlowParams
from sddit_edm.flow import Flow
from sddit_edm.params import EDMParams, FlowParams
from sddit_edm.schedule import EDM

GRID = (4, 4)
COUNT = 256
ASKED = KeyedDraws(0, 0, torch.arange(COUNT))


def batch() -> Batch:
    x0 = torch.randn(COUNT, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(COUNT) % 11  # 10: dropped
    return Batch(x0=x0, labels=labels, true_labels=labels % 10, ids=torch.arange(COUNT), flipped=labels > 20)


def pair(schedule: NoiseSchedule, sampler: Any = OffsetPair, params: Any = None, **keys: Any) -> tuple[View, View]:
    """Return the student and teacher views of one batch."""
    ctx = Context(step=0, total_steps=100, schedule=schedule, draws=ASKED, num_classes=10)
    views = sampler(params or OffsetPairParams(**keys), grid=GRID)(batch(), ASKED, schedule, ctx)
    assert list(views) == ["student", "teacher"]
    return views["student"], views["teacher"]


def gaps() -> Tensor:
    return ASKED.uniform("alignment/offset_pair/gap")


def test_the_teacher_is_earlier_on_the_linear_path() -> None:
    schedule = Flow(FlowParams())
    student, teacher = pair(schedule, offset=0.3, t_min=0.0)
    torch.testing.assert_close(teacher.t, (student.t - 0.3 * gaps()).clamp(min=0), rtol=0, atol=1e-12)
    assert not torch.allclose(teacher.t, (student.t - 0.2 * gaps()).clamp(min=0), atol=1e-3)
    torch.testing.assert_close(teacher.x, schedule.perturb(student.x0, student.noise, teacher.t), rtol=0, atol=0)
    same, native = (pair(schedule, offset=0.3, t_min=0.1, time=time)[1].t for time in ("linear", "native"))
    torch.testing.assert_close(same, native, rtol=0, atol=1e-12)


def test_the_own_time_of_the_cosine_path() -> None:
    schedule = CosineFlow(CosineFlowParams())
    student, teacher = pair(schedule, offset=0.3, t_min=0.0, time="native")
    expected = (student.t - 0.3 * gaps()).clamp(min=0)
    torch.testing.assert_close(teacher.t, expected, rtol=0, atol=1e-12)
    angle = (math.pi / 2 * expected)[:, None, None, None]
    torch.testing.assert_close(teacher.x, angle.cos() * student.x0 + angle.sin() * student.noise, rtol=0, atol=1e-12)
    linear = pair(schedule, offset=0.3, t_min=0.0)[1]
    assert (linear.t - expected).abs().max() > 1e-3
    tau = [(schedule.sigma(t) / (schedule.sigma(t) + schedule.alpha(t))) for t in (student.t, linear.t)]
    torch.testing.assert_close(tau[1], (tau[0] - 0.3 * gaps()).clamp(min=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_time_of_edm_depends_on_the_standard_deviation_of_the_data(sigma_data: float) -> None:
    student, teacher = pair(EDM(EDMParams()), sigma_data=sigma_data)
    times = [view.t / (view.t + sigma_data) for view in (student, teacher)]
    free = teacher.t > 0.002 * (1 + 1e-9)
    torch.testing.assert_close((times[0] - times[1])[free], 0.2 * gaps()[free], rtol=0, atol=1e-12)
    assert (teacher.t[~free] - 0.002).abs().max() < 1e-15
    assert 10 < free.sum() < COUNT
    other = [view.t / (view.t + 0.7) for view in (student, teacher)]
    assert ((other[0] - other[1])[free] - 0.2 * gaps()[free]).abs().max() > 1e-3


def test_whole_steps_of_ddpm() -> None:
    schedule = DDPM(DDPMParams())
    student, teacher = pair(schedule, offset=200.0, t_min=1.0, time="steps")
    expected = (student.t - (200 * gaps()).floor()).clamp(min=1)
    assert torch.equal(teacher.t, expected)
    assert teacher.t.min() == 1 and ((student.t - teacher.t).max() > 150)
    continuous = pair(schedule, offset=200.0, t_min=1.0, time="native")[1]
    assert not torch.equal(continuous.t, expected)


def test_without_an_offset_both_see_the_same_image() -> None:
    student, teacher = pair(EDM(EDMParams()), offset=0.0)
    assert torch.equal(student.x, teacher.x) and torch.equal(student.t, teacher.t)
    assert teacher.network == "teacher"


def test_noise_and_dropped_labels_are_shared() -> None:
    student, teacher = pair(EDM(EDMParams()))
    assert torch.equal(student.noise, teacher.noise) and torch.equal(student.labels, teacher.labels)
    assert (teacher.labels == 10).any(), "dropped"


def test_it_gives_the_views_of_pf_ode_with_the_same_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both share one rule; the purposes of their draws differ."""
    monkeypatch.setattr("sddit_discrimination.pairs.OWN", "x")
    monkeypatch.setattr("sddit_alignment.pairs.GAP", "x/level")
    schedule = EDM(EDMParams())
    params = PfOdeParams(teacher_noise="offset", mask_ratio=0.0)
    ours, theirs = pair(schedule)[1], pair(schedule, PfOde, params)[1]
    assert torch.equal(ours.t, theirs.t) and torch.equal(ours.x, theirs.x)
    monkeypatch.undo()
    assert not torch.equal(pair(schedule)[1].t, theirs.t)


def test_a_mask_hides_tokens_of_the_student_only() -> None:
    student, teacher = pair(EDM(EDMParams()), mask_ratio=0.5)
    assert student.visible is not None and student.visible.shape == (COUNT, 8)
    assert teacher.visible is None
    assert [view.is_masked for view in OffsetPairParams(mask_ratio=0.5).views()] == [True, False]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offset": 1.0}, "below 1"),
        ({"t_min": 1.5}, "below 1"),
    ],
)
def test_contradictions_are_rejected(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OffsetPairParams(**keys)


def test_a_time_outside_the_schedule_is_refused() -> None:
    with pytest.raises(SdditError, match=r"the teacher's earliest time is outside the schedule") as refused:
        resolve("digits/sra", ["pair_sampler.t_min=0.0001"])
    assert "pair_sampler.t_min" in str(refused.value)
    resolve("digits/sra", ["pair_sampler.t_min=0.01"])


def test_keys_without_effect_are_idle() -> None:
    assert "pair_sampler.sigma_data" in resolve("digits/sra", ["pair_sampler.time=native"]).idle
    same = resolve("digits/sra", ["pair_sampler.offset=0.0", "pair_sampler.t_min=0.1"])
    assert {"pair_sampler.sigma_data", "pair_sampler.t_min"} <= set(same.idle)
    assert resolve("digits/sra").idle == ()


def test_less_than_a_step_is_warned_of() -> None:
    steps = ["pair_sampler.time=steps"]
    assert any("less than one step" in text for text in resolve("digits/sra", steps).warnings)
    further = [*steps, "pair_sampler.offset=3.0"]
    assert not any("less than one step" in text for text in resolve("digits/sra", further).warnings)
