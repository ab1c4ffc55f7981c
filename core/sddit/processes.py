"""Which of several processes this one is, as torchrun says by its environment. No torch."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes make this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine, which is that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0
