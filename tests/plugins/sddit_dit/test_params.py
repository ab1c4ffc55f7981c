"""Test the settings of the DiT backbone, and what they imply."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from sddit.errors import SdditError
from sddit.interfaces import Shapes
from sddit.plugins.hookspecs import Registries
from sddit.recipes.resolve import resolve
from sddit_dit import register_backbones
from sddit_dit.params import DiTParams

IMAGENET = Shapes((4, 32, 32), 1000)


def error_message(**settings: Any) -> str:
    """Return the error message of contradictory settings."""
    with pytest.raises(ValidationError) as caught:
        DiTParams(**settings)
    return caught.value.errors()[0]["msg"]


def test_defaults_are_filled_in() -> None:
    dumped = DiTParams(decoder={}).model_dump(by_alias=True)
    assert (dumped["size"], dumped["fill"]) == ("S", "input")
    assert dumped["decoder"] == {
        "style": "separate",
        "depth": 8,
        "width": 512,
        "heads": 16,
        "bridge": "shared",
        "bridge_init": "zero",
        "encoder_gradient": "full",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": "XL", "decoder": {}, "cls_token": True},
        {"depth": 3, "width": 8, "heads": 2, "decoder": {"style": "split", "depth": 1}, "fill": "zero"},
    ],
)
def test_a_resolved_recipe_reads_back_as_itself(settings: dict[str, Any]) -> None:
    params = DiTParams(**settings)
    assert DiTParams(**params.model_dump(mode="json", by_alias=True)) == params


def test_contradictions_are_rejected_with_a_reason() -> None:
    numbers = {"depth": 2, "width": 16, "heads": 2}
    assert "set a size or numbers, not both" in error_message(size="S", depth=2)
    assert "missing: heads" in error_message(depth=2, width=16)
    assert "is not divisible by 3 heads" in error_message(depth=2, width=16, heads=3)
    assert "divisible by 4" in error_message(depth=2, width=18, heads=2)
    assert "no effect without a decoder" in error_message(**numbers, fill="learned")
    assert 'no effect with fill "zero"' in error_message(**numbers, fill="zero", decoder={"bridge": "own"})
    assert "width: no effect" in error_message(**numbers, decoder={"style": "split", "depth": 1, "width": 16})
    assert "leaves no encoder" in error_message(**numbers, decoder={"style": "split", "depth": 2})
    assert "is not divisible by 5 heads" in error_message(**numbers, decoder={"width": 12, "heads": 5})


def test_an_indivisible_image_is_rejected_with_valid_patch_sizes() -> None:
    params = DiTParams(patch=8)
    with pytest.raises(SdditError) as caught:
        params.grid(Shapes((1, 28, 28), 10))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where, problem.expect) == ("SD-R108", "backbone.patch", "one of 1, 2, 4, 7, 14, 28")
    assert params.grid(Shapes((1, 16, 24), 10)) == (2, 3)


def test_taps_name_blocks() -> None:
    params = DiTParams(depth=10, width=16, heads=2, decoder={"depth": 4, "width": 8, "heads": 2})
    taps = ["encoder", "decoder", 0.3, 0.01, 1.0, 1, 14]
    assert [params.block_of(tap) for tap in taps] == [10, 14, 4, 1, 14, 1, 14]
    assert [params.width(tap) for tap in taps] == [16, 8, 16, 16, 8, 16, 8]
    assert DiTParams(depth=3, width=16, heads=2).block_of("encoder") == 3


@pytest.mark.parametrize("tap", ["decoder", "middle", 0, 4, -1, 0.0, 1.5])
def test_a_nonexistent_tap_is_rejected_with_valid_ones(tap: str | float | int) -> None:
    with pytest.raises(ValueError, match=r"encoder, a depth fraction .* block from 1 to 3"):
        DiTParams(depth=3, width=16, heads=2).block_of(tap)


def test_only_a_decoder_supports_masking() -> None:
    assert not DiTParams().supports_masking
    assert DiTParams(decoder={}).supports_masking
    assert DiTParams(cls_token=True).has_cls
    assert not DiTParams().has_cls


@pytest.mark.parametrize(
    ("size", "dit", "encoder", "total"),
    [("S", 32.9, 32.6, 68.1), ("B", 130.3, 129.1, 175.6), ("L", 457.8, 455.7, 509.8), ("XL", 674.8, 672.1, 730.1)],
)
def test_published_parameter_counts(size: str, dit: float, encoder: float, total: float) -> None:
    """DiT with learned variance (arXiv:2212.09748, table 4), and with MaskDiT's decoder, in millions."""
    plain, masked = DiTParams(size=size), DiTParams(size=size, decoder={}, cls_token=True)
    millions = [
        plain.cost(Shapes(IMAGENET.image, 1000, outputs=2), num_kept=256).parameters,
        masked.cost(IMAGENET, num_kept=204, taps=("encoder",), output=False).parameters,
        masked.cost(IMAGENET, num_kept=204).parameters,
    ]
    assert [round(count / 1e6, 1) for count in millions] == [dit, encoder, total]


def test_hidden_tokens_cost_less() -> None:
    params = DiTParams(size="B", decoder={})
    full, half = params.cost(IMAGENET, num_kept=256), params.cost(IMAGENET, num_kept=128)
    assert half.parameters == full.parameters
    assert half.flops < 0.7 * full.flops
    assert half.activations < 0.7 * full.activations


def test_settings_import_no_torch() -> None:
    code = "import sys, sddit_dit, sddit_flash; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_registered_with_converters_that_exist() -> None:
    registries = Registries()
    register_backbones(registries.backbones.bound_to("dit"))
    component = registries.backbones.get("dit")
    assert component.load().__name__ == "DiT"
    for layout, _ in component.formats:
        assert {"describe", "to_ours", "to_theirs"} <= set(dir(component.format(layout)))


def test_an_mlp_without_units_is_rejected_before_it_is_built() -> None:
    small = ["backbone.mlp_ratio=0.015", "backbone.decoder.width=64", "backbone.decoder.heads=4"]
    with pytest.raises(SdditError, match=r"SD-R108(.|\n)*backbone\.mlp_ratio(.|\n)*0\.015 of a width of 64"):
        resolve("quickstart", small)
    assert resolve("quickstart", ["backbone.mlp_ratio=0.016", *small[1:]]).backbone.params.mlp_ratio == 0.016
