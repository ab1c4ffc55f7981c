"""Test the PF-ODE pair: geometry, noise levels, shared draws, masks, labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Batch, Context, View
from sddit.value_schedules import Ramp
from sddit_discrimination.pairs import PfOde
from sddit_discrimination.params import PfOdeParams
from sddit_dit.pairs import Single
from sddit_edm.params import EDMParams
from sddit_edm.schedule import EDM

GRID = (4, 4)
COUNT = 64


class Linear:
    """A schedule x = (1 - t) x0 + t eps, whose t is not sigma, with 100 trained noise levels."""

    def t_from_uniform(self, u: Tensor) -> Tensor:
        return 0.01 + 0.98 * u

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        return (1 - t) * x0 + t * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def snap(self, sigma: Tensor) -> Tensor:
        t = (self.t_from_sigma(sigma) * 100).round().clamp(1, 99) / 100
        return t / (1 - t)


def batch(count: int = COUNT) -> Batch:
    x0 = torch.randn(count, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 10
    return Batch(x0=x0, labels=labels, true_labels=labels, ids=torch.arange(count), flipped=labels > 10)


def pair(schedule=None, *, step: int = 0, **keys: object) -> tuple[View, View]:
    """Return the student and teacher views of one batch."""
    schedule = schedule or EDM(EDMParams())
    draws = KeyedDraws(0, step, torch.arange(COUNT))
    ctx = Context(step=step, total_steps=100, schedule=schedule, draws=draws, num_classes=10)
    views = PfOde(PfOdeParams.model_validate(keys), grid=GRID)(batch(), draws, schedule, ctx)
    assert list(views) == ["student", "teacher"]
    return views["student"], views["teacher"]


def level(schedule, view: View) -> Tensor:
    return schedule.sigma(view.t) / schedule.alpha(view.t)


def apart_from_the_ray(schedule, student: View, teacher: View) -> float:
    """Return the maximum distance of x_T - x0 from (sigma_T / sigma_S) (x_S - x0), in x / alpha; 0 on a trajectory."""
    ratio = (level(schedule, teacher) / level(schedule, student))[:, None, None, None]
    rays = [view.x / schedule.alpha(view.t)[:, None, None, None] - view.x0 for view in (student, teacher)]
    return float((rays[1] - ratio * rays[0]).abs().max())


@pytest.mark.parametrize("schedule", [EDM(EDMParams()), Linear()])
@pytest.mark.parametrize("mode", ["fixed", "same", "below", "offset"])
def test_both_views_are_on_one_trajectory(schedule, mode: str) -> None:
    student, teacher = pair(schedule, teacher_noise=mode)
    assert apart_from_the_ray(schedule, student, teacher) < 1e-12
    assert torch.equal(student.noise, teacher.noise)


def test_fresh_noise_leaves_the_trajectory() -> None:
    student, teacher = pair(teacher_noise="same", shared_noise=False)
    assert apart_from_the_ray(EDM(EDMParams()), student, teacher) > 0.1
    assert not torch.equal(student.noise, teacher.noise)
    assert abs(float(teacher.noise.std()) - 1) < 0.05


def test_an_euler_step_of_the_ode_lands_on_the_teacher() -> None:
    """dx/dsigma = (x - x0) / sigma, the probability-flow ODE for the score of one image."""
    student, teacher = pair(teacher_sigma=0.02)
    sigma = student.t[:, None, None, None]
    x = student.x + (0.02 - sigma) * (student.x - student.x0) / sigma
    torch.testing.assert_close(x, teacher.x, rtol=0, atol=1e-13)


def test_fixed_level() -> None:
    student, teacher = pair()
    assert torch.equal(teacher.t, torch.full_like(student.t, 0.002))
    assert (teacher.x - teacher.x0).square().mean().sqrt() < 0.003


def test_same_level_and_noise_is_the_same_image() -> None:
    student, teacher = pair(teacher_noise="same")
    assert torch.equal(student.x, teacher.x) and torch.equal(student.t, teacher.t)


def test_below_is_uniform_between_the_minimum_and_the_student() -> None:
    student, teacher = pair(teacher_noise="below", teacher_sigma=0.01)
    fraction = (teacher.t - 0.01) / (student.t - 0.01)
    assert ((fraction > 0) & (fraction < 1)).all()
    ranks = fraction.sort().values - (torch.arange(COUNT) + 0.5) / COUNT
    assert ranks.abs().max() < 1.95 / COUNT**0.5, "Kolmogorov-Smirnov, 0.1 %"


def test_offset_is_at_most_that_in_the_time_of_the_linear_path() -> None:
    student, teacher = pair(teacher_noise="offset", teacher_offset=0.1)
    tau_s, tau_t = (view.t / (1 + view.t) for view in (student, teacher))
    fall = tau_s - tau_t
    inner = teacher.t > 0.002
    assert inner.sum() > COUNT / 2
    assert ((fall > 0) & (fall < 0.1)).all()
    assert fall[inner].max() > 0.05
    assert teacher.t.min() >= 0.002


def test_a_drawn_level_is_never_above_the_student() -> None:
    for mode in ("below", "offset"):
        student, teacher = pair(teacher_noise=mode, teacher_sigma=1.0)  # above most of the student's levels
        assert (teacher.t <= student.t).all()


def test_discrete_levels_are_trained_ones() -> None:
    _, teacher = pair(Linear(), teacher_noise="below", teacher_sigma=0.02)
    torch.testing.assert_close(teacher.t * 100, (teacher.t * 100).round(), rtol=0, atol=1e-9)


def test_the_teacher_consumes_no_draw_of_the_student() -> None:
    """The student's view equals that of plain DiT for any teacher: arms share noise and noise levels."""
    draws = KeyedDraws(0, 0, torch.arange(COUNT))
    schedule = EDM(EDMParams())
    ctx = Context(step=0, total_steps=100, schedule=schedule, draws=draws, num_classes=10)
    plain = Single(None, grid=GRID)(batch(), draws, schedule, ctx)["student"]
    for keys in ({}, {"teacher_noise": "below", "shared_noise": False}, {"mask_ratio": 0.5}):
        student, _ = pair(schedule, **keys)
        assert torch.equal(student.x, plain.x) and torch.equal(student.t, plain.t)
        assert torch.equal(student.labels, plain.labels)
    assert plain.visible is None and plain.network == "student"
    other, _ = pair(schedule, step=1)
    assert not torch.equal(other.x, plain.x)


