"""Test the predictions of the flow schedule: one sampling path, the floor on t, names and ids."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view
from sddit.interfaces import Outputs, View
from sddit.recipes.resolve import resolve
from sddit_edm.flow import Flow
from sddit_edm.loss import Denoising
from sddit_edm.params import DenoisingParams, EDMParams, FlowParams
from sddit_edm.schedule import EDM
from sddit_heun.params import HeunParams
from sddit_heun.samplers import Heun

PREDICTIONS = ("x0", "noise", "velocity")
MEAN, STD = 0.3, 0.8
SIGN = {"noise": 1.0, "data": -1.0}


def flow(**settings: Any) -> Flow:
    return Flow(FlowParams(**settings))


class Ideal(nn.Module):
    """E[x0 | x], E[noise | x] or E[noise - x0 | x] of images N(MEAN, STD^2), from x and the time that it is given."""

    def __init__(self, prediction: str, direction: str = "noise") -> None:
        super().__init__()
        self.prediction, self.direction = prediction, direction

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
        t = (c_noise if self.direction == "noise" else 1 - c_noise)[:, None, None, None]
        variance = (1 - t) ** 2 * STD**2 + t**2
        x0 = MEAN + (1 - t) * STD**2 / variance * (x - (1 - t) * MEAN)
        noise = t / variance * (x - (1 - t) * MEAN)
        return {"x0": x0, "noise": noise, "velocity": SIGN[self.direction] * (noise - x0)}[self.prediction], {}, {}


def sampled(schedule: Flow, network: nn.Module) -> Tensor:
    low, high = schedule.sigma_range
    sigmas = schedule.grid(20, kind="native", sigma_min=low, sigma_max=high, rho=7.0)
    start = sigmas[0] * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser, labels = ModelDenoiser(network, schedule, 0), torch.zeros(6, dtype=torch.int64)
    heun = Heun(HeunParams(coordinates="native"), schedule=schedule)
    return heun(lambda x, sigma: denoiser(x, sigma, labels), start, sigmas, noise=lambda step: start)


@pytest.mark.parametrize("direction", ["noise", "data"])
def test_sampling_does_not_know_the_prediction(direction: str) -> None:
    """Ideal networks of the three give the same images, and one that is read as another prediction does not."""
    images = [sampled(flow(prediction=name, direction=direction), Ideal(name, direction)) for name in PREDICTIONS]
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(images[2], images[0], rtol=0, atol=1e-10)
    for prediction, other in (("x0", "velocity"), ("noise", "x0"), ("velocity", "noise")):
        wrong = sampled(flow(prediction=prediction, direction=direction), Ideal(other, direction))
        assert (wrong - images[0]).abs().max() > 0.1


def loss(schedule: Any, view: View, outputs: Outputs, space: Any) -> Tensor:
    term = Denoising(DenoisingParams(space=space), grid=(2, 2))
    context: Any = SimpleNamespace(schedule=schedule)
    return term(context, {"view": view}, {"view": outputs})


def look(schedule: Any, t: Tensor) -> View:
    x0, noise = torch.randn(2, len(t), 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.zeros(len(t), dtype=torch.int64)
    return View(network="student", x=schedule.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_space_is_the_error_of_its_quantity_where_the_floor_does_not_act(prediction: str) -> None:
    schedule, t = flow(prediction=prediction), torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    view = look(schedule, t)
    out = denoise_view(Ideal(prediction), schedule, view)
    assert out.x0 is not None
    at = t[:, None, None, None]
    noise = (view.x - (1 - at) * out.x0) / at
    errors = {"x0": out.x0 - view.x0, "noise": noise - view.noise, "velocity": noise - out.x0 - view.noise + view.x0}
    found = {space: loss(schedule, view, out, space) for space in errors}
    for space, error in errors.items():
        torch.testing.assert_close(found[space], error.square().mean((1, 2, 3)), rtol=1e-10, atol=0)
        same = torch.allclose(loss(schedule, view, out, "native"), found[space], rtol=1e-12, atol=0)
        assert same is (space == prediction)
    assert torch.equal(loss(schedule, view, out, "eps"), found["noise"])
    assert not torch.allclose(found["x0"], found["velocity"], rtol=0.1)
    salimans = (1 - at) * noise - at * out.x0 - (1 - at) * view.noise + at * view.x0
    v = salimans.square().mean((1, 2, 3)) / (t**2 + (1 - t) ** 2)
    torch.testing.assert_close(loss(schedule, view, out, "v"), v, rtol=1e-10, atol=0)


def test_the_published_loss_divides_by_t_but_not_by_less_than_the_floor() -> None:
    """v_hat = (x - x0_hat) / max(t, 0.05), against v with the same denominator (arXiv:2511.13720)."""
    schedule, t = flow(prediction="x0"), torch.tensor([1e-6, 0.01, 0.05, 0.2, 0.999], dtype=torch.float64)
    view = look(schedule, t)
    estimate = 0.7 * view.x0 + 0.1
    floored = t.clamp(min=0.05)[:, None, None, None]
    v_hat, v = (view.x - estimate) / floored, (view.x - view.x0) / floored
    published = (v_hat - v).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(schedule, view, Outputs(raw=estimate), "velocity"), published, rtol=1e-12, atol=0)
    lower = flow(prediction="x0", t_floor=0.005)
    changed = loss(lower, view, Outputs(raw=estimate), "velocity") / published
    torch.testing.assert_close(changed[2:], torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    assert changed[:2].tolist() == pytest.approx([100.0, 25.0], rel=1e-9)


def test_the_floor_does_not_act_on_a_velocity_prediction() -> None:
    t = torch.tensor([1e-6, 0.5, 1 - 1e-6], dtype=torch.float64)
    for space in ("native", "x0", "eps", "v", "velocity"):
        one, two = flow(), flow(t_floor=0.9)
        view = look(one, t)
        outputs = Outputs(raw=0.5 * view.x)
        assert torch.equal(loss(one, view, outputs, space), loss(two, view, outputs, space))


def test_the_velocity_of_edm_is_that_of_its_straight_path() -> None:
    """With s = sigma: noise - x0 at x = x0 + s noise, so an error e of x0 is one of (1 + s) / s e."""
    schedule, sigma = EDM(EDMParams()), torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)
    view = look(schedule, sigma)
    c_out = schedule.scalings(sigma).c_out[:, None, None, None]
    raw = 0.3 * view.x
    x0_error = loss(schedule, view, Outputs(raw=raw), "x0")
    assert c_out.isfinite().all()
    torch.testing.assert_close(
        loss(schedule, view, Outputs(raw=raw), "velocity"), ((1 + sigma) / sigma) ** 2 * x0_error, rtol=1e-12, atol=0
    )


def test_every_training_time_has_finite_scalings() -> None:
    u = torch.tensor([2.0**-33, 0.5, 1 - 2.0**-33], dtype=torch.float64)
    for prediction in PREDICTIONS:
        for settings in ({}, {"time_sampling": {"density": "logit_normal", "mean": 20.0, "std": 20.0}}):
            schedule = flow(prediction=prediction, **settings)
            c = schedule.scalings(schedule.t_from_uniform(u))
            for each in (c.c_skip, c.c_out, c.c_in, c.c_noise):
                assert each.isfinite().all()
            assert (c.c_out != 0).all()


FLOW = 'extends = "digits/dit"\n[noise_schedule]\nname = "flow"\n'


def test_new_keys_change_an_id_only_when_they_are_set(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(FLOW, encoding="utf-8")

    def identity(*keys: str) -> str:
        return resolve(path, keys).run_id

    plain = identity()
    assert identity("noise_schedule.prediction=velocity", "noise_schedule.t_floor=0.05") == plain
    assert identity("loss.denoise.space=noise") == identity("loss.denoise.space=eps")
    changed = [
        identity("noise_schedule.prediction=x0"),
        identity("noise_schedule.prediction=x0", "noise_schedule.t_floor=0.1"),
        identity("backbone.patch_rank=4"),
        identity('noise_schedule.time_sampling.density="plateau"'),
        identity("loss.denoise.space=velocity"),
        identity("loss.denoise.space=eps"),
    ]
    assert len({plain, *changed}) == 1 + len(changed)


def test_keys_without_effect_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(FLOW, encoding="utf-8")
    floor, x0 = "noise_schedule.t_floor=0.1", "noise_schedule.prediction=x0"
    assert resolve(path, [floor]).idle == ("noise_schedule.t_floor",)
    assert resolve(path, [floor, x0]).idle == ()
    table = 'noise_schedule.time_sampling={density="uniform"}'
    assert resolve(path, [table, "noise_schedule.t_sampling=logit_normal"]).idle == ("noise_schedule.t_sampling",)
    edm = tmp_path / "edm.toml"
    edm.write_text('extends = "digits/dit"\n', encoding="utf-8")
    assert resolve(edm, [table, "noise_schedule.p_mean=-0.4"]).idle == ("noise_schedule.p_mean",)
    (said,) = resolve(path, ["backbone.patch_rank=4"]).warnings
    assert said == "backbone: patch_rank = 4 restricts nothing: a patch has 4 numbers, and a token 64"
    assert resolve(path, ["backbone.patch_rank=3"]).warnings == ()
