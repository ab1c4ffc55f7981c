"""Plan the runs of an ablation: arms x seeds, each with its id, cost and folder. No torch.

A run's id is that of its recipe (`Recipe.run_id`). A run from outside the ablation, or from another one, is found in
`--out` by its id and reused; two arms with the same recipe share their runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sddit.ablations.planning.arms import Ablation, Arm
from sddit.ablations.planning.budget import budget_of, recipe_at_budget
from sddit.ablations.planning.measurements import Measurements, with_threads
from sddit.ablations.planning.records import (
    ArmRecord,
    BudgetRecord,
    LeakCheck,
    PlanRecord,
    RunRecord,
    by_setting,
)
from sddit.formatting import slug
from sddit.plugins.discovery import OURS
from sddit.recipes.differences import differences
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import RECIPE, REPORT

SOURCE_TABLES = ("plugins", "code")
"""Tables of a resolved recipe with the sources of its components; what these do is set in the other tables."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One arm at one seed."""

    arm: str
    seed: int  # of the ablation's seeds; the recipe's own is added to it
    recipe: Recipe  # with its CPU threads
    folder: Path

    @property
    def id(self) -> str:
        return self.recipe.run_id

    @property
    def title(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class AblationPlan(Ablation):
    """An ablation with its runs. Its arms have the length that the budget allows; while that is unknown, their own."""

    id: str
    runs: tuple[PlannedRun, ...]  # by seed, so that all arms can be compared early; none while the budget is not known
    budget: BudgetRecord
    folder: Path
    measurements: Measurements

    @property
    def needed(self) -> list[PlannedRun]:
        """The runs without repetition: arms with the same recipe share theirs."""
        first: dict[Path, PlannedRun] = {}
        for run in self.runs:
            first.setdefault(run.folder, run)
        return list(first.values())

    @property
    def is_undecoded(self) -> bool:
        """Return whether the samples of every arm are latents without a decoder."""
        return not any(arm.recipe.facts.gives_images for arm in self.arms)

    def record(self) -> PlanRecord:
        """Return the plan as `plan.json` holds it. Run folders are relative to the plan's own."""
        recipes, leaks = {arm.label: arm.recipe for arm in self.arms}, self.measurements.leaks
        return PlanRecord(
            name=self.base.name,
            id=self.id,
            command=self.command,
            question=self.settings.question,
            tuning=self.settings.tuning,
            seeds=self.settings.seeds,
            metrics=self.metrics,
            targets=dict(leaves(self.settings.targets)),
            budget=self.budget,
            threads=self.measurements.threads,
            published=os.path.relpath(self.published, self.folder) if self.published else "",
            data=self.arms[0].recipe.facts.source,
            undecoded=self.is_undecoded,
            arms=tuple(arm_record(arm, recipes[arm.baseline], leaks.get(arm.label)) for arm in self.arms),
            runs=tuple(
                RunRecord(run.arm, run.seed, run.id, os.path.relpath(run.folder, self.folder)) for run in self.runs
            ),
        )


def arm_record(arm: Arm, baseline: Recipe, leaks: LeakCheck | None) -> ArmRecord:
    """Return an arm as `plan.json` holds it, with the settings that change numbers and differ from the baseline's."""
    cost, recipe = arm.cost, arm.recipe
    differing = [
        (key, theirs, own)
        for key, theirs, own, kind in differences(baseline.to_json(), recipe.to_json())
        if kind != "free" and not key.startswith(SOURCE_TABLES)
    ]
    return ArmRecord(
        label=arm.label,
        changes=arm.changes,
        baseline=arm.baseline,
        named=arm.named,
        steps=cost.steps,
        batch=cost.batch,
        images=arm.images,
        flops=cost.training_flops,
        flops_per_step=cost.flops_per_step,
        flops_course=cost.course,
        sampling_flops_per_image=cost.sampling_flops_per_image,
        parameters=arm.parameters,
        sampled_parameters=cost.backbone_parameters,
        memory=cost.memory.total,
        not_stated=cost.not_stated,
        idle=recipe.idle,
        warnings=recipe.warnings,
        leaks=leaks,
        monitors={label: tuple(chosen.params.monitors()) for label, chosen in recipe.active_losses.items()},
        shared_clip=recipe.has_shared_clip(),
        differs=by_setting(differing),
    )


def make_plan(ablation: Ablation, out: Path, known: Measurements | None = None, *, copy: int = 1) -> AblationPlan:
    """Return the plan of an ablation in the folder `out` of run folders.

    Args:
        known: measurements of earlier commands; a budget of time without seconds per step gives no runs.
        copy: 1: runs are reused. 2 and above: that further copy, in which nothing is shared.

    Raises:
        SdditError: if an arm cannot be run at the length that its budget allows.
    """
    known = known or Measurements()
    folder, budget = folder_of(ablation, out, copy), budget_of(ablation, known.pace)
    arms = tuple(replace(arm, recipe=recipe_at_budget(budget, arm)) for arm in ablation.arms)
    planned = replace(ablation, arms=arms)
    runs = runs_of(planned, folder if copy > 1 else out, known.threads, shared=copy == 1)
    return AblationPlan(
        **vars(planned),
        id=ablation_id(ablation),
        runs=() if budget.amount is None else tuple(runs),
        budget=budget,
        folder=folder,
        measurements=known,
    )


def runs_of(ablation: Ablation, out: Path, threads: int | None, *, shared: bool) -> Iterator[PlannedRun]:
    """Yield arms x seeds, each with its folder; `shared`: equal recipes share one."""
    folders: dict[str, Path] = {}
    for seed in ablation.settings.seeds:
        for arm in ablation.arms:
            name = f"{ablation.base.name}-{slug(arm.label)}"  # `abl-mask_ratio-0.1` for the arm `mask_ratio=0.1`
            recipe = replace(with_threads(arm.recipe, threads), name=name, seed=arm.recipe.seed + seed)
            own = out / f"{name}-{recipe.run_id}"
            place = folders.setdefault(recipe.run_id, run_folder_of(recipe, own)) if shared else own
            yield PlannedRun(arm.label, seed, replace(recipe, name=place.name[: -len(recipe.run_id) - 1]), place)


def ablation_id(ablation: Ablation) -> str:
    """Return a hash of the arms at their own length and of the budget. More seeds or metrics keep the id."""
    identity = {
        "base": ablation.base.run_id,
        "arms": {arm.label: arm.recipe.run_id for arm in ablation.arms},
        "budget": ablation.settings.budget,
    }
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(ablation: Ablation, out: Path, copy: int = 1) -> Path:
    """Return the ablation's own folder, `<name>-<id>`, next to its run folders; a further copy contains its runs."""
    name = f"{ablation.base.name}-{ablation_id(ablation)}"
    return out / (name if copy == 1 else f"{name}-copy{copy}")


def run_folder_of(recipe: Recipe, own: Path) -> Path:
    """Return the folder of a run: an existing one next to `own`, preferably finished; else `own`."""
    held = [path for path in sorted(own.parent.glob(f"*-{recipe.run_id}")) if is_run_of(path, recipe)]
    return min(held, key=lambda path: not (path / REPORT).is_file(), default=own)


def is_run_of(folder: Path, recipe: Recipe) -> bool:
    """Return whether a run folder still has this recipe; `--allow-change` may have changed it."""
    return changes_of(folder, recipe) == []


def changes_of(folder: Path, recipe: Recipe) -> list[tuple[str, Any, Any]] | None:
    """Return (key, old, new) of each key that is not free and differs from a run folder; None if that is not one."""
    try:
        held = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        return [(key, old, new) for key, old, new, kind in differences(held, recipe.to_json()) if kind != "free"]
    except (OSError, ValueError, RecursionError, AttributeError):
        return None


def runs_of_other_numerics(run: PlannedRun) -> list[Path]:
    """Return the folders of the same run by versions of another numerics revision, which is part of the run id."""

    def is_ours(key: str, *identities: Any) -> bool:
        return key.startswith("code.") and all(one is None or str(one).startswith(f"{OURS} ") for one in identities)

    name = run.folder.name.removesuffix(run.id)
    folders = sorted(path for path in run.folder.parent.glob(f"{name}*") if path != run.folder)
    found = ((path, changes_of(path, run.recipe)) for path in folders)
    return [path for path, changes in found if changes and all(is_ours(*change) for change in changes)]