def test_only_the_student_is_masked() -> None:
    student, teacher = pair()
    assert student.visible is not None and student.visible.shape == (COUNT, 12)  # floor(16 * 0.8)
    assert teacher.visible is None
    student, teacher = pair(teacher_mask="visible")
    assert teacher.visible is student.visible


def test_views_are_known_before_training() -> None:
    student, teacher = PfOdeParams().views()
    assert (student.name, student.network, student.mask_ratio) == ("student", "student", 0.2)
    assert (teacher.name, teacher.network, teacher.mask_ratio) == ("teacher", "teacher", 0.0)
    assert PfOdeParams(teacher_mask="visible").views()[1].mask_ratio == 0.2


def test_the_ratio_follows_its_schedule() -> None:
    ratio = Ramp(start=0.5, end=0.0).model_dump(by_alias=True)
    masks = [pair(step=step, mask_ratio=ratio)[0].visible for step in (0, 50, 100)]
    assert masks[0] is not None and masks[0].shape[1] == 8
    assert masks[1] is not None and masks[1].shape[1] == 12
    assert masks[2] is None


def test_labels() -> None:
    student, teacher = pair()
    assert teacher.labels is student.labels
    student, teacher = pair(teacher_label="null")
    assert (teacher.labels == 10).all()
    assert (student.labels < 10).all()


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher_noise": "same", "teacher_sigma": 0.02},
        {"teacher_offset": 0.1},
        {"teacher_noise": "below", "teacher_offset": 0.1},
    ],
)
def test_a_key_without_effect_is_rejected(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="has no effect with teacher_noise"):
        PfOdeParams.model_validate(keys)


def test_a_dumped_setting_reads_back() -> None:
    params = PfOdeParams(teacher_noise="offset", teacher_offset=0.1)
    assert PfOdeParams.model_validate(params.model_dump(mode="json", by_alias=True)) == params
    assert PfOdeParams.model_validate(PfOdeParams().model_dump(mode="json", by_alias=True)) == PfOdeParams()


def test_float32_images_stay_float32() -> None:
    schedule = EDM(EDMParams())
    draws = KeyedDraws(0, 0, torch.arange(COUNT))
    ctx = Context(step=0, total_steps=100, schedule=schedule, draws=draws, num_classes=10)
    images = batch()
    images.x0 = images.x0.float()
    views = PfOde(PfOdeParams(teacher_noise="below", shared_noise=False), grid=GRID)(images, draws, schedule, ctx)
    assert all(view.x.dtype == view.noise.dtype == torch.float32 for view in views.values())
