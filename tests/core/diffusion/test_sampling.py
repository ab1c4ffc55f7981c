"""The one implementation of preconditioning, and sampling with keyed noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view
from sddit.diffusion.sampling import noise_levels, sample
from sddit.diffusion.sigma_grids import sigma_grid
from sddit.errors import SdditError
from sddit.interfaces import Denoise, Prediction, SamplerParams, Scalings, Tap, View
from sddit.testing.toys.components import ToyGuidance, ToySampler, ToySchedule
from sddit.testing.toys.params import ToyGuidanceParams, ToySamplerParams, ToyScheduleParams

IMAGE = (2, 4, 4)
CLASSES = 3
SIGMAS = sigma_grid(8, kind="edm", sigma_min=0.02, sigma_max=20.0, rho=7.0)
SCHEDULE = ToySchedule(ToyScheduleParams())
EULER = ToySampler(ToySamplerParams(), schedule=SCHEDULE)
PLAIN = ToyGuidance(ToyGuidanceParams(), schedule=SCHEDULE)


class Small(nn.Module):
    """Two dense layers over the pixels, the noise level and the label."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.label = nn.Embedding(CLASSES + 1, 32)
        self.inner, self.outer = nn.Linear(math.prod(IMAGE) + 1, 32), nn.Linear(32, math.prod(IMAGE))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor, *, taps: Sequence[Tap] = (), **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], dict[Tap, Any]]:
        hidden = self.inner(torch.cat([x.flatten(1), c_noise[:, None]], dim=1)) + self.label(labels)
        return self.outer(hidden.tanh()).view_as(x), {}, dict.fromkeys(taps, hidden)


def small_denoiser(dtype: torch.dtype = torch.float64) -> ModelDenoiser:
    return ModelDenoiser(Small().to(dtype), ToySchedule(ToyScheduleParams()), CLASSES)


class Flow:
    """x_t = (1 - t) x0 + t eps with a network that gives eps - x0: alpha is not 1 here."""

    outputs = 1
    sigma_range = (0.01, 100.0)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma

    def scalings(self, t: Tensor) -> Scalings:
        return Scalings(torch.ones_like(t), -t, torch.ones_like(t), t)


class IdealFlowNetwork(nn.Module):
    """E[eps - x0 | x_t] for data N(mean, std^2), from x_t and t alone."""

    mean, std = 0.4, 0.7

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any
    ) -> tuple[Tensor, dict[Any, Any], dict[Any, Any]]:
        t = c_noise[:, None, None, None]
        gain = (1 - t) * self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        x0 = self.mean + gain * (x - (1 - t) * self.mean)
        return (x - x0) / t, {}, {}


class Recorder(nn.Module):
    """Notes what it is given, and gives `channels` channels of ones."""

    def __init__(self, channels: int, heads: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, dtype=dtype))
        self.channels, self.heads = channels, heads
        self.seen: dict[str, Any] = {}

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor, *, taps: Sequence[Tap] = (), output: bool = True, **rest: Any
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Any]]:
        self.seen = {
            "x": x,
            "c_noise": c_noise,
            "training": self.training,
            "product": self.weight @ self.weight,
            **rest,
        }
        read = dict.fromkeys(taps, "tokens")
        if not output:
            return None, {}, read
        raw = x.new_ones(len(x), self.channels, *x.shape[2:])
        return raw, dict.fromkeys(self.heads, 2 * raw[:, : x.shape[1]]), read


def view_of(x: Tensor, t: Tensor, **rest: Any) -> View:
    return View(network="student", x=x, t=t, labels=torch.zeros(len(x), dtype=torch.int64), x0=x, noise=x, **rest)


