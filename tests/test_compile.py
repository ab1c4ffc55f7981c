"""`train.compile = true` changes only the speed, on a recipe of two losses whose gradient ratios run backward twice."""

from __future__ import annotations

import shutil

import pytest
import torch

from sddit.recipes.resolve import resolve
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode
from sddit.training.step_metrics import StepResult

TINY = (
    "train.steps=2",
    "train.batch=4",
    "optimizer.warmup=1",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.depth=1",
    "backbone.decoder.depth=1",
    "backbone.decoder.width=16",
    "backbone.decoder.heads=2",
    "loss.discrimination.prototypes=16",
    "loss.discrimination.hidden=12",
    "loss.discrimination.bottleneck=8",
)


def trained(device: str, *overrides: str) -> tuple[list[StepResult], torch.Tensor]:
    """Return the results of two steps of a tiny quickstart, and all its weights after them."""
    session = build_session(resolve("quickstart", [*TINY, *overrides]), torch.device(device))
    with training_mode(session):
        results = [take_step(session) for _ in range(session.total_steps)]
    return results, torch.cat([p.detach().double().flatten().cpu() for p in session.student.parameters()])


def agree(device: str, precision: str, tolerance: float) -> None:
    """Compare losses, gradient norm and ratio, and weights with and without compilation; another seed differs more."""
    plain, weights = trained(device, f"train.precision={precision}")
    compiled, compiled_weights = trained(device, f"train.precision={precision}", "train.compile=true")
    for one, two in zip(plain, compiled, strict=True):
        assert one.metrics.losses.keys() == two.metrics.losses.keys() == {"denoise", "discrimination"}
        torch.testing.assert_close(two.metrics.losses, one.metrics.losses, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(two.grad_norm, one.grad_norm, rtol=tolerance, atol=tolerance)
        assert two.metrics.ratios == pytest.approx(one.metrics.ratios, rel=tolerance)
    assert plain[0].metrics.ratios.keys() == {"discrimination"}  # measured at the first step: two backward passes
    assert (compiled_weights - weights).norm() / weights.norm() < tolerance
    _, others = trained(device, f"train.precision={precision}", "seed=1")
    assert (others - weights).norm() / weights.norm() > 10 * tolerance


# both come from torch's compiler: it uses torch's deprecated script_method, and reads inner gradients
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
def test_compiled_training_is_the_same_on_a_cpu() -> None:
    agree("cpu", "fp32", 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_compiled_training_is_the_same_on_cuda(precision: str, tolerance: float) -> None:
    agree("cuda", precision, tolerance)
