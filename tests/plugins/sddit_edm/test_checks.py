"""The checks that `sddit-run verify` runs: each holds here, and notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.hookspecs import Registries
from sddit.interfaces import CheckContext, Measurement, NotHereError
from sddit.registry import Component
from sddit.verify.published import folders
from sddit_edm import checks, register_noise_schedules
from sddit_edm.loss import Denoising
from sddit_edm.schedule import EDM

Check = Callable[[CheckContext], Iterator[Measurement]]


def schedule(name: str = "edm") -> Component[Any]:
    registries = Registries()
    register_noise_schedules(registries.noise_schedules)
    return registries.noise_schedules.get(name)


def failing(check: Check, component: Component[Any] | None = None) -> list[str]:
    """What does not hold; skips the test where the stored numbers are not here."""
    try:
        rows = list(check(CheckContext(component=component or schedule(), fixtures=folders(None))))
    except NotHereError as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_levels_hold_here(name: str) -> None:
    assert failing(checks.levels, schedule(name)) == []


@pytest.mark.parametrize(
    "check", [checks.identities, checks.zero_network, checks.published_schedule, checks.published_loss]
)
def test_it_holds_here(check: Check) -> None:
    assert failing(check) == []


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """Every scaling of this name a little off."""
    right = EDM.scalings

    def wrong(self: EDM, t: Tensor) -> Any:
        c = right(self, t)
        return type(c)(
            **{k: getattr(c, k) * (factor if k == name else 1) for k in ("c_skip", "c_out", "c_in", "c_noise")}
        )

    monkeypatch.setattr(EDM, "scalings", wrong)


@pytest.mark.parametrize("name", ["c_in", "c_out", "c_skip", "c_noise"])
def test_a_scaling_that_is_off_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spoil(monkeypatch, name, 1 + 1e-5)
    assert f"float64: identity of {name}" in failing(checks.identities)
    assert f"edm_a: precond/0.5/{name}" in failing(checks.published_schedule)


def test_levels_that_turn_back_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EDM, "sigma", lambda self, t: torch.where(t > 2, 4 - t, t).clamp(min=1e-3))
    monkeypatch.setattr(EDM, "grid", lambda self, steps, **_: [80.0, *[1.0] * (steps - 2), 0.002, 0.0])
    assert failing(checks.levels) == [
        "levels at which noise does not grow with t",
        "t, its level, and t again",
        "grids that do not fall from sigma_max by way of sigma_min to 0",
    ]


def test_a_c_noise_that_turns_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = EDM.scalings

    def wrong(self: EDM, t: Tensor) -> Any:
        c = right(self, t)
        return type(c)(c.c_skip, c.c_out, c.c_in, c.c_noise.abs())

    monkeypatch.setattr(EDM, "scalings", wrong)
    assert failing(checks.levels) == ["levels at which c_noise turns back"]


def test_a_loss_of_another_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Denoising._weight
    monkeypatch.setattr(Denoising, "_weight", lambda self, *a: 1.05 * right(self, *a))
    assert len(failing(checks.zero_network)) == 1
    assert len(failing(checks.published_loss)) == 3
