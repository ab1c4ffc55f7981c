"""Hold everything that training depends on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sddit.backbones import Backbone
from sddit.distributed.parallel import full_tensor
from sddit.distributed.world import World
from sddit.interfaces import Dataset, NoiseSchedule, PairSampler
from sddit.recipes.recipe import Recipe
from sddit.training.ema import EMA, Teacher
from sddit.training.networks import DTYPES, build_backbone, default_dtype
from sddit.training.student import Objective, Student

NOISE_BINS = 4  # each loss is also logged by quarter of the training noise density


@dataclass(slots=True)
class Session:
    """State of a run between two steps."""

    recipe: Recipe
    device: torch.device
    dataset: Dataset
    members: list[NDArray[np.int64]] | None  # the images of each class if batches are balanced
    schedule: NoiseSchedule
    pair_sampler: PairSampler
    objective: Objective
    student: Student
    teacher: Teacher | None
    emas: dict[str, EMA]
    trained: dict[str, list[Tensor]]  # the parameters of the backbone and of each loss that the optimizer has
    optimizer: torch.optim.Optimizer
    world: World
    initial_group_numbers: list[dict[str, float]]  # of the optimizer before the first step
    root: nn.Module  # the student itself, or its DDP wrapper
    noise_edges: Tensor  # the t that split the training noise density into equal parts, [NOISE_BINS - 1]
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # spent training, including before a resume
    sums: dict[str, Tensor] = field(default_factory=dict)  # of this log interval: sum and count, [2] float64
    skipped: list[int] = field(default_factory=list)  # steps that were skipped because they were not finite
    pid: int = field(default_factory=os.getpid)  # of the process that trains
    notes: list[str] = field(default_factory=list)  # shown to the user once, before the first step
    second: Backbone | None = None  # the second network of the guidance once it is loaded, if it is of another run

    @property
    def total_steps(self) -> int:
        return self.recipe.train.steps

    def copies(self) -> dict[str, dict[str, nn.Module]]:
        """Return the EMAs and the parts of the teacher: {file of a checkpoint that holds them: {name: module}}."""
        found: dict[str, dict[str, nn.Module]] = {
            "ema": {label: ema.module for label, ema in self.emas.items()},
            "teacher": self.teacher.parts() if self.teacher else {},
        }
        return {file: modules for file, modules in found.items() if modules}

    def weights(self, label: str) -> Backbone:
        """Return the backbone to sample with: an EMA by its label, or `student`. Call it on all ranks."""
        module = self.student.backbone if label == "student" else self.emas[label].module
        if not isinstance(self.root, FSDPModule):
            return module
        # Ranks sample different numbers of images, so each gets a backbone with full weights.
        with default_dtype(DTYPES[self.recipe.train.precision]):
            backbone = build_backbone(self.recipe, device="cpu")
        backbone.load_state_dict({name: full_tensor(tensor).cpu() for name, tensor in module.state_dict().items()})
        return backbone.to(self.device).eval().requires_grad_(False)
