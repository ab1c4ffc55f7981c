"""Test averages with power-function profiles against direct sums and integrals, and the check of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sddit.interfaces import CheckContext
from sddit.training import power_average
from sddit.training.power_average import Floats, Profile, combination, decay_of, gamma_of, inner_products, sigma_rel_of
from sddit.verify import power_ema


def failing() -> list[str]:
    return [found.what for found in power_ema.posthoc_ema(CheckContext()) if not found.holds]


@pytest.mark.parametrize("width", [0.005, 0.02, 0.05, 0.1, 0.2, 0.28, 0.2886])
def test_width_and_exponent_are_inverse(width: float) -> None:
    assert abs(sigma_rel_of(gamma_of(width)) - width) < 1e-10
    assert abs(sigma_rel_of(gamma_of(width) * 1.001) - width) > 1e-8 * width


def test_published_exponents() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("gamma", [0.5, 6.94, 16.97])
def test_the_width_is_that_of_the_profile(gamma: float) -> None:
    """The standard deviation of the density (gamma + 1) tau^gamma on [0, 1]."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = tau**gamma / (tau**gamma).sum()
    mean = (weights * tau).sum()
    assert sigma_rel_of(gamma) == pytest.approx(np.sqrt((weights * (tau - mean) ** 2).sum()), rel=1e-6)


def test_inner_products_are_integrals() -> None:
    profiles = [Profile(40, 2.0), Profile(100, 6.94), Profile(100, 0.3), Profile(70, 16.97)]
    tau = (np.arange(400_000) + 0.5) / 400_000 * 100

    def density(profile: Profile) -> Floats:
        inside = np.where(tau <= profile.t, tau, 0.0)
        values: Floats = (profile.gamma + 1) * inside**profile.gamma / profile.t ** (profile.gamma + 1)
        return values

    integrals = [[(density(one) * density(two)).mean() * 100 for two in profiles] for one in profiles]
    np.testing.assert_allclose(inner_products(profiles, profiles), integrals, rtol=1e-4)
    assert not np.allclose(inner_products(profiles, profiles), inner_products(profiles, profiles[::-1]), rtol=1e-2)


def averaged(path: Sequence[float] | Floats, gamma: float) -> Floats:
    """Return the average after each step, by the recurrence."""
    value, found = 0.0, []
    for t, weight in enumerate(path, start=1):
        value = decay_of(gamma, t) * value + (1 - decay_of(gamma, t)) * weight
        found.append(value)
    return np.array(found)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("width", [0.02, 0.07, 0.15, 0.2])
def test_a_recorded_path_is_averaged_as_directly(width: float, power: float) -> None:
    steps = np.arange(1, 1001)
    path = (steps / 1000) ** power
    kept = steps[9::10]
    profiles = [Profile(int(t), gamma_of(stored)) for stored in (0.05, 0.1) for t in kept]
    snapshots = np.concatenate([averaged(path, gamma_of(stored))[kept - 1] for stored in (0.05, 0.1)])
    factors = combination(profiles, Profile(1000, gamma_of(width)))
    direct = averaged(path, gamma_of(width))[-1]
    assert factors @ snapshots == pytest.approx(direct, rel=1e-3)
    if power:
        other = combination(profiles, Profile(1000, gamma_of(1.2 * width)))
        assert other @ snapshots != pytest.approx(direct, rel=1e-3)
    else:
        assert factors.sum() == pytest.approx(1, abs=1e-3)


def test_a_stored_average_is_itself() -> None:
    profiles = [Profile(t, gamma_of(width)) for t in (20, 40, 60) for width in (0.05, 0.1)]
    factors = combination(profiles, profiles[3])
    np.testing.assert_allclose(factors, np.eye(6)[3], atol=1e-12)


def test_few_snapshots_are_visible_in_the_sum_of_the_factors() -> None:
    few = [Profile(t, gamma_of(width)) for t in (500, 1000) for width in (0.05, 0.1)]
    assert abs(combination(few, Profile(1000, gamma_of(0.2))).sum() - 1) > 0.1


def test_the_check_holds() -> None:
    assert failing() == []


def test_a_wrong_exponent_of_the_decay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.training.ema.decay_of", lambda gamma, t: decay_of(gamma - 1, t))
    assert any("average of t^a" in what for what in failing())


def test_a_wrong_inner_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_average, "inner_products", lambda one, two: inner_products(one, two) ** 1.1)
    assert any("sum of the factors" in what for what in failing())


def test_a_wrong_width_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_ema, "sigma_rel_of", lambda gamma: sigma_rel_of(gamma + 1e-6))
    assert failing() == ["width of the exponent of a width, relative difference"]
