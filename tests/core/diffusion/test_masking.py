"""Masks: exact counts, unbiased, connected blocks, even lattices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.diffusion.masking import MaskShape, draw_mask, keep_count
from sddit.errors import SdditError

SHAPES: list[MaskShape] = ["random", "block", "grid", "cells"]


def draws(batch: int, seed: int = 0) -> KeyedDraws:
    return KeyedDraws(seed, 0, torch.arange(batch))


def hidden(visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, H, W] bool, true where a token is hidden."""
    full = torch.ones(len(visible), math.prod(grid), dtype=torch.bool)
    return full.scatter(1, visible, False).view(-1, *grid)


def connected(mask: Tensor) -> bool:
    """Whether the true places of [H, W] are one region of neighbours along H and W."""
    places = {(int(y), int(x)) for y, x in mask.nonzero()}
    reached = set()
    front = [next(iter(places))]
    while front:
        y, x = front.pop()
        if (y, x) in places - reached:
            reached.add((y, x))
            front += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return reached == places


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [(256, 0.2, 204), (256, 0.5, 128), (10, 0.9, 1), (10, 0.8, 2), (20, 0.9, 2), (100, 0.8, 20), (16, 0.0, 16)],
)
def test_counts_are_those_of_exact_arithmetic(tokens: int, ratio: float, kept: int) -> None:
    assert keep_count(tokens, ratio) == kept


@pytest.mark.parametrize(("tokens", "ratio"), [(4, 0.9), (16, 1.0), (16, -0.1)])
def test_a_mask_that_leaves_nothing_is_refused(tokens: int, ratio: float) -> None:
    with pytest.raises(SdditError, match="SD-R108"):
        keep_count(tokens, ratio)


def test_nothing_hidden_is_none() -> None:
    assert draw_mask(draws(2), "mask", grid=(4, 4), ratio=0.0) is None


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    percent=st.integers(1, 99),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 1000),
)
def test_visible_and_hidden_are_the_grid_again(
    height: int, width: int, percent: int, shape: MaskShape, seed: int
) -> None:
    """The count is exact, indices rise, and putting both parts back gives the tokens: restore(shuffle(x)) == x."""
    tokens = height * width
    if tokens * (100 - percent) < 100:
        return
    visible = draw_mask(draws(3, seed), "mask", grid=(height, width), ratio=percent / 100, shape=shape)
    assert visible is not None
    assert visible.dtype == torch.int64
    assert visible.shape == (3, tokens * (100 - percent) // 100)
    assert (visible.diff(dim=1) > 0).all()
    mask = hidden(visible, (height, width)).flatten(1)
    rest = mask.nonzero()[:, 1].view(3, -1)
    x = torch.randn(3, tokens)
    restored = torch.zeros_like(x).scatter(1, visible, x.gather(1, visible)).scatter(1, rest, x.gather(1, rest))
    assert torch.equal(restored, x)


@given(height=st.integers(1, 9), width=st.integers(1, 9), percent=st.integers(1, 99), seed=st.integers(0, 1000))
def test_a_block_is_connected(height: int, width: int, percent: int, seed: int) -> None:
    if height * width * (100 - percent) < 100:
        return
    visible = draw_mask(draws(4, seed), "mask", grid=(height, width), ratio=percent / 100, shape="block")
    assert visible is not None
    assert all(connected(mask) for mask in hidden(visible, (height, width)))


def test_random_masks_are_not_connected() -> None:
    visible = draw_mask(draws(8), "mask", grid=(8, 8), ratio=0.5, shape="random")
    assert visible is not None
    assert not any(connected(mask) for mask in hidden(visible, (8, 8)))


def z_scores(kept: Tensor, k: int) -> tuple[float, float, float]:
    """Largest |z| of P(kept), of P(both kept), and of the mean of a masked mean, from rows kept [n, L] of 0 and 1."""
    rows, tokens = kept.shape
    single = k / tokens
    pair = k * (k - 1) / (tokens * (tokens - 1))
    z_single = (kept.mean(0) - single) / math.sqrt(single * (1 - single) / rows)
    both = (kept.T @ kept / rows)[~torch.eye(tokens, dtype=torch.bool)]
    z_pair = (both - pair) / math.sqrt(pair * (1 - pair) / rows)
    losses = torch.linspace(0, 1, tokens, dtype=torch.float64) ** 2
    means = kept @ losses / k
    z_mean = (means.mean() - losses.mean()) / (means.std() / math.sqrt(rows))
    return float(z_single.abs().max()), float(z_pair.abs().max()), abs(float(z_mean))


def test_random_masks_are_unbiased() -> None:
    """P(kept) = k / L, P(both kept) = k (k - 1) / (L (L - 1)), and a masked mean has the full mean: 20,000 rows."""
    visible = draw_mask(draws(20_000), "mask", grid=(4, 8), ratio=0.4)
    assert visible is not None
    kept = (~hidden(visible, (4, 8))).flatten(1).double()
    assert max(z_scores(kept, visible.shape[1])) < 5


def test_the_statistics_notice_a_bias() -> None:
    """Control: blocks prefer the middle, so the same figures must alarm."""
    visible = draw_mask(draws(20_000), "mask", grid=(4, 8), ratio=0.4, shape="block")
    assert visible is not None
    kept = (~hidden(visible, (4, 8))).flatten(1).double()
    assert min(z_scores(kept, visible.shape[1])[:2]) > 5


def test_a_lattice_of_a_half_is_a_checkerboard_and_of_three_quarters_keeps_one_of_four() -> None:
    half = draw_mask(draws(8), "mask", grid=(8, 8), ratio=0.5, shape="grid")
    most = draw_mask(draws(8), "mask", grid=(8, 8), ratio=0.75, shape="grid")
    assert half is not None and most is not None
    for mask in hidden(half, (8, 8)):
        assert (mask[1:] != mask[:-1]).all() and (mask[:, 1:] != mask[:, :-1]).all()
    for mask in hidden(most, (8, 8)):
        assert (mask.view(4, 2, 4, 2).sum(dim=(1, 3)) == 3).all()


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 1), (0.5, 2), (0.25, 3)])
def test_cells_keep_equally_many_tokens_each_and_any_of_them(ratio: float, kept: int) -> None:
    def counts(shape: MaskShape) -> Tensor:
        visible = draw_mask(draws(2000), "mask", grid=(4, 6), ratio=ratio, shape=shape)
        assert visible is not None
        shown = ~hidden(visible, (4, 6))
        places.append(shown.unflatten(1, (2, 2)).unflatten(3, (3, 2)).sum(dim=(0, 1, 3)) / 12_000)  # [2, 2]
        return shown.unflatten(1, (2, 2)).unflatten(3, (3, 2)).sum(dim=(2, 4))  # [B, 2, 3] of the cells

    places: list[Tensor] = []
    assert (counts("cells") == kept).all()
    assert torch.allclose(places[0].double(), torch.full((2, 2), kept / 4, dtype=torch.float64), atol=0.02)
    assert not (counts("random") == kept).all()


