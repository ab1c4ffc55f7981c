"""Build a session from a recipe: networks, losses, optimizer and EMAs."""

from __future__ import annotations

import copy
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._functorch import config as functorch_config

from sddit.data.order import class_members
from sddit.distributed.parallel import wrap_parallel
from sddit.distributed.world import World
from sddit.errors import error
from sddit.interfaces import Dataset, LabelledDataset, NoiseSchedule
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import LocatedWeights
from sddit.training.ema import EMA, Teacher
from sddit.training.networks import DTYPES, build_backbone, build_terms, default_dtype
from sddit.training.optimization import group_numbers
from sddit.training.session import NOISE_BINS, Session
from sddit.training.student import Objective, Student
from sddit.training.warm_start import load_snapshot, load_start_weights


def build_session(
    recipe: Recipe,
    device: torch.device,
    *,
    start: LocatedWeights | None = None,
    snapshot: LocatedWeights | None = None,
    world: World | None = None,
) -> Session:
    """Build the session of a run before its first step, for one process of `world`.

    `start` and `snapshot` are the weights of the tables of these names. They are not needed where a checkpoint will be
    restored, or where only the speed or the shapes matter.
    """
    world = world or World()
    with default_dtype(DTYPES[recipe.train.precision]):
        backbone = build_backbone(recipe, device="cpu")
        notes = load_start_weights(start, backbone, partial=recipe.start.partial) if start and recipe.start else []
        schedule: NoiseSchedule = recipe.noise_schedule.build()
        terms = build_terms(recipe)
    precision = torch.bfloat16 if recipe.train.precision == "bf16" else None
    component_names = {label: chosen.component.qualified for label, chosen in recipe.active_losses.items()}
    student = Student(backbone, terms, schedule, precision, component_names).to(device)
    teacher = build_teacher(recipe, student, snapshot)
    emas = {label: EMA(settings, student.backbone) for label, settings in recipe.ema.items()}
    # After the copies, so that these are not affected.
    backbone.set_checkpointing(recipe.train.activation_checkpointing)
    if recipe.train.compile:
        functorch_config.donated_buffer = False  # gradient ratios run backward twice through one forward
        for block in backbone.blocks:
            block.compile()
    copies = [*(ema.module for ema in emas.values()), *(teacher.parts().values() if teacher else ())]
    root = wrap_parallel(student, copies, world, recipe.train.distributed)
    quantiles = torch.arange(1, NOISE_BINS, dtype=torch.float64, device=device) / NOISE_BINS
    optimizer = recipe.optimizer.build()(parameter_groups(recipe, student), device)
    dataset: Dataset = recipe.dataset.build(split="train")
    return Session(
        recipe=recipe,
        trained=student.trained_parameters(),
        device=device,
        dataset=dataset,
        members=members_of(dataset, recipe) if recipe.dataset.params.balanced else None,
        schedule=schedule,
        pair_sampler=recipe.pair_sampler.build(grid=recipe.backbone.params.grid(recipe.shapes)),
        objective=Objective(recipe),
        student=student,
        teacher=teacher,
        emas=emas,
        optimizer=optimizer,
        initial_group_numbers=group_numbers(optimizer),
        world=world,
        root=root,
        noise_edges=schedule.t_from_uniform(quantiles),
        notes=notes,
    )


def members_of(dataset: Dataset, recipe: Recipe) -> list[NDArray[np.int64]]:
    """Return the images of each class. Raises SD-D318 for a data set that does not state its labels."""
    if not isinstance(dataset, LabelledDataset):
        raise error(
            "SD-D318",
            f"data set {recipe.dataset.component.name!r} cannot be balanced: it does not state its labels",
            where="dataset.balanced",
            expect="a data set with a method labels()",
            fix="dataset.balanced = false",
        )
    return class_members(dataset.labels().numpy())


def build_teacher(recipe: Recipe, student: Student, snapshot: LocatedWeights | None) -> Teacher | None:
    """Build the teacher if an active loss reads one, without the parts that none of them reads.

    With `[snapshot]`, raises SD-R108 if a loss averages modules of its own, and SD-C452 if the weights do not fit.
    """
    needs = [chosen.params.needs().teacher for chosen in recipe.active_losses.values()]
    if not (wants := [want for want in needs if want is not None]):
        return None
    want = reduce(or_, wants)
    taps = None if want.output else want.taps
    if recipe.snapshot is None:
        return Teacher(student.backbone, student.terms, taps)
    refuse_own_modules(student)
    backbone = copy.deepcopy(student.backbone)
    if snapshot is not None:
        load_snapshot(snapshot, backbone)
    return Teacher(backbone, student.terms, taps, frozen=True)


def refuse_own_modules(student: Student) -> None:
    """Raise SD-R108 for a loss that compares with an EMA of its own modules, which a snapshot does not have."""
    for label, term in student.terms.items():
        if term.ema_modules:
            raise error(
                "SD-R108",
                f"loss {label!r} compares with an EMA of its own modules, which a snapshot does not have",
                where=f"loss.{label}",
                got=", ".join(term.ema_modules),
                fix="remove [snapshot], or this loss",
            )


def parameter_groups(recipe: Recipe, student: Student) -> list[dict[str, Any]]:
    """Return what is trained of the backbone, and the heads of the losses at their own learning rate."""
    backbone, *of_losses = student.trained_parameters().values()
    groups = [{"params": backbone, "lr_scale": 1.0, "head": False}]
    if heads := [parameter for parameters in of_losses for parameter in parameters]:
        groups.append({"params": heads, "lr_scale": recipe.optimizer.params.head_lr, "head": True})
    return groups
