"""Draw keyed random numbers: each is a pure function of (seed, purpose, step, sample), without hidden state.

This gives exact resume, equal samples at any batch size and number of processes, and equal noise in all ablation arms.
The generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose output is a
function of a 64-bit key and a 128-bit counter. Here the key is a hash of seed and purpose, and the counter holds
(block, sample, step, epoch); the epoch distinguishes the visits of one image. All draws of a batch are one vectorised
call, on the device where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from sddit.interfaces.batch import Scope

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORDS = 4  # 32-bit numbers of one counter


def key_of(seed: int, purpose: str) -> tuple[int, int]:
    """Return the Philox key of a purpose: 64 bits of blake2b, as two words."""
    digest = blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Apply Philox 4x32-10 to counters [4, n], int64 with 32-bit words. Returns the same shape and dtype."""
    a, b, c, d = counter
    for turn in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # wraps at 64 bits: both halves stay correct
        k0, k1 = ((key[i] + turn * WEYL[i]) & MASK for i in range(2))
        a, b = ((right >> 32) & MASK) ^ b ^ k0, right & MASK
        c, d = ((left >> 32) & MASK) ^ d ^ k1, left & MASK
    return torch.stack([a, b, c, d])


class KeyedDraws:
    """The draws of one batch at one step.

    Args:
        seed: the recipe's seed.
        step: optimizer step, or sampler step when sampling.
        ids: [B] image index of each sample.
        epochs: [B] number of the visit of that image; None: the first.
    """

    def __init__(self, seed: int, step: int, ids: Tensor, epochs: Tensor | None = None) -> None:
        self.seed = seed
        self.step = step
        self._ids = ids.to(torch.int64)
        self._epochs = torch.zeros_like(self._ids) if epochs is None else epochs.to(torch.int64)

    def select(self, rows: Tensor) -> KeyedDraws:
        """Return the draws of some samples of the batch."""
        return KeyedDraws(self.seed, self.step, self._ids[rows], self._epochs[rows])

    def normal(self, purpose: str, shape: Sequence[int] = (), *, scope: Scope = "sample") -> Tensor:
        """Return standard normal numbers [B, *shape] float32, by Box-Muller in float64. For `scope` see `Draws`."""
        count = math.prod(shape)
        u = self._uniform(purpose, 2 * count, scope)
        radius = (-2 * u[:, :count].log()).sqrt_()
        return radius.mul_((2 * math.pi * u[:, count:]).cos_()).to(torch.float32).view(-1, *shape)

    def uniform(self, purpose: str, shape: Sequence[int] = (), *, scope: Scope = "sample") -> Tensor:
        """Return uniform numbers in the open interval (0, 1), [B, *shape] float64. For `scope` see `Draws`."""
        return self._uniform(purpose, math.prod(shape), scope).view(-1, *shape)

    def _uniform(self, purpose: str, count: int, scope: Scope) -> Tensor:
        """Return [B, count] uniform numbers of 32 bits."""
        if not isinstance(purpose, str):
            raise TypeError(f"the first argument is a purpose, such as 'my_loss/noise', not {type(purpose).__name__}")
        ids, epochs = self._ids, self._epochs
        if scope == "step":
            ids = epochs = torch.zeros(1, dtype=torch.int64)
        blocks = -(-count // WORDS)
        shape = (len(ids), blocks)
        counter = torch.stack(
            [
                torch.arange(blocks, device=ids.device).expand(shape),
                ids[:, None].expand(shape),
                torch.full(shape, self.step & MASK, device=ids.device),
                epochs[:, None].expand(shape),
            ]
        )
        words = philox(counter.view(WORDS, -1), key_of(self.seed, f"{purpose}@{scope}"))
        numbers = words.view(WORDS, *shape).permute(1, 2, 0).reshape(len(ids), blocks * WORDS)
        return (numbers[:, :count].to(torch.float64) + 0.5) / 2.0**32


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator keyed by purpose, such as `init/blocks.0.attn.qkv.weight`, for initial weights."""
    low, high = key_of(seed, purpose)
    return torch.Generator().manual_seed((high << 31) ^ low)
