"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from torch import Tensor

from sddit.interfaces import CheckContext, CheckSkipped, Component, Denoise, Measurement, Prediction
from sddit.plugins.hookspecs import Registries
from sddit.verify.published import folders
from sddit_heun import checks, register_guidances, register_samplers
from sddit_heun.guidance import Autoguidance, ClassifierFree, Internal, is_within
from sddit_heun.samplers import Euler, Heun

Check = Callable[[CheckContext], Iterator[Measurement]]


def component(name: str) -> Component[Any]:
    registries = Registries()
    register_samplers(registries.samplers)
    register_guidances(registries.guidances)
    return registries.samplers.get(name) if name in ("euler", "heun") else registries.guidances.get(name)


def failing(check: Check, name: str) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    rows: list[Measurement] = []
    try:
        rows.extend(check(CheckContext(component=component(name), fixtures=folders(None))))
    except CheckSkipped as absent:
        if not rows:
            pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize(
    ("check", "name"),
    [
        *[(check, name) for check in (checks.convergence, checks.trajectory) for name in ("euler", "heun")],
        (checks.churned, "heun"),
        (checks.published_runs, "heun"),
        (checks.linear, "cfg"),
        (checks.power_cosine, "cfg"),
        (checks.published_scales, "cfg"),
        (checks.internal, "internal"),
        (checks.autoguided, "autoguidance"),
    ],
)
def test_checks_hold(check: Check, name: str) -> None:
    assert failing(check, name) == []


def test_a_corrector_without_effect_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heun, "step", Euler.step)
    assert failing(checks.convergence, "heun") == [
        "order of convergence, 128 to 256 steps, from 2",
        "order of convergence, 256 to 512 steps, from 2",
        "error after 256 steps",
    ]
    assert failing(checks.trajectory, "heun") == ["maximum distance from the exact flow, relative"]
    assert "edm_a: heun/18/final" in failing(checks.published_runs, "heun")


def test_a_last_step_that_is_too_short_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Euler.step

    def short(self: Euler, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Any) -> Tensor:
        return right(self, denoise, x, [*sigmas[:-1], sigmas[-1] or sigmas[-2] / 2], i, noise)

    monkeypatch.setattr(Euler, "step", short)
    assert failing(checks.trajectory, "euler") == ["last step, difference from the denoised image"]


def test_churn_without_noise_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Euler.churn

    def quiet(self: Euler, x: Tensor, sigmas: Sequence[float], i: int, noise: Any) -> tuple[Tensor, float]:
        return x, right(self, x, sigmas, i, noise)[1]

    monkeypatch.setattr(Euler, "churn", quiet)
    assert "variance of the samples, from the data's in standard errors" in failing(checks.churned, "heun")


def test_guidance_with_a_wrong_scale_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ClassifierFree._combine
    monkeypatch.setattr(ClassifierFree, "_combine", lambda self, both, n, scale: right(self, both, n, scale + 1e-6))
    assert failing(checks.linear, "cfg") == ["scale 1.5, from the line", "scale 4, from the line"]


def test_guidance_ignoring_its_interval_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassifierFree, "scale_at", lambda self, sigma: self.params.scale)
    assert failing(checks.linear, "cfg") == ["outside the interval, from the conditional prediction"]


def test_a_scale_at_a_wrong_time_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ClassifierFree._noise_fraction
    monkeypatch.setattr(
        ClassifierFree, "_noise_fraction", lambda self, sigma: right(self, sigma) - 0.01
    )  # 1.01 - t / T
    assert failing(checks.power_cosine, "cfg") == [
        "power 4, t / T = 0: scale, from 4",
        "power 4, t / T = 0.5: scale, from 1.029",
        "power 1, t / T = 0: scale, from 4",
        "power 1, t / T = 0.5: scale, from 2.5",
        "power 1, t / T = 1: scale, from 1",
    ]
    assert "mdtv2_a: cfg_4.0_pow_4.0_effective_scale" in failing(checks.published_scales, "cfg")


def wrong_rule(monkeypatch: pytest.MonkeyPatch, rule: type[Any], change: Callable[[Any, Any], Prediction]) -> None:
    """Replace what a rule returns by `change(guided, D)`."""
    right = rule.__call__

    def wrong(self: Any, denoiser: Any, labels: Any) -> Denoise:
        denoise = right(self, denoiser, labels)
        return lambda x, sigma: change(denoise(x, sigma), denoiser(x, sigma, labels))

    monkeypatch.setattr(rule, "__call__", wrong)


def test_internal_guidance_that_rounds_at_scale_1_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_rule(monkeypatch, Internal, lambda guided, own: Prediction(own.x0 + (guided.x0 * 3 - own.x0 * 3) / 3 + 1e-15))
    assert failing(checks.internal, "internal") == [
        "outside the interval: values that differ from D",
        "scale 1: values of samples that differ from the plain sampler's",
    ]


def test_internal_guidance_after_cfg_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifier-free guidance of D alone, and then away from the head for the labels."""

    def swapped(self: Internal, denoiser: Any, labels: Any) -> Denoise:
        def denoise(x: Tensor, sigma: float) -> Prediction:
            found = self.outer(denoiser, labels)(x, sigma)
            if not is_within(sigma, self.params.interval):
                return found
            inner = denoiser(x, sigma, labels).heads["inner"]
            return Prediction(found.x0 if self.params.scale == 1 else inner + self.params.scale * (found.x0 - inner))

        return denoise

    monkeypatch.setattr(Internal, "__call__", swapped)
    assert failing(checks.internal, "internal") == ["with cfg, from both predictions guided, then combined"]


def test_autoguidance_towards_the_weaker_network_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_rule(monkeypatch, Autoguidance, lambda guided, own: Prediction(2 * own.x0 - guided.x0))
    assert [what for what in failing(checks.autoguided, "autoguidance") if "same network" in what] == []
    assert [what for what in failing(checks.autoguided, "autoguidance") if "extrapolation" in what] == [
        f"scale {scale}, from the extrapolation" for scale in ("0", "1.7", "2.5")
    ]


def test_autoguidance_with_another_label_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Autoguidance.__init__

    def unconditional(self: Autoguidance, params: Any, *, schedule: Any, second: Any) -> None:
        right(self, params, schedule=schedule, second=lambda x, sigma, labels: second(x, sigma, 0 * labels + 2))

    monkeypatch.setattr(Autoguidance, "__init__", unconditional)
    found = failing(checks.autoguided, "autoguidance")
    assert "scale 2.5: values that the same network changes" in found
    assert "scale 2.5: evaluations of the weaker network for other labels" in found
