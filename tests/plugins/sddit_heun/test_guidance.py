"""Test no guidance, and classifier-free guidance with its shape, interval and channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.interfaces import Path, Prediction
from sddit.testing import fixtures
from sddit_heun.guidance import ClassifierFree, NoGuidance, PathDrop
from sddit_heun.params import CFGParams, NoGuidanceParams, PathDropParams

X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 4, 1])
NULL = torch.full((3,), 5)
SIGMA = 0.7


class Labelled:
    """A denoiser whose outputs identify the label and the path, and which counts calls."""

    num_classes = 5

    def __init__(self, *, extras: bool = False) -> None:
        self.extras = extras
        self.calls: list[list[int]] = []
        self.paths: list[Path] = []

    def __call__(self, x: Tensor, sigma: float, labels: Tensor, *, path: Path = "full") -> Prediction:
        self.calls.append(labels.tolist())
        self.paths.append(path)
        x = x + 0.3 if path == "dense" else x
        shift = (labels + 1.0).double()[:, None, None, None]
        x0 = torch.tanh(x * shift) / (1 + sigma)
        return Prediction(x0, x0 + 10, {"side": x0 + 20}) if self.extras else Prediction(x0)


class ThousandSteps:
    """A schedule of a thousand times t, which are also noise levels; it snaps each level to half of it."""

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma / 2

    def noise_fraction(self, t: Tensor) -> Tensor:
        return t / 1000


def cfg(schedule: Any = None, **settings: Any) -> ClassifierFree:
    return ClassifierFree(CFGParams(**settings), schedule=schedule or fixtures.schedule())


def guided(denoiser: Labelled | None = None, *, sigma: float = SIGMA, **settings: Any) -> Prediction:
    return cfg(**settings)(denoiser or Labelled(), LABELS)(X, sigma)


conditional = Labelled()(X, SIGMA, LABELS).x0
unconditional = Labelled()(X, SIGMA, NULL).x0


def test_no_guidance_is_the_conditional_prediction() -> None:
    denoiser = Labelled()
    assert torch.equal(NoGuidance(NoGuidanceParams())(denoiser, LABELS)(X, SIGMA).x0, conditional)
    assert denoiser.calls == [LABELS.tolist()]
    assert (NoGuidanceParams().evaluations, NoGuidanceParams().needs_null_label) == (1, False)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 1.5, 4.0])
def test_guidance_is_linear_in_its_scale(scale: float) -> None:
    expected = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(guided(scale=scale).x0, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(guided(scale=scale + 0.01).x0, expected, rtol=1e-4)


def test_the_two_ends_are_exact_and_cost_one_call() -> None:
    for scale, expected, labels in ((1.0, conditional, LABELS), (0.0, unconditional, NULL)):
        denoiser = Labelled()
        assert torch.equal(guided(denoiser, scale=scale).x0, expected)
        assert denoiser.calls == [labels.tolist()]
        assert CFGParams(scale=scale).evaluations == 1


def test_both_predictions_come_from_one_doubled_batch() -> None:
    denoiser = Labelled()
    guided(denoiser, scale=2.0)
    assert denoiser.calls == [[*LABELS.tolist(), *NULL.tolist()]]
    assert CFGParams(scale=2.0).evaluations == 2


@pytest.mark.parametrize(("sigma", "acts"), [(0.19, False), (0.2, True), (0.7, True), (1.6, True), (1.61, False)])
def test_outside_its_interval_it_is_conditional(sigma: float, acts: bool) -> None:
    for scale in (0.0, 3.0):
        denoiser = Labelled()
        found = guided(denoiser, sigma=sigma, scale=scale, interval=[0.2, 1.6]).x0
        plain = Labelled()(X, sigma, LABELS).x0
        assert torch.equal(found, plain) is not acts
        assert (denoiser.calls == [LABELS.tolist()]) is not acts


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_other_channels_stay_conditional(scale: float) -> None:
    found = guided(scale=scale, channels=3).x0
    everything = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(found[:, :3], everything[:, :3], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:, 3:], conditional[:, 3:])
    assert not torch.allclose(found, everything, rtol=1e-4)
    assert CFGParams(scale=scale, channels=3).evaluations == 2


def test_other_outputs_are_those_for_the_labels() -> None:
    found = guided(Labelled(extras=True), scale=2.0)
    assert found.extra is not None
    assert torch.equal(found.extra, conditional + 10)
    assert torch.equal(found.heads["side"], conditional + 20)
    assert guided(scale=2.0).extra is None


# A scale that grows as noise falls

MDT = [("cfg_4.0_pow_4.0", 4.0, 4.0), ("cfg_3.8_pow_0.01", 3.8, 0.01)]


@pytest.mark.parametrize("name", ["mdtv1_a", "mdtv2_a"])
@pytest.mark.parametrize(("stored", "scale", "power"), MDT)
def test_the_scales_of_the_published_implementation(
    published: Callable[[str], Any], name: str, stored: str, scale: float, power: float
) -> None:
    numbers = published(name)
    t = numbers.inputs["cfg_t"][:3].tolist()
    expected = numbers.outputs[f"{stored}_effective_scale"].tolist()

    def found(**settings: float) -> list[float]:
        rule = cfg(ThousandSteps(), shape="power_cosine", **settings)
        return [rule.scale_at(2.0 * each) for each in t]

    assert found(scale=scale, power=power) == pytest.approx(expected, rel=1e-9)
    assert found(scale=scale + 1e-4, power=power) != pytest.approx(expected, rel=1e-9)
    assert found(scale=scale, power=power * 1.001) != pytest.approx(expected, rel=1e-9)


def power_cosine(fraction: float, scale: float, power: float) -> float:
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - fraction) ** power)) / 2


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.7, 5.0])
def test_the_scale_follows_the_noise_fraction(sigma: float, scale: float) -> None:
    """The toy schedule's noise fraction is even in ln sigma between 0.002 and 80."""
    expected = power_cosine(math.log(sigma / 0.002) / math.log(80 / 0.002), scale, 2.0)
    found = guided(sigma=sigma, scale=scale, shape="power_cosine", power=2.0).x0
    c, u = Labelled()(X, sigma, LABELS).x0, Labelled()(X, sigma, NULL).x0
    torch.testing.assert_close(found, u + expected * (c - u), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, u + (expected + 0.01) * (c - u), rtol=1e-6)


