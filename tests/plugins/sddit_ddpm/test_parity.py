"""Parity with the published implementations of DiT and MDT: their stored numbers, float64, 1e-9 relative.

Everything is reached as a user would: `sddit.build`, the denoiser, the samplers on the schedule's own grids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sddit
from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view, precondition
from sddit.diffusion.sampling import noise_levels
from sddit.interfaces import Denoise, Prediction
from sddit.plugins.host import registry

Read = Callable[[str], Any]
Difference = Callable[[Any, Any], float]
RESPACINGS = {"full": "", "250": "250", "25": "25", "ddim25": "ddim25", "10,15,20": "10,15,20"}


def ddpm(**settings: Any) -> Any:
    return sddit.build("noise_schedules", "ddpm", settings)


def doubled(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Tables


@pytest.mark.parametrize("name", RESPACINGS)
def test_tables(published: Read, relative_difference: Difference, name: str) -> None:
    tables = {key.rpartition("/")[2]: t for key, t in published("ddpm_a").outputs.items() if f"tables/{name}/" in key}
    schedule = ddpm(respacing=RESPACINGS[name])
    levels = doubled(schedule.chain.levels)
    assert schedule.timesteps == tables["timestep_map"].tolist()
    assert relative_difference(doubled(schedule.chain.betas) / tables["betas"], torch.ones(len(levels))) < 1e-11
    assert relative_difference((1 + levels**2) * tables["alphas_cumprod"], torch.ones(len(levels))) < 1e-11
    posterior = doubled(schedule.chain.posterior_variances).log()
    assert relative_difference(posterior, tables["posterior_log_variance_clipped"]) < 1e-12
    t = torch.arange(len(levels), dtype=torch.float64)
    assert relative_difference(schedule.alpha(t) ** 2, tables["alphas_cumprod"]) < 1e-12
    assert relative_difference(schedule.sigma(t) ** 2, 1 - tables["alphas_cumprod"]) < 1e-12
    other = doubled(ddpm(respacing=RESPACINGS[name], beta_max=0.0200001).chain.betas)
    assert relative_difference(other / tables["betas"], torch.ones(len(levels))) > 1e-7


def test_cosine_betas(published: Read, relative_difference: Difference) -> None:
    theirs = published("ddpm_a").outputs["tables/cosine/betas"]
    assert relative_difference(doubled(ddpm(betas="cosine").chain.betas) / theirs, torch.ones(1000)) < 1e-9


def test_posterior(published: Read, relative_difference: Difference) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x0), from what one step of the sampler does with x0, x_t and noise of 1."""
    tables = {key.rpartition("/")[2]: t for key, t in published("ddpm_a").outputs.items() if "tables/full/" in key}
    previous = tables["alphas_cumprod_prev"].sqrt()
    scale = tables["alphas_cumprod"].rsqrt()  # x_t = 1 is this in the sampler's coordinates
    steps = range(1, 1000)
    of_x0 = doubled([one_step(t, x=0.0, x0=1.0, v=0.0, noise=0.0) for t in steps])
    of_x = doubled([one_step(t, x=scale[t].item(), x0=0.0, v=0.0, noise=0.0) for t in steps])
    std = doubled([one_step(t, x=0.0, x0=0.0, v=-1.0, noise=1.0) for t in steps])
    assert relative_difference(previous[1:] * of_x0, tables["posterior_mean_coef1"][1:]) < 1e-12
    assert relative_difference(previous[1:] * of_x, tables["posterior_mean_coef2"][1:]) < 1e-12
    assert relative_difference((previous[1:] * std) ** 2 / tables["posterior_variance"][1:], torch.ones(999)) < 1e-9
    large = doubled([one_step(t, x=0.0, x0=0.0, v=1.0, noise=1.0) for t in steps])
    assert relative_difference((previous[1:] * large) ** 2 / tables["betas"][1:], torch.ones(999)) < 1e-9


CHAIN = ddpm().chain.levels


def one_step(t: int, *, x: float, x0: float, v: float, noise: float) -> float:
    """z_{t-1} of one ancestral step from z_t = x at the chain's timestep t, for a network that gives x0 and v."""
    after: list[Tensor] = []
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    sddit.build("samplers", "ancestral", schedule=ddpm())(
        lambda z, sigma: Prediction(x0 * ones, extra=v * ones),
        x * ones,
        [CHAIN[t], CHAIN[t - 1], 0.0],
        noise=lambda step: noise * ones,
        callback=lambda step, z: after.append(z),
    )
    return after[0].item()


