"""Hours on named devices: arithmetic by hand, and names that are refused."""

from __future__ import annotations

import pytest

from sddit.recipes.device_speeds import DEVICES, FRACTION, parse_devices


@pytest.mark.parametrize("text", ["8xH100", "8xh100", " 8 x H100", "8x H100"])
def test_devices_by_name(text: str) -> None:
    assert str(parse_devices(text)) == "8 x H100"
    assert str(parse_devices("H200")) == "1 x H200"


@pytest.mark.parametrize("text", ["", "8x", "0xH100", "8xH1000", "-1xH100", "8*H100", "8xH100,A100"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of A100, H100, H200, RTX4090"):
        parse_devices(text)


def test_time_by_hand() -> None:
    four = parse_devices("4xA100")
    assert four.seconds(312e12 * 0.4 * 4 * 60, "bf16") == pytest.approx(60)
    assert four.seconds(19.5e12 * 0.4 * 4 * 60, "fp32") == pytest.approx(60)
    assert four.seconds(1e15, "bf16") != parse_devices("A100").seconds(1e15, "bf16")
    assert four.seconds(None, "bf16") is None
    assert four.seconds(1e15, "fp64") is None
    assert FRACTION == 0.4


def test_every_device_states_its_memory_and_both_precisions() -> None:
    for device in DEVICES.values():
        assert device.memory >= 24e9
        assert device.peak["bf16"] > device.peak["fp32"] > 1e12
