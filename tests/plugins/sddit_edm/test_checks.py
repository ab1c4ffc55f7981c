"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, CheckSkipped, Component, Measurement
from sddit.plugins.hookspecs import Registries
from sddit.verify.published import folders
from sddit_edm import checks, register_noise_schedules
from sddit_edm.flow import Flow
from sddit_edm.loss import Denoising
from sddit_edm.params import EDMParams
from sddit_edm.schedule import EDM

Check = Callable[[CheckContext], Iterator[Measurement]]


def schedule(name: str = "edm") -> Component[Any]:
    registries = Registries()
    register_noise_schedules(registries.noise_schedules)
    return registries.noise_schedules.get(name)


def failing(check: Check, component: Component[Any] | None = None) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    try:
        rows = list(check(CheckContext(component=component or schedule(), fixtures=folders(None))))
    except CheckSkipped as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_checks_of_noise_levels_hold(name: str) -> None:
    assert failing(checks.levels, schedule(name)) == []


@pytest.mark.parametrize(
    "check",
    [
        checks.identities,
        checks.training_levels,
        checks.training_times,
        checks.velocities,
        checks.zero_network,
        checks.weights,
        checks.guided_targets,
        checks.published_schedule,
        checks.published_loss,
    ],
)
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def scale(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """Scale every scaling of this name."""
    right = EDM.scalings

    def wrong(self: EDM, t: Tensor) -> Any:
        c = right(self, t)
        return type(c)(
            **{k: getattr(c, k) * (factor if k == name else 1) for k in ("c_skip", "c_out", "c_in", "c_noise")}
        )

    monkeypatch.setattr(EDM, "scalings", wrong)


@pytest.mark.parametrize("name", ["c_in", "c_out", "c_skip", "c_noise"])
def test_a_wrong_scaling_is_detected(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scale(monkeypatch, name, 1 + 1e-5)
    assert f"float64: identity of {name}" in failing(checks.identities)
    assert f"edm_a: precond/0.5/{name}" in failing(checks.published_schedule)


def test_nonmonotonic_noise_levels_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EDM, "sigma", lambda self, t: torch.where(t > 2, 4 - t, t).clamp(min=1e-3))
    monkeypatch.setattr(EDM, "grid", lambda self, steps, **_: [80.0, *[1.0] * (steps - 2), 0.002, 0.0])
    assert failing(checks.levels) == [
        "levels at which noise does not grow with t",
        "t recovered from its noise level, relative error",
        "grids that do not fall from sigma_max through sigma_min to 0",
    ]


def test_a_nonmonotonic_c_noise_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = EDM.scalings

    def wrong(self: EDM, t: Tensor) -> Any:
        c = right(self, t)
        return type(c)(c.c_skip, c.c_out, c.c_in, c.c_noise.abs())

    monkeypatch.setattr(EDM, "scalings", wrong)
    assert failing(checks.levels) == ["levels at which c_noise is not monotonic"]


def test_a_wrong_loss_weight_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Denoising._weight
    monkeypatch.setattr(Denoising, "_weight", lambda self, *a: 1.05 * right(self, *a))
    assert len(failing(checks.zero_network)) == 1
    assert len(failing(checks.published_loss)) == 3


def replace_scalings(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Flow, Tensor], dict[str, Tensor]]) -> None:
    """Replace some scalings of the flow schedule."""
    right = Flow.scalings
    monkeypatch.setattr(Flow, "scalings", lambda self, t: replace(right(self, t), **wrong(self, t)))


def test_a_velocity_that_overshoots_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Flow.scalings
    replace_scalings(monkeypatch, lambda self, t: {"c_out": 1.01 * right(self, t).c_out})
    assert failing(checks.velocities) == [f"{way}: c_skip x + c_out R, from x0" for way in ("noise", "data")]


def test_a_direction_without_effect_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_scalings(monkeypatch, lambda self, t: {"c_out": -t, "c_noise": self.params.time_scale * t})
    assert failing(checks.velocities) == ["data: c_skip x + c_out R, from x0", "data: c_noise, from its time"]


def test_a_variance_used_as_standard_std_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Flow.__init__

    def squared(self: Flow, params: Any) -> None:
        right(self, params.model_copy(update={"logit_std": params.logit_std**2}))

    monkeypatch.setattr(Flow, "__init__", squared)
    assert failing(checks.training_times) == ["logit_normal: quantiles of ln(t / (1 - t))"]


def test_sigma_data_used_as_std_of_ln_sigma_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = EDM.__init__

    def confused(self: EDM, params: EDMParams) -> None:
        right(self, params)
        self.p_std = self.sigma_data

    monkeypatch.setattr(EDM, "__init__", confused)
    assert failing(checks.training_levels) == ["quantiles of ln sigma, from p_mean + p_std z"]


@pytest.mark.parametrize("bound", ["max", "min"])
def test_a_missing_or_inverted_clamp_is_detected(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    def wrong(self: Denoising, schedule: Any, t: Tensor) -> Tensor:
        snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
        clamped = snr if bound == "max" else snr.clamp(min=self.params.snr_gamma)
        weighed = {"x0": torch.ones_like(t), "eps": snr, "v": snr + 1, "native": t}[self.params.space]
        c_out = schedule.scalings(t).c_out
        weight: Tensor = (clamped if self.params.weighting == "min_snr" else weighed) * c_out**2
        return weight

    monkeypatch.setattr(Denoising, "_weight", wrong)
    assert failing(checks.weights) == [f"{name}: weight of min_snr, relative" for name in ("edm", "flow")]


def test_a_target_with_a_gradient_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    found = failing(checks.guided_targets)
    assert [what for what in found if what.startswith("edm")] == [
        "edm: gradient of the target to the head",
        "edm: gradient to the output, as if the target were fixed, relative",
    ]


def test_a_target_moved_towards_the_head_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Denoising.__init__

    def reversed_sign(self: Denoising, params: Any, **more: Any) -> None:
        right(self, params.model_copy(update={"target_scale": -params.target_scale}), **more)

    monkeypatch.setattr(Denoising, "__init__", reversed_sign)
    assert "flow: loss of D_i + (x0 - D_i) / (1 - w), relative" in failing(checks.guided_targets)


def test_a_loss_that_ignores_its_head_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Denoising.__init__

    def final(self: Denoising, params: Any, **more: Any) -> None:
        right(self, params.model_copy(update={"head": ""}), **more)

    monkeypatch.setattr(Denoising, "__init__", final)
    assert failing(checks.guided_targets) == [
        f"{name}: loss of a head, from that of its output alone" for name in ("edm", "flow")
    ]