def test_cells_choose_their_tokens_independently_of_each_other() -> None:
    """Unlike the lattice, which shifts all of them together."""

    def patterns(shape: MaskShape) -> int:
        visible = draw_mask(draws(500), "mask", grid=(8, 8), ratio=0.75, shape=shape)
        assert visible is not None
        return len(set(map(tuple, visible.tolist())))

    assert patterns("grid") <= 16
    assert patterns("cells") > 400


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_belongs_to_its_sample(shape: MaskShape) -> None:
    """The same masks in any batch; others for another sample, purpose or seed."""
    eight = draw_mask(draws(8), "mask", grid=(8, 8), ratio=0.3, shape=shape)
    two = draw_mask(KeyedDraws(0, 0, torch.tensor([5, 2])), "mask", grid=(8, 8), ratio=0.3, shape=shape)
    other_purpose = draw_mask(draws(8), "other", grid=(8, 8), ratio=0.3, shape=shape)
    other_seed = draw_mask(draws(8, seed=1), "mask", grid=(8, 8), ratio=0.3, shape=shape)
    assert eight is not None and two is not None and other_purpose is not None and other_seed is not None
    assert torch.equal(two, eight[[5, 2]])
    assert not torch.equal(eight[0], eight[1])
    assert not torch.equal(eight, other_purpose)
    assert not torch.equal(eight, other_seed)


def test_maskdit_keeps_the_same_tokens(published) -> None:
    """MaskDiT shuffles by rising random numbers and keeps the first: the same tokens, here in rising order."""
    numbers = published("maskdit_a")

    class Stored:
        def uniform(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
            return numbers.inputs["mask_noise"]

    visible = draw_mask(Stored(), "mask", grid=(4, 4), ratio=0.5)
    assert visible is not None
    assert torch.equal(visible, numbers.outputs["mask/ids_keep"].sort(dim=1).values)
    assert torch.equal(hidden(visible, (4, 4)).flatten(1).double(), numbers.outputs["mask/mask"])