def test_reverse_step_of_a_batch(published: Read, relative_difference: Difference) -> None:
    """x0, mean and log-variance of ten timesteps at once: two sampler steps with the stored network output."""
    stored = published("ddpm_a")
    schedule, t, output = ddpm(), stored.inputs["t"], stored.inputs["model_output"]
    x = stored.outputs["train/x_t"]
    seen = precondition(Fixed(output), schedule, x, t.double(), t)
    assert seen.x0 is not None
    assert seen.extra is not None
    assert relative_difference(seen.x0, stored.outputs["p_mean_variance/pred_xstart"]) < 1e-9
    mean, log_variance = stored.outputs["p_mean_variance/mean"], stored.outputs["p_mean_variance/log_variance"]
    for i in range(len(t)):
        prediction = Prediction(seen.x0[i : i + 1], seen.extra[i : i + 1])
        ours, std = reverse(schedule, prediction, x[i : i + 1], int(t[i]))
        assert relative_difference(ours, mean[i : i + 1]) < 1e-9
        if t[i] > 0:
            assert relative_difference(2 * std.log(), log_variance[i : i + 1]) < 1e-9
    first = schedule.reverse(t.double())
    fraction = (seen.extra + 1) / 2
    spread = first.log_low[:, None, None, None] + fraction * first.log_range[:, None, None, None]
    assert relative_difference(spread, log_variance) < 1e-9
    assert relative_difference(spread, log_variance + 1e-6) > 1e-8


class Fixed(nn.Module):
    """A network whose output is given."""

    blocks = nn.ModuleList()

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, dict[str, Any], Any]:
        return self.output, {}, {}


