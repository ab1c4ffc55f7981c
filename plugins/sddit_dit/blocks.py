"""Building blocks of a diffusion transformer (DiT, arXiv:2212.09748), for use by any plugin.

Modules here only use torch's default initialization: a backbone initializes its parameters by name, see
`sddit_dit.frame.Frame.init_parameter`. `act` is always silu(c), [B, C], where c is the condition: noise level plus
label.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sddit.interfaces import Attention
from sddit_dit.cost import SINUSOID

PERIOD = 10_000.0  # longest period of both sinusoids


def patchify(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, N, C p q], row by row. A patch is ordered like a conv kernel."""
    (b, c, height, width), (h, w) = x.shape, grid
    return x.reshape(b, c, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, -1)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Join tokens [B, N, p p C] into images [B, C, H, W]. Channels come last, as in published final layers."""
    h, w = grid
    split = tokens.reshape(tokens.shape[0], h, w, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, h * patch, w * patch)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the tokens of [B, N, D] at positions `index` [B, K], as [B, K, D]."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(tokens: Tensor, index: Tensor, into: Tensor) -> Tensor:
    """Return a copy of `into` [B, N, D] with `tokens` [B, K, D] at positions `index` [B, K]."""
    return into.scatter(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]), tokens.to(into.dtype))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, unchanged, whose gradient is multiplied by `factor`."""
    if factor == 1 or not x.requires_grad:
        return x
    if factor == 0:
        return x.detach()
    scaled = x.view_as(x)
    scaled.register_hook(lambda gradient: factor * gradient)  # type: ignore[no-untyped-call]  # untyped in torch
    return scaled


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return the fixed 2-D table [N, D], float64: features of the column, then of the row; sines before cosines."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    rate = PERIOD ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # [D / 4]
    angles = [axis.reshape(-1, 1) * rate for axis in (columns, rows)]  # two of [N, D / 4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class Positions(nn.Module):
    """Fixed position table [N, D]. It is not saved in state dicts; an entry `table` in loaded weights replaces it."""

    table: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        table = sincos_positions(grid, width).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)
        self.register_load_state_dict_pre_hook(self._load_table)  # type: ignore[no-untyped-call]  # untyped in torch

    @staticmethod
    def _load_table(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        *_, errors = rest
        if (loaded := state.pop(prefix + "table", None)) is None:
            return
        table = module.get_buffer("table")
        if loaded.shape == table.shape:
            table.copy_(loaded)
        else:
            errors.append(f"{prefix}table: {tuple(loaded.shape)} in the weights, {tuple(table.shape)} in the model")


def sinusoid(level: Tensor) -> Tensor:
    """Embed noise levels [B] as [B, 256] in their dtype, cosines before sines."""
    half = SINUSOID // 2
    rate = torch.exp(torch.arange(half, dtype=level.dtype, device=level.device) * (-math.log(PERIOD) / half))
    angle = level[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift for x [B, n, D] and one shift and scale [B, D] per image."""
    return x * (1 + scale[:, None]) + shift[:, None]


def normalize(x: Tensor) -> Tensor:
    """Apply LayerNorm over the last axis, without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class TimestepEmbedding(nn.Module):
    """Noise levels [B] -> [B, D]: sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(SINUSOID, width)
        self.out = nn.Linear(width, width)

    def forward(self, level: Tensor) -> Tensor:
        dtype = self.hidden.weight.dtype
        features = sinusoid(level.to(torch.promote_types(dtype, torch.float32))).to(dtype)
        embedded: Tensor = self.out(F.silu(self.hidden(features)))
        return embedded


class LabelEmbedding(nn.Module):
    """Labels [B] -> [B, D]. The null label is the last row of the table, or the zero vector without a row (MaskDiT)."""

    def __init__(self, num_classes: int, width: int, *, zero_null: bool) -> None:
        super().__init__()
        self.zero_null = zero_null
        self.weight = nn.Parameter(torch.empty(num_classes + (not zero_null), width))

    def forward(self, labels: Tensor) -> Tensor:
        table = F.pad(self.weight, (0, 0, 0, 1)) if self.zero_null else self.weight
        return F.embedding(labels, table)


class SelfAttention(nn.Module):
    """Multi-head self-attention of [B, n, D] with a pluggable kernel. A bias is [heads, n, n] or [B, heads, n, n]."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, groups: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = self.attention(q, k, v, bias=bias, groups=groups)  # [B, heads, n, d]
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, width))
        return out


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Transformer block with adaLN-Zero (arXiv:2212.09748, section 3.2), initialized as the identity.

    One Linear of silu(c) computes shift, scale and gate of the attention, then of the MLP. `condition` is the width of
    c.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, condition: int, attention: Attention) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 6 * width)
        self.attention = SelfAttention(width, heads, attention)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, act: Tensor, groups: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(act).chunk(6, dim=-1)  # each [B, D]
        x = x + gate_a[:, None] * self.attention(modulate(normalize(x), shift_a, scale_a), groups, bias)
        out: Tensor = x + gate_m[:, None] * self.mlp(modulate(normalize(x), shift_m, scale_m))
        return out


class AdaptiveLinear(nn.Module):
    """LayerNorm, shift and scale from c, Linear: DiT's final layer, and MaskDiT's bridge from encoder to decoder."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 2 * width)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, act: Tensor) -> Tensor:
        shift, scale = self.modulation(act).chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(normalize(x), shift, scale))
        return out