def images(seed: int = 0, *, count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def take(
    denoiser: Any, ids: Sequence[int], *, batch: int = 4, seed: int = 5, sampler: Any = EULER, **rest: Any
) -> Tensor:
    labels = torch.tensor([i % CLASSES for i in ids])
    settings: dict[str, Any] = {"guidance": PLAIN, "sigmas": SIGMAS, "image": IMAGE, "labels": labels, **rest}
    return sample(denoiser, image_ids=ids, seed=seed, sampler=sampler, batch=batch, **settings)


# --- preconditioning ------------------------------------------------------------------------------------------------


def test_a_view_is_preconditioned_sample_by_sample() -> None:
    network, schedule = Small().double(), ToySchedule(ToyScheduleParams())
    x, t = images(), torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    view = view_of(x, t)
    out = denoise_view(network, schedule, view, taps=(1, "encoder"))
    c_in = (1 + t**2).rsqrt()[:, None, None, None]
    raw, _, _ = network(c_in * x, t.log() / 4, view.labels)
    torch.testing.assert_close(out.raw, raw, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(out.x0, raw, rtol=1e-13, atol=1e-13)  # the toy schedule has c_skip 0 and c_out 1
    assert set(out.taps) == {1, "encoder"}
    assert out.extra is None
    wrong = denoise_view(network, schedule, view_of(x, t.flip(0)))
    assert not torch.allclose(wrong.raw, raw, rtol=1e-3)


def test_training_and_sampling_see_one_denoiser() -> None:
    denoiser = small_denoiser()
    x, sigma = images(), 0.7
    trained = denoise_view(
        denoiser.backbone, denoiser.schedule, view_of(x, torch.full((3,), sigma, dtype=torch.float64))
    )
    sampled = denoiser(x, sigma, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(trained.x0, sampled.x0)
    assert not torch.equal(trained.x0, denoiser(x, sigma * 1.01, torch.zeros(3, dtype=torch.int64)).x0)


def ideal(x: Tensor, sigma: float, mean: float = IdealFlowNetwork.mean, std: float = IdealFlowNetwork.std) -> Tensor:
    """D(x; sigma) for data N(mean, std^2)."""
    return mean + std**2 / (std**2 + sigma**2) * (x - mean)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_every_schedule_is_seen_in_variance_exploding_coordinates(sigma: float) -> None:
    x = sigma * images()
    labels = torch.zeros(3, dtype=torch.int64)
    found = ModelDenoiser(IdealFlowNetwork(), Flow(), 0)(x, sigma, labels).x0
    torch.testing.assert_close(found, ideal(x, sigma), rtol=1e-12, atol=1e-12)

    class Forgetful(Flow):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    wrong = ModelDenoiser(IdealFlowNetwork(), Forgetful(), 0)(x, sigma, labels).x0
    assert not torch.allclose(wrong, ideal(x, sigma), rtol=1e-4, atol=1e-4)


def test_a_level_is_snapped_to_one_that_was_trained() -> None:
    class Coarse(Flow):
        def snap(self, sigma: Tensor) -> Tensor:
            return sigma.round()

    network = Recorder(IMAGE[0], dtype=torch.float64)
    x = images()
    ModelDenoiser(network, Coarse(), 0)(x, 3.2, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(network.seen["c_noise"], torch.full((3,), 0.75, dtype=torch.float64))  # t of sigma = 3
    torch.testing.assert_close(network.seen["x"], x / 4)  # alpha(t) = 1 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_runs_in_its_own_dtype_and_the_rest_in_float64(dtype: torch.dtype) -> None:
    network = Recorder(IMAGE[0], dtype=dtype)
    prediction = ModelDenoiser(network, Flow(), 0)(images(), 1.0, torch.zeros(3, dtype=torch.int64))
    assert network.seen["x"].dtype == network.seen["c_noise"].dtype == network.seen["product"].dtype == dtype
    assert prediction.x0.dtype == torch.float64


def test_autocast_reaches_the_network_alone() -> None:
    network = Recorder(IMAGE[0])
    t = torch.full((3,), 0.5)
    out = denoise_view(network, Flow(), view_of(images(dtype=torch.float32), t), autocast=torch.bfloat16)
    assert network.seen["product"].dtype == torch.bfloat16
    assert network.seen["c_noise"].dtype == torch.float32
    assert out.raw.dtype == out.x0.dtype == torch.float32
    denoise_view(network, Flow(), view_of(images(dtype=torch.float32), t))
    assert network.seen["product"].dtype == torch.float32


def test_the_autocast_of_the_caller_does_not_change_samples() -> None:
    network = Recorder(IMAGE[0])
    with torch.autocast("cpu", torch.bfloat16):
        ModelDenoiser(network, Flow(), 0)(images(), 1.0, torch.zeros(3, dtype=torch.int64))
        assert network.seen["product"].dtype == next(network.parameters()).dtype
        denoise_view(network, Flow(), view_of(images(dtype=torch.float32), torch.full((3,), 0.5)))
        assert network.seen["product"].dtype == torch.bfloat16  # the control


def test_further_channels_and_heads_are_kept_apart() -> None:
    class Learned(Flow):
        outputs = 2

    x = images()
    network = Recorder(2 * IMAGE[0], heads=("side",), dtype=torch.float64)
    prediction = ModelDenoiser(network, Learned(), 0)(x, 1.0, torch.zeros(3, dtype=torch.int64))
    native = x / 2
    torch.testing.assert_close(prediction.x0, native - 0.5)
    torch.testing.assert_close(prediction.extra, torch.ones_like(x))
    torch.testing.assert_close(prediction.heads["side"], native - 1.0)


def test_what_a_view_hides_reaches_the_network() -> None:
    network = Recorder(IMAGE[0], dtype=torch.float64)
    visible, groups = torch.tensor([[0, 2]] * 3), torch.tensor([[0, 0, 1, 1]] * 3)
    view = view_of(images(), torch.full((3,), 0.5, dtype=torch.float64), visible=visible, groups=groups)
    out = denoise_view(network, Flow(), view, taps=(1,), output=False)
    assert network.seen["visible"] is visible
    assert network.seen["groups"] is groups
    assert out.raw is out.x0 is None
    assert out.taps == {1: "tokens"}


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_evaluated_and_left_as_it_was(training: bool) -> None:
    network = Recorder(IMAGE[0], dtype=torch.float64).train(training)
    ModelDenoiser(network, Flow(), 0)(images(), 1.0, torch.zeros(3, dtype=torch.int64))
    assert network.seen["training"] is False
    assert network.training is training


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_same_images_at_any_batch_size_and_order(dtype: torch.dtype, tolerance: float) -> None:
    denoiser, ids = small_denoiser(dtype), list(range(8))
    at_once = take(denoiser, ids, batch=8)
    for batch in (1, 3):
        torch.testing.assert_close(take(denoiser, ids, batch=batch), at_once, rtol=0, atol=tolerance)
    torch.testing.assert_close(take(denoiser, ids[::-1], batch=3).flip(0), at_once, rtol=0, atol=tolerance)
    torch.testing.assert_close(take(denoiser, [6]), at_once[6:7], rtol=0, atol=tolerance)


def test_other_seeds_and_other_images_differ() -> None:
    denoiser = small_denoiser()
    first = take(denoiser, [0, 3])
    assert (first[0] - first[1]).abs().max() > 1e-3  # both of class 0
    assert (take(denoiser, [0, 3], seed=6) - first).abs().amax((1, 2, 3)).min() > 1e-3


def test_images_made_in_float32_are_those_made_in_float64() -> None:
    torch.testing.assert_close(
        take(small_denoiser(torch.float32), [1, 2]), take(small_denoiser(), [1, 2]), rtol=1e-4, atol=1e-4
    )


class Listener:
    """A sampler that notes what it is given and returns x."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        noise: Callable[[int], Tensor],
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        self.x, self.fresh = x, [noise(step) for step in range(3)]
        return x


def test_noise_is_keyed_by_image_and_step() -> None:
    listener = Listener()
    x = take(small_denoiser(), [4, 9], sampler=listener)
    ids = torch.tensor([4, 9])
    start = KeyedDraws(5, 0, ids).normal("sample", IMAGE)
    assert listener.x.dtype == torch.float64
    assert torch.equal(x, start.double() * SIGMAS[0])
    drawn = [start, *listener.fresh]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not torch.isclose(one, other).any()
    both = listener.fresh[1]
    take(small_denoiser(), [9], sampler=listener)
    assert torch.equal(listener.fresh[1], both[1:])


def test_samples_of_an_ideal_network_are_distributed_as_the_data() -> None:
    denoiser = ModelDenoiser(IdealFlowNetwork(), Flow(), 0)
    count = 1000 * math.prod(IMAGE)
    sigmas = sigma_grid(128, kind="edm", sigma_min=0.01, sigma_max=100.0, rho=7.0)
    x = sample(
        denoiser,
        labels=torch.zeros(1000, dtype=torch.int64),
        image_ids=range(1000),
        seed=0,
        sampler=EULER,
        guidance=PLAIN,
        sigmas=sigmas,
        image=IMAGE,
        batch=400,
    )
    mean, std = IdealFlowNetwork.mean, IdealFlowNetwork.std
    # Euler's method maps this Gaussian to one whose standard deviation follows from each step's gain.
    gain = math.prod(1 + (low / high - 1) * high**2 / (std**2 + high**2) for high, low in pairwise(sigmas))
    expected = gain * sigmas[0]
    assert abs(x.std().item() - expected) < 5 * expected / math.sqrt(2 * count)
    assert abs(expected / std - 1) < 0.05
    assert abs(x.mean().item() - mean * (1 - gain)) < 5 * expected / math.sqrt(count)


def test_no_graph_is_kept_and_every_step_is_reported() -> None:
    steps: list[int] = []
    x = take(small_denoiser(), [0, 1, 2], batch=2, callback=lambda step, _: steps.append(step))
    assert not x.requires_grad
    assert steps == [*range(8), *range(8)]


@pytest.mark.parametrize(("label", "classes"), [(-1, 3), (4, 3), (1, 0)])
def test_a_label_that_does_not_exist_is_refused(label: int, classes: int) -> None:
    denoiser = ModelDenoiser(IdealFlowNetwork(), Flow(), classes)
    with pytest.raises(SdditError) as caught:
        take(denoiser, [0], labels=torch.tensor([label]))
    assert [problem.code for problem in caught.value.problems] == ["SD-T904"]


def test_the_null_label_is_one_that_exists() -> None:
    take(ModelDenoiser(IdealFlowNetwork(), Flow(), 0), [0], labels=torch.tensor([0]))
    conditional, unconditional = (take(small_denoiser(), [0], labels=torch.tensor([label])) for label in (0, CLASSES))
    assert not torch.allclose(conditional, unconditional)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_stops_everything(value: float) -> None:
    class Broken(ModelDenoiser):
        def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
            return Prediction(torch.where(labels[:, None, None, None] == 2, value, x))

    broken = Broken(IdealFlowNetwork(), Flow(), CLASSES)
    with pytest.raises(SdditError, match="1 of 4, image 2 first") as caught:
        take(broken, [0, 1, 2, 3])
    assert caught.value.problems[0].code == "SD-T905"
    assert take(broken, [0, 1, 3]).isfinite().all()


# --- levels ---------------------------------------------------------------------------------------------------------


def test_levels_come_from_the_settings_or_else_the_schedule() -> None:
    schedule = ToySchedule(ToyScheduleParams(t_min=0.05, t_max=30.0))
    own = noise_levels(SamplerParams(steps=5), schedule)
    assert (own[0], own[4], own[5], len(own)) == (pytest.approx(30.0), pytest.approx(0.05), 0.0, 6)
    asked = noise_levels(SamplerParams(steps=3, sigma_min=0.1, sigma_max=10.0, grid="log"), schedule)
    assert asked == pytest.approx([10.0, 1.0, 0.1, 0.0])


def test_levels_that_do_not_fall_are_refused() -> None:
    with pytest.raises(SdditError) as caught:
        noise_levels(SamplerParams(sigma_min=30.0), ToySchedule(ToyScheduleParams()))
    assert caught.value.problems[0].code == "SD-T902"


def test_the_edm_grid_is_equation_5() -> None:
    low, high, rho, n = 0.002, 80.0, 7.0, 40
    a, b = high ** (1 / rho), low ** (1 / rho)
    equation = [(a + i / (n - 1) * (b - a)) ** rho for i in range(n)]
    grid = sigma_grid(n, kind="edm", sigma_min=low, sigma_max=high, rho=rho)
    assert grid == pytest.approx([*equation, 0.0], rel=1e-12)
    assert (grid[0], grid[-2]) == (high, low)  # exactly, which the equation alone does not give
    assert sigma_grid(n, kind="edm", sigma_min=low, sigma_max=high, rho=7.1) != pytest.approx(grid, rel=1e-6)


def test_the_log_grid_is_the_limit_of_large_rho() -> None:
    log = sigma_grid(9, kind="log", sigma_min=0.01, sigma_max=100.0, rho=1.0)
    assert log == pytest.approx([*(10.0 ** (2 - i / 2) for i in range(9)), 0.0], rel=1e-12)
    assert sigma_grid(9, kind="edm", sigma_min=0.01, sigma_max=100.0, rho=1e9) == pytest.approx(log, rel=1e-7)


@given(
    steps=st.integers(2, 300),
    kind=st.sampled_from(["edm", "log"]),
    low=st.floats(1e-4, 1.0),
    ratio=st.floats(1.01, 1e6),
    rho=st.floats(1e-3, 1e6),
)
def test_levels_fall_strictly_between_exact_ends(steps: int, kind: str, low: float, ratio: float, rho: float) -> None:
    grid = sigma_grid(steps, kind=kind, sigma_min=low, sigma_max=low * ratio, rho=rho)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-2], grid[-1]) == (low * ratio, low, 0.0)
    assert all(above > below for above, below in pairwise(grid))


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown grid 'native'"):
        sigma_grid(5, kind="native", sigma_min=0.1, sigma_max=1.0, rho=1.0)
