"""The leak detector: honest recipes pass, and every planted leak is found and named."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit import hookimpl
from sddit.interfaces import CheckSkipped, Context, Draws, View
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_PAIR_RECIPE, toy_host
from sddit.testing.toys.components import ToyLoss, ToyPairs
from sddit.testing.toys.network import ToyAttention, ToyBackbone
from sddit.testing.toys.params import ToyAttentionParams, ToyBackboneParams, ToyLossParams, ToyPairsParams
from sddit.verify import leak

Corrupt = Callable[[dict[str, View], Draws], None]


def pasted(views: dict[str, View], draws: Draws) -> None:
    """The clean image at one pixel: a mask laid over the wrong thing."""
    views["student"].x = views["student"].x.clone()
    views["student"].x[:, :, 0, 0] = views["student"].x0[:, :, 0, 0]


def faint(views: dict[str, View], draws: Draws) -> None:
    views["student"].x = views["student"].x + 1e-6 * views["student"].x0


def mask_by_content(views: dict[str, View], draws: Draws) -> None:
    view = views["student"]
    brightness = nn.functional.avg_pool2d(view.x0, 4).flatten(1)  # [B, N]
    view.visible = brightness.argsort(dim=1)[:, :2].sort(dim=1).values


def level_by_content(views: dict[str, View], draws: Draws) -> None:
    view = views["student"]
    view.t = view.t * (1 + 1e-3 * view.x0.mean(dim=(1, 2, 3)))
    view.x = view.x0 + view.t[:, None, None, None] * view.noise


def label_by_content(views: dict[str, View], draws: Draws) -> None:
    views["student"].labels = (views["student"].x0.mean(dim=(1, 2, 3)) > 0).long()


def noise_of_the_image(views: dict[str, View], draws: Draws) -> None:
    """x and noise agree, but the noise is a function of the image."""
    view = views["student"]
    view.noise = view.x0.flip(-1) - view.x0.flip(-2)
    view.x = view.x0 + view.t[:, None, None, None] * view.noise


def mixed_noise(views: dict[str, View], draws: Draws) -> None:
    """No leak: half the noise of one draw, some of another."""
    view = views["student"]
    more = draws.normal("test/more", view.x0.shape[1:]).to(view.x0)
    view.noise = 0.5 * view.noise + 0.3 * more
    view.x = view.x0 + view.t[:, None, None, None] * view.noise


def host_with(corrupt: Corrupt | None = None, term: type[ToyLoss] = ToyLoss, backbone: type = ToyBackbone) -> Any:
    """Toys, some of them corrupted."""

    class Corrupted(ToyPairs):
        def __call__(self, batch: Any, draws: Draws, schedule: Any, ctx: Context) -> dict[str, View]:
            views = super().__call__(batch, draws, schedule, ctx)
            if corrupt is not None:
                corrupt(views, draws)
            return views

    plugin = types.ModuleType("corrupted")
    host = toy_host()

    def hook(kind: str, factory: Any, params: Any) -> None:
        def register(registry: Any) -> None:
            registry.add("corrupted", factory, params=params, summary="For a test.")

        register.__name__ = f"register_{kind}"
        setattr(plugin, register.__name__, hookimpl(register))

    hook("pair_samplers", Corrupted, ToyPairsParams)
    hook("losses", term, ToyLossParams)
    hook("backbones", backbone, ToyBackboneParams)
    host.add("corrupted", plugin)
    return host


def found(host: Any, folder: Path, *overrides: str) -> dict[str, bool]:
    """{what: whether it holds} of the toy pair recipe on this host."""
    text = TOY_PAIR_RECIPE.replace('[pair_sampler]\nname = "toy"', '[pair_sampler]\nname = "corrupted"')
    text = text.replace('[backbone]\nname = "toy"', '[backbone]\nname = "corrupted"')
    text = text.replace('[loss.denoise]\nname = "toy"', '[loss.denoise]\nname = "corrupted"')
    file = folder / "toy.toml"
    file.write_text(text, encoding="utf-8")
    return {m.what: m.holds for m in leak(resolve(file, overrides, host=host))}


GIVEN = "toy: what the student is given, x_t held"
PREDICTS = "toy: what the student predicts, x_t held"
HEADS = "toy: what the terms' heads are given"
CONTROL = "toy: control, the prediction when x_t moves too"
HONEST = {GIVEN: True, PREDICTS: True, HEADS: True, CONTROL: True}


@pytest.mark.parametrize("overrides", [(), ("pair_sampler.mask_ratio=0.0",), ("train.precision=bf16",)])
def test_an_honest_recipe_passes(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert found(host_with(), tmp_path, *overrides) == HONEST


def test_noise_may_be_mixed_of_several_draws(tmp_path: Path) -> None:
    assert found(host_with(mixed_noise), tmp_path) == HONEST


@pytest.mark.parametrize(
    ("corrupt", "places"),
    [
        (pasted, "x of view 'student'"),
        (faint, "x of view 'student'"),
        (mask_by_content, "visible of view 'student'"),
        (level_by_content, "t of view 'student', x of view 'student'"),
        (label_by_content, "labels of view 'student'"),
        (noise_of_the_image, "x of view 'student'"),
    ],
)
def test_a_pair_sampler_that_leaks_is_found(tmp_path: Path, corrupt: Corrupt, places: str) -> None:
    rows = found(host_with(corrupt), tmp_path)
    assert rows[f"{GIVEN}: {places}"] is False
    assert any(what.startswith(PREDICTS) and not holds for what, holds in rows.items())


class Peeking(ToyLoss):
    """Its head is given the clean image next to the estimate."""

    def __init__(self, params: ToyLossParams, **_: object) -> None:
        super().__init__(params)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, ctx: Context, views: Any, outputs: Any) -> Tensor:
        x0 = views["student"].x0
        estimate = self.head(torch.cat([outputs["student"].x0, self.peeked(ctx, x0)], dim=1))
        return (estimate - x0).square().mean(dim=(1, 2, 3))

    def peeked(self, ctx: Context, x0: Tensor) -> Tensor:
        return x0


class Redrawing(Peeking):
    """Its head is given the noise, drawn once more: with x_t that is the clean image."""

    def peeked(self, ctx: Context, x0: Tensor) -> Tensor:
        return ctx.draws.normal("noise", x0.shape[1:]).to(x0)


class Minding(Peeking):
    """No leak: its head is given the noisy image's own estimate twice."""

    def peeked(self, ctx: Context, x0: Tensor) -> Tensor:
        return torch.zeros_like(x0)


