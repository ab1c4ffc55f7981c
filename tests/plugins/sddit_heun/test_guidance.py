"""No guidance, and classifier-free guidance with its interval and channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.interfaces import Prediction
from sddit_heun import CFGParams, NoGuidanceParams
from sddit_heun.guidance import ClassifierFree, NoGuidance

X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 4, 1])
NULL = torch.full((3,), 5)
SIGMA = 0.7


class Labelled:
    """A denoiser whose every output tells its label, and which counts the calls."""

    num_classes = 5

    def __init__(self, *, extras: bool = False) -> None:
        self.extras = extras
        self.calls: list[list[int]] = []

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        self.calls.append(labels.tolist())
        shift = (labels + 1.0).double()[:, None, None, None]
        x0 = torch.tanh(x * shift) / (1 + sigma)
        return Prediction(x0, x0 + 10, {"side": x0 + 20}) if self.extras else Prediction(x0)


def guided(denoiser: Labelled | None = None, *, sigma: float = SIGMA, **settings: Any) -> Prediction:
    return ClassifierFree(CFGParams(**settings))(denoiser or Labelled(), LABELS)(X, sigma)


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
def test_channels_beyond_the_chosen_stay_conditional(scale: float) -> None:
    found = guided(scale=scale, channels=3).x0
    everything = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(found[:, :3], everything[:, :3], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:, 3:], conditional[:, 3:])
    assert not torch.allclose(found, everything, rtol=1e-4)
    assert CFGParams(scale=scale, channels=3).evaluations == 2


def test_what_stands_beside_x0_is_that_of_the_labels() -> None:
    found = guided(Labelled(extras=True), scale=2.0)
    assert found.extra is not None
    assert torch.equal(found.extra, conditional + 10)
    assert torch.equal(found.heads["side"], conditional + 20)
    assert guided(scale=2.0).extra is None


def test_only_guidance_needs_the_null_label() -> None:
    assert CFGParams().needs_null_label
    assert CFGParams(scale=0.0).needs_null_label
    assert not CFGParams(scale=1.0).needs_null_label


def test_more_channels_than_there_are_is_a_problem_of_the_recipe() -> None:
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
        {"interval": [2.0, 1.0]},
        {"interval": [-1.0, 1.0]},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CFGParams(**settings)
