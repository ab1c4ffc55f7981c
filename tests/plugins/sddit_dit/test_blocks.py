"""Test the building blocks: patches, positions, sinusoids, embeddings, the block."""

from __future__ import annotations

import math

import pytest
import torch

from sddit_dit.blocks import (
    Block,
    LabelEmbedding,
    Positions,
    gather_tokens,
    modulate,
    patchify,
    scatter_tokens,
    sincos_positions,
    sinusoid,
    unpatchify,
)
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams


def test_patches_contain_their_pixels() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = patchify(x, (2, 3))
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[1, 4], x[1, :, 2:4, 2:4].flatten())  # second row of patches, second column
    assert torch.equal(patchify(x, (2, 2))[1, 3], x[1, :, 2:4, 3:6].flatten())  # patches need not be square


def test_unpatchify_inverts_patchify() -> None:
    x = torch.randn(2, 3, 4, 6)
    channels_last = patchify(x, (2, 3)).reshape(2, 6, 3, 4).transpose(2, 3).reshape(2, 6, 12)
    assert torch.equal(unpatchify(channels_last, (2, 3), 2), x)
    assert not torch.equal(unpatchify(patchify(x, (2, 3)), (2, 3), 2), x)


def test_scatter_tokens_inverts_gather_tokens() -> None:
    tokens, index = torch.randn(2, 6, 4), torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert torch.equal(gather_tokens(tokens, index)[1, 2], tokens[1, 4])
    assert torch.equal(scatter_tokens(gather_tokens(tokens, index), index, into=tokens), tokens)
    filled = scatter_tokens(gather_tokens(tokens, index), index, into=torch.zeros(4).expand(2, 6, 4))
    assert torch.equal(gather_tokens(filled, index), gather_tokens(tokens, index))
    assert filled[0, [1, 3, 4]].abs().max() == 0


def test_positions_follow_the_formula() -> None:
    """Column before row, sine before cosine: written out for one token of a grid that is not square."""
    width, row, column = 16, 2, 4
    table = sincos_positions((3, 5), width)
    rates = [10_000 ** (-k / (width // 4)) for k in range(width // 4)]
    expected = [wave(axis * rate) for axis in (column, row) for wave in (math.sin, math.cos) for rate in rates]
    assert table.shape == (15, width)
    torch.testing.assert_close(table[row * 5 + column], torch.tensor(expected).double(), rtol=0, atol=1e-7)


def test_positions_in_loaded_weights_replace_ours() -> None:
    positions = Positions((2, 3), 8)
    assert not positions.state_dict()
    positions.load_state_dict({})
    other = torch.randn(6, 8)
    positions.load_state_dict({"table": other})
    assert torch.equal(positions.table, other)
    with pytest.raises(RuntimeError, match=r"\(5, 8\) in the weights, \(6, 8\) in the model"):
        positions.load_state_dict({"table": torch.zeros(5, 8)})


def test_the_sinusoid_has_cosines_first_and_keeps_its_precision() -> None:
    level = torch.tensor([0.0, 1.0, 999.0], dtype=torch.float64)
    features = sinusoid(level)
    assert features.shape == (3, 256)
    assert torch.equal(features[0], torch.tensor([1.0] * 128 + [0.0] * 128, dtype=torch.float64))
    assert features[2, 5].item() == pytest.approx(math.cos(999 * 10_000 ** (-5 / 128)), abs=1e-12)
    assert (sinusoid(level.float())[2] - features[2]).abs().max() > 1e-8  # float32 would not have passed


def test_the_null_label_is_a_row_or_the_zero_vector() -> None:
    row, zero = LabelEmbedding(3, 4, zero_null=False), LabelEmbedding(3, 4, zero_null=True)
    assert (row.weight.shape, zero.weight.shape) == ((4, 4), (3, 4))
    for table in (row, zero):
        torch.nn.init.ones_(table.weight)
    labels = torch.tensor([0, 3])
    assert row(labels).sum(dim=1).tolist() == [4, 4]
    assert zero(labels).sum(dim=1).tolist() == [4, 0]


def test_modulation_is_one_plus_scale() -> None:
    x, shift, scale = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(modulate(x, shift, scale)[1, 2], x[1, 2] * (1 + scale[1]) + shift[1])
    assert torch.equal(modulate(x, torch.zeros(2, 4), torch.zeros(2, 4)), x)


def test_a_block_follows_the_formula() -> None:
    """adaLN-Zero written out with explicit statistics, one token stream, order shift, scale, gate twice."""
    torch.manual_seed(0)
    block = Block(8, 2, 2.0, 6, Eager(EagerParams())).double()
    x, act = torch.randn(2, 5, 8).double(), torch.randn(2, 6).double()

    def norm(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(act)[:, None].split(8, dim=-1)
    y = x + gate_a * block.attention(norm(x) * (1 + scale_a) + shift_a)
    hidden = block.mlp.up(norm(y) * (1 + scale_m) + shift_m)
    gelu = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    y = y + gate_m * block.mlp.down(gelu)
    torch.testing.assert_close(block(x, act), y, rtol=1e-12, atol=1e-12)
    assert (block(x, act) - x).abs().max() > 0.01


def test_a_bias_of_minus_infinity_hides_a_token_from_a_block() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 2.0, 6, Eager(EagerParams())).double()
    x, act = torch.randn(2, 5, 8).double(), torch.randn(2, 6).double()
    other = x.clone()
    other[:, 3] *= torch.arange(8)  # a norm would undo a shift
    blind = torch.zeros(2, 5, 5).double()
    blind[:, :3, 3] = -torch.inf
    assert torch.equal(block(x, act, bias=blind)[:, :3], block(other, act, bias=blind)[:, :3])
    assert not torch.equal(block(x, act)[:, :3], block(other, act)[:, :3])
    torch.testing.assert_close(block(x, act, bias=torch.zeros_like(blind)), block(x, act), rtol=1e-12, atol=1e-12)
