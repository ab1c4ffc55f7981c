"""Define settings of the built-in optimizer and trackers. Torch-free."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from sddit.errors import Problem
from sddit.interfaces import (
    Matrix,
    OptimizerParams,
    RecipeView,
    TrackerParams,
)

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWParams(OptimizerParams):
    """Settings of `adamw`. The defaults are DiT's (arXiv:2212.09748): no decay."""

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), strict=False, description="Decay of the averages of the gradient and of its square."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second average.")
    weight_decay: float = Field(0.0, ge=0, description="Fraction of a weight subtracted at each step, times lr.")
    head_weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of the losses' own heads; not set: weight_decay."
    )
    decay_all: bool = Field(False, description="Decay biases, norms and other one-dimensional weights too.")

    @property
    def state_per_parameter(self) -> int:
        return 2

    def decay(self, head: bool) -> float:
        """Return the weight decay of the losses' own heads, or of all else."""
        return self.weight_decay if self.head_weight_decay is None or not head else self.head_weight_decay

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        heads = recipe.has_heads()
        if not heads:
            yield "head_weight_decay"
        if not self.weight_decay and not (heads and self.decay(head=True)):
            yield "decay_all"


MUON_SINCE = (2, 9)  # the version of torch that introduced torch.optim.Muon


def old_torch_problem(version: str) -> Problem:
    """Return the problem of a torch without Muon."""
    since = ".".join(map(str, MUON_SINCE))
    what, expect = "this PyTorch has no torch.optim.Muon", f"torch {since} or newer"
    fix = f'pip install -U "torch>={since}", or optimizer.name = "adamw"'
    return Problem("SD-P211", what, where="optimizer.name", got=f"torch {version}", expect=expect, fix=fix)


class MuonParams(OptimizerParams):
    """Settings of `muon`. What is not said to be published is the default of torch.optim.Muon."""

    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the average of the gradient of a matrix.")
    nesterov: bool = Field(True, description="Use the average after the next step (Nesterov), rather than the average.")
    ns_steps: int = Field(
        5, ge=1, le=99, description="Newton-Schulz iterations that make the singular values of an update nearly equal."
    )
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="Factor on lr for a matrix [a, b]. match_rms_adamw: 0.2 sqrt(max(a, b)), whose updates are as "
        "large as AdamW's, so that its lr can be kept (arXiv:2502.16982); original: sqrt(max(1, a / b)). The default "
        "is our choice.",
    )
    split_qkv: bool = Field(
        True,
        description="Orthogonalize the matrices of queries, keys and values separately, as is usual, rather than as "
        "one matrix of three times as many rows.",
    )
    adamw_lr: float = Field(
        1.0, gt=0, description="Factor on lr for all that AdamW updates: embeddings, heads, biases. Our choice."
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), strict=False, description="As for `adamw`, of the parameters that it updates."
    )
    eps: float = Field(1e-8, gt=0, description="As for `adamw`, of the parameters that it updates.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Fraction of a weight subtracted at each step, times lr; biases, norms and other one-dimensional "
        "weights do not decay. The default is DiT's; that of torch.optim.Muon is 0.1.",
    )

    @property
    def takes_roles(self) -> bool:
        return True

    def state_size(self, parameters: int, matrices: Sequence[Matrix]) -> int:
        """Return the numbers kept: one for each of a matrix, two for each of the others."""
        return 2 * parameters - sum(matrix.parameters for matrix in matrices)

    def flops(self, matrices: Sequence[Matrix]) -> float:
        """Return the FLOPs of the Newton-Schulz iterations: X X^T, its square, and its product with X."""
        total = 0.0
        for matrix in matrices:
            count = matrix.stacked if self.split_qkv else 1
            short, long = sorted((matrix.rows // count, matrix.columns))
            total += count * self.ns_steps * (4.0 * short**2 * long + 2.0 * short**3)
        return total

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that torch has Muon."""
        version = importlib.metadata.version("torch")
        if tuple(int(part) for part in version.split(".")[:2]) < MUON_SINCE:
            yield old_torch_problem(version)


class CsvParams(TrackerParams):
    """`csv` has no settings."""


class TensorboardParams(TrackerParams):
    """`tensorboard` has no settings."""