@pytest.mark.parametrize("term", [Peeking, Redrawing])
def test_a_loss_whose_head_sees_the_target_is_found(tmp_path: Path, term: type[ToyLoss]) -> None:
    rows = found(host_with(term=term), tmp_path)
    assert [what for what, holds in rows.items() if not holds] == [f"{HEADS}: input 1 to head of loss 'denoise'"]


def test_a_loss_with_an_honest_head_passes(tmp_path: Path) -> None:
    assert found(host_with(term=Minding), tmp_path) == HONEST


def test_a_back_channel_to_the_network_is_found(tmp_path: Path) -> None:
    """What the network is given looks right; what it predicts gives the leak away."""
    notes: list[Tensor] = []

    class Informed(ToyBackbone):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(x + 0.01 * notes[-1], *args, **kwargs)

    rows = found(host_with(lambda views, draws: notes.append(views["student"].x0), backbone=Informed), tmp_path)
    assert [what for what, holds in rows.items() if not holds] == [
        f"{PREDICTS}: class token at 'encoder' of view 'student', raw of view 'student', tap 'encoder' of view "
        f"'student'"
    ]


def test_a_network_that_ignores_its_input_proves_nothing(tmp_path: Path) -> None:
    class Blind(ToyBackbone):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(torch.zeros_like(x), *args, **kwargs)

    assert found(host_with(backbone=Blind), tmp_path) == {**HONEST, CONTROL: False}


def test_a_kernel_of_another_device_is_said(tmp_path: Path) -> None:
    class Elsewhere(ToyAttentionParams):
        @property
        def devices(self) -> tuple[str, ...]:
            return ("cuda",)

    file = tmp_path / "toy.toml"
    file.write_text(TOY_PAIR_RECIPE, encoding="utf-8")
    recipe = resolve(file, host=toy_host())
    elsewhere = replace(recipe, attention=replace(recipe.attention, params=Elsewhere()))
    with pytest.raises(CheckSkipped, match="does not run on cpu"):
        leak(elsewhere)
    assert recipe.attention.component.load() is ToyAttention
