"""Compare with the published implementations of MDT v1 and v2: their stored numbers, float64, 1e-9 relative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sddit
from sddit.api import Model
from sddit.diffusion import masking as masks
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams
from sddit_masking.formats import MDTv1Format, MDTv2Format
from sddit_masking.mdt import MDT
from sddit_masking.params import MDTParams

Read = Callable[[str], Any]
LAYOUTS = {"mdtv1_a": MDTv1Format, "mdtv2_a": MDTv2Format}
both = pytest.mark.parametrize("name", LAYOUTS)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-9 of max(1, |theirs|), of outputs that do not vanish."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item() < 1e-9


def load(folder: Path, layout: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Model:
    """Load their file as a user does."""
    path = folder / "theirs.safetensors"
    save_file(dict(state), path)
    return sddit.load(path, layout=layout, config=config, dtype=torch.float64)


def stored_model(folder: Path, name: str, stored: Any) -> tuple[Model, MDT]:
    constructor = {key: value for key, value in stored.meta["constructor"].items() if not key.startswith("cfg_")}
    model = load(folder, name.removesuffix("_a"), constructor, stored.state)
    return model, cast(MDT, model.backbone)


def inputs(stored: Any) -> tuple[Tensor, Tensor, Tensor]:
    return stored.inputs["x"], stored.inputs["t"], stored.inputs["y"]


@both
def test_forward_masked_and_not(published: Read, tmp_path: Path, name: str) -> None:
    stored = published(name)
    model, network = stored_model(tmp_path, name, stored)
    close(model.raw(*inputs(stored)), stored.outputs["unmasked"])

    shuffled = stored.outputs["mask/ids_keep"]
    visible, order = shuffled.sort(dim=1)
    seen: dict[str, Tensor] = {}
    assert network.interpolater is not None
    network.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(visible_tokens_in=args[0]))
    network.interpolater.register_forward_pre_hook(lambda _, args: seen.update(interpolater_in=args[0]))
    network.interpolater.register_forward_hook(lambda *args: seen.update(interpolater_out=args[2]))
    close(model.raw(*inputs(stored), visible=visible), stored.outputs["masked"])
    for name in ("visible_tokens_in", "interpolater_in"):
        close(seen[name][:1], stored.outputs[f"mid/{name}"][:, order[0]])
    close(seen["interpolater_out"][:1], stored.outputs["mid/interpolater_out"])


@both
def test_gradients_of_the_masked_pass(published: Read, tmp_path: Path, name: str) -> None:
    stored = published(name)
    model, network = stored_model(tmp_path, name, stored)
    raw = network(*inputs(stored), visible=stored.outputs["mask/ids_keep"].sort(dim=1).values)[0]
    (raw * stored.inputs["grad_out"]).sum().backward()
    grads = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    theirs = LAYOUTS[name].to_theirs(grads, network.params, model.shapes)
    names = stored.meta["grad_names"]
    stats = torch.stack([torch.stack([theirs[key].sum(), theirs[key].norm()]) for key in names])
    close(stats, stored.outputs["masked_grad_stats"])
    first = next(key for key in names if key.endswith("relative_position_bias_table"))
    close(theirs[first], stored.outputs["masked_grad_rel_bias"])
    assert not theirs[first][-3:].any()  # of a class token that is not there


def test_parity_detects_wrong_networks(published: Read, tmp_path: Path) -> None:
    """The comparison fails for transposed offsets, other hidden tokens, a missing skip and a missing position."""
    stored = published("mdtv2_a")
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values

    def wrong(change: Callable[[MDT], object], visible: Tensor = visible) -> None:
        model, network = stored_model(tmp_path, "mdtv2_a", stored)
        change(network)
        with pytest.raises(AssertionError):
            close(model.raw(*inputs(stored), visible=visible), stored.outputs["masked"])

    wrong(lambda network: network.position_index.copy_(network.position_index.T.clone()))
    wrong(lambda network: None, visible=visible.roll(1, dims=0))
    wrong(lambda network: network.blocks[-1].skip.weight[:, 40:].data.zero_())
    wrong(lambda network: network.interpolater.positions.data[3].add_(1e-5))


@both
def test_masks_agree_for_the_same_draw(published: Read, name: str) -> None:
    """floor(L (1 - r)) tokens stay, those of the smallest numbers; v2 draws r between 0.3 and 0.5."""
    stored = published(name)

    class Drawn:
        def uniform(self, purpose: str, shape: Any = (), *, scope: str = "sample") -> Tensor:
            number: Tensor = stored.inputs["ratio_uniform" if purpose == "mask/ratio" else "mask_noise"]
            return number

    draws = cast(Any, Drawn())
    ratio = masks.draw_ratio(draws, 0.3, 0.2 if "ratio_uniform" in stored.inputs else 0.0)
    assert ratio == pytest.approx(stored.outputs.get("mask/ratio", 0.3), abs=1e-7)
    visible = masks.draw_mask(draws, "mask", grid=(4, 4), ratio=ratio)
    assert visible is not None
    assert torch.equal(visible, stored.outputs["mask/ids_keep"].sort(dim=1).values)
    assert not torch.equal(visible, stored.outputs["mask/ids_keep"])


@pytest.mark.slow
def test_mdtv2_s2_as_registered(published: Read, formula_weights: Any, tmp_path: Path) -> None:
    stored = published("full_mdtv2_s2")
    config = stored.meta["constructor"]
    described = MDTv2Format.describe(config)
    params, shapes = MDTParams(**described.backbone), described.shapes
    with torch.device("meta"):
        empty = MDT(params, image=shapes.image, num_classes=1000, outputs=2, attention=Eager(EagerParams()))
    sizes = {key: tensor.shape for key, tensor in MDTv2Format.to_theirs(empty.state_dict(), params, shapes).items()}
    model = load(tmp_path, "mdtv2", config, formula_weights(stored, sizes))
    close(model.raw(*inputs(stored)), stored.outputs["unmasked"])
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    close(model.raw(*inputs(stored), visible=visible), stored.outputs["masked"])
