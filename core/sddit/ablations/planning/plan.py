"""Plan the runs of an ablation: arms x seeds, each with its id, cost and folder. No torch.

A run's id is that of its recipe (`Recipe.run_id`). A run from outside the ablation, or from another one, is found in
`--out` by its id and reused; two arms with the same recipe share their runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arms import Ablation
from sddit.ablations.planning.budget import Budget, Pace, budget_of, recipe_at_budget, unmeasured
from sddit.ablations.planning.records import (
    ArmRecord,
    BudgetRecord,
    LeakCheck,
    PlanRecord,
    RunRecord,
    SettingDifference,
)
from sddit.formatting import slug
from sddit.plugins.host import Host
from sddit.recipes.costs import Plan
from sddit.recipes.costs import plan as cost_of
from sddit.recipes.differences import by_leaf, differences
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import RECIPE, REPORT

SOURCE_TABLES = ("plugins", "code")
"""Tables of a resolved recipe with the sources of its components; what these do is set in the other tables."""


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """An arm at the length that its budget allows."""

    label: str
    changes: dict[str, Any]
    baseline: str
    named: str
    recipe: Recipe
    cost: Plan
    leaks: LeakCheck | None = None  # None: not tested yet

    @property
    def images(self) -> int:
        """Images seen in the run."""
        return self.cost.steps * self.cost.batch

    @property
    def parameters(self) -> int | None:
        """Trained parameters: the backbone and the heads of the losses."""
        parts = [self.cost.backbone_parameters, *self.cost.heads_parameters.values()]
        return None if None in parts else sum(part or 0 for part in parts)

    def record(self, baseline: PlannedArm) -> ArmRecord:
        """Return the arm as `plan.json` holds it, with its differences from the baseline."""
        cost, recipe = self.cost, self.recipe
        return ArmRecord(
            label=self.label,
            changes=self.changes,
            baseline=self.baseline,
            named=self.named,
            steps=cost.steps,
            batch=cost.batch,
            images=self.images,
            flops=cost.training_flops,
            flops_per_step=cost.flops_per_step,
            flops_course=tuple(cost.course),
            sampling_flops_per_image=cost.sampling_flops_per_image,
            parameters=self.parameters,
            sampled_parameters=cost.backbone_parameters,
            memory=cost.memory.total,
            not_stated=tuple(cost.not_stated),
            idle=tuple(recipe.idle),
            warnings=tuple(recipe.warnings),
            leaks=self.leaks,
            monitors={label: tuple(chosen.params.monitors()) for label, chosen in recipe.active_losses.items()},
            differs=tuple(differs(self, baseline)),
        )


def differs(arm: PlannedArm, baseline: PlannedArm) -> Iterator[SettingDifference]:
    """Yield the settings of the resolved recipes that differ and change numbers."""
    found = differences(baseline.recipe.to_json(), arm.recipe.to_json())
    settings = [
        (key, theirs, own) for key, theirs, own, kind in found if kind != "free" and not key.startswith(SOURCE_TABLES)
    ]
    return (SettingDifference(*one) for one in by_leaf(settings))


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One arm at one seed."""

    arm: str
    seed: int  # of the ablation's seeds; the recipe's own is added to it
    recipe: Recipe
    folder: Path

    @property
    def id(self) -> str:
        return self.recipe.run_id

    @property
    def title(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationPlan:
    """All runs of an ablation."""

    name: str
    id: str
    settings: AblationSettings
    metrics: tuple[str, ...]
    arms: tuple[PlannedArm, ...]  # at the recipe's own length while the budget is not known
    runs: tuple[PlannedRun, ...]  # by seed, so that all arms can be compared early; none while the budget is not known
    budget: Budget | None  # None: of time, and not measured yet
    folder: Path
    threads: int | None = None  # of each run, where the recipe does not set them
    command: str = ""  # the command that runs it
    published: Path | None = None  # results to compare with

    @property
    def needed(self) -> list[PlannedRun]:
        """The runs without repetition: arms with the same recipe share theirs."""
        first: dict[Path, PlannedRun] = {}
        for run in self.runs:
            first.setdefault(run.folder, run)
        return list(first.values())

    def record(self) -> PlanRecord:
        """Return the plan as `plan.json` holds it. Run folders are relative to the plan's own."""
        budget, by_label = self.budget, {arm.label: arm for arm in self.arms}
        return PlanRecord(
            name=self.name,
            id=self.id,
            command=self.command,
            question=self.settings.question,
            tuning=self.settings.tuning,
            seeds=tuple(self.settings.seeds),
            metrics=tuple(self.metrics),
            targets=dict(leaves(self.settings.targets)),
            budget=BudgetRecord(
                self.settings.budget, budget.amount if budget else None, dict(budget.pace) if budget else {}
            ),
            threads=self.threads,
            published=os.path.relpath(self.published, self.folder) if self.published else "",
            data=self.arms[0].recipe.facts.source,
            arms=tuple(arm.record(by_label[arm.baseline]) for arm in self.arms),
            runs=tuple(
                RunRecord(run.arm, run.seed, run.id, os.path.relpath(run.folder, self.folder)) for run in self.runs
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`."""
        return self.record().to_json()


def make_plan(
    ablation: Ablation,
    out: Path,
    *,
    pace: Pace | None = None,
    threads: int | None = None,
    leaks: Mapping[str, LeakCheck] | None = None,
    copy: int = 1,
    host: Host | None = None,
) -> AblationPlan:
    """Return the plan of an ablation in the folder `out` of run folders.

    Args:
        pace: seconds per step of every arm, for a budget of time; without it the plan has no runs.
        threads: CPU threads of each run.
        leaks: results of the leak test, by arm.
        copy: 1: runs are reused. 2 and above: that further copy, in which nothing is shared.

    Raises:
        SdditError: if an arm cannot be run at the length that its budget allows.
    """
    budget = None if unmeasured(ablation, pace or {}) else budget_of(ablation, pace or {})
    lengths = [recipe_at_budget(budget, arm, host) if budget else arm.recipe for arm in ablation.arms]
    arms = tuple(
        PlannedArm(
            arm.label, dict(arm.changes), arm.baseline, arm.named, recipe, cost_of(recipe), (leaks or {}).get(arm.label)
        )
        for arm, recipe in zip(ablation.arms, lengths, strict=True)
    )
    folder = folder_of(ablation, out, copy)
    runs = runs_of(ablation, arms, folder if copy > 1 else out, shared=copy == 1) if budget else ()
    return AblationPlan(
        name=ablation.base.name,
        id=ablation_id(ablation),
        settings=ablation.settings,
        metrics=ablation.metrics,
        arms=arms,
        runs=tuple(runs),
        budget=budget,
        folder=folder,
        threads=threads,
        command=ablation.command,
        published=ablation.published,
    )


def runs_of(ablation: Ablation, arms: Sequence[PlannedArm], out: Path, *, shared: bool) -> Iterator[PlannedRun]:
    """Yield arms x seeds, each with its folder; `shared`: equal recipes share one."""
    folders: dict[str, Path] = {}
    for seed in ablation.settings.seeds:
        for arm in arms:
            name = run_name(ablation.base.name, arm.label)
            recipe = replace(arm.recipe, name=name, seed=arm.recipe.seed + seed)
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


def run_name(ablation: str, arm: str) -> str:
    """Return the prefix of the run folders of an arm, such as `abl-mask_ratio-0.1` for the arm `mask_ratio=0.1`."""
    return f"{ablation}-{slug(arm)}"


def run_folder_of(recipe: Recipe, own: Path) -> Path:
    """Return the folder of a run: an existing one next to `own`, preferably finished; else `own`."""
    held = [path for path in sorted(own.parent.glob(f"*-{recipe.run_id}")) if is_run_of(path, recipe)]
    finished = [path for path in held if (path / REPORT).is_file()]
    return next(iter([*finished, *held]), own)


def is_run_of(folder: Path, recipe: Recipe) -> bool:
    """Return whether a run folder still has this recipe; `--allow-change` may have changed it."""
    try:
        held = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return all(kind == "free" for *_, kind in differences(held, recipe.to_json()))


def with_threads(recipe: Recipe, threads: int | None) -> Recipe:
    """Return the recipe with that many CPU threads, unless it sets them itself."""
    if threads is None or recipe.train.threads is not None:
        return recipe
    return replace(recipe, train=recipe.train.model_copy(update={"threads": threads}))