def reverse(schedule: Any, prediction: Prediction, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(x_{t-1} | x_t) as the sampler steps, in the chain's own coordinates."""
    levels = [schedule.chain.levels[t], *([schedule.chain.levels[t - 1]] if t else []), 0.0]
    sampler, after = sddit.build("samplers", "ancestral", schedule=schedule), []
    for unit in (torch.zeros_like(x), torch.ones_like(x)):
        states: list[Tensor] = []
        z = x * (1 + levels[0] ** 2) ** 0.5
        sampler(
            lambda z, s: prediction, z, levels, noise=lambda _, u=unit: u, callback=lambda _, z, to=states: to.append(z)
        )
        after.append(states[0] / (1 + levels[1] ** 2) ** 0.5)
    return after[0], after[1] - after[0]


# The loss


def test_hybrid_loss_and_its_gradient(published: Read, relative_difference: Difference, look: Any, hybrid: Any) -> None:
    stored, schedule = published("ddpm_a"), ddpm()
    view = look(schedule, stored.inputs["x_start"], stored.inputs["noise"], stored.inputs["t"])
    output = stored.inputs["model_output"].requires_grad_()
    assert relative_difference(view.x, stored.outputs["train/x_t"]) < 1e-12
    value = hybrid(schedule, view, output)
    assert relative_difference(value, stored.outputs["train/loss"]) < 1e-9
    value.sum().backward()
    assert ((output.grad - stored.outputs["train/grad_model_output"]).abs().max() / output.grad.abs().max()) < 1e-9
    mse = hybrid(schedule, view, output, vb_weight=0.0)
    assert relative_difference(mse, stored.outputs["train/mse"]) < 1e-12
    assert relative_difference(value - mse, stored.outputs["train/vb"]) < 1e-9
    assert relative_difference(mse + 1.001 * (value - mse), stored.outputs["train/loss"]) > 1e-6


def test_a_network_without_a_variance(published: Read, relative_difference: Difference, look: Any, hybrid: Any) -> None:
    stored, schedule = published("ddpm_a"), ddpm(learned_variance=False)
    view = look(schedule, stored.inputs["x_start"], stored.inputs["noise"], stored.inputs["t"])
    output = stored.inputs["model_output"][:, : view.x0.shape[1]]
    assert (
        relative_difference(hybrid(schedule, view, output, vb_weight=0.0), stored.outputs["train_fixed_sigma/loss"])
        < 1e-12
    )


def test_the_bound_alone(published: Read, relative_difference: Difference, look: Any, hybrid: Any) -> None:
    """Their option to train with the full bound, 1000 times the term at t: it also trains the mean."""
    stored, schedule = published("ddpm_a"), ddpm()
    view = look(schedule, stored.inputs["x_start"], stored.inputs["noise"], stored.inputs["t"])
    settings: dict[str, Any] = {"mse_weight": 0.0, "vb_weight": 1000.0, "vb_trains": "all"}
    output = stored.inputs["model_output"].requires_grad_()
    value = hybrid(schedule, view, output, **settings)
    assert relative_difference(value, stored.outputs["train_kl/loss"]) < 1e-9
    value.sum().backward()
    channels = view.x0.shape[1]
    assert (output.grad[:, :channels].abs().amax((1, 2, 3)) > 0).all()


def test_the_loss_of_a_respaced_chain(
    published: Read, relative_difference: Difference, stub: Any, look: Any, hybrid: Any
) -> None:
    stored, schedule = published("ddpm_a"), ddpm(respacing="25")
    view = look(schedule, stored.inputs["x_start"], stored.inputs["noise"], stored.outputs["train_respaced25/index"])
    outputs = denoise_view(stub, schedule, view)
    assert stub.seen[0].tolist() == stored.outputs["train_respaced25/t_seen_by_model"].tolist()
    assert outputs.raw is not None
    assert outputs.extra is not None
    value = hybrid(schedule, view, torch.cat([outputs.raw, outputs.extra], dim=1))
    assert relative_difference(value, stored.outputs["train_respaced25/loss"]) < 1e-9
    other = ddpm(respacing="ddim25")
    view = look(other, view.x0, view.noise, view.t)
    value = hybrid(other, view, torch.cat([outputs.raw, outputs.extra], dim=1))
    assert relative_difference(value, stored.outputs["train_respaced25/loss"]) > 1e-4


@pytest.mark.parametrize(
    ("name", "settings"), [("mdtv1_a", {}), ("mdtv2_a", {"weighting": "min_snr", "snr_gamma": 5.0})]
)
def test_the_loss_of_mdt(
    published: Read, relative_difference: Difference, look: Any, hybrid: Any, name: str, settings: dict[str, Any]
) -> None:
    stored, schedule = published(name), ddpm()
    view = look(schedule, *(stored.inputs[f"loss_{key}"] for key in ("x0", "noise", "t")))
    output = stored.inputs["loss_output"]
    value, mse = (hybrid(schedule, view, output, **settings, vb_weight=weight) for weight in (1.0, 0.0))
    plain = hybrid(schedule, view, output, vb_weight=0.0)
    assert relative_difference(value, stored.outputs["train/loss"]) < 1e-9
    assert relative_difference(mse, stored.outputs["train/mse"]) < 1e-12
    assert relative_difference(mse / plain, stored.outputs["train/mse_weight"]) < 1e-12
    assert relative_difference(value - mse, stored.outputs["train/vb"]) < 1e-9
    other = hybrid(schedule, view, output, weighting="min_snr", snr_gamma=4.0, vb_weight=0.0)
    assert relative_difference(other, stored.outputs["train/mse"]) > 1e-3


# Sampling


def sampled(denoise: Denoise, x: Tensor, noises: Tensor, *, name: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """x_0 and the states after each step [S, B, C, H, W], in the chain's own coordinates, from x_T there."""
    schedule, settings = ddpm(), {"steps": 25, **settings}
    sampler = sddit.build("samplers", name, settings, schedule=schedule)
    sigmas = noise_levels(sampler.params, schedule)
    states: list[Tensor] = []
    final = sampler(
        denoise,
        x * (1 + sigmas[0] ** 2) ** 0.5,
        sigmas,
        noise=lambda step: noises[step],
        callback=lambda step, z: states.append(z / (1 + sigmas[step + 1] ** 2) ** 0.5),
    )
    return final, torch.stack(states)


def of_stub(stub: nn.Module, seen: list[Tensor] | None = None) -> Denoise:
    """Return the closed-form network as a denoiser that appends its x0 to `seen`."""
    model = ModelDenoiser(stub, ddpm(), 0)

    def denoise(x: Tensor, sigma: float) -> Prediction:
        prediction = model(x, sigma, torch.zeros(len(x), dtype=torch.int64))
        (seen if seen is not None else []).append(prediction.x0)
        return prediction

    return denoise


def test_ancestral_sampling(published: Read, relative_difference: Difference, stub: Any) -> None:
    stored = published("ddpm_a")
    start, noises = stored.inputs["loop_xT"], stored.inputs["loop_noises"]
    seen: list[Tensor] = []
    final, states = sampled(of_stub(stub, seen), start, noises, name="ancestral")
    assert relative_difference(states, stored.outputs["ddpm25/trajectory"]) < 1e-9
    assert relative_difference(torch.stack(seen), stored.outputs["ddpm25/pred_xstart"]) < 1e-9
    assert relative_difference(final, stored.outputs["ddpm25/final"]) < 1e-9
    clipped, _ = sampled(of_stub(stub), start, noises, name="ancestral", clip=1.0)
    assert relative_difference(clipped, stored.outputs["ddpm25_clip/final"]) < 1e-9
    assert relative_difference(clipped, stored.outputs["ddpm25/final"]) > 0.1
    strided, _ = sampled(of_stub(stub), start, noises, name="ancestral", grid="stride")
    assert relative_difference(strided, stored.outputs["ddpm25/final"]) > 1e-3


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "ddim_map_25_eta0"),
        ({"eta": 0.5}, "ddim_map_25_eta0.5"),
        ({"grid": "stride"}, "ddim_map_ddim25_eta0"),
    ],
)
def test_ddim_sampling(
    published: Read, relative_difference: Difference, stub: Any, settings: dict[str, Any], name: str
) -> None:
    stored = published("ddpm_a")
    start, noises = stored.inputs["loop_xT"], stored.inputs["loop_noises"]
    final, states = sampled(of_stub(stub), start, noises, name="ddim", **settings)
    assert relative_difference(final, stored.outputs[f"{name}/final"]) < 1e-9
    if f"{name}/trajectory" in stored.outputs:
        assert relative_difference(states, stored.outputs[f"{name}/trajectory"]) < 1e-9
    other, _ = sampled(of_stub(stub), start, noises, name="ddim", **{**settings, "eta": 0.1})
    assert relative_difference(other, stored.outputs[f"{name}/final"]) > 1e-3