def test_power_cosine_goes_from_conditional_to_the_full_scale() -> None:
    denoiser = Labelled()
    assert torch.equal(guided(denoiser, sigma=80.0, scale=3.0, shape="power_cosine").x0, Labelled()(X, 80.0, LABELS).x0)
    assert denoiser.calls == [LABELS.tolist()]
    scales = [cfg(scale=3.0, shape="power_cosine").scale_at(sigma) for sigma in (80.0, 5.0, 0.3, 0.002)]
    assert (scales[0], scales[-1]) == (1.0, 3.0)
    assert scales == sorted(scales)
    assert cfg(scale=3.0).scale_at(80.0) == 3.0


def test_interval_and_channels_apply_to_every_shape() -> None:
    settings: dict[str, Any] = {"scale": 3.0, "shape": "power_cosine", "power": 0.5}
    outside = guided(sigma=SIGMA, interval=[1.0, 2.0], **settings).x0
    assert torch.equal(outside, conditional)
    some, every = guided(channels=3, **settings).x0, guided(**settings).x0
    assert torch.equal(some[:, :3], every[:, :3])
    assert torch.equal(some[:, 3:], conditional[:, 3:])
    assert not torch.allclose(every[:, 3:], conditional[:, 3:], rtol=1e-4)


def test_evaluations_of_every_shape() -> None:
    assert CFGParams(scale=0.0, shape="power_cosine").evaluations == 2  # conditional at the highest noise
    assert CFGParams(scale=1.0, shape="power_cosine").evaluations == 1
    assert CFGParams(scale=2.0, shape="power_cosine").evaluations == 2
    assert not CFGParams(scale=1.0, shape="power_cosine").needs_null_label


# The dense path


def path_dropped(denoiser: Labelled | None = None, *, sigma: float = SIGMA, **settings: Any) -> Prediction:
    return PathDrop(PathDropParams(**settings))(denoiser or Labelled(), LABELS)(X, sigma)


@pytest.mark.parametrize(("label", "given"), [("null", NULL), ("same", LABELS)])
@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_path_drop_guidance_leads_away_from_the_dense_path(label: str, given: Tensor, scale: float) -> None:
    denoiser = Labelled(extras=True)
    found, dense = path_dropped(denoiser, scale=scale, label=label), Labelled()(X, SIGMA, given, path="dense").x0
    torch.testing.assert_close(found.x0, (1 - scale) * dense + scale * conditional, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found.x0, (1 - scale) * unconditional + scale * conditional, rtol=1e-4) or scale == 1
    assert (denoiser.calls, denoiser.paths) == ([LABELS.tolist(), given.tolist()], ["full", "dense"])
    assert found.extra is not None and torch.equal(found.extra, conditional + 10)
    params = PathDropParams(scale=scale, label=label)
    assert (params.evaluations, params.dense_evaluations) == (2, 1)
    assert params.needs_null_label is (label == "null")


def test_without_scale_or_outside_its_interval_there_is_no_dense_path() -> None:
    for settings in ({"scale": 1.0}, {"scale": 3.0, "interval": [1.0, 2.0]}):
        denoiser = Labelled()
        assert torch.equal(path_dropped(denoiser, **settings).x0, conditional)
        assert denoiser.paths == ["full"]
    assert (PathDropParams(scale=1.0).evaluations, PathDropParams(scale=1.0).needs_null_label) == (1, False)
    assert path_dropped(denoiser, scale=3.0, interval=[0.5, 2.0]).x0.ne(conditional).any()
    with pytest.raises(ValidationError, match="0 <= low < high"):
        PathDropParams(interval=[2.0, 1.0])


# Interface


def test_only_guidance_needs_the_null_label() -> None:
    assert CFGParams().needs_null_label
    assert CFGParams(scale=0.0).needs_null_label
    assert not CFGParams(scale=1.0).needs_null_label


def test_too_many_channels_are_a_recipe_error() -> None:
    recipe: Any = SimpleNamespace(facts=SimpleNamespace(image=(3, 8, 8)))
    assert [problem.code for problem in CFGParams(channels=4).check(recipe)] == ["SD-R108"]
    assert [*CFGParams(channels=3).check(recipe), *CFGParams().check(recipe)] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": -1.0},
        {"scale": float("nan")},
        {"channels": 0},
        {"channels": "some"},
        {"shape": "cosine"},
        {"power": 0.0},
        {"interval": [2.0, 1.0]},
        {"interval": [-1.0, 1.0]},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CFGParams(**settings)
