"""Declare the table `[ablation]` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sddit.interfaces import Params

BudgetRule = Literal["images", "flops", "time"]


class AblationSettings(Params):
    """`[ablation]`: arms and a grid of changes to this recipe, run with the same seeds and the same budget."""

    question: str = Field(
        "", description="The question of the ablation, in a sentence; shown at the top of the report."
    )
    seeds: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (0, 1, 2, 3, 4),
        min_length=1,
        strict=False,
        description="Added to the seed of the recipe, or of the arm. Every arm is run with all seeds.",
    )
    baseline: str = Field("", description="The arm that the others are compared with. Empty: the first arm.")
    metrics: tuple[str, ...] = Field(
        (),
        strict=False,
        description='Metrics to compare, such as "classifier.fd": an extractor of [evaluate] and one of its figures. '
        "Empty: the distance by every extractor.",
    )
    targets: dict[str, dict[str, float]] = Field(
        {},
        description="Scores to reach, such as targets.classifier.fd = 10. The report shows the steps and FLOPs after "
        "which each arm reached them, for metrics that [evaluate] also scores during training. Not set: what the "
        "baseline reached in every seed.",
    )
    budget: BudgetRule = Field(
        "images",
        description="What is equal in every arm and in the recipe without changes: images, flops (by the components' "
        "formulas), or time (measured once, before the first run).",
    )
    tuning: str = Field(
        "",
        description="How the settings of each arm were chosen, and with how much effort; quoted in the report. Every "
        "arm, including the baseline, should get the same effort.",
    )
    published: str = Field(
        "",
        description="Folder of published results (`sddit-run publish`), relative to the recipe. The command and the "
        "report compare this ablation with them. Changes no run; a folder that does not exist is ignored.",
    )
    arms: dict[str, dict[str, Any]] = Field(
        {},
        description="[ablation.arms.LABEL]: changes to the recipe that form an arm. Empty: the recipe without changes.",
    )
    grid: dict[str, Any] = Field({}, description="Lists of values by key, crossed with the arms and with each other.")
    pairs: tuple[dict[str, Any], ...] = Field(
        (),
        strict=False,
        description="[[ablation.pairs]]: lists of equal length, paired by position and crossed with the rest.",
    )