def test_a_guided_dit(published: Read, relative_difference: Difference) -> None:
    """Guidance on 3 of 4 channels. Their other half of the batch has its own noise and is discarded."""
    stored, weights = published("ddpm_a"), published("dit_a")
    network = dit(weights)
    start, labels = stored.inputs["dit_xT"], stored.inputs["dit_y"][:2]
    noises = stored.inputs["dit_noises"][:, :2]
    rule = sddit.build("guidances", "cfg", {"scale": 4.0, "channels": 3}, schedule=ddpm())
    denoise = rule(ModelDenoiser(network, ddpm(), 10), labels)
    with torch.no_grad():
        final, states = sampled(denoise, start, noises, name="ancestral")
        clipped, _ = sampled(denoise, start, noises, name="ancestral", clip=1.0)
        ddim, _ = sampled(denoise, start, noises, name="ddim", clip=1.0)
        everything = sddit.build("guidances", "cfg", {"scale": 4.0}, schedule=ddpm())
        other, _ = sampled(everything(ModelDenoiser(network, ddpm(), 10), labels), start, noises, name="ddim", clip=1.0)
    assert relative_difference(states[[0, 4, 12]], stored.outputs["dit_cfg_ddpm25/after_step_0_4_12"][:, :2]) < 1e-9
    assert relative_difference(final, stored.outputs["dit_cfg_ddpm25/final"][:2]) < 1e-9
    assert relative_difference(clipped, stored.outputs["dit_cfg_ddpm25_clip/final"][:2]) < 1e-9
    assert relative_difference(ddim, stored.outputs["dit_cfg_ddim25_clip/final"][:2]) < 1e-9
    assert relative_difference(other, stored.outputs["dit_cfg_ddim25_clip/final"][:2]) > 1e-3


def dit(stored: Any) -> nn.Module:
    """Return the stored DiT in float64."""
    component = registry("backbones").get("dit")
    layout = component.format("dit")
    description = layout.describe(stored.meta["constructor"])
    network: nn.Module = sddit.build(
        "backbones",
        "dit",
        description.backbone,
        image=description.shapes.image,
        num_classes=description.shapes.num_classes,
        outputs=description.shapes.outputs,
        attention=sddit.build("attention", "eager"),
    )
    network = network.double()
    network.load_state_dict(layout.to_ours(stored.state))
    return network
