"""Test the densities of training times: closed forms, equal meaning in every schedule, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sddit.diffusion.time_sampling import Plateau, TimeSampling, levels_from_uniform, mode_logit
from sddit_ddpm.params import DDPMParams
from sddit_ddpm.schedule import DDPM
from sddit_edm.cosine_flow import CosineFlow
from sddit_edm.cosine_params import CosineFlowParams
from sddit_edm.flow import Flow
from sddit_edm.params import EDMParams, FlowParams
from sddit_edm.schedule import EDM

U = torch.tensor([1e-9, 0.01, 0.25, 0.5, 0.8, 0.99, 1 - 1e-6], dtype=torch.float64)
TABLES: list[dict[str, Any]] = [
    {"density": "uniform"},
    {"density": "uniform", "shift": 2.5},
    {"density": "logit_normal", "mean": 0.8, "std": 0.8},
    {"density": "plateau", "mean": -0.3, "std": 1.1, "shift": 1.7},
]


def levels(u: torch.Tensor = U, **settings: Any) -> torch.Tensor:
    return levels_from_uniform(TimeSampling(**settings), u)


def test_levels_by_hand() -> None:
    torch.testing.assert_close(levels(density="uniform"), U / (1 - U), rtol=1e-14, atol=0)
    normal = torch.special.ndtri(U)
    torch.testing.assert_close(
        levels(density="logit_normal", mean=0.8, std=0.8).log(), 0.8 + 0.8 * normal, rtol=1e-12, atol=1e-12
    )
    for table in TABLES[:3]:
        unshifted = {**table, "shift": 1.0}
        tau = levels(**unshifted) / (1 + levels(**unshifted))
        shifted = 3 * tau / (1 + 2 * tau)  # arXiv:2403.03206, equation 23
        level = levels(**{**table, "shift": 3.0})
        torch.testing.assert_close(level / (1 + level), shifted, rtol=1e-12, atol=0)
        assert not torch.allclose(level, levels(**unshifted))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2), (2.0, 0.3), (0.0, math.sqrt(2)), (12.0, 1.4)])
def test_the_plateau_is_a_density(mean: float, std: float) -> None:
    """It is continuous at the mode of the logit-normal density, constant above, and its mass is 1."""
    plateau, logit = Plateau(mean, std), mode_logit(mean, std)
    assert math.tanh(logit / 2) == pytest.approx((logit - mean) / std**2, abs=1e-12)
    at_mode = torch.tensor(plateau.below / plateau.total, dtype=torch.float64)
    u = torch.stack([at_mode * (1 - 1e-9), at_mode + (1 - at_mode) * 1e-9])
    table: dict[str, Any] = {"density": "plateau", "mean": mean, "std": std}
    torch.testing.assert_close(levels(u, **table).log(), torch.full((2,), logit).double(), rtol=1e-6, atol=1e-6)
    above = at_mode + (1 - at_mode) * torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    level = levels(above, **table)
    steps = (1 / (1 + level)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-9, atol=0)


def test_the_mode_of_a_symmetric_density_is_in_the_middle() -> None:
    plateau = Plateau(0.0, 1.0)
    assert plateau.mode == pytest.approx(0.5, abs=1e-12)
    assert plateau.below == pytest.approx(0.5, abs=1e-12)
    assert plateau.height == pytest.approx(4 / math.sqrt(2 * math.pi), rel=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_means_the_same_noise_in_every_schedule(table: dict[str, Any]) -> None:
    sampling = TimeSampling(**table)
    u = U[1:-1]
    expected = levels(u, **table)
    edm, flow = EDM(EDMParams(time_sampling=sampling)), Flow(FlowParams(time_sampling=sampling))
    torch.testing.assert_close(edm.t_from_uniform(u), expected, rtol=1e-14, atol=0)
    t = flow.t_from_uniform(u)
    torch.testing.assert_close(t / (1 - t), expected, rtol=1e-12, atol=0)
    cosine = CosineFlow(CosineFlowParams(time_sampling=sampling))
    t = cosine.t_from_uniform(u)
    torch.testing.assert_close(cosine.sigma(t) / cosine.alpha(t), expected, rtol=1e-9, atol=0)
    for schedule in (edm, flow, cosine):
        assert schedule.t_from_uniform(U.float()).dtype == torch.float32
    ddpm = DDPM(DDPMParams(time_sampling=sampling))
    steps = ddpm.t_from_uniform(u)
    assert torch.equal(steps, ddpm.t_from_sigma(expected))
    assert not torch.equal(steps, DDPM(DDPMParams()).t_from_uniform(u))


def test_the_old_keys_keep_their_meaning() -> None:
    """They are members of the family: edm's normal ln sigma bit for bit, flow's two to rounding."""
    table = {"density": "logit_normal", "mean": -1.2, "std": 1.2}
    edm = EDM(EDMParams(time_sampling=TimeSampling(**table)))
    assert torch.equal(edm.t_from_uniform(U), EDM(EDMParams()).t_from_uniform(U))
    assert not torch.equal(EDM(EDMParams(p_mean=-1.1)).t_from_uniform(U), edm.t_from_uniform(U))
    for old, new in (
        ({}, {"density": "uniform"}),
        ({"t_sampling": "logit_normal", "logit_mean": 0.3, "logit_std": 0.6}, {**table, "mean": 0.3, "std": 0.6}),
    ):
        mine = Flow(FlowParams(**old)).t_from_uniform(U)
        theirs = Flow(FlowParams(time_sampling=TimeSampling(**new))).t_from_uniform(U)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=6e-8)


def test_each_timestep_of_a_chain_has_the_mass_of_its_levels() -> None:
    """A shifted uniform density has the distribution function tau / (a - (a - 1) tau)."""
    shift = 2.0
    ddpm = DDPM(DDPMParams(time_sampling=TimeSampling(density="uniform", shift=shift)))
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    counted = torch.bincount(ddpm.t_from_uniform(u).long(), minlength=1000).double() / len(u)
    chain = torch.tensor(ddpm.chain.levels, dtype=torch.float64)
    middle = (chain[1:] + chain[:-1]) / 2
    tau = torch.cat([torch.zeros(1), middle / (1 + middle), torch.ones(1)])
    expected = (tau / (shift - (shift - 1) * tau)).diff()
    torch.testing.assert_close(counted, expected, rtol=0, atol=3 / len(u))
    assert (counted - 1 / 1000).abs().max() > 100 / len(u)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "density"),
        ({"density": "uniform", "mean": 0.5}, 'mean: no effect with density "uniform"'),
        ({"density": "plateau", "std": 1.5}, "at most 1.41"),
        ({"density": "logit_normal", "std": 0.0}, "greater than 0"),
        ({"density": "logit_normal", "shift": 0.0}, "0.001"),
        ({"density": "normal"}, "uniform"),
        ({"density": "uniform", "width": 1.0}, "width"),
    ],
)
def test_wrong_tables_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TimeSampling(**settings)


def test_a_resolved_table_reads_back_as_itself() -> None:
    for table in TABLES:
        sampling = TimeSampling(**table)
        assert TimeSampling(**sampling.model_dump(mode="json")) == sampling


def test_the_widest_density_leaves_noise_and_an_image_at_every_time() -> None:
    sampling = TimeSampling(density="logit_normal", mean=20.0, std=20.0)
    u = torch.tensor([2.0**-33, 0.5, 1 - 2.0**-33], dtype=torch.float64)
    for schedule in (
        EDM(EDMParams(time_sampling=sampling)),
        Flow(FlowParams(time_sampling=sampling)),
        CosineFlow(CosineFlowParams(time_sampling=sampling)),
    ):
        for t in (schedule.t_from_uniform(u), schedule.t_from_uniform(u).float()):
            assert (schedule.sigma(t) > 0).all()
            assert (schedule.alpha(t) > 0).all()
